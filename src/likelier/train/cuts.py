"""How an optimizer step is cut into batches, and which objectives do not let it be."""

from collections.abc import Sequence

from likelier.errors import RecipeError
from likelier.examples import PreferenceExample
from likelier.logprobs.pairs import cut_pairs
from likelier.objectives import Objective
from likelier.train.order import PairOrder


def cut_step(pairs: Sequence[PreferenceExample], objective: Objective, tokens_per_batch: int) -> list[list[PreferenceExample]]:
    """The pairs of a step in batches of about `tokens_per_batch` unique tokens. Their gradients add up to the step's (pitfall 8).

    Raises RecipeError for more than one batch of an objective whose losses depend on all pairs of the step: a sum over batches would be the
    gradient of something else.
    """
    batches = cut_pairs(pairs, tokens_per_batch)
    if objective.couples_pairs and len(batches) > 1:
        raise RecipeError(
            f"train.tokens_per_batch: this objective compares all pairs of a step with each other, so that a step must be one batch, and "
            f"{len(pairs)} pairs from `{pairs[0].id}` to `{pairs[-1].id}` are {len(batches)} batches of about {tokens_per_batch} tokens. "
            f"Raise train.tokens_per_batch, or lower train.pairs_per_step (here {len(pairs)}) or data.max_length."
        )
    return batches


def require_whole_steps(order: PairOrder, objective: Objective, tokens_per_batch: int) -> None:
    """Raises RecipeError if any step of the run would be cut and must not be."""
    for step in range(order.steps) if objective.couples_pairs else ():
        cut_step(order.step(step), objective, tokens_per_batch)
