"""TABLE: the objectives by name, each with its implicit reward and whether it needs a reference."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from likelier.errors import RecipeError, did_you_mean
from likelier.objectives.dpo import desensitised, dpo, dpop, f_dpo, f_score, ld_dpo, length_normalised_dpo, r_dpo, robust_dpo, rpo, wpo
from likelier.objectives.logps import Logps
from likelier.objectives.margins import discopop, exo, hinge, ipo
from likelier.objectives.reference_free import cpo, log_odds, orpo, sft, simpo
from likelier.objectives.sides import apo_down, apo_zero, nca, sppo
from likelier.objectives.steps import aot, aot_pair, beta_dpo

Rewards = tuple[Tensor, Tensor]
"""(B,) implicit rewards of chosen and rejected: what the losses drive apart."""


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

    losses: Callable[..., Tensor]
    reward: Callable[..., Rewards]  # of Logps and the hyperparameters
    needs_reference: bool = True
    couples_pairs: bool = False  # a pair's loss depends on the other pairs of its step, so that a step must not be cut

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Names and values, the function's own defaults included."""
        parameters = inspect.signature(self.losses).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def rewards(self, logps: Logps) -> Rewards:
        """(B,) implicit rewards of chosen and rejected, without gradient."""
        with torch.no_grad():
            return self.reward(logps, **self.hyperparameters)


TABLE: dict[str, Objective] = {
    "dpo": Objective(dpo, _ratio),
    "robust-dpo": Objective(robust_dpo, _ratio),
    "length-normalised-dpo": Objective(length_normalised_dpo, _mean_ratio),
    "r-dpo": Objective(r_dpo, _ratio),
    "ld-dpo": Objective(ld_dpo, _desensitised_ratio),
    "dpop": Objective(dpop, _ratio),
    "rpo": Objective(rpo, _ratio),
    "f-dpo": Objective(f_dpo, _f_score),
    "wpo": Objective(wpo, _ratio),
    "beta-dpo": Objective(beta_dpo, _ratio, couples_pairs=True),
    "ipo": Objective(ipo, _ratio),
    "hinge": Objective(hinge, _ratio),
    "exo": Objective(exo, _ratio),
    "discopop": Objective(discopop, _ratio),
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
}


def make_objective(name: str, **hyperparameters: Any) -> Objective:
    """The objective of that name with its hyperparameters set. Raises RecipeError for an unknown name, for a hyperparameter that it does not take,
    and for a value out of the range that the function's signature gives."""
    if name not in TABLE:
        raise RecipeError(f"objective.name: there is no objective `{name}`.{did_you_mean(name, TABLE)} Known: {', '.join(TABLE)}.")
    row = TABLE[name]
    known, checked = inspect.signature(row.losses).parameters, {}
    for given, value in hyperparameters.items():
        if given not in row.hyperparameters:
            takes = f"It takes: {', '.join(row.hyperparameters)}." if row.hyperparameters else "It takes none."
            raise RecipeError(f"objective.{given}: `{name}` does not take it.{did_you_mean(given, row.hyperparameters)} {takes}")
        try:
            checked[given] = TypeAdapter(known[given].annotation).validate_python(value)
        except ValidationError as fault:
            raise RecipeError(f"objective.{given}: `{name}`: {fault.errors()[0]['msg']} (given: {value!r}).") from None
    return replace(row, losses=partial(row.losses, **checked))
