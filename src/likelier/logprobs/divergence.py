"""The exact KL(π ‖ π_ref) at each token of given replies, over the whole vocabulary, of two models that are never held at once.

    first model    hidden states of the scored tokens (T, D) are kept, and its head (V, D)
    second model   makes its own; block by block both heads give logits, of which only the KL of each token stays

What is kept is D numbers a token instead of V. A model that only the plain engine can score shows no hidden states, so its logits are kept, and who
asks has to ask about fewer replies (`bytes_a_token`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from likelier.logprobs.batches import cut_into_batches
from likelier.logprobs.head import Logits, divergences
from likelier.logprobs.scorer import Scorer, or_halves
from likelier.logprobs.tree import PromptResponse


@dataclass(frozen=True)
class KeptLogits:
    """What is kept of a model about some sequences: `hidden` (L, D) on the CPU for each, and the head that all share."""

    hidden: Mapping[PromptResponse, Tensor]
    weight_VD: Tensor | None
    bias_V: Tensor | None


def kept_logits(scorer: Scorer, sequences: Sequence[PromptResponse], *, tokens_per_batch: int) -> KeptLogits:
    """The next-token logits of `scorer`'s model at the responses' tokens, as factors. Raises ModelError where one sequence does not fit alone."""
    hidden: dict[PromptResponse, Tensor] = {}
    head: Logits | None = None
    for batch, scored in _batches(scorer, sequences, tokens_per_batch):
        hidden |= {sequence: logits.hidden_ED.cpu() for sequence, logits in zip(batch, scored, strict=True)}
        head = head or scored[0]
    return KeptLogits(hidden, head.weight_VD if head else None, head.bias_V if head else None)


def token_divergences(
    first: KeptLogits, second: Scorer, sequences: Sequence[PromptResponse], *, tokens_per_batch: int
) -> dict[PromptResponse, Tensor]:
    """For each sequence the (L,) fp32 KL(first ‖ second) of the next token at each of its response's tokens, on the CPU."""
    found = {}
    for batch, scored in _batches(second, sequences, tokens_per_batch):
        for sequence, other in zip(batch, scored, strict=True):
            one = Logits(first.hidden[sequence], first.weight_VD, first.bias_V)
            found[sequence] = divergences(one, other, device=second.device).cpu()
    return found


def bytes_a_token(scorer: Scorer, sequence: PromptResponse) -> int:
    """What `kept_logits` keeps of each token of sequences like this one."""
    hidden_LD = scorer.logits([sequence])[0].hidden_ED
    return hidden_LD.shape[1] * hidden_LD.element_size()


def _batches(scorer: Scorer, sequences: Sequence[PromptResponse], tokens_per_batch: int) -> Iterator[tuple[list[PromptResponse], list[Logits]]]:
    unique = list(dict.fromkeys(sequences))
    for batch in cut_into_batches([[sequence] for sequence in unique], tokens_per_batch):
        units = [unique[i] for i in batch]
        yield from or_halves(units, scorer.logits, tokens=lambda sequence: len(sequence.prompt_ids) + len(sequence.response_ids))
