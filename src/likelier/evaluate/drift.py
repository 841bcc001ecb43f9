"""How far the policy has moved from its reference: KL(π ‖ π_ref) of whole replies, in nats, of two kinds.

    kl           on replies that the policy writes itself, which is what the objectives bound; an estimate
    kl_on_data   on the replies of the held-out pairs, at each token exact over the vocabulary; no model wrote them, so it is not that bound

Shape legend: K replies, L tokens of one response.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from likelier.evaluate.held_out import numbered
from likelier.examples import Example
from likelier.logprobs.divergence import bytes_a_token
from likelier.logprobs.examples import LogpsOf, responses, sequences_of
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.metrics import bootstrap
from likelier.wording import count

MOST_EXAMPLES = 256
"""Pairs (or single replies) on which `kl_on_data` is measured: it costs both models a pass with the whole vocabulary."""

KEPT_BYTES = 512 * 2**20
"""What may be kept of the first model for it, beside its head."""


def spread(examples: Sequence[Example], scorer: Scorer) -> list[Example]:
    """The examples on which `kl_on_data` is measured: all, or as many as the limits allow, spread evenly over them."""
    taken = _spread(examples, min(MOST_EXAMPLES, len(examples)))
    if not taken:
        return []
    shortest = min(sequences_of(taken), key=lambda sequence: len(sequence.prompt_ids) + len(sequence.response_ids))
    tokens = sum(len(reply) for example in taken for reply in example.replies)
    fitting = KEPT_BYTES // bytes_a_token(scorer, shortest)
    return taken if tokens <= fitting else _spread(taken, max(1, len(taken) * fitting // tokens))


def _spread(examples: Sequence[Example], wanted: int) -> list[Example]:
    return [examples[k * len(examples) // wanted] for k in range(wanted)]


def measure_kl(sampled: Sequence[PromptResponse], *, policy: LogpsOf, reference: LogpsOf, limit: int) -> dict[str, Any]:
    """KL(π ‖ π_ref) of a whole reply: the mean of log π(y|x) − log π_ref(y|x) over replies y that π wrote at temperature 1.

    Without bias for replies of up to `limit` tokens; with few replies it may come out below 0, which a KL never is.
    """
    log_ratio_K = responses(sampled, policy, reference).log_ratio_B.double().numpy()
    replies = f"{len(sampled)} replies of the tuned model" if len(sampled) > 1 else "one reply of the tuned model"
    note = f"per reply, estimated on {replies}, sampled at temperature 1, up to {limit} tokens"
    return {**bootstrap(log_ratio_K, numbered([sequence.prompt_ids for sequence in sampled])).as_dict(), "note": note}


def measure_kl_on_data(examples: Sequence[Example], divergences: Mapping[PromptResponse, Tensor]) -> dict[str, Any]:
    """KL on the replies of `examples`: the mean over those replies that `divergences` has, each the sum over its tokens t of

    Σ_v π(v|x, y_<t) · log(π(v|x, y_<t) / π_ref(v|x, y_<t))
    """
    replies = sequences_of(examples)
    measured = [sequence for sequence in replies if sequence in divergences]
    sums_K = np.array([float(divergences[sequence].double().sum()) for sequence in measured])
    amount = count(len(measured), "held-out reply", "held-out replies")
    if len(measured) < len(replies):
        amount = f"{len(measured):,} of {len(replies):,} held-out replies, spread evenly"
    note = f"per reply, exact over the vocabulary at each token of {amount}"
    return {**bootstrap(sums_K, numbered([sequence.prompt_ids for sequence in measured])).as_dict(), "note": note}
