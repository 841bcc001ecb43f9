"""How a model ranks held-out replies: numbers with 95% intervals over prompts. Pure functions of log-probabilities.

Shape legend: B pairs, K replies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likelier.data.load import Side
from likelier.examples import Example, Ids, LabelledExample, all_pairs
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.tree import PromptResponse
from likelier.metrics import bootstrap, calibration, correct
from likelier.objectives import Logps, Objective, Responses

LogpsOf = Mapping[PromptResponse, Tensor]
"""For each sequence the (L,) fp32 log-probabilities of its response's tokens, on the CPU."""


def measure_held_out(held_out: Side, objective: Objective, *, policy: LogpsOf, reference: LogpsOf | None) -> dict[str, Any]:
    """How the policy ranks held-out pairs by the objective's reward; of a set with single replies see `measure_replies`. Without `reference` there
    is no change to measure, and an objective that needs one raises ValueError. Pairs of one prompt are one cluster."""
    examples = held_out.examples
    if not all_pairs(examples):
        return measure_replies(held_out, objective, policy=policy, reference=reference)
    sequences = sequences_of(examples)
    logps = Logps(_responses(sequences[::2], policy, reference), _responses(sequences[1::2], policy, reference))
    chosen_B, rejected_B = (reward_B.double().numpy() for reward_B in objective.rewards(logps))
    margin_B = chosen_B - rejected_B
    clusters = _numbered([example.prompt_ids for example in examples])
    measured = {"accuracy": correct(margin_B), "margin": margin_B, "chosen_reward": chosen_B, "rejected_reward": rejected_B}
    if reference is not None:
        measured["chosen_logp_change"] = logps.chosen.log_ratio_B.double().numpy()
    return {
        "dataset": held_out.id,
        "pairs": len(examples),
        "held_out": {name: bootstrap(values_B, clusters).as_dict() for name, values_B in measured.items()},
        "by_reason": _by_reason(held_out, correct(margin_B), clusters),
        "calibration": calibration(margin_B).as_dict(),
    }


def measure_replies(held_out: Side, objective: Objective, *, policy: LogpsOf, reference: LogpsOf | None) -> dict[str, Any]:
    """The same of replies that are judged one by one (pairs count as two): accuracy is the share of good replies that became likelier than under
    the reference, and of bad ones that became less likely."""
    examples = held_out.examples
    sides = {label: [PromptResponse(e.prompt_ids, reply) for e in examples for reply in _judged(e, label)] for label in (True, False)}
    clusters = {label: _numbered([sequence.prompt_ids for sequence in sequences]) for label, sequences in sides.items()}
    logps = Logps(_responses(sides[True], policy, reference), _responses(sides[False], policy, reference))
    good_B, bad_B = (reward_B.double().numpy() for reward_B in objective.rewards(logps))
    both = _numbered([sequence.prompt_ids for label in (True, False) for sequence in sides[label]])
    measured = {"accuracy": bootstrap(correct(np.concatenate([good_B, -bad_B])), both).as_dict()}
    for name, values_B, label in (("chosen_reward", good_B, True), ("rejected_reward", bad_B, False)):
        if len(values_B):
            measured[name] = bootstrap(values_B, clusters[label]).as_dict()
    counts = {"pairs": len(held_out.pairs), "replies": len(good_B) + len(bad_B)}
    return {"dataset": held_out.id, **counts, "held_out": measured, "by_reason": {}}


def _judged(example: Example, label: bool) -> tuple[Ids, ...]:
    """The replies of an example that are good, or bad."""
    if isinstance(example, LabelledExample):
        return example.replies if example.label == label else ()
    return (example.chosen_ids if label else example.rejected_ids,)


def _by_reason(held_out: Side, correct_B: np.ndarray, clusters: Sequence[int]) -> dict[str, Any]:
    reasons: dict[str, list[int]] = {}
    for i, record in enumerate(held_out.records):
        if record.reason:
            reasons.setdefault(record.reason, []).append(i)
    return {
        reason: {"accuracy": bootstrap(correct_B[rows], [clusters[i] for i in rows]).as_dict(), "pairs": len(rows)}
        for reason, rows in reasons.items()
    }


def _responses(sequences: Sequence[PromptResponse], policy: LogpsOf, reference: LogpsOf | None) -> Responses:
    if not sequences:
        return Responses(torch.zeros(0), None if reference is None else torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return Responses(
        torch.cat([policy[sequence] for sequence in sequences]),
        None if reference is None else torch.cat([reference[sequence] for sequence in sequences]),
        torch.tensor([len(sequence.response_ids) for sequence in sequences]),
    )


def measure_kl(sampled: Sequence[PromptResponse], *, policy: LogpsOf, reference: LogpsOf, limit: int) -> dict[str, Any]:
    """KL(π ‖ π_ref) of a whole reply, in nats: the mean of log π(y|x) − log π_ref(y|x) over replies y that π wrote at temperature 1.

    Without bias for replies of up to `limit` tokens; with few replies it may come out below 0, which a KL never is.
    """
    log_ratio_K = _responses(sampled, policy, reference).log_ratio_B.double().numpy()
    replies = f"{len(sampled)} replies of the tuned model" if len(sampled) > 1 else "one reply of the tuned model"
    note = f"per reply, estimated on {replies}, sampled at temperature 1, up to {limit} tokens"
    return {**bootstrap(log_ratio_K, _numbered([sequence.prompt_ids for sequence in sampled])).as_dict(), "note": note}


def _numbered(keys: Sequence[Any]) -> list[int]:
    """Equal keys, equal numbers."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
