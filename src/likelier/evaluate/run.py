"""The evaluation of a run directory."""

from collections.abc import Sequence
from typing import Any

import torch

from likelier.data.chat import Encoder
from likelier.data.load import Side, load_sides
from likelier.errors import RunError
from likelier.evaluate.answers import Answers, ask
from likelier.evaluate.exam import Exam, Say, make_exam, quiet
from likelier.evaluate.held_out import measure_held_out, measure_kl
from likelier.evaluate.probes import measure_probes
from likelier.evaluate.samples import side_by_side
from likelier.logprobs.reference import ReferenceStore, identity, numerics_of
from likelier.logprobs.scorer import Scorer
from likelier.model_files import cache_dir
from likelier.models import LoadedModel, as_reference, fingerprint, held_as, load_model, load_trained
from likelier.objectives import make_objective
from likelier.probes import probes_of
from likelier.recipe import Recipe, load_recipe
from likelier.rundir import RunDir, write_json, write_jsonl


def evaluate(run: RunDir, say: Say = quiet, *, probe_files: Sequence[str] = ()) -> dict[str, Any] | None:
    """Ask the run's model and its reference, in the run's own arithmetic, and write eval.json, samples.jsonl and probes.jsonl. Returns what eval.json
    holds. `probe_files` are asked beside those of the recipe.

    A run without held-out pairs is not evaluated: None. Raises RunError where the run did not end, or its data or its base model are no longer
    those it was trained with.
    """
    recipe, manifest = load_recipe(run.require().recipe), run.read_manifest()
    if not manifest.get("outcome"):
        raise RunError(f"{run.path}: this run has not ended. `likelier train` with the same recipe goes on with it.")
    files = tuple(dict.fromkeys([*recipe.eval.probe_files, *probe_files]))
    recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"probe_files": files})})
    probes_of(recipe.eval.probes, files)  # a file that is wrong is refused before anything is loaded
    numerics = manifest["numerics"]
    dtype = getattr(torch, numerics["weights_dtype"])
    full = recipe.train.method == "full"
    loaded = load_trained(run.model, recipe.model, dtype=dtype, **held_as(recipe))
    if not full:
        _require_base(run, manifest, loaded)
    tokenizer = loaded.tokenizer
    encoder = Encoder(tokenizer, chat_template=recipe.model.chat_template, max_length=recipe.data.max_length)
    held_out = _held_out(run, manifest, recipe, encoder)
    if not held_out.records:
        say("Nothing was held out, so there is nothing to evaluate on: set data.eval or data.eval_fraction.")
        return None
    exam = make_exam(recipe, tokenizer, held_out, end_token_id=encoder.end_token_id, say=say)
    arithmetic = {"engine": numerics["engine"], "precision": numerics["precision"], "pad_id": encoder.end_token_id}
    after = ask(exam, Scorer(loaded.model, **arithmetic), say=lambda text: say(f"Tuned model: {text}"))
    if full:
        del loaded  # never two models at once
        loaded = load_model(recipe.model, dtype=dtype)
        _require_base(run, manifest, loaded)
    with as_reference(loaded.model):
        scorer = Scorer(loaded.model, **arithmetic)
        # The one that training filled, if this is the same machinery.
        store = ReferenceStore(cache_dir() / "reference", identity(weights=manifest["model"]["weights"], numerics=numerics_of(scorer)))
        before = ask(exam, scorer, sampled=after.sampled, store=store, say=lambda text: say(f"Reference: {text}"))
    measured = measure_probes(exam, before, after)
    result = {**compare(exam, before, after), "probes": [probe.summary() for probe in measured]}
    write_json(run.eval, result)
    write_jsonl(run.probes, [row for probe in measured for row in probe.rows()])
    write_jsonl(run.samples, side_by_side(exam, before, after))
    return result


def _require_base(run: RunDir, manifest: dict[str, Any], base: LoadedModel) -> None:
    if fingerprint(base.model) != manifest["model"]["weights"]:
        raise RunError(f"{run.path}: `{base.name}` no longer has the weights that this run began with, so it is not its reference. Put them back.")


def _held_out(run: RunDir, manifest: dict[str, Any], recipe: Recipe, encoder: Encoder) -> Side:
    objective = make_objective(recipe.objective.name, **recipe.objective.given())
    _, held_out = load_sides(recipe.data, encoder, unpaired=not objective.paired)
    if held_out.id != manifest["data"]["eval"]["id"]:
        raise RunError(
            f"{run.path}: the held-out pairs of {', '.join(held_out.sources)} are not those of this run any more (data set {held_out.id[:12]}, "
            f"then {manifest['data']['eval']['id'][:12]}). Put the files back as they were, or train again."
        )
    return held_out


def compare(exam: Exam, before: Answers, after: Answers) -> dict[str, Any]:
    """eval.json: what the run changed, each number with its 95% interval over prompts."""
    objective = make_objective(exam.recipe.objective.name, **exam.recipe.objective.given())
    result = measure_held_out(exam.held_out, objective, policy=after.logps, reference=before.logps)
    result["held_out"]["kl"] = measure_kl(after.sampled, policy=after.logps, reference=before.logps, limit=exam.recipe.eval.max_new_tokens)
    return result
