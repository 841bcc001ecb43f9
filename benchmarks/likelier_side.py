"""Likelier's side of a comparison: the pieces of a run in the order in which `train/session.py` puts them together, stopped after every step."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from likelier.examples import PreferenceExample
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.reference import ReferenceStore, ReferenceValues, fill
from likelier.logprobs.scorer import Scorer, choose_engine
from likelier.logprobs.tree import count_unique_tokens
from likelier.models import as_reference
from likelier.objectives import make_objective
from likelier.recipe import TrainSettings
from likelier.train.loop import Training
from likelier.train.master import MasterWeights
from likelier.train.progress import Progress
from likelier.train.step import Task
from measures import clock

BETA = 0.1

Steps = list[list[PreferenceExample]]


@dataclass
class StepsAsGiven:
    """What `train/order.py` is for the loop: these steps, in this order."""

    given: Steps

    @property
    def steps(self) -> int:
        return len(self.given)

    def step(self, number: int) -> list[PreferenceExample]:
        return self.given[number]

    def epochs_at(self, step: int) -> float:
        return step / len(self.given)


class LikelierSide:
    """A run of DPO over `steps` by `settings`, whose steps are made one at a time. `originals`: as of MasterWeights."""

    def __init__(self, model: Any, settings: TrainSettings, steps: Steps, *, pad_id: int, originals: Mapping[str, Tensor] | None = None) -> None:
        shortest = sorted((example for step in steps for example in step), key=len)[:3]
        self.parity = choose_engine(model, sequences_of(shortest), pad_id=pad_id)
        self.settings = settings
        self.folder = tempfile.TemporaryDirectory()  # goes with this object
        self.store = ReferenceStore(Path(self.folder.name), "benchmark")
        policy = Scorer(model, engine=self.parity.engine, precision=settings.precision, pad_id=pad_id)
        self.task = Task(policy, self.store, make_objective("dpo", beta=BETA), settings.tokens_per_batch, Progress())
        weights = MasterWeights(model, originals, rounded_at_random=settings.bf16_weights == "stochastic-rounding")
        self.rows: list[dict[str, Any]] = []
        self.training = Training(self.task, weights, StepsAsGiven(steps), settings, log=self.rows.append)

    def score_reference(self, steps: Steps, *, keep: bool = True) -> float:
        """Seconds that the reference takes for `steps`. Its values serve the training if they are kept."""
        started = clock()
        with as_reference(self.task.policy.model):
            fill(
                self.store if keep else ReferenceValues(),
                self.task.policy,
                sequences_of([pair for step in steps for pair in step]),
                tokens_per_batch=self.settings.tokens_per_batch,
            )
        return clock() - started

    def step(self) -> tuple[float, float]:
        """Its loss and its seconds, batches being built within."""
        started = clock()
        self.training.step()
        seconds = clock() - started
        row = self.rows[-1]
        if row["kind"] != "train":
            raise SystemExit(f"Likelier skipped a step: {row}")
        return row["loss"], seconds


def unique_tokens(step: list[PreferenceExample]) -> int:
    return count_unique_tokens(sequences_of(step))
