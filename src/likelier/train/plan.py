"""`plan`: what a run will be, before it is one. Counted and estimated as `train` does it (outlook.py), a few batches really tried (trial.py)."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from likelier.recipe import Recipe
from likelier.train.advice import Advice
from likelier.train.outlook import Outlook, outlook
from likelier.train.progress import Progress
from likelier.train.session import open_store, prepare
from likelier.train.trial import Spread, Trial, try_out


@dataclass(frozen=True)
class Plan:
    """A run's outlook, what trying it showed, seconds by what they are spent on (training, evaluations, reference, in all; none where nothing
    could be measured)."""

    outlook: Outlook  # its facts hold what the trial showed
    trial: Trial
    seconds: dict[str, Spread]
    device: str
    precision: str
    engine: str

    @property
    def fits(self) -> bool:
        """Whether the worst batch went through with the recipe's own settings."""
        return self.trial.fits

    @property
    def advice(self) -> list[Advice]:
        """What to change, the weightiest first."""
        return self.outlook.advice

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Bytes and seconds are plain numbers."""
        seen = asdict(self.outlook)
        return {
            **{name: getattr(self, name) for name in ("device", "precision", "engine", "fits")},
            **seen,
            "memory": {part.name: part.bytes for part in self.outlook.memory},
            "memory_total": self.outlook.memory_total,
            "trial": asdict(self.trial),
            "seconds": {name: asdict(spread) for name, spread in self.seconds.items()},
            "advice": [{**asdict(advice), "weight": str(advice.weight)} for advice in self.advice],
        }


def plan_recipe(recipe: Recipe, show: Progress | None = None) -> Plan:
    """What `recipe` will take, without a trace but in caches. Raises what `train_recipe` raises before it begins."""
    show = show or Progress()
    prepared = prepare(recipe, show)
    store = open_store(prepared, show) if prepared.objective.needs_reference else None
    seen, batches = outlook(prepared, store)
    show.say("Trying a few batches …")
    trial = try_out(prepared.policy, prepared.objective, recipe, batches, accumulates=seen.schedule.most_batches > 1)
    facts = replace(seen.facts, fits=trial.fits, end_logp=trial.end_logp)
    policy = prepared.policy
    return Plan(replace(seen, facts=facts), trial, _seconds(seen, trial), policy.device.type, policy.precision, policy.engine)


def _seconds(seen: Outlook, trial: Trial) -> dict[str, Spread]:
    """Measured seconds a token times the tokens that were counted; writing checkpoints is not in it, nor what follows training."""
    if trial.training is None or trial.scoring is None:
        return {}
    steps = seen.schedule.steps * trial.step
    spent = {
        "training": trial.training.times(seen.schedule.tokens).plus(Spread(steps, steps, steps)),
        "evaluations": trial.scoring.times(seen.schedule.tokens_scored),
        "reference": trial.scoring.times(seen.reference.tokens if seen.reference else 0),
    }
    return {**spent, "in all": spent["training"].plus(spent["evaluations"]).plus(spent["reference"])}
