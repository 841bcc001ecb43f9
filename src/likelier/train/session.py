"""A training run from recipe to model folder: everything around the loop.

prepare     read, split, encode · load · choose the engine        (touches no disk but caches)
open_run    the run directory: fresh, or resumed if it is the same recipe's
then        fill the reference store · fit · keep the best · save · write down what happened
"""

import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from likelier.audit.gate import check_names, open_gate
from likelier.data.chat import Encoder, template_hash, tokenizer_hash
from likelier.data.load import Side, load_sides
from likelier.errors import RecipeError, RunError, TrainingStopped, lacks_memory
from likelier.examples import Example
from likelier.logprobs.examples import mismatched, sequences_of
from likelier.logprobs.reference import ReferenceStore, fill, identity
from likelier.logprobs.scorer import DTYPES, TOLERANCE, Parity, Scorer, choose_engine
from likelier.model_files import cache_dir
from likelier.models import (
    LoadedModel,
    add_adapter,
    as_reference,
    fingerprint,
    load_model,
    pick_device,
    pick_precision,
    recompute_activations,
    save_trained,
    trainable,
)
from likelier.objectives import Objective, make_objective
from likelier.recipe import NOT_SHAPING, Recipe, load_recipe
from likelier.rundir import RunDir, metrics_header, provenance_notes, write_atomic, write_json, write_jsonl
from likelier.train import checkpoint
from likelier.train.card import model_card
from likelier.train.loop import fit
from likelier.train.master import MasterWeights
from likelier.train.order import ExampleOrder
from likelier.train.outlook import announce
from likelier.train.progress import Progress
from likelier.train.step import require_whole_steps

LONG_AUDIT = 5000
"""Training pairs from which the audit is announced."""


@dataclass
class Prepared:
    """All that a run needs, checked, before it leaves a trace."""

    recipe: Recipe
    objective: Objective
    loaded: LoadedModel
    train: Side
    held_out: Side
    policy: Scorer
    parity: Parity
    weights: str  # fingerprint of the reference's weights
    audit: dict[str, Any]  # what the manifest says about the audit of the training pairs

    @property
    def numerics(self) -> dict[str, Any]:
        """What alters a reference's numbers beside its weights."""
        dtype = next(p.dtype for name, p in self.policy.model.named_parameters() if "lora_" not in name)
        return {
            "precision": self.policy.precision,
            "weights_dtype": str(dtype).removeprefix("torch."),
            "device": self.policy.device.type,
            "engine": self.policy.engine,
            "torch": torch.__version__,
            "transformers": version("transformers"),
        }


def prepare(recipe: Recipe, show: Progress) -> Prepared:
    """Check everything that can be checked before a run begins."""
    objective = make_objective(recipe.objective.name, **recipe.objective.given())
    check_names(recipe.audit)
    settings = recipe.train
    device = pick_device()
    precision = pick_precision(settings.precision, device)
    loaded = load_model(recipe.model, dtype=DTYPES[precision], device=device)
    encoder = Encoder(loaded.tokenizer, chat_template=recipe.model.chat_template, max_length=recipe.data.max_length)
    train, held_out = load_sides(recipe.data, encoder, unpaired=not objective.paired)
    for side in (train, held_out):
        _announce(side, show)
    refuse_unheeded(train, objective)
    _announce_unread(train, objective, show)
    if objective.point_is_kl:
        train, held_out = (side.with_others() for side in (train, held_out))
    require_whole_steps(ExampleOrder(train.examples, settings), objective, settings.tokens_per_batch)
    if len(train.pairs) > LONG_AUDIT:
        show.say(f"Auditing {len(train.pairs):,} training pairs, which takes about a minute for 50,000 and is done once.")
    audit = open_gate(train.pairs, train.id, recipe.audit, cache=cache_dir() / "audits")
    for finding in audit["findings"]:
        if finding["verdict"] != "note":
            show.say(f"Audit, {finding['verdict']}: {finding['summary']}")
    weights = fingerprint(loaded.model)
    if settings.method == "lora":
        loaded.model = add_adapter(loaded.model, recipe.adapter, seed=settings.seed)
    if settings.gradient_checkpointing:
        recompute_activations(loaded.model)
    parity = choose_engine(loaded.model, sequences_of(probe_examples(train.examples)), pad_id=encoder.end_token_id)
    for reason in parity.passed_over:
        show.say(f"Not used: {reason}")
    policy = Scorer(loaded.model, engine=parity.engine, precision=precision, pad_id=encoder.end_token_id)
    return Prepared(recipe, objective, loaded, train, held_out, policy, parity, weights, audit)


