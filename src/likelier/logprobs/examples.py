"""Examples ⇄ the sequences that are scored: where per-token log-probabilities become what an objective reads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from likelier.examples import Example, LabelledExample, PreferenceExample
from likelier.logprobs.batches import cut_into_batches
from likelier.logprobs.reference import ReferenceValues
from likelier.logprobs.scorer import Scorer, or_halves
from likelier.logprobs.tree import PromptResponse, moved
from likelier.objectives import Logps, Objective, Responses


class LogpsOf(Protocol):
    """For each sequence the (L,) fp32 log-probabilities of its response's tokens, on the CPU: a dict, or `ReferenceValues`."""

    def __getitem__(self, sequence: PromptResponse, /) -> Tensor: ...


def replies_of(example: Example) -> list[PromptResponse]:
    """Its replies as sequences to score: chosen and rejected, or the one that is judged."""
    return [PromptResponse(example.prompt_ids, reply) for reply in example.replies]


def sequences_of(examples: Sequence[Example]) -> list[PromptResponse]:
    """The replies of all `examples`; of pairs, chosen and rejected in turn."""
    return [sequence for example in examples for sequence in replies_of(example)]


def mismatched(examples: Sequence[Example]) -> list[PromptResponse]:
    """The prompts of `examples` with replies to other prompts (see `examples.with_others`)."""
    return [PromptResponse(example.prompt_ids, reply) for example in examples for reply in example.others]


def cut_examples(examples: Sequence[Example], tokens_per_batch: int) -> list[list[Example]]:
    """`examples` in batches of about `tokens_per_batch` unique tokens, those that begin alike together."""
    batches = cut_into_batches([replies_of(example) for example in examples], tokens_per_batch)
    return [[examples[i] for i in batch] for batch in batches]


def score_examples(
    policy: Scorer, reference: ReferenceValues | None, examples: Sequence[Example], *, point: float = 0.0, collisions: bool = False
) -> Logps:
    """What objectives read of `examples`, scored as one batch; the reference's values come from its store. Gradients flow to the policy.

    `point` is handed on (`Logps.point`); `collisions` asks for `Responses.collisions_N`. The order on each side is that of the examples.
    """
    sequences = sequences_of(examples)
    good = [label for example in examples for label in _labels(example)]
    values, squares = policy.score(sequences, collisions=collisions)
    known = moved([reference[sequence] for sequence in sequences], policy.device) if reference is not None else None
    chosen, rejected = (_side([i for i, label in enumerate(good) if label == side], values, known, squares) for side in (True, False))
    margins = [example.margin or 0.0 for example in examples if isinstance(example, PreferenceExample)]
    return Logps(chosen, rejected, moved([torch.tensor(margins)], policy.device)[0] if any(margins) else None, point=point)


def in_order_of_losses(examples: Sequence[Example], objective: Objective) -> list[Example]:
    """The example of each of the objective's losses: one a pair, or one a reply with the good ones first."""
    if objective.paired:
        return list(examples)
    return [example for good in (True, False) for example in examples for label in _labels(example) if label == good]


@torch.no_grad()
def score_all_examples(
    policy: Scorer,
    reference: ReferenceValues | None,
    examples: Sequence[Example],
    *,
    tokens_per_batch: int,
    point: float = 0.0,
    collisions: bool = False,
) -> Iterator[tuple[list[Example], Logps]]:
    """Any number of examples without gradient, batch by batch, each batch with the examples that it holds.

    A batch that does not fit into memory is split; one example that does not fit alone raises ModelError.
    """
    for batch in cut_examples(examples, tokens_per_batch):
        score = partial(score_examples, policy, reference, point=point, collisions=collisions)
        yield from or_halves(batch, score, tokens=len, may_halve=not policy.is_divided)


def log_ratios(
    policy: Scorer,
    reference: ReferenceValues,
    sequences: Sequence[PromptResponse],
    *,
    tokens_per_batch: int,
    until: Callable[[Iterator[Any]], Iterable[Any]] = iter,
) -> list[float]:
    """log π/π_ref of each sequence, in nats, without gradient and in any order. `until` may end it early, at a batch."""
    scored = until(policy.score_all(sequences, tokens_per_batch=tokens_per_batch))
    return [float((values_L - reference[sequences[i]]).sum()) for indices, values in scored for i, values_L in zip(indices, values, strict=True)]


def kl_point(ratios: Sequence[float]) -> float:
    """KTO's reference point: the mean log-ratio over prompts with replies to other prompts, at least 0; 0 where there are none. The mean is over all
    of a step before it is held at 0 (Ethayarajh et al. 2024, section 4.1; pitfall 12)."""
    return max(0.0, sum(ratios) / len(ratios)) if ratios else 0.0


def responses(sequences: Sequence[PromptResponse], policy: LogpsOf, reference: LogpsOf | None) -> Responses:
    """What an objective reads of `sequences`, as one side."""
    if not sequences:
        return Responses(torch.zeros(0), None if reference is None else torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return Responses(
        torch.cat([policy[sequence] for sequence in sequences]),
        None if reference is None else torch.cat([reference[sequence] for sequence in sequences]),
        torch.tensor([len(sequence.response_ids) for sequence in sequences]),
    )


def _labels(example: Example) -> tuple[bool, ...]:
    """Whether each of its replies is a good one."""
    return (example.label,) if isinstance(example, LabelledExample) else (True, False)


def _side(members: Sequence[int], policy: Sequence[Tensor], reference: Sequence[Tensor] | None, squares: Sequence[Tensor]) -> Responses:
    device = policy[0].device
    (lengths_B,) = moved([torch.tensor([len(policy[i]) for i in members], dtype=torch.int64)], device)
    policy_N, reference_N, collisions_N = (
        _joined([values[i] for i in members], device) if values else None for values in (policy, reference, squares)
    )
    assert policy_N is not None
    return Responses(policy_N, reference_N, lengths_B, collisions_N)


def _joined(values: list[Tensor], device: torch.device) -> Tensor:
    return torch.cat(values) if values else torch.zeros(0, device=device)
