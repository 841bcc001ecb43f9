"""Losses that push each side on its own, not only their difference. r(y) = β·log π/π_ref(y); every function returns (B,) losses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.objectives.logps import Logps
from likelier.section import Positive


def nca(logps: Logps, *, beta: Positive = 0.01) -> Tensor:
    """Noise Contrastive Alignment on pairs (Chen et al. 2024; β as in its code).

        L = −log σ(r(y_w)) − ½·log σ(−r(y_w)) − ½·log σ(−r(y_l))

    Keeps the likelihood of the chosen response from falling. 2·log 2 where policy equals reference.

    >>> from likelier.objectives import two_pairs
    >>> nca(two_pairs())
    tensor([1.3789, 1.3863])
    """
    chosen_B, rejected_B = beta * logps.chosen.log_ratio_B, beta * logps.rejected.log_ratio_B
    return -F.logsigmoid(chosen_B) - 0.5 * F.logsigmoid(-chosen_B) - 0.5 * F.logsigmoid(-rejected_B)


def sppo(logps: Logps, *, beta: Positive = 1e-3) -> Tensor:
    """Self-Play Preference Optimization with hard labels (Wu et al. 2024, eq. 4.12 over β², where the winner wins always; β is 1/η).

        L = (log π/π_ref(y_w) − 1/(2β))² + (log π/π_ref(y_l) + 1/(2β))²

    1/(2β²) where policy equals reference: half a million for the paper's η of 1000.

    >>> from likelier.objectives import two_pairs
    >>> sppo(two_pairs(), beta=0.1)
    tensor([25., 50.])
    """
    half = 1 / (2 * beta)
    return (logps.chosen.log_ratio_B - half).square() + (logps.rejected.log_ratio_B + half).square()


def apo_zero(logps: Logps, *, beta: Positive = 0.1) -> Tensor:
    """Anchored Preference Optimization, zero (D'Oosterlinck et al. 2024, eq. 7 as TRL numbers it): raise the chosen response, lower the
    rejected one.

        L = 1 − σ(r(y_w)) + σ(r(y_l))

    For chosen responses better than what the model writes. 1 where policy equals reference.

    >>> from likelier.objectives import two_pairs
    >>> apo_zero(two_pairs())
    tensor([0.9252, 1.0000])
    """
    return torch.sigmoid(-beta * logps.chosen.log_ratio_B) + torch.sigmoid(beta * logps.rejected.log_ratio_B)


def apo_down(logps: Logps, *, beta: Positive = 0.1) -> Tensor:
    """Anchored Preference Optimization, down (D'Oosterlinck et al. 2024, eq. 8 as TRL numbers it): lower both responses, the rejected one more.

        L = σ(r(y_w)) + 1 − σ(r(y_w) − r(y_l))

    For chosen responses worse than what the model writes. 1 where policy equals reference.

    >>> from likelier.objectives import two_pairs
    >>> apo_down(two_pairs())
    tensor([0.9754, 1.0000])
    """
    return torch.sigmoid(beta * logps.chosen.log_ratio_B) + torch.sigmoid(-beta * logps.log_ratio_gap_B)