def probe_examples(examples: Sequence[Example]) -> list[Example]:
    """What the parity probe looks at: two short examples, and the longest, which alone may reach beyond a sliding window."""
    by_length = sorted(examples, key=len)
    return list(dict.fromkeys([*by_length[:2], by_length[-1]]))


def train_recipe(recipe: Recipe, *, show: Progress | None = None, fresh: bool = False) -> RunDir:
    """Carry out `recipe` in its run directory, or go on where it was interrupted. `fresh` removes an earlier run there first."""
    try:
        return _train(recipe, show or Progress(), fresh=fresh)
    except (RuntimeError, MemoryError) as problem:
        if not lacks_memory(problem):
            raise
        raise RunError(
            f"not enough memory to train this model. Less is taken by a smaller train.tokens_per_batch (here {recipe.train.tokens_per_batch}) and by "
            "train.gradient_checkpointing: true, with which the same command goes on from the last checkpoint; then by train.method: lora, by a "
            f"smaller data.max_length or model. ({' '.join(str(problem).split())[:200]})"
        ) from problem


def _train(recipe: Recipe, show: Progress, *, fresh: bool) -> RunDir:
    run = RunDir(recipe.out)
    check_folder(run, recipe, fresh=fresh)
    prepared = prepare(recipe, show)
    if fresh:
        clear(run)
    open_run(run, prepared)
    policy, settings = prepared.policy, recipe.train
    examples = [*prepared.train.examples, *prepared.held_out.examples]
    everything = [*sequences_of(examples), *mismatched(examples)]
    started = time.perf_counter()
    computed = 0
    digest = ""
    try:
        store = open_store(prepared, show) if prepared.objective.needs_reference else None
        announce(prepared, store, show)
        if store is not None:
            with as_reference(policy.model):
                computed = fill(store, policy, everything, tokens_per_batch=settings.tokens_per_batch, on_progress=show.reference_scored)
            digest = store.digest(everything)
        reference_seconds = time.perf_counter() - started
        masters = MasterWeights.of(policy.model, recipe.model)
        sides = prepared.train.examples, prepared.held_out.examples
        state, ending = fit(policy, store, *sides, prepared.objective, settings, run, show, masters)
    finally:
        show.close()
    unchanged = (
        None if store is None else store.digest(everything) == digest and (settings.method == "full" or fingerprint(policy.model) == prepared.weights)
    )
    if unchanged is False:
        raise TrainingStopped(
            "the reference changed during the run: its weights or stored values are not what they were. Nothing was saved as the model."
        )
    if state.best:
        checkpoint.load_weights(run.checkpoints / "best", trainable(policy.model))
    outcome = {
        "steps": state.step,
        "stopped": ending,
        "best_step": state.best.get("step"),
        "best_accuracy": state.best.get("accuracy"),
        "first_loss": state.first_loss,
        "first_loss_expected": state.first_loss_expected,
        "seconds": round(state.seconds, 1),
        "reference_seconds": round(reference_seconds, 1),
    }
    reference = {"computed": computed, "reused": len(set(everything)) - computed, "unchanged": unchanged} if store else None
    manifest = run.read_manifest() | {"outcome": outcome, "reference": reference}
    card, notes = model_card(recipe, manifest), provenance_notes(manifest)
    saved = save_trained(policy.model, prepared.loaded.tokenizer, run.model, card=card, notes=notes)
    write_json(run.manifest, manifest | {"saved": saved})
    shutil.rmtree(run.checkpoints)
    return run


def open_store(prepared: Prepared, show: Progress) -> ReferenceStore:
    """The reference's store in the cache, by weights and numerics."""
    store = ReferenceStore(cache_dir() / "reference", identity(weights=prepared.weights, numerics=prepared.numerics))
    for damaged in store.damaged:
        show.say(f"Reference store: {damaged} was damaged and is set aside; its values are computed again.")
    return store


