"""Other losses of DPO's margin h = log π/π_ref(y_w) − log π/π_ref(y_l), which is `Logps.log_ratio_gap_B`. Every function returns (B,) losses."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.objectives.logps import Logps
from likelier.section import BetweenZeroAndHalf, Positive, PositiveFraction


def ipo(logps: Logps, *, beta: Positive = 0.1, per_token: bool = False) -> Tensor:
    """Identity Preference Optimization (Azar et al. 2023, eq. 17; β is the paper's τ).

        L = (h − 1/(2β))²

    The paper's h is a difference of sums. `per_token=True` divides each side by its token count first, as some trainers do and, TRL reports, the
    authors did in their experiments.

    >>> from likelier.objectives import two_pairs
    >>> ipo(two_pairs())
    tensor([ 4., 25.])
    """
    chosen_B, rejected_B = logps.chosen.log_ratio_B, logps.rejected.log_ratio_B
    if per_token:
        chosen_B, rejected_B = chosen_B / logps.chosen.lengths_B, rejected_B / logps.rejected.lengths_B
    return (chosen_B - rejected_B - 1 / (2 * beta)).square()


def hinge(logps: Logps, *, beta: Positive = 0.1) -> Tensor:
    """The calibration loss of SLiC (Zhao et al. 2023) on log-ratios, as RSO states it (Liu et al. 2023, hinge-norm; β is its γ).

        L = max(0, 1 − βh)

    1 where policy equals reference, nothing once the margin is won.

    >>> from likelier.objectives import two_pairs
    >>> hinge(two_pairs(), beta=0.5)
    tensor([0., 1.])
    """
    return F.relu(1 - beta * logps.log_ratio_gap_B)


def exo(logps: Logps, *, beta: Positive = 0.1, label_smoothing: BetweenZeroAndHalf = 1e-3) -> Tensor:
    """Efficient Exact Optimization on pairs (Ji et al. 2024, eq. 16 as TRL numbers it): the reverse KL from what the policy prefers to what the
    labels say.

        L = q·(log q − log(1−ε)) + (1−q)·(log(1−q) − log ε),    q = σ(βh)

    ε is the chance that a label is wrong; at 0 the loss would be infinite. 0.001 is TRL's; the authors' code has e⁻¹⁰.

    >>> from likelier.objectives import two_pairs
    >>> exo(two_pairs())
    tensor([2.2582, 2.7612])
    """
    margin_B = beta * logps.log_ratio_gap_B
    wins_B = torch.sigmoid(margin_B) * (F.logsigmoid(margin_B) - math.log1p(-label_smoothing))
    return wins_B + torch.sigmoid(-margin_B) * (F.logsigmoid(-margin_B) - math.log(label_smoothing))


def discopop(logps: Logps, *, beta: Positive = 0.05, temperature: PositiveFraction = 0.05) -> Tensor:
    """The log-ratio modulated loss that a language model found (Lu et al. 2024, "DiscoPOP", eq. 5).

        L = (1−s)·(−log σ(βh)) + s·exp(−βh),    s = σ(βh/τ)

    s·exp(−βh) is formed as exp(log s − βh): where a pair is far on the wrong side, the one is 0 and the other infinite.

    >>> from likelier.objectives import two_pairs
    >>> discopop(two_pairs())
    tensor([0.8493, 0.8466])
    """
    margin_B = beta * logps.log_ratio_gap_B
    exponential_B = torch.exp(F.logsigmoid(margin_B / temperature) - margin_B)
    return -torch.sigmoid(-margin_B / temperature) * F.logsigmoid(margin_B) + exponential_B
