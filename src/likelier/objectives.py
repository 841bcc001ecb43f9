"""Objectives: each a pure function of log-probabilities that returns one loss a pair.

No reduction, no logging, no masks in here. A new objective is one function and one row of TABLE.

Shape legend: B pairs, N response tokens of one side, all pairs end to end.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Responses:
    """One side of B pairs: per-token log-probabilities under policy and reference, and how many tokens each response has.

    Lengths were decided where ids were made and are never read back from values. `reference_N` is None for objectives without a reference.
    """

    policy_N: Tensor  # fp32, with gradient
    reference_N: Tensor | None  # fp32, constant
    lengths_B: Tensor  # int64, ≥ 1

    @cached_property
    def policy_B(self) -> Tensor:
        """log π(y|x): sums over each response's tokens."""
        return _sums(self.policy_N, self.lengths_B)

    @cached_property
    def reference_B(self) -> Tensor:
        """log π_ref(y|x)."""
        if self.reference_N is None:
            raise ValueError("this objective needs the reference's log-probabilities, and none were given")
        return _sums(self.reference_N, self.lengths_B)

    @property
    def log_ratio_B(self) -> Tensor:
        """log π(y|x) − log π_ref(y|x)."""
        return self.policy_B - self.reference_B

    @property
    def drift_B(self) -> Tensor:
        """Mean absolute distance of policy from reference, in nats a token."""
        if self.reference_N is None:
            raise ValueError("there is no reference to drift from")
        return _sums((self.policy_N - self.reference_N).abs(), self.lengths_B) / self.lengths_B

    def with_policy_at_reference(self) -> "Responses":
        """The same side where the policy says what the reference says."""
        return Responses(self.reference_N, self.reference_N, self.lengths_B) if self.reference_N is not None else self


@dataclass(frozen=True)
class Logps:
    """What an objective of pairs reads."""

    chosen: Responses
    rejected: Responses

    def with_policy_at_reference(self) -> "Logps":
        """What an untrained policy would give: the losses that a run must begin with."""
        return Logps(self.chosen.with_policy_at_reference(), self.rejected.with_policy_at_reference())


def _sums(values_N: Tensor, lengths_B: Tensor) -> Tensor:
    sums: Tensor = torch.segment_reduce(values_N, "sum", lengths=lengths_B, unsafe=True)
    return sums


def dpo(logps: Logps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Direct Preference Optimization (Rafailov et al. 2023, eq. 7), conservative with label smoothing ε (Mitchell 2023).

        L = −(1−ε)·log σ(m) − ε·log σ(−m),    m = β·[log π/π_ref(y_w) − log π/π_ref(y_l)]

    Returns (B,) losses; log 2 where policy equals reference.

    >>> same = Responses(policy_N=torch.tensor([-1.0, -2.0]), reference_N=torch.tensor([-1.0, -2.0]), lengths_B=torch.tensor([2]))
    >>> dpo(Logps(chosen=same, rejected=same))
    tensor([0.6931])
    """
    margin_B = beta * (logps.chosen.log_ratio_B - logps.rejected.log_ratio_B)
    return -(1 - label_smoothing) * F.logsigmoid(margin_B) - label_smoothing * F.logsigmoid(-margin_B)


def ipo(logps: Logps, *, beta: float = 0.1, per_token: bool = False) -> Tensor:
    """Identity Preference Optimization (Azar et al. 2023, eq. 17; β is the paper's τ).

        L = (h − 1/(2β))²,    h = log π/π_ref(y_w) − log π/π_ref(y_l)

    The paper's h is a difference of sums. `per_token=True` divides each side by its token count first, as some trainers do. Returns (B,).
    """
    chosen_B, rejected_B = logps.chosen.log_ratio_B, logps.rejected.log_ratio_B
    if per_token:
        chosen_B, rejected_B = chosen_B / logps.chosen.lengths_B, rejected_B / logps.rejected.lengths_B
    return (chosen_B - rejected_B - 1 / (2 * beta)).square()


def simpo(logps: Logps, *, beta: float = 2.0, target_margin: float = 1.0) -> Tensor:
    """Simple Preference Optimization (Meng et al. 2024, eq. 6): no reference, length-normalised.

        L = −log σ(β/|y_w|·log π(y_w) − β/|y_l|·log π(y_l) − γ)

    `target_margin` is γ itself, in units of the reward, not the ratio γ/β that some tools take. Returns (B,).
    """
    chosen_B = beta * logps.chosen.policy_B / logps.chosen.lengths_B
    rejected_B = beta * logps.rejected.policy_B / logps.rejected.lengths_B
    return -F.logsigmoid(chosen_B - rejected_B - target_margin)


def length_normalised_dpo(logps: Logps, *, beta: float = 2.0, label_smoothing: float = 0.0) -> Tensor:
    """DPO on per-token means: each side's log-ratio divided by its token count (Lambert et al. 2024, "Tülu 3", eq. 6).

    L = −(1−ε)·log σ(m) − ε·log σ(−m),    m = β/|y_w|·log π/π_ref(y_w) − β/|y_l|·log π/π_ref(y_l).  Returns (B,).
    """
    margin_B = beta * (logps.chosen.log_ratio_B / logps.chosen.lengths_B - logps.rejected.log_ratio_B / logps.rejected.lengths_B)
    return -(1 - label_smoothing) * F.logsigmoid(margin_B) - label_smoothing * F.logsigmoid(-margin_B)


def _ratio_reward(side: Responses, beta: float) -> Tensor:
    return beta * side.log_ratio_B


def _mean_ratio_reward(side: Responses, beta: float) -> Tensor:
    return beta * side.log_ratio_B / side.lengths_B


def _mean_logp_reward(side: Responses, beta: float) -> Tensor:
    return beta * side.policy_B / side.lengths_B


@dataclass(frozen=True)
class Objective:
    """A row of TABLE, and with `bound` hyperparameters an objective ready for use."""

    losses: Callable[..., Tensor]
    reward: Callable[[Responses, float], Tensor]  # the implicit reward whose margin the losses widen
    needs_reference: bool = True

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Names and values, the function's own defaults included."""
        parameters = inspect.signature(self.losses).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def rewards(self, logps: Logps) -> tuple[Tensor, Tensor]:
        """(B,) implicit rewards of chosen and rejected, without gradient."""
        with torch.no_grad():
            beta = self.hyperparameters["beta"]
            return self.reward(logps.chosen, beta), self.reward(logps.rejected, beta)


TABLE: dict[str, Objective] = {
    "dpo": Objective(dpo, _ratio_reward),
    "ipo": Objective(ipo, _ratio_reward),
    "simpo": Objective(simpo, _mean_logp_reward, needs_reference=False),
    "length-normalised-dpo": Objective(length_normalised_dpo, _mean_ratio_reward),
}


def make_objective(name: str, **hyperparameters: Any) -> Objective:
    """The objective of that name with its hyperparameters set. Raises RecipeError for an unknown name or one it does not take."""
    if name not in TABLE:
        raise RecipeError(f"objective.name: there is no objective `{name}`.{did_you_mean(name, TABLE)} Known: {', '.join(TABLE)}.")
    row = TABLE[name]
    for given in hyperparameters:
        if given not in row.hyperparameters:
            known = row.hyperparameters
            raise RecipeError(f"objective.{given}: `{name}` does not take it.{did_you_mean(given, known)} It takes: {', '.join(known)}.")
    return Objective(partial(row.losses, **hyperparameters), row.reward, row.needs_reference)
