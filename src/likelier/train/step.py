"""The gradient of one optimizer step, and of what it is the gradient: examples → batches → losses → a sum that no cut changes (pitfall 8)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from likelier.errors import RecipeError, lacks_memory
from likelier.examples import Example, Ids, PreferenceExample, all_pairs
from likelier.logprobs.examples import (
    cut_examples,
    in_order_of_losses,
    kl_point,
    log_ratios,
    mismatched,
    score_all_examples,
    score_examples,
    sequences_of,
)
from likelier.logprobs.reference import ReferenceValues
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import count_unique_tokens, moved
from likelier.objectives import Logps, Objective
from likelier.train.master import MasterWeights
from likelier.train.order import ExampleOrder
from likelier.train.parallel import ALONE, Ranks
from likelier.train.progress import Progress
from likelier.train.sharding import in_step
from likelier.train.stop import NEVER, Stop
from likelier.train.tally import Row, Tally


@dataclass
class Task:
    """What a step needs beside its examples: who scores, what is compared with it, and how that is judged."""

    policy: Scorer
    reference: ReferenceValues | None
    objective: Objective
    tokens_per_batch: int  # becomes smaller where a batch did not fit into memory
    show: Progress
    stop: Stop = NEVER
    ranks: Ranks = ALONE

    def point(self, examples: Sequence[Example], moving: float, **options: Any) -> float:
        """`Logps.point` for `examples`: their KL for an objective that wants it (`options` as of `log_ratios`), else what past steps have left,
        `moving`."""
        if not self.objective.point_is_kl:
            return moving
        assert self.reference is not None
        mine = self.ranks.share(mismatched(examples), lambda sequence: count_unique_tokens([sequence]))
        with in_step(self.policy):
            ratios = log_ratios(self.policy, self.reference, mine, tokens_per_batch=self.tokens_per_batch, **options)
        return kl_point(list(chain.from_iterable(self.ranks.gather(ratios))))

    def share(self, examples: Sequence[Example]) -> list[Example]:
        """What of a step or an evaluation this rank takes: prompts with all their examples, as they are cheapest together. Losses that depend on all
        pairs cannot be shared out, so that the leader takes them."""
        if self.ranks.size == 1 or (self.objective.couples_pairs and self.ranks.leads):
            return list(examples)
        if self.objective.couples_pairs:
            return []
        of_prompt: dict[Ids, list[Example]] = {}
        for example in examples:
            of_prompt.setdefault(example.prompt_ids, []).append(example)
        mine = self.ranks.share([*of_prompt.values()], lambda group: count_unique_tokens(sequences_of(group)))
        return [example for group in mine for example in group]


@dataclass
class Step:
    """What was measured on the way to a gradient. `losses` are those of this rank, the rest is of all."""

    tally: Tally
    ranks: Ranks
    tokens: int = 0  # put through the model with gradient
    losses: list[tuple[list[Example], Tensor]] = field(default_factory=list)  # of each batch, with the example of each loss

    @cached_property
    def row(self) -> Row:
        """Means over the step. Reading them is what waits for the device; all ranks must."""
        return self.tally.row(self.ranks)

    def not_finite(self) -> list[str]:
        """The ids of the examples whose loss is no finite number."""
        return [e.id for judged, losses_B in self.losses for e, finite in zip(judged, losses_B.isfinite().tolist(), strict=True) if not finite]


def add_gradients(task: Task, weights: MasterWeights, examples: Sequence[Example], *, point: float = 0.0, first: bool = False) -> Step:
    """Add the gradient of the mean loss over `examples` to `weights`, batch by batch and over all ranks. Of a `first` step the losses of an untrained
    policy are counted, too, and how far this policy is from one.

    Nothing here waits for the device: what was measured is read with `Step.row`. Where a batch does not fit into memory, the rank begins its share
    again in batches of half its size, and so do those that follow: the gradient is the same. Raises what the allocator raised if a batch cannot be
    halved, or where each rank holds a part of the model.
    """
    mine = task.share(examples)
    while True:
        failed: list[Example] = []
        step = Step(Tally(task.objective, pairs=all_pairs(examples)), task.ranks)
        try:
            with task.policy.unchanged_weights(), in_step(task.policy, backward=True):
                for failed in cut_step(mine, task.objective, task.tokens_per_batch):
                    _add_batch(task, weights, failed, _count(examples, task.objective), point, step, first=first)
            break
        except (RuntimeError, MemoryError) as problem:
            half = count_unique_tokens(sequences_of(failed)) // 2
            # One pair cannot be halved, nor can one that stands in the step twice; and ranks that compute together cannot begin again one by one.
            whole = len(failed) < 2 or half >= task.tokens_per_batch or task.objective.couples_pairs or task.policy.is_divided
            if whole or not lacks_memory(problem):
                raise
        weights.forget_gradients()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        task.tokens_per_batch = half
        task.show.say(f"Not enough memory for a batch; from here on in batches of {task.tokens_per_batch} tokens.")
    task.ranks.add_gradients(weights.parameters)
    step.tokens = sum(task.ranks.gather(step.tokens))
    return step


def prepare_step(task: Task, examples: Sequence[Example]) -> None:
    """Have the first batch of a coming step at hand. Those after it are made while the device computes the one before."""
    for batch in cut_step(task.share(examples), task.objective, task.tokens_per_batch)[:1]:
        task.policy.prepare(sequences_of(batch))


def _add_batch(task: Task, weights: MasterWeights, batch: Sequence[Example], total: int, point: float, step: Step, *, first: bool) -> None:
    logps = score_examples(task.policy, task.reference, batch, point=point, collisions=task.objective.reads_collisions)
    losses_B = weighted_losses(task.objective, batch, logps)
    (losses_B.sum() / total).backward()
    weights.collect_gradients()
    step.tally.add(losses_B, logps)
    step.tokens += task.policy.last_tokens
    step.losses.append((in_order_of_losses(batch, task.objective), losses_B.detach()))
    if first and task.reference is not None:
        with torch.no_grad():
            step.tally.count("expected_loss", weighted_losses(task.objective, batch, logps.with_policy_at_reference()))
        for side in (logps.chosen, logps.rejected):
            step.tally.count("drift", side.drift_B)


def evaluate_held_out(task: Task, examples: Sequence[Example], moving: float) -> Row | None:
    """Means over held-out examples, without gradient; None if a stop was asked for before the end, of any rank."""
    tally = Tally(task.objective, pairs=all_pairs(examples))
    point = task.point(examples, moving, until=task.stop.until)
    batches = score_all_examples(
        *(task.policy, task.reference, task.share(examples)),
        tokens_per_batch=task.tokens_per_batch,
        point=point,
        collisions=task.objective.reads_collisions,
    )
    with in_step(task.policy):
        scored = list(task.stop.until(batches))
    if task.ranks.stop_together(task.stop):
        return None
    if task.objective.couples_pairs and scored:
        scored = [([example for batch, _ in scored for example in batch], Logps.joined([logps for _, logps in scored]))]
    for batch, logps in scored:
        tally.add(weighted_losses(task.objective, batch, logps), logps)
    return tally.row(task.ranks)


def weighted_losses(objective: Objective, examples: Sequence[Example], logps: Logps) -> Tensor:
    """The objective's losses of `examples`, each times its example's weight."""
    losses_B = objective.losses(logps)
    (weights_B,) = moved([torch.tensor([example.weight for example in in_order_of_losses(examples, objective)])], losses_B.device)
    return losses_B * weights_B


def cut_step(examples: Sequence[Example], objective: Objective, tokens_per_batch: int) -> list[list[Example]]:
    """The examples of a step in batches of about `tokens_per_batch` unique tokens. Their gradients add up to the step's.

    Raises RecipeError for more than one batch of an objective whose losses depend on all pairs of the step: a sum over batches would be the
    gradient of something else.
    """
    batches = cut_examples(examples, tokens_per_batch)
    if objective.couples_pairs and len(batches) > 1:
        raise RecipeError(
            f"train.tokens_per_batch: this objective compares all pairs of a step with each other, so that a step must be one batch, and "
            f"{len(examples)} pairs from `{examples[0].id}` to `{examples[-1].id}` are {len(batches)} batches of about {tokens_per_batch} tokens. "
            f"Raise train.tokens_per_batch, or lower train.pairs_per_step (here {len(examples)}) or data.max_length."
        )
    return batches


def refuse_unheeded(examples: Sequence[Example], objective: Objective) -> None:
    """Raises RecipeError where training examples have weights that the objective cannot heed, or margins are asked for that none has."""
    if objective.couples_pairs and any(example.weight != 1 for example in examples):
        raise RecipeError("objective.name: this objective compares all pairs of a step with each other and cannot heed the records' `weight`.")
    if objective.margin_scale and not any(isinstance(example, PreferenceExample) and example.margin for example in examples):
        raise RecipeError("objective.margin_scale: no training record has a `margin`.")


def require_whole_steps(order: ExampleOrder, objective: Objective, tokens_per_batch: int) -> None:
    """Raises RecipeError if any step of the run would be cut and must not be."""
    for step in range(order.steps) if objective.couples_pairs else ():
        cut_step(order.step(step), objective, tokens_per_batch)


def _count(examples: Sequence[Example], objective: Objective) -> int:
    """How many losses the objective has for `examples`: what their mean is over."""
    return len(examples) if objective.paired else sum(len(example.replies) for example in examples)
