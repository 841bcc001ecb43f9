"""Losses of single replies, each known to be good or bad. They train on unpaired records, on pairs and on mixtures.

r(y) = log π/π_ref(y). Every function returns the losses of the good replies (`Logps.chosen`), then those of the bad ones (`Logps.rejected`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.objectives.logps import Logps
from likelier.section import Positive


def kto(logps: Logps, *, beta: Positive = 0.1, desirable_weight: Positive = 1.0, undesirable_weight: Positive = 1.0) -> Tensor:
    """Kahneman-Tversky Optimization (Ethayarajh et al. 2024, eq. 6 and 7 of arXiv v4): replies are gains or losses against a reference point.

        L = λ_D·(1 − σ(β·(r(y) − z₀)))  for a good reply        L = λ_U·(1 − σ(β·(z₀ − r(y))))  for a bad one

    z₀ is `logps.point`: KL(π ‖ π_ref) (eq. 5), estimated at each step as the mean of r(y′) over the step's prompts with replies y′ to other
    prompts, at least 0 and held constant (eq. 8; pitfall 12). The paper wants λ_D·n_good to be 1 to 3/2 times λ_U·n_bad (eq. 9). λ/2 where policy
    equals reference.

    >>> from likelier.objectives import two_pairs
    >>> kto(two_pairs())
    tensor([0.4502, 0.5000, 0.4750, 0.5000])
    """
    good_B = desirable_weight * torch.sigmoid(-beta * (logps.chosen.log_ratio_B - logps.point))
    bad_B = undesirable_weight * torch.sigmoid(beta * (logps.rejected.log_ratio_B - logps.point))
    return torch.cat([good_B, bad_B])


def bco(logps: Logps, *, beta: Positive = 0.1) -> Tensor:
    """Binary Classifier Optimization (Jung et al. 2024): a classifier of good and bad replies whose logit is the reward.

        L = −log σ(β·(r(y) − δ))  for a good reply        L = −log σ(β·(δ − r(y)))  for a bad one

    δ is `logps.point`: the moving mean, over past steps, of what lies halfway between the mean r of good and of bad replies. The paper's weighting
    by which prompts have good replies (UDM) is left out. log 2 where policy equals reference.

    >>> from likelier.objectives import two_pairs
    >>> bco(two_pairs())
    tensor([0.5981, 0.6931, 0.6444, 0.6931])
    """
    good_B = -F.logsigmoid(beta * (logps.chosen.log_ratio_B - logps.point))
    bad_B = -F.logsigmoid(beta * (logps.point - logps.rejected.log_ratio_B))
    return torch.cat([good_B, bad_B])


def apo_zero_unpaired(logps: Logps, *, beta: Positive = 0.1) -> Tensor:
    """Anchored Preference Optimization, zero, of single replies (after D'Oosterlinck et al. 2024): the terms of `apo_zero`, each a loss of its own.

        L = 1 − σ(β·r(y))  for a good reply        L = σ(β·r(y))  for a bad one

    KTO whose reference point is 0. ½ where policy equals reference.

    >>> from likelier.objectives import two_pairs
    >>> apo_zero_unpaired(two_pairs())
    tensor([0.4502, 0.5000, 0.4750, 0.5000])
    """
    return torch.cat([torch.sigmoid(-beta * logps.chosen.log_ratio_B), torch.sigmoid(beta * logps.rejected.log_ratio_B)])
