"""Losses without a reference: no reference is scored and no store is opened. Every function returns (B,) losses."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.objectives.logps import Logps, Responses
from likelier.section import NotNegative, Positive

CERTAIN = -1e-9
"""Mean log-probabilities above this are held at it: a response of probability 1 has infinite odds."""


def simpo(logps: Logps, *, beta: Positive = 2.0, target_margin: NotNegative = 1.0) -> Tensor:
    """Simple Preference Optimization (Meng et al. 2024, eq. 6): length-normalised.

        L = −log σ(β/|y_w|·log π(y_w) − β/|y_l|·log π(y_l) − γ)

    `target_margin` is γ itself, in units of the reward, not the ratio γ/β that some tools take.

    >>> from likelier.objectives import two_pairs
    >>> simpo(two_pairs())
    tensor([0.0486, 3.0486])
    """
    return -F.logsigmoid(beta * (logps.chosen.policy_mean_B - logps.rejected.policy_mean_B) - target_margin)


def orpo(logps: Logps, *, beta: Positive = 0.1) -> Tensor:
    """Odds Ratio Preference Optimization (Hong et al. 2024, eq. 6 and 7; β is its λ): supervised fine-tuning and a ratio of odds.

        L = −log P(y_w) − β·log σ(log odds(y_w) − log odds(y_l)),    odds = P/(1−P),    log P(y) = log π(y)/|y|

    >>> from likelier.objectives import two_pairs
    >>> orpo(two_pairs())
    tensor([1.0086, 2.1551])
    """
    return sft(logps) - beta * F.logsigmoid(log_odds(logps.chosen) - log_odds(logps.rejected))


def log_odds(side: Responses) -> Tensor:
    """log P − log(1−P) with log P(y) = log π(y)/|y|, exact for P close to 1 and close to 0."""
    log_p_B = side.policy_mean_B.clamp(max=CERTAIN)
    return log_p_B - log1mexp(log_p_B)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0, to the last digits (pitfall 11): by expm1 near 0 and by log1p elsewhere.

    >>> log1mexp(torch.tensor([-1e-8, -20.0]))
    tensor([-1.8421e+01, -2.0612e-09])
    """
    near = x > -math.log(2)
    # The branch that is not taken must stay finite: a gradient of 0 · ∞ is no number.
    by_expm1 = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, by_expm1, by_log1p)


def cpo(logps: Logps, *, beta: Positive = 0.1, sft_weight: NotNegative = 1.0) -> Tensor:
    """Contrastive Preference Optimization (Xu et al. 2024, eq. 5): DPO with a uniform reference (their eq. 3), and supervised fine-tuning.

        L = −log σ(β·log π(y_w) − β·log π(y_l)) − λ·log π(y_w)/|y_w|

    The paper has λ = 1, and writes the second term as a sum over tokens; its code averages, as this does.

    >>> from likelier.objectives import two_pairs
    >>> cpo(two_pairs())
    tensor([1.6444, 2.7444])
    """
    prefer_B = -F.logsigmoid(beta * (logps.chosen.policy_B - logps.rejected.policy_B))
    return prefer_B + sft_weight * sft(logps)


def sft(logps: Logps) -> Tensor:
    """Supervised fine-tuning on the chosen response: its negative log-likelihood a token. The rejected one is not looked at.

        L = −log π(y_w)/|y_w|

    >>> from likelier.objectives import two_pairs
    >>> sft(two_pairs())
    tensor([1., 2.])
    """
    return -logps.chosen.policy_mean_B
