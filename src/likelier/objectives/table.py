"""TABLE: the objectives by name, each with its implicit reward and what it needs; and their weighted sums."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from likelier.errors import RecipeError, did_you_mean
from likelier.objectives.dpo import desensitised, dpo, dpop, f_dpo, f_score, ld_dpo, length_normalised_dpo, r_dpo, robust_dpo, rpo, wpo
from likelier.objectives.logps import POINT_MOMENTUM, Logps
from likelier.objectives.margins import discopop, exo, hinge, ipo
from likelier.objectives.reference_free import cpo, log_odds, orpo, sft, simpo
from likelier.objectives.sides import apo_down, apo_zero, nca, sppo
from likelier.objectives.steps import aot, aot_pair, beta_dpo
from likelier.objectives.unpaired import apo_zero_unpaired, bco, kto
from likelier.section import NotNegative

Rewards = tuple[Tensor, Tensor]
"""Implicit rewards of chosen and rejected, (B,) each: what the losses drive apart."""


def _ratio(logps: Logps, *, beta: float, **_: Any) -> Rewards:
    """β·log π/π_ref(y)."""
    return beta * logps.chosen.log_ratio_B, beta * logps.rejected.log_ratio_B


def _mean_ratio(logps: Logps, *, beta: float, **_: Any) -> Rewards:
    """β·log π/π_ref(y) / |y|."""
    return beta * logps.chosen.log_ratio_B / logps.chosen.lengths_B, beta * logps.rejected.log_ratio_B / logps.rejected.lengths_B


def _desensitised_ratio(logps: Logps, *, beta: float, tail_weight: float) -> Rewards:
    """β·log π/π_ref(y), tokens beyond the shorter response's length at `tail_weight`."""
    return _ratio(desensitised(logps, tail_weight), beta=beta)


def _f_score(logps: Logps, *, beta: float, divergence: Any, divergence_alpha: float) -> Rewards:
    """β·f′(π/π_ref(y))."""
    chosen_B, rejected_B = (f_score(side, divergence, divergence_alpha) for side in (logps.chosen, logps.rejected))
    return beta * chosen_B, beta * rejected_B


def _logp(logps: Logps, *, beta: float, **_: Any) -> Rewards:
    """β·log π(y)."""
    return beta * logps.chosen.policy_B, beta * logps.rejected.policy_B


def _mean_logp(logps: Logps, *, beta: float = 1.0, **_: Any) -> Rewards:
    """β·log π(y) / |y|."""
    return beta * logps.chosen.policy_mean_B, beta * logps.rejected.policy_mean_B


def _log_odds(logps: Logps, **_: Any) -> Rewards:
    """log odds(y)."""
    return log_odds(logps.chosen), log_odds(logps.rejected)


@dataclass(frozen=True)
class Objective:
    """A row of TABLE; from `make_objective`, with its hyperparameters set, an objective ready for use."""

    function: Callable[..., Tensor]  # of Logps and the hyperparameters
    reward: Callable[..., Rewards]  # of the same
    needs_reference: bool = True
    paired: bool = True  # one loss a pair; else one a reply, whether it comes from a pair or alone
    couples_pairs: bool = False  # a pair's loss depends on the other pairs of its step, so that a step must not be cut
    reads_margin: bool = False  # a record's margin can be asked for: the loss is one of h
    point_is_kl: bool = False  # `Logps.point` is KL(π ‖ π_ref), estimated at each step
    point_follows: Callable[..., float] | None = None  # of a step's mean rewards and the hyperparameters: what `Logps.point` is a moving mean of
    given: Mapping[str, Any] = field(default_factory=dict)
    margin_scale: float = 0.0
    terms: tuple["Objective", ...] = ()  # of a sum
    made_as: str = ""  # what `make_objective` was asked for, which tells two objectives apart

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Names and values, the function's own defaults included."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | dict(self.given)

    @property
    def reads_collisions(self) -> bool:
        """Whether it needs `Responses.collisions_N`."""
        return self.hyperparameters.get("alignment") == "sampled" or any(term.reads_collisions for term in self.terms)

    def losses(self, logps: Logps) -> Tensor:
        """One loss a pair; of an unpaired objective one a reply, the good ones first."""
        return self.function(logps.asking_for(self.margin_scale), **self.given)

    def rewards(self, logps: Logps) -> Rewards:
        """Implicit rewards of chosen and rejected (good and bad) replies, without gradient."""
        with torch.no_grad():
            return self.reward(logps, **self.hyperparameters)

    def next_point(self, point: float, row: Mapping[str, float | None]) -> float:
        """`Logps.point` after a step whose metrics are `row`: it moves a tenth of the way towards what it follows."""
        if self.point_follows is None or None in (row["chosen_reward"], row["rejected_reward"]):
            return point
        return POINT_MOMENTUM * point + (1 - POINT_MOMENTUM) * self.point_follows(row, **self.hyperparameters)


def _halfway(row: Mapping[str, float], *, beta: float, **_: Any) -> float:
    """The log-ratio halfway between the mean rewards of both sides."""
    return (row["chosen_reward"] + row["rejected_reward"]) / (2 * beta)


def _margin(row: Mapping[str, float], **_: Any) -> float:
    return row["margin"]