def check_folder(run: RunDir, recipe: Recipe, *, fresh: bool) -> None:
    """Raises RunError if the folder holds something that this recipe must not continue or overwrite."""
    if fresh or not run.path.exists() or not any(run.path.iterdir()):
        return
    if not run.recipe.is_file():
        raise RunError(f"{run.path}: this folder holds other files and is no run directory. Choose another with --out.")
    if load_recipe(run.recipe).fingerprint() != recipe.fingerprint():
        changed = ", ".join(_differences(load_recipe(run.recipe), recipe))
        raise RunError(f"{run.path}: the run here has another recipe ({changed}). Choose another folder with --out, or --fresh to replace it.")
    if run.manifest.is_file() and run.read_manifest().get("outcome"):
        raise RunError(f"{run.path}: this run has ended. Choose another folder with --out, or --fresh to do it again.")


def clear(run: RunDir) -> None:
    """Remove what a run wrote, and nothing else."""
    for path in (run.recipe, run.manifest, run.metrics, run.eval, run.samples, run.report):
        path.unlink(missing_ok=True)
    for folder in (run.checkpoints, run.model):
        shutil.rmtree(folder, ignore_errors=True)


def open_run(run: RunDir, prepared: Prepared) -> None:
    """Write recipe and manifest, or check that a resumed run still has the same data and weights. Raises RunError where it has not."""
    manifest = make_manifest(prepared)
    if run.manifest.is_file():
        before = run.read_manifest()
        for what in ("data", "model"):
            if before[what] != manifest[what]:
                raise RunError(f"{run.path}: the {what} are no longer those that this run began with; it cannot go on. Use --fresh or another --out.")
        checkpoint.sweep(run.checkpoints)
        return
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    write_jsonl(run.metrics, [metrics_header(manifest)])
    write_json(run.manifest, manifest)
    write_atomic(run.recipe, prepared.recipe.to_yaml())


def make_manifest(prepared: Prepared) -> dict[str, Any]:
    """Provenance, as rundir.py lists it; `outcome` comes at the end."""
    recipe, model = prepared.recipe, prepared.policy.model
    adapter = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    return {
        "likelier": version("likelier"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(sys.argv),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "peft")}},
        "recipe": recipe.fingerprint(),
        "data": {"train": prepared.train.summary(), "eval": prepared.held_out.summary()},
        "audit": prepared.audit,
        "model": {
            "name": prepared.loaded.name,
            "parameters": sum(p.numel() for p in model.parameters()) - adapter,
            "trainable_parameters": sum(p.numel() for p in trainable(model).values()),
            "weights": prepared.weights,
            "tokenizer": tokenizer_hash(prepared.loaded.tokenizer),
            "chat_template": template_hash(prepared.loaded.tokenizer, recipe.model.chat_template),
        },
        "numerics": {**prepared.numerics, "parity": {"largest_difference": prepared.parity.difference, "tolerance": TOLERANCE}},
        "outcome": None,
    }


def _announce(side: Side, show: Progress) -> None:
    for dropped in side.encoded.dropped[:10]:
        show.say(f"Dropped {dropped.id}: {dropped.reason}")
    if len(side.encoded.dropped) > 10:
        show.say(f"Dropped {len(side.encoded.dropped)} pairs in all; the manifest names each.")
    if side.encoded.boundary_mismatches:
        show.say(f"{len(side.encoded.boundary_mismatches)} pairs do not decode to the template's text, first {side.encoded.boundary_mismatches[0]}.")


def refuse_unheeded(train: Side, objective: Objective) -> None:
    """Raises RecipeError where records have weights that the objective cannot heed, or margins are asked for that no record has."""
    if objective.couples_pairs and any(example.weight != 1 for example in train.examples):
        raise RecipeError("objective.name: this objective compares all pairs of a step with each other and cannot heed the records' `weight`.")
    if objective.margin_scale and not any(pair.margin for pair in train.pairs):
        raise RecipeError("objective.margin_scale: no training record has a `margin`.")


def _announce_unread(train: Side, objective: Objective, show: Progress) -> None:
    """What the records say that nothing looks at."""
    margins = sum(pair.margin is not None for pair in train.pairs)
    if margins and not objective.margin_scale:
        show.say(f"{margins} pairs have a margin, which this run does not look at (objective.margin_scale, docs/objectives.md).")
    if alone := len(train.records) - len(train.pairs):
        show.say(f"{alone} replies are judged alone; the audit looks at pairs only.")


def _differences(before: Recipe, now: Recipe) -> list[str]:
    then, today = (recipe.model_dump(exclude=NOT_SHAPING) for recipe in (before, now))
    return [f"{section}.{name}" for section, settings in then.items() for name, value in settings.items() if value != today[section][name]]


def _command(arguments: Sequence[str]) -> str:
    return " ".join(["likelier", *arguments[1:]])
