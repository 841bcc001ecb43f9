"""How a model ranks held-out replies: numbers with 95% intervals over prompts. Pure functions of log-probabilities.

Shape legend: B pairs.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from likelier.data.load import Side
from likelier.examples import Example, Ids, LabelledExample, PreferenceExample, all_pairs
from likelier.logprobs.examples import LogpsOf, responses, sequences_of
from likelier.logprobs.tree import PromptResponse
from likelier.metrics import bootstrap, bootstrap_share, calibration, correct, tempered
from likelier.objectives import Logps, Objective


def measure_held_out(held_out: Side, objective: Objective, *, policy: LogpsOf, reference: LogpsOf | None) -> dict[str, Any]:
    """How the policy ranks held-out pairs by the objective's reward; of a set with single replies see `measure_replies`. Without `reference` there
    is no change to measure, and an objective that needs one raises ValueError. Pairs of one prompt are one cluster."""
    examples = held_out.examples
    if not all_pairs(examples):
        return measure_replies(held_out, objective, policy=policy, reference=reference)
    sequences = sequences_of(examples)
    logps = Logps(responses(sequences[::2], policy, reference), responses(sequences[1::2], policy, reference))
    chosen_B, rejected_B = (reward_B.double().numpy() for reward_B in objective.rewards(logps))
    margin_B = chosen_B - rejected_B
    clusters = numbered([example.prompt_ids for example in examples])
    accuracy = bootstrap_share(correct(margin_B), clusters)
    measured = {"margin": margin_B, "chosen_reward": chosen_B, "rejected_reward": rejected_B}
    if reference is not None:
        for side, sums in (("chosen", logps.chosen), ("rejected", logps.rejected)):
            measured[f"{side}_logp_change"] = sums.log_ratio_B.double().numpy()
    return {
        "dataset": held_out.id,
        "pairs": len(examples),
        "held_out": {"accuracy": accuracy.as_dict(), **{name: bootstrap(values_B, clusters).as_dict() for name, values_B in measured.items()}},
        "by": _by(held_out, margin_B, clusters),
        "calibration": _calibration(margin_B, clusters),
        "margins": {"value": margin_B.tolist(), "prompt": list(clusters)},  # pair by pair, so that two runs can be compared on the same ones
    }


def measure_replies(held_out: Side, objective: Objective, *, policy: LogpsOf, reference: LogpsOf | None) -> dict[str, Any]:
    """The same of replies that are judged one by one (pairs count as two): accuracy is the share of good replies that became likelier than under
    the reference, and of bad ones that became less likely."""
    examples = held_out.examples
    sides = {label: [PromptResponse(e.prompt_ids, reply) for e in examples for reply in _judged(e, label)] for label in (True, False)}
    clusters = {label: numbered([sequence.prompt_ids for sequence in sequences]) for label, sequences in sides.items()}
    logps = Logps(responses(sides[True], policy, reference), responses(sides[False], policy, reference))
    good_B, bad_B = (objective.rewards(Logps(side, side))[0].double().numpy() for side in (logps.chosen, logps.rejected))
    both = numbered([sequence.prompt_ids for label in (True, False) for sequence in sides[label]])
    measured = {"accuracy": bootstrap_share(correct(np.concatenate([good_B, -bad_B])), both).as_dict()}
    for side, responses_B, reward_B, label in (("chosen", logps.chosen, good_B, True), ("rejected", logps.rejected, bad_B, False)):
        if len(reward_B):
            measured[f"{side}_reward"] = bootstrap(reward_B, clusters[label]).as_dict()
            if reference is not None:
                measured[f"{side}_logp_change"] = bootstrap(responses_B.log_ratio_B.double().numpy(), clusters[label]).as_dict()
    counts = {"pairs": len(held_out.pairs), "replies": len(good_B) + len(bad_B)}
    return {"dataset": held_out.id, **counts, "held_out": measured, "by": {}}


def _judged(example: Example, label: bool) -> tuple[Ids, ...]:
    """The replies of an example that are good, or bad."""
    if isinstance(example, LabelledExample):
        return example.replies if example.label == label else ()
    return (example.chosen_ids if label else example.rejected_ids,)


LENGTH_BINS = (
    (-math.inf, -32, "chosen shorter by 32 or more"),
    (-31, -8, "chosen shorter by 8 to 31"),
    (-7, 7, "within 7 tokens"),
    (8, 31, "chosen longer by 8 to 31"),
    (32, math.inf, "chosen longer by 32 or more"),
)
"""Tokens of chosen minus tokens of rejected, the first and the last that belong: wide enough to hold some pairs, and the same for every data set."""


def _by(held_out: Side, margin_B: np.ndarray, clusters: Sequence[int]) -> dict[str, Any]:
    """Accuracy and margin of parts of the pairs: by why the rejected reply is worse, by the record's group, by which reply is longer."""
    differences = [len(example.chosen_ids) - len(example.rejected_ids) for example in held_out.examples if isinstance(example, PreferenceExample)]
    lengths = [next(name for low, high, name in LENGTH_BINS if low <= difference <= high) for difference in differences]
    parts = {
        "reason": _rows_of([record.reason for record in held_out.records]),
        "group": _rows_of([record.group for record in held_out.records]),
        "length": _rows_of(lengths, order=[name for *_, name in LENGTH_BINS]),
    }
    return {
        kind: {name: _part(margin_B[rows], [clusters[i] for i in rows]) for name, rows in named.items()} for kind, named in parts.items() if named
    }


def _part(margin_B: np.ndarray, clusters: Sequence[int]) -> dict[str, Any]:
    accuracy, margin = bootstrap_share(correct(margin_B), clusters), bootstrap(margin_B, clusters)
    return {"pairs": len(margin_B), "accuracy": accuracy.as_dict(), "margin": margin.as_dict()}


def _rows_of(names: Sequence[str | None], order: Sequence[str] = ()) -> dict[str, list[int]]:
    """The rows of each name, in the order of their first or in that which is given."""
    rows: dict[str, list[int]] = {name: [] for name in order}
    for i, name in enumerate(names):
        if name:
            rows.setdefault(name, []).append(i)
    return {name: members for name, members in rows.items() if members}


CALIBRATION_NOTE = (
    "Pairs are known with the preferred side first. Brier score and NLL of σ(margin) are the same in either order; ECE and bins compare the "
    "confidence σ(|margin|) with how often the side of higher reward is the preferred one."
)


def _calibration(margin_B: np.ndarray, clusters: Sequence[int]) -> dict[str, Any]:
    fitted = tempered(margin_B, clusters)
    if fitted.temperature is None:
        told = " No temperature: there are fewer than ten prompts, or no wrong ranking to learn it from, or a ranking no better than a guess."
    else:
        told = " After: σ(margin / T), each pair by a T fitted on the other prompts (five folds); the T that is given is fitted on all."
    return {
        **calibration(margin_B).as_dict(),
        "temperature": fitted.temperature.as_dict() if fitted.temperature else None,
        "after": fitted.after.as_dict() if fitted.after else None,
        "note": CALIBRATION_NOTE + told,
    }


def numbered(keys: Sequence[Any]) -> list[int]:
    """Equal keys, equal numbers."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
