"""The evaluation of a run directory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from likelier.chunks import say_damaged
from likelier.data.kept_turns import KeptTurns
from likelier.data.load import Side, load_sides
from likelier.errors import RunError
from likelier.evaluate.answers import Answers, ask_policy, ask_reference, write
from likelier.evaluate.drift import measure_kl, measure_kl_on_data
from likelier.evaluate.exam import Exam, Say, make_exam, quiet
from likelier.evaluate.held_out import measure_held_out
from likelier.evaluate.probes import measure_probes
from likelier.evaluate.samples import side_by_side
from likelier.generation.kept import KeptReplies
from likelier.generation.requests import Replies, Request
from likelier.generation.sample import Reply
from likelier.logprobs.reference import ReferenceStore
from likelier.logprobs.scorer import Scorer
from likelier.model_files import cache_dir
from likelier.objectives import make_objective
from likelier.probes import probes_of
from likelier.rundir import RunDir, write_json, write_jsonl
from likelier.subject import Subject, positions, subject_of_run


def evaluate(run: RunDir, say: Say = quiet, *, probe_files: Sequence[str] = ()) -> dict[str, Any] | None:
    """Ask the run's model and its reference, in the run's own arithmetic, and write eval.json, samples.jsonl and probes.jsonl. Returns what eval.json
    holds. `probe_files` are asked beside those of the recipe.

    A run without held-out pairs is not evaluated: None. Raises RunError where the run did not end, or its data or its base model are no longer
    those it was trained with.
    """
    subject = subject_of_run(run)
    assert subject.recipe is not None
    files = tuple(dict.fromkeys([*subject.recipe.eval.probe_files, *probe_files]))
    recipe = subject.recipe.model_copy(update={"eval": subject.recipe.eval.model_copy(update={"probe_files": files})})
    probes_of(recipe.eval.probes, files, say)  # a file that is wrong is refused before anything is loaded
    held_out = _held_out(run, subject, say)
    if not held_out.records:
        say("Nothing was held out, so there is nothing to evaluate on: set data.eval or data.eval_fraction.")
        return None
    limits = {"end_token_id": subject.encoder.end_token_id, "positions": positions(subject.settings)}
    exam = make_exam(recipe, subject.tokenizer, held_out, **limits, say=say)
    say_policy, say_reference = (partial(_say_of, say, name) for name in ("Tuned model", "Reference"))
    reference = subject.reference_name()
    replies = _reference_replies(exam, subject, reference, say_reference)
    after = subject.ask("policy", partial(ask_policy, exam, before=replies, say=say_policy))

    def answers(scorer: Scorer) -> Answers:
        store = ReferenceStore(cache_dir() / "reference", reference)  # the one that training filled, if this is the same machinery
        say_damaged(store.damaged, say)
        return ask_reference(exam, scorer, replies, after, store=store, say=say_reference)

    before = subject.ask("reference", answers)
    measured, left_out = measure_probes(exam, before, after)
    for problem in left_out.values():
        say(f"A probe is left out: {problem}")
    result = {**compare(exam, before, after), "probes": [probe.summary() for probe in measured], "probes_left_out": left_out}
    if lost := {probe["title"] for probe in (run.read_eval() or {}).get("probes") or []} - {probe["title"] for probe in result["probes"]}:
        say(f"No longer in {run.eval}, as they were not asked now: {', '.join(sorted(lost))}. --probes FILE asks probes of your own.")
    write_json(run.eval, result)
    write_jsonl(run.probes, [row for probe in measured for row in probe.rows()])
    write_jsonl(run.samples, side_by_side(exam, before, after))
    return result


def _say_of(say: Say, name: str, text: str) -> None:
    say(f"{name}: {text}")


def _held_out(run: RunDir, subject: Subject, say: Say) -> Side:
    recipe, then = subject.recipe, run.read_manifest()["data"]["eval"]["id"]
    assert recipe is not None
    assert subject.objective is not None
    kept = KeptTurns(cache_dir() / "tokens", subject.encoder.identity)  # what training tokenised
    _, held_out = load_sides(recipe.data, subject.encoder, unpaired=not subject.objective.paired, kept=kept)
    say_damaged(kept.damaged, say)
    if held_out.id != then:
        raise RunError(
            f"{run.path}: the held-out pairs of {', '.join(held_out.sources)} are not those of this run any more (data set {held_out.id[:12]}, "
            f"then {then[:12]}). Put the files back as they were, or train again."
        )
    return held_out


def _reference_replies(exam: Exam, subject: Subject, reference: str, say: Say) -> dict[Request, Reply]:
    """The reference's greedy replies; it is asked only for those that it has not written before."""
    kept = KeptReplies(cache_dir() / "replies", reference, end_token_id=exam.end_token_id)
    say_damaged(kept.damaged, say)

    def fill(lacking: Sequence[Request], keep: Callable[[Replies], None]) -> None:
        subject.ask("reference", lambda scorer: write(exam, scorer, lacking, keep=keep, say=say))

    kept.fill(exam.requests, fill)
    return kept.replies(exam.requests, exam.tokenizer)


def compare(exam: Exam, before: Answers, after: Answers) -> dict[str, Any]:
    """eval.json but for the probes: what the run changed, each number with its 95% interval over prompts."""
    objective = make_objective(exam.recipe.objective.name, **exam.recipe.objective.given())
    result = measure_held_out(exam.held_out, objective, policy=after.logps, reference=before.logps)
    result["held_out"]["kl"] = measure_kl(after.sampled, policy=after.logps, reference=before.logps, limit=exam.recipe.eval.max_new_tokens)
    result["held_out"]["kl_on_data"] = measure_kl_on_data(exam.held_out.examples, before.divergences)
    return result
