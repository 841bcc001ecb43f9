"""A few batches of a run really tried: how long they take, how much memory the worst one does. The model is bit for bit as it was before."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from likelier.errors import ModelError, lacks_memory
from likelier.examples import Example, LabelledExample
from likelier.logprobs.examples import mismatched, sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse, count_unique_tokens
from likelier.models import as_reference
from likelier.objectives import Objective
from likelier.recipe import Recipe, TrainSettings
from likelier.train.master import MasterWeights
from likelier.train.memory import Peak, free, no_more_than, resident
from likelier.train.optimizer import make_optimizer
from likelier.train.outlook import batch_tokens
from likelier.train.progress import Progress
from likelier.train.step import Task, add_gradients

BATCHES = 5
"""Batches whose time is taken, after one that warms up."""

GROUP = 2**24
"""Numbers that the optimizer steps at once."""

FEWEST = 3
"""Batches whose time is taken however long that takes, where the run has as many."""

SECONDS = 60.0
"""No further batch is begun after so many seconds."""


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, the least and the greatest."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(min(values), statistics.median(values), max(values))

    def times(self, factor: float) -> "Spread":
        return Spread(self.low * factor, self.middle * factor, self.high * factor)

    def plus(self, other: "Spread") -> "Spread":
        return Spread(self.low + other.low, self.middle + other.middle, self.high + other.high)


@dataclass
class Trial:
    """What was measured. Where there was no memory for the worst batch, `fits` is false, and the rest is what came before."""

    worst_tokens: int  # unique tokens of the worst batch
    tokens_per_batch: int  # what train.tokens_per_batch had to become for it to fit
    memory_before: int  # bytes that the process held; on a GPU its tensors
    memory_peak: int = 0
    fits: bool = False
    batches: int = 0  # that were timed
    training: Spread | None = None  # seconds a unique token, forward and backward
    scoring: Spread | None = None  # seconds a unique token, without gradient
    step: float = 0.0  # seconds of an optimizer step
    end_logp: float | None = None  # mean log-probability of the end token after a good reply


def try_out(policy: Scorer, objective: Objective, recipe: Recipe, batches: Sequence[list[Example]], *, accumulates: bool) -> Trial:
    """Time some of `batches`, drawn at random, then put the one with most unique tokens through forward and backward pass, with optimizer state
    and, where a step `accumulates` batches, gradients already there.

    The run's own optimizer really steps, some weights at a time, and they are put back before the next. On a CPU an allocation beyond what is free
    fails instead of ending the process.
    """
    settings = recipe.train
    sizes = [batch_tokens(batch, pads=policy.engine == "plain") for batch in batches]
    worst = max(range(len(batches)), key=sizes.__getitem__)
    drawn = Random(settings.seed).sample(range(len(batches)), min(len(batches), BATCHES + 1))
    trial = Trial(sizes[worst], settings.tokens_per_batch, resident(policy.device))
    with tempfile.TemporaryDirectory() as folder, Peak(policy.device) as peak:
        store = ReferenceStore(Path(folder), "plan")
        task = Task(policy, store if objective.needs_reference else None, objective, settings.tokens_per_batch, Progress())
        try:
            with no_more_than(free(policy.device)) if policy.device.type == "cpu" else nullcontext():
                _try(trial, task, store, recipe, [(batches[i], sizes[i]) for i in drawn], batches[worst], accumulates=accumulates)
        except (RuntimeError, MemoryError, ModelError) as problem:  # a ModelError where not one sequence alone could be scored
            if not (lacks_memory(problem) or isinstance(problem, ModelError)):
                raise
    trial.memory_peak = peak.bytes
    return trial


def _try(
    trial: Trial,
    task: Task,
    store: ReferenceStore,
    recipe: Recipe,
    drawn: Sequence[tuple[list[Example], int]],
    worst: list[Example],
    *,
    accumulates: bool,
) -> None:
    settings = recipe.train
    weights = MasterWeights.of(task.policy.model, recipe.model, settings.bf16_weights)
    try:
        _time(trial, task, store, weights, drawn)
        optimizers = _step_and_put_back(trial, task.policy, weights, settings)
        if not accumulates:
            weights.forget_gradients()
        _score(task.policy, store, worst, settings.tokens_per_batch)
        _gradients(task, weights, worst)
        trial.tokens_per_batch = task.tokens_per_batch
        trial.fits = task.tokens_per_batch == settings.tokens_per_batch
        del optimizers  # whose moments had to be there until now
    finally:
        weights.forget_gradients()


def _time(trial: Trial, task: Task, store: ReferenceStore, weights: MasterWeights, drawn: Sequence[tuple[list[Example], int]]) -> None:
    """Note the seconds a token over `drawn`; the first batch warms up, and counts only where it is the only one."""
    training, scoring, ends = [], [], []
    began = time.perf_counter()
    for batch, size in drawn:
        scoring += _score(task.policy, store, batch, task.tokens_per_batch)
        started = _now(task.policy)
        _gradients(task, weights, batch)
        training.append((_now(task.policy) - started) / size)
        ends += [float(store[reply][-1]) for reply in _good_replies(batch)]
        if len(training) > FEWEST and time.perf_counter() - began > SECONDS:
            break
    trial.batches = max(1, len(training) - 1)
    trial.training, trial.scoring = Spread.of(training[-trial.batches :]), Spread.of(scoring[min(1, len(scoring) - 1) :])
    trial.end_logp = statistics.fmean(ends) if ends else None


def _score(policy: Scorer, store: ReferenceStore, batch: Sequence[Example], tokens_per_batch: int) -> list[float]:
    """Fill `store` with the reference's values of `batch`: [seconds a unique token], or nothing where it had them all."""
    wanted = [sequence for sequence in dict.fromkeys([*sequences_of(batch), *mismatched(batch)]) if sequence not in store]
    started = _now(policy)
    with as_reference(policy.model):
        fill(store, policy, wanted, tokens_per_batch=tokens_per_batch)
    return [(_now(policy) - started) / count_unique_tokens(wanted)] if wanted else []


def _gradients(task: Task, weights: MasterWeights, batch: list[Example]) -> None:
    add_gradients(task, weights, batch, point=task.point(batch, 0.0))


def _step_and_put_back(trial: Trial, policy: Scorer, weights: MasterWeights, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Step the weights twice and put them back, group by group, so that the copy of one group is all that this adds. Notes the seconds of the second
    step; the optimizers hold the moments."""
    optimizers: list[torch.optim.Optimizer] = []
    for group in _groups(weights.parameters):
        before = [parameter.detach().clone() for parameter in group]
        optimizer = make_optimizer(group, settings)
        try:
            optimizer.step()
            started = _now(policy)
            optimizer.step()
            trial.step += _now(policy) - started
        finally:
            for parameter, value in zip(group, before, strict=True):
                parameter.detach().copy_(value)
        optimizers.append(optimizer)
    return optimizers


def _groups(weights: Sequence[Tensor]) -> list[list[Tensor]]:
    """In their order, of at most GROUP numbers, or of one larger weight."""
    groups: list[list[Tensor]] = []
    filled = GROUP
    for weight in weights:
        if filled + weight.numel() > GROUP:
            groups.append([])
            filled = 0
        groups[-1].append(weight)
        filled += weight.numel()
    return groups


def _good_replies(batch: Sequence[Example]) -> list[PromptResponse]:
    return [PromptResponse(e.prompt_ids, e.replies[0]) for e in batch if not isinstance(e, LabelledExample) or e.label]


def _now(policy: Scorer) -> float:
    """The time at which all that was asked of the device is done."""
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)
    return time.perf_counter()
