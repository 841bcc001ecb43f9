"""Losses that compare all pairs of a step with each other. Their rows of TABLE say so: such a step must be one batch (pitfall 8).

There still is one loss a pair, in the order of the pairs: each value is matched with the one of the same rank.
"""

import torch.nn.functional as F
from torch import Tensor

from likelier.objectives.logps import POINT_MOMENTUM, Logps
from likelier.section import NotNegative, Positive

LEAST_BETA = 1e-3
"""Where the dynamic β ends: below 0 it would turn preferences round."""


def aot(logps: Logps, *, beta: Positive = 0.1) -> Tensor:
    """Alignment via Optimal Transport, unpaired (Melnyk et al. 2024): chosen rewards shall dominate rejected ones as a distribution.

        L_i = −log σ(β·(c_i − r_(i))),    c, r = log π/π_ref of chosen and rejected,    r_(i) of the same rank among the r as c_i among the c

    log 2 where policy equals reference; DPO for a step of one pair.

    >>> from likelier.objectives import two_pairs
    >>> aot(two_pairs())
    tensor([0.5981, 0.6444])
    """
    chosen_B = logps.chosen.log_ratio_B
    return -F.logsigmoid(beta * (chosen_B - of_same_rank(logps.rejected.log_ratio_B, chosen_B)))


def aot_pair(logps: Logps, *, beta: Positive = 0.1) -> Tensor:
    """Alignment via Optimal Transport, paired (Melnyk et al. 2024): the policy's gaps shall dominate the reference's as a distribution.

        L_i = −log σ(β·(g_i − g_ref(i))),    g = log π(y_w) − log π(y_l),    g_ref(i) of the same rank among the reference's as g_i among the policy's

    log 2 where policy equals reference; DPO for a step of one pair.

    >>> from likelier.objectives import two_pairs
    >>> aot_pair(two_pairs())
    tensor([0.5981, 0.6444])
    """
    gap_B = logps.chosen.policy_B - logps.rejected.policy_B
    reference_gap_B = logps.chosen.reference_B - logps.rejected.reference_B
    return -F.logsigmoid(beta * (gap_B - of_same_rank(reference_gap_B, gap_B)))


def of_same_rank(values_B: Tensor, ranked_B: Tensor) -> Tensor:
    """For each of `ranked_B`, the element of `values_B` that has its rank.

    >>> import torch
    >>> of_same_rank(torch.tensor([7.0, 5.0, 6.0]), ranked_B=torch.tensor([0.3, 0.1, 0.2]))
    tensor([7., 5., 6.])
    """
    rank_B = ranked_B.argsort(stable=True).argsort()
    return values_B.sort(stable=True).values[rank_B]


def beta_dpo(logps: Logps, *, beta: Positive = 0.1, sensitivity: NotNegative = 0.6) -> Tensor:
    """DPO with a dynamic β (Wu et al. 2024, "β-DPO"): one β for the pairs of a step, higher where they are further apart than in steps before.

        L = −log σ(β′h),    β′ = β·[1 + α·(M − M₀)], held constant, at least 0.001,    M = mean over the step of βh

    `sensitivity` is α. M₀ is the moving mean of M, this step's included, as in the authors' code: 0.9·`logps.point` + 0.1·M. That code multiplies α
    with the mean of h, not of βh, and leaves pairs out at random whose margin is far from M₀; here every pair counts. M knows no offset of h, as
    rewards do not. log 2 where policy equals reference.

    >>> from likelier.objectives import two_pairs
    >>> beta_dpo(two_pairs())
    tensor([0.5441, 0.6931])
    """
    gap_B = logps.log_ratio_gap_B
    mean = beta * (logps.chosen.log_ratio_B - logps.rejected.log_ratio_B).detach().mean()
    usual = POINT_MOMENTUM * logps.point + (1 - POINT_MOMENTUM) * mean
    dynamic = beta * (1 + sensitivity * (mean - usual))
    return -F.logsigmoid(dynamic.clamp(min=LEAST_BETA) * gap_B)
