"""Direct Preference Optimization and what corrects or extends it.

In the formulas h = log π/π_ref(y_w) − log π/π_ref(y_l), which is `Logps.log_ratio_gap_B`. Every function returns (B,) losses.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.objectives.logps import Logps, Responses
from likelier.section import Alignment, BelowHalf, BetweenZeroAndOne, Divergence, Fraction, NotNegative, Positive

MOST_EXPONENT = 80.0
"""e to more than this is held at it: fp32 ends at 88."""


def dpo(logps: Logps, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.0) -> Tensor:
    """Direct Preference Optimization (Rafailov et al. 2023, eq. 7), conservative with label smoothing ε (Mitchell 2023).

        L = −(1−ε)·log σ(βh) − ε·log σ(−βh)

    log 2 where policy equals reference.

    >>> from likelier.objectives import two_pairs
    >>> dpo(two_pairs())
    tensor([0.5544, 0.6931])
    """
    return smoothed(beta * logps.log_ratio_gap_B, label_smoothing)


def smoothed(margin_B: Tensor, label_smoothing: float) -> Tensor:
    """−(1−ε)·log σ(m) − ε·log σ(−m): cross-entropy of a preference whose label is wrong with probability ε."""
    return -(1 - label_smoothing) * F.logsigmoid(margin_B) - label_smoothing * F.logsigmoid(-margin_B)


def robust_dpo(logps: Logps, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.1) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024): DPO's own expected loss, estimated without bias from labels that are wrong with probability ε.

        L = [−(1−ε)·log σ(βh) + ε·log σ(−βh)] / (1−2ε)

    Unlike the conservative loss it keeps DPO's optimum, and is not bounded below. log 2 where policy equals reference.

    >>> from likelier.objectives import two_pairs
    >>> robust_dpo(two_pairs())
    tensor([0.5169, 0.6931])
    """
    margin_B = beta * logps.log_ratio_gap_B
    return (-(1 - label_smoothing) * F.logsigmoid(margin_B) + label_smoothing * F.logsigmoid(-margin_B)) / (1 - 2 * label_smoothing)


def length_normalised_dpo(logps: Logps, *, beta: Positive = 2.0, label_smoothing: BelowHalf = 0.0) -> Tensor:
    """DPO on per-token means: each side's log-ratio divided by its token count (Lambert et al. 2024, "Tülu 3").

        L = −(1−ε)·log σ(m) − ε·log σ(−m),    m = β/|y_w|·log π/π_ref(y_w) − β/|y_l|·log π/π_ref(y_l)

    >>> from likelier.objectives import two_pairs
    >>> length_normalised_dpo(two_pairs())
    tensor([0.0181, 0.6931])
    """
    chosen_B, rejected_B = (side.log_ratio_B / side.lengths_B for side in (logps.chosen, logps.rejected))
    return smoothed(beta * (chosen_B - rejected_B), label_smoothing)


def r_dpo(logps: Logps, *, beta: Positive = 0.1, length_penalty: NotNegative = 0.01) -> Tensor:
    """Length-regularised DPO (Park et al. 2024): the policy that maximises reward minus α for each token.

        L = −log σ(βh + α·(|y_w| − |y_l|))

    A chosen response that is longer has part of its margin given, so that length teaches less. Where policy equals reference the loss is that
    of the lengths alone.

    >>> from likelier.objectives import two_pairs
    >>> r_dpo(two_pairs())
    tensor([0.5501, 0.6931])
    """
    margin_B = beta * logps.log_ratio_gap_B
    longer_B = (logps.chosen.lengths_B - logps.rejected.lengths_B).to(margin_B.dtype)
    return -F.logsigmoid(margin_B + length_penalty * longer_B)


def ld_dpo(logps: Logps, *, beta: Positive = 0.1, tail_weight: Fraction = 0.5) -> Tensor:
    """Length-desensitised DPO (Liu et al. 2024): tokens beyond the length of the shorter response count α.

        L = −log σ(βĥ),    ĥ = h with Σ_{i≤l} log p(y_i) + α·Σ_{i>l} log p(y_i) for each log-probability,    l = min(|y_w|, |y_l|)

    α scales policy and reference alike (pitfall 14: sums alone would not do). DPO at α = 1.

    >>> from likelier.objectives import two_pairs
    >>> ld_dpo(two_pairs())
    tensor([0.5759, 0.6931])
    """
    return dpo(desensitised(logps, tail_weight), beta=beta)