TABLE: dict[str, Objective] = {
    "dpo": Objective(dpo, _ratio, reads_margin=True),
    "robust-dpo": Objective(robust_dpo, _ratio, reads_margin=True),
    "length-normalised-dpo": Objective(length_normalised_dpo, _mean_ratio),
    "r-dpo": Objective(r_dpo, _ratio, reads_margin=True),
    "ld-dpo": Objective(ld_dpo, _desensitised_ratio, reads_margin=True),
    "dpop": Objective(dpop, _ratio, reads_margin=True),
    "rpo": Objective(rpo, _ratio, reads_margin=True),
    "f-dpo": Objective(f_dpo, _f_score),
    "wpo": Objective(wpo, _ratio, reads_margin=True),
    "beta-dpo": Objective(beta_dpo, _ratio, couples_pairs=True, reads_margin=True, point_follows=_margin),
    "ipo": Objective(ipo, _ratio),
    "hinge": Objective(hinge, _ratio, reads_margin=True),
    "exo": Objective(exo, _ratio, reads_margin=True),
    "discopop": Objective(discopop, _ratio, reads_margin=True),
    "nca": Objective(nca, _ratio),
    "sppo": Objective(sppo, _ratio),
    "apo-zero": Objective(apo_zero, _ratio),
    "apo-down": Objective(apo_down, _ratio),
    "aot": Objective(aot, _ratio, couples_pairs=True),
    "aot-pair": Objective(aot_pair, _ratio, couples_pairs=True),
    "simpo": Objective(simpo, _mean_logp, needs_reference=False),
    "orpo": Objective(orpo, _log_odds, needs_reference=False),
    "cpo": Objective(cpo, _logp, needs_reference=False),
    "sft": Objective(sft, _mean_logp, needs_reference=False),
    "kto": Objective(kto, _ratio, paired=False, point_is_kl=True),
    "bco": Objective(bco, _ratio, paired=False, point_follows=_halfway),
    "apo-zero-unpaired": Objective(apo_zero_unpaired, _ratio, paired=False),
}


def make_objective(name: str, **hyperparameters: Any) -> Objective:
    """The objective called `name`, or the weighted sum that `name` is ("dpo + 0.2 sft"), with hyperparameters set; in a sum each goes to all
    that take it. Raises RecipeError for an unknown name, for a hyperparameter that none takes, and for a value out of its range."""
    terms = parse_sum(name)
    taken: set[str] = set()
    made = []
    for _, term in terms:
        if term not in TABLE:
            known = f"Known: {', '.join(TABLE)}."
            raise RecipeError(f"objective.name: there is no objective `{term}`.{did_you_mean(term.lower(), TABLE)} {known}")
        own = {given: value for given, value in hyperparameters.items() if given in taken_by(TABLE[term])}
        taken |= own.keys()
        made.append(_with_settings(term, own))
    for given in hyperparameters.keys() - taken:
        takes = sorted({known for _, term in terms for known in taken_by(TABLE[term])})
        names = f"It takes: {', '.join(takes)}." if takes else "It takes none."
        raise RecipeError(f"objective.{given}: `{name}` does not take it.{did_you_mean(given, takes)} {names}")
    weights = [weight for weight, _ in terms]
    objective = made[0] if weights == [1] else weighted_sum(weights, made)
    return replace(objective, made_as=f"{name} {sorted(hyperparameters.items())}")


def taken_by(row: Objective) -> list[str]:
    """The settings that an objective takes."""
    return [*row.hyperparameters, *(["margin_scale"] if row.reads_margin else [])]


def _with_settings(name: str, settings: dict[str, Any]) -> Objective:
    row, checked = TABLE[name], {}
    types = {parameter.name: parameter.annotation for parameter in inspect.signature(row.function).parameters.values()}
    for given, value in settings.items():
        try:
            checked[given] = TypeAdapter(types.get(given, NotNegative)).validate_python(value)
        except ValidationError as fault:
            raise RecipeError(f"objective.{given}: `{name}`: {fault.errors()[0]['msg']} (given: {value!r}).") from None
    margin_scale = checked.pop("margin_scale", 0.0)
    return replace(row, given=checked, margin_scale=margin_scale)


def parse_sum(name: str) -> list[tuple[float, str]]:
    """Weights and names of the terms of "dpo + 0.2 sft". Raises RecipeError for what is no such sum."""
    terms = []
    for term in name.split("+"):
        match = re.fullmatch(r"\s*(?:([0-9.e-]+)\s*\*?\s+)?([A-Za-z][A-Za-z0-9-]*)\s*", term)
        try:
            weight = float(match[1] or 1) if match else 0.0
        except ValueError:
            weight = 0.0
        if match is None or not 0 < weight < math.inf:
            raise RecipeError(f"objective.name: `{name}` is neither the name of an objective nor a sum of some, like `dpo + 0.2 sft`.")
        terms.append((weight, match[2]))
    return terms


def weighted_sum(weights: Sequence[float], terms: Sequence[Objective]) -> Objective:
    """L = Σ weight · L of each term. Its rewards are those of its leading term: the one whose point follows them, else the first that has a
    reference, else the first. Raises RecipeError for terms that do not go together."""
    if len({term.paired for term in terms}) > 1:
        raise RecipeError("objective.name: objectives of pairs and of single replies do not add up: these have a loss a reply, those one a pair.")
    if sum(term.point_is_kl or term.point_follows is not None for term in terms) > 1:
        raise RecipeError("objective.name: only one objective of a sum may have a reference point (kto, bco, beta-dpo).")
    leading = max(terms, key=lambda term: (term.point_follows is not None, term.needs_reference))

    def function(logps: Logps) -> Tensor:
        return torch.stack([weight * term.losses(logps) for weight, term in zip(weights, terms, strict=True)]).sum(0)

    return Objective(
        function,
        leading.rewards,
        needs_reference=leading.needs_reference,
        paired=leading.paired,
        couples_pairs=any(term.couples_pairs for term in terms),
        reads_margin=any(term.reads_margin for term in terms),
        point_is_kl=any(term.point_is_kl for term in terms),
        point_follows=leading.point_follows and partial(leading.point_follows, **leading.hyperparameters),
        margin_scale=max(term.margin_scale for term in terms),
        terms=tuple(terms),
    )
