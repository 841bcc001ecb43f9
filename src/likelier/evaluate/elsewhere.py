"""The evaluation of a run, an adapter or a model on any data, beside what it was trained and held out on: scores alone, no replies are written."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from likelier.chunks import say_damaged
from likelier.data.files import CONTAINERS
from likelier.data.formats import read_records
from likelier.data.load import Side, side_of
from likelier.errors import DataError, RequestError
from likelier.evaluate.answers import score
from likelier.evaluate.drift import measure_kl_on_data, spread
from likelier.evaluate.exam import Say, quiet
from likelier.evaluate.held_out import measure_held_out
from likelier.examples import all_pairs
from likelier.logprobs.divergence import KeptLogits, kept_logits, token_divergences
from likelier.logprobs.examples import LogpsOf, sequences_of
from likelier.logprobs.reference import ReferenceStore
from likelier.logprobs.scorer import Scorer
from likelier.model_files import cache_dir
from likelier.objectives import make_objective
from likelier.rundir import RunDir, read_json
from likelier.subject import Subject
from likelier.wording import count

By = Literal["mean", "sum"]
REWARDS = {"mean": ("simpo", "log-probability of the reply divided by its tokens"), "sum": ("cpo", "log-probability of the reply")}
"""What ranks replies where there is no reference: an objective with that reward, and its description."""


def evaluate_on(subject: Subject, sources: Sequence[str], *, by: By | None = None, own_file: Path | None = None, say: Say = quiet) -> dict[str, Any]:
    """What eval.json says of held-out records, of those in `sources`: without what takes replies (`kl`, probes), and without a reference without
    changes and KL. There the log-probability of a reply is its reward, its mean over tokens (`by` None too) or its sum. `own_file`: where the numbers
    will go by themselves (`evaluation_path`).

    Raises DataError where nothing is left of the data, RequestError for single replies where there is no reference, for `by` where there is one, and
    where `own_file` holds the evaluation on other records; nothing is asked then.
    """
    if by and subject.compared:
        raise RequestError(f"--by {by}: {subject.name} has a reference, so its rewards rank replies, not their log-probabilities. Leave it out.")
    side = _read(subject, sources, say)
    if own_file:
        _refuse_other(own_file, side)
    if not (subject.compared or all_pairs(side.examples)):
        raise RequestError(f"{', '.join(sources)}: single replies are judged by how far they moved from a reference, and {subject.name} has none.")
    sequences = sequences_of(side.examples)
    subject.settle(sequences)
    say(f"scoring {count(len(side.examples), 'record')}")
    policy, kept = subject.ask("policy", partial(_as_policy, side, subject))
    measured: dict[str, Any] = {}
    if kept is not None:
        assert subject.objective is not None
        objective, reward = subject.objective, f"implicit reward, {subject.objective.made_as}"
        say("scoring under the reference")
        name = subject.reference_name()
        reference, divergences = subject.ask("reference", partial(_as_reference, side, subject, name, kept, say))
        measured["kl_on_data"] = measure_kl_on_data(side.examples, divergences)
    else:
        named, reward = REWARDS[by or "mean"]
        objective, reference = make_objective(named, beta=1.0), None
    result = measure_held_out(side, objective, policy=policy, reference=reference)
    return {"model": subject.name, "data": list(sources), "reward": reward, **result, "held_out": result["held_out"] | measured, "probes": []}


def evaluation_path(run: RunDir, sources: Sequence[str]) -> Path:
    """Where the evaluation of a run on other data goes: eval-NAME.json, named after the first source."""
    name = re.sub(r"[^\w.-]+", "-", Path(sources[0]).name)
    ending = next((ending for ending in sorted(CONTAINERS, key=len, reverse=True) if name.lower().endswith(ending)), "")
    return run.path / f"eval-{name[: len(name) - len(ending)]}.json"


def _refuse_other(target: Path, side: Side) -> None:
    """Raises RequestError if `target` holds the evaluation on other records."""
    if target.is_file() and read_json(target).get("dataset") != side.id:
        raise RequestError(f"{target}: this is an evaluation on other records, which {', '.join(side.sources)} would replace. Name one with --out.")


def _read(subject: Subject, sources: Sequence[str], say: Say) -> Side:
    side = side_of(tuple(sources), list(read_records(*sources)), subject.encoder)
    dropped = side.encoded.dropped
    if not side.records:
        first = f" The first: {dropped[0].id}: {dropped[0].reason}." if dropped else ""
        raise DataError(f"{', '.join(sources)}: nothing is left to evaluate on ({len(dropped)} dropped).{first}")
    if dropped:
        say(f"{count(len(dropped), 'record')} left out; the first: {dropped[0].id}: {dropped[0].reason}.")
    return side


def _as_policy(side: Side, subject: Subject, scorer: Scorer) -> tuple[LogpsOf, KeptLogits | None]:
    logps = score(scorer, sequences_of(side.examples), tokens_per_batch=subject.tokens_per_batch)
    if not subject.compared:
        return logps, None
    return logps, kept_logits(scorer, sequences_of(spread(side.examples, scorer)), tokens_per_batch=subject.tokens_per_batch)


def _as_reference(side: Side, subject: Subject, name: str, kept: KeptLogits, say: Say, scorer: Scorer) -> tuple[LogpsOf, Any]:
    store = ReferenceStore(cache_dir() / "reference", name)
    say_damaged(store.damaged, say)
    logps = score(scorer, sequences_of(side.examples), store=store, tokens_per_batch=subject.tokens_per_batch)
    return logps, token_divergences(kept, scorer, list(kept.hidden), tokens_per_batch=subject.tokens_per_batch)
