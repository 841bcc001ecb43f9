"""Preference examples ⇄ the sequences that are scored: where per-token log-probabilities become what an objective reads."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from likelier.examples import PreferenceExample
from likelier.logprobs.reference import ReferenceStore
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse, cut_into_batches
from likelier.objectives import Logps, Responses


def sides_of(example: PreferenceExample) -> tuple[PromptResponse, PromptResponse]:
    """(chosen, rejected) as sequences to score."""
    return PromptResponse(example.prompt_ids, example.chosen_ids), PromptResponse(example.prompt_ids, example.rejected_ids)


def sequences_of(examples: Sequence[PreferenceExample]) -> list[PromptResponse]:
    """All sequences of `examples`: chosen and rejected in turn."""
    return [side for example in examples for side in sides_of(example)]


def cut_pairs(examples: Sequence[PreferenceExample], tokens_per_batch: int) -> list[list[PreferenceExample]]:
    """`examples` in batches of about `tokens_per_batch` unique tokens, those that begin alike together."""
    batches = cut_into_batches([sides_of(example) for example in examples], tokens_per_batch)
    return [[examples[i] for i in batch] for batch in batches]


def score_pairs(policy: Scorer, reference: ReferenceStore | None, examples: Sequence[PreferenceExample]) -> Logps:
    """Log-probabilities of both sides of `examples`, as one batch; those of the reference come from its store. Gradients flow to the policy."""
    sequences = sequences_of(examples)
    values = policy.token_logps(sequences)
    known = [reference[sequence].to(policy.device) for sequence in sequences] if reference is not None else None
    return Logps(*(_side(values[side::2], known[side::2] if known else None) for side in (0, 1)))


@torch.no_grad()
def score_pairs_all(
    policy: Scorer, reference: ReferenceStore | None, examples: Sequence[PreferenceExample], *, tokens_per_batch: int
) -> Iterator[tuple[list[PreferenceExample], Logps]]:
    """Any number of pairs without gradient, batch by batch, each batch with the examples that it holds."""
    for batch in cut_pairs(examples, tokens_per_batch):
        yield batch, score_pairs(policy, reference, batch)


def _side(policy: list[Tensor], reference: list[Tensor] | None) -> Responses:
    lengths_B = torch.tensor([len(values) for values in policy], device=policy[0].device)
    return Responses(torch.cat(policy), torch.cat(reference) if reference else None, lengths_B)
