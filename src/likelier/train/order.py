"""Which examples each optimizer step takes: decided by seed and step alone, so that a resumed run neither skips nor repeats one (pitfall 20)."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from likelier.examples import Example
from likelier.recipe import TrainSettings


class ExampleOrder:
    """Epochs end to end, cut into steps. Each epoch has its own order of prompts; pairs of one prompt stay together, so that they share it."""

    def __init__(self, examples: Sequence[Example], settings: TrainSettings) -> None:
        self.examples = examples
        self.per_step = settings.pairs_per_step
        self.seed = settings.seed
        self.pairs = max(1, round(settings.epochs * len(examples)))
        steps = math.ceil(self.pairs / self.per_step)
        self.steps = min(steps, settings.max_steps or steps)
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, example in enumerate(examples):
            groups.setdefault(example.prompt_ids, []).append(index)
        self._groups = list(groups.values())
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def step(self, step: int) -> list[Example]:
        """The pairs of optimizer step `step`, counted from 0. The last step of a run may hold fewer than the others."""
        numbers = range(step * self.per_step, min((step + 1) * self.per_step, self.pairs))
        return [self.examples[self._epoch(n // len(self.examples))[n % len(self.examples)]] for n in numbers]

    def epochs_at(self, step: int) -> float:
        """Passes over the examples when `step` steps are done."""
        return min(step * self.per_step, self.pairs) / len(self.examples)

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._groups), generator=generator).tolist()
        return [index for group in order for index in self._groups[group]]


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """The rate of optimizer step `step` of `steps`: a linear rise over the first `warmup` share, then cosine, linear or constant."""
    warm = math.ceil(settings.warmup * steps)
    if step < warm:
        return settings.peak_learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[settings.schedule]
    return settings.peak_learning_rate * shape