def desensitised(logps: Logps, tail_weight: float) -> Logps:
    """The pairs where what stands beyond the shorter response's length counts `tail_weight`."""
    shorter_B = torch.minimum(logps.chosen.lengths_B, logps.rejected.lengths_B)
    chosen, rejected = (side.with_tail_scaled(shorter_B, tail_weight) for side in (logps.chosen, logps.rejected))
    return replace(logps, chosen=chosen, rejected=rejected)


def dpop(logps: Logps, *, beta: Positive = 0.3, chosen_penalty: NotNegative = 50.0) -> Tensor:
    """DPO-Positive (Pal et al. 2024, "Smaug"): pays λ for each nat that the chosen response falls below its reference.

        L = −log σ(β·[h − λ·max(0, log π_ref/π(y_w))])

    >>> from likelier.objectives import two_pairs
    >>> dpop(two_pairs())
    tensor([0.3412, 0.6931])
    """
    fallen_B = F.relu(-logps.chosen.log_ratio_B)
    return -F.logsigmoid(beta * (logps.log_ratio_gap_B - chosen_penalty * fallen_B))


def rpo(logps: Logps, *, beta: Positive = 0.1, sft_weight: NotNegative = 1.0) -> Tensor:
    """DPO and supervised fine-tuning on the chosen response (Pang et al. 2024, "Iterative Reasoning Preference Optimization").

        L = −log σ(βh) − α·log π(y_w)/|y_w|

    Versions of the paper differ in which term is weighted, and in what the second is divided by.

    >>> from likelier.objectives import two_pairs
    >>> rpo(two_pairs())
    tensor([1.5544, 2.6931])
    """
    return dpo(logps, beta=beta) - sft_weight * logps.chosen.policy_mean_B


def f_dpo(logps: Logps, *, beta: Positive = 0.1, divergence: Divergence = "js", divergence_alpha: BetweenZeroAndOne = 0.5) -> Tensor:
    """DPO for another divergence than the reverse KL (Wang et al. 2023, "Beyond Reverse KL").

        L = −log σ(β·f′(u_w) − β·f′(u_l)),    u = π/π_ref(y)

    `divergence` is the f: reverse-kl (DPO), forward-kl, js, or alpha, whose `divergence_alpha` goes from reverse (0) to forward KL (1). log 2
    where policy equals reference.

    >>> from likelier.objectives import two_pairs
    >>> f_dpo(two_pairs(), divergence="reverse-kl")
    tensor([0.5544, 0.6931])
    >>> f_dpo(two_pairs())
    tensor([0.6356, 0.6931])
    """
    chosen_B, rejected_B = (f_score(side, divergence, divergence_alpha) for side in (logps.chosen, logps.rejected))
    return -F.logsigmoid(beta * (chosen_B - rejected_B))


def f_score(side: Responses, divergence: Divergence, alpha: float) -> Tensor:
    """f′(π/π_ref) up to a constant that no difference sees. Powers of the ratio above e⁸⁰ are held there.

    reverse-kl  log u        forward-kl  −1/u        js  log 2u/(1+u)        alpha  (1 − u^−α)/α
    """
    log_ratio_B = side.log_ratio_B
    if divergence == "reverse-kl":
        return log_ratio_B
    if divergence == "forward-kl":
        return -torch.exp((-log_ratio_B).clamp(max=MOST_EXPONENT))
    if divergence == "js":
        return math.log(2) + F.logsigmoid(log_ratio_B)
    return -torch.expm1((-alpha * log_ratio_B).clamp(max=MOST_EXPONENT)) / alpha


def wpo(logps: Logps, *, beta: Positive = 0.01, alignment: Alignment = "sampled") -> Tensor:
    """DPO weighted by how likely the policy is to write both responses itself (Zhou et al. 2024, eq. 1).

        L = −w(y_w)·w(y_l)·log σ(βh),    w(y) = exp(1/|y|·Σ_t log [π(y_t) / Σ_v π(v)²]), held constant

    Divided by Σ_v π(v)² (eq. 2, "sampled alignment"), what the policy samples itself has a weight of about 1, wherever it is sure and wherever it is
    not; `alignment="none"` leaves that out (section 3.2).

    >>> from likelier.objectives import two_pairs
    >>> wpo(two_pairs())
    tensor([0.0918, 0.1547])
    >>> wpo(two_pairs(), alignment="none")
    tensor([0.0124, 0.0345])
    """
    chosen_B, rejected_B = (side.aligned_mean_B if alignment == "sampled" else side.policy_mean_B for side in (logps.chosen, logps.rejected))
    return torch.exp(chosen_B + rejected_B).detach() * dpo(logps, beta=beta)
