"""What the rules of diagnosis look at: the rows so far, means over the last of them, and the settings that they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from likelier.objectives import Objective, make_objective
from likelier.recipe import Recipe, TrainSettings
from likelier.train.advice import Facts, facts_of

Row = Mapping[str, Any]

WINDOW = 4
"""Training steps that are averaged where a rule speaks of "now": one step's pairs say little."""


@dataclass(frozen=True)
class Symptom:
    """Something in the curves that deserves a word: what, the numbers that show it, and which settings mend it."""

    name: str
    title: str
    verdict: Literal["warn", "note"]
    evidence: str
    mend: str
    step: int = 0  # at which it was first seen

    def row(self) -> dict[str, Any]:
        """As metrics.jsonl has it."""
        return {"kind": "symptom", "step": self.step, **{name: getattr(self, name) for name in ("name", "title", "verdict", "evidence", "mend")}}

    @classmethod
    def of_row(cls, row: Row) -> "Symptom":
        return cls(**{name: row[name] for name in ("name", "title", "verdict", "evidence", "mend", "step")})


@dataclass(frozen=True)
class Setup:
    """What a run is beside its rows. Without `recipe`, as for a Trainer, no rule judges settings. `prompts` are the held-out ones, which the rows of
    evaluations then tell."""

    train: TrainSettings
    objective: Objective
    recipe: Recipe | None = None
    prompts: int | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> "Setup":
        return cls(recipe.train, make_objective(recipe.objective.name, **recipe.objective.given()), recipe)

    @property
    def kl_budget(self) -> float | None:
        return self.recipe.eval.kl_budget if self.recipe else None

    @property
    def loss_begins_level(self) -> bool:
        """Whether an untrained policy has the same loss on all pairs: so it is where only log-ratios enter, and no likelihood as such."""
        terms = self.objective.terms or (self.objective,)
        return all(term.needs_reference and not term.hyperparameters.get("sft_weight") for term in terms)

    def facts(self, row: Row) -> Facts | None:
        """What advice on settings needs, from the recipe and a training row: the row says how many records an epoch has."""
        if self.recipe is None or not row["epoch"]:
            return None
        per_step = row["epoch"] / row["step"]
        steps = min(round(self.train.epochs / per_step), self.train.max_steps or 10**9)
        epochs = min(self.train.epochs, steps * per_step)
        return facts_of(self.recipe, self.objective, epochs=epochs, steps=steps, pairs=round(row["pairs"] / per_step))


@dataclass
class History:
    """The rows of a run up to now. `films` are the rows of filmstrip.jsonl by step and id; the rules look at those of the last evaluation."""

    setup: Setup
    train: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)
    films: dict[int, dict[str, Row]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        {"train": self.train, "eval": self.evals, "skipped": self.skipped}[row["kind"]].append(row)

    def add_film(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.films.setdefault(row["step"], {})[row["id"]] = row

    @property
    def done(self) -> float:
        """The share of the run's steps that are done."""
        if not self.train:
            return 0.0
        settings, last = self.setup.train, self.train[-1]
        return float(max(last["epoch"] / settings.epochs, last["step"] / settings.max_steps if settings.max_steps else 0.0))

    @property
    def settled(self) -> bool:
        """Whether half of the run is over and there are steps enough to speak of what has not happened."""
        return len(self.train) >= 2 * WINDOW and self.done >= 0.5

    @property
    def just_evaluated(self) -> bool:
        """Whether the held-out pairs were ranked by the weights that the last training step left."""
        return bool(self.evals and self.train and self.evals[-1]["step"] == self.train[-1]["step"])

    def now(self, name: str, *, ago: int = 0) -> float | None:
        """The mean of `name` over the last WINDOW training steps, or over those before the last `ago`; None where it was not measured in each."""
        rows = self.train[: len(self.train) - ago][-WINDOW:]
        values = [row.get(name) for row in rows]
        known = [value for value in values if value is not None]
        return sum(known) / WINDOW if len(known) == WINDOW else None

    @property
    def filmed(self) -> tuple[list[Row], list[Row]]:
        """The same watched prompts before training and at the last evaluation; none where they were not looked at."""
        before, after = self.films.get(0, {}), self.films.get(self.evals[-1]["step"], {}) if self.evals else {}
        both = [name for name in after if name in before]
        return [before[name] for name in both], [after[name] for name in both]
