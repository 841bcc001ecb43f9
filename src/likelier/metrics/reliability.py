"""Does σ(margin) say how often the ranking is right? Expected calibration error, Brier score, and the temperature that mends it.

Every pair is known with the preferred side first, so the outcome of "the first one is preferred" is always 1, and two kinds of number differ in
what that does to them:

    Brier score and NLL    the same in either order: (1 − σ(m))² = (0 − σ(−m))² and log σ(m) = log(1 − σ(−m)). A predictor cannot profit from the
                           order, because a pair shown the other way round has margin −m. At m = 0 they are ¼ and log 2.
    ECE and its bins       compare a mean probability with a share, and a share that is always 1 says nothing. Shown in either order, the model
                           backs the side of higher reward with confidence σ(|m|) ≥ ½, and is right when m > 0; these two are compared.

Shape legend: N pairs, C clusters (prompts).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit

from likelier.metrics.intervals import Interval, correct, finite

FOLDS = 5
FEWEST_PROMPTS = 2 * FOLDS
"""Prompts below which no temperature is fitted: a fold would then be a single one."""

FITS = 500
"""Resamples of the temperature's interval."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Pairs of similar confidence: their mean confidence, the share that was right, and how many they are."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far σ(margin) is from how often it is right; `bins` of the reliability diagram are by rising confidence."""

    ece: float
    brier: float
    nll: float
    bins: tuple[CalibrationBin, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"ece": self.ece, "brier": self.brier, "nll": self.nll, "bins": [asdict(each) for each in self.bins]}


def calibration(margins: ArrayLike, bins: int = 10) -> Calibration:
    """How well σ(margin), the model's probability that `chosen` is preferred (Bradley-Terry), matches how often it is right. With confidence σ(|m|)
    and right = 1[m > 0] (a tie: confidence ½, half right), over bins b of equal mass:

        ECE = Σ_b n_b / N · |accuracy_b − confidence_b|      Brier = mean (1 − σ(m))²      NLL = −mean log σ(m)

    Pairs of equal confidence share a bin, so there may be fewer than `bins`.
    Source: Guo et al. 2017, equation 3 (ECE); Nixon et al. 2019 (bins of equal mass); Brier 1950.

    >>> calibration([0.0, 0.0]).ece, calibration([0.0, 0.0]).brier
    (0.0, 0.25)
    """
    margins_N = finite(margins)
    confidence_N = expit(np.abs(margins_N))
    order = np.argsort(confidence_N, kind="stable")
    confidence_N, right_N = confidence_N[order], correct(margins_N)[order]
    N = len(confidence_N)
    even = np.arange(bins) * N // bins
    starts = np.unique(np.searchsorted(confidence_N, confidence_N[even], side="left"))
    counts = np.diff(np.append(starts, N))
    confidences, accuracies = np.add.reduceat(confidence_N, starts) / counts, np.add.reduceat(right_N, starts) / counts
    return Calibration(
        ece=float(np.sum(counts * np.abs(accuracies - confidences)) / N),
        brier=float(np.mean(expit(-margins_N) ** 2)),
        nll=float(np.mean(np.logaddexp(0, -margins_N))),
        bins=tuple(CalibrationBin(float(c), float(a), int(n)) for c, a, n in zip(confidences, accuracies, counts, strict=True)),
    )


def fit_temperature(margins: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The T > 0 for which σ(m/T) explains the pairs best: argmin_T −Σ_i w_i log σ(m_i / T). Above 1 the margins boast, below 1 they are too modest.

    Convex in 1/T, so it is found as the root of Σ w m σ(−m/T). Two ends have none: 0 where no margin is below 0 (every probability could be
    higher still), infinity where Σ w m ≤ 0 (the ranking is no better than a guess). Source: Guo et al. 2017, section 4.2 (Platt scaling without
    an offset, which either order of a pair forbids).

    >>> round(fit_temperature([1, 1, 1, -1]), 3), fit_temperature([1, 2]), fit_temperature([1, -1])
    (0.91, 0.0, inf)
    """
    margins_N = finite(margins)
    weights_N = np.ones_like(margins_N) if weights is None else np.asarray(weights, np.float64)
    if weights_N @ margins_N <= 0:
        return math.inf
    if not (weights_N * (margins_N < 0)).any():
        return 0.0
    scale = float(np.abs(margins_N).max())
    scaled_N = margins_N / scale

    def slope(sharpness: float) -> float:
        return float((weights_N * scaled_N) @ expit(-sharpness * scaled_N))

    upper = 1.0
    while slope(upper) > 0:
        upper *= 2
    return scale / float(brentq(slope, 0.0, upper, xtol=1e-12 * upper))


@dataclass(frozen=True, slots=True)
class Tempered:
    """What a fitted temperature does: T with its interval, and the calibration of margins that were divided by it, out of sample."""

    temperature: Interval | None
    after: Calibration | None


def tempered(margins: ArrayLike, clusters: Sequence[str] | Sequence[int], *, bins: int = 10, seed: int = 0, level: float = 0.95) -> Tempered:
    """The temperature of all pairs, with a percentile bootstrap interval over clusters; and the calibration of m/T where T was fitted on the other
    clusters (five folds), so that no pair is judged by a temperature that it took part in.

    None where there are fewer than ten clusters, or where the best temperature is 0 or infinite (`fit_temperature`); of single folds 0 leaves
    `after` out, and infinity means margins of 0.
    """
    margins_N = finite(margins)
    names_C, cluster_N = np.unique(np.array(list(clusters)), return_inverse=True)
    C = len(names_C)
    value = fit_temperature(margins_N)
    if C < FEWEST_PROMPTS or not 0 < value < math.inf:
        return Tempered(None, None)
    rng = np.random.default_rng(seed)
    fold_N = rng.permutation(np.arange(C) % FOLDS)[cluster_N]
    fitted_F = [fit_temperature(margins_N[fold_N != fold]) for fold in range(FOLDS)]
    after = None if 0.0 in fitted_F else calibration(margins_N / np.array(fitted_F)[fold_N], bins)
    draws = (np.bincount(rng.integers(C, size=C), minlength=C)[cluster_N] for _ in range(FITS))
    with np.errstate(divide="ignore"):
        sharpness_R = 1 / np.array([fit_temperature(margins_N, weights_N) for weights_N in draws])
        # Sharpness may be infinite and temperature too, between which no quantile can be interpolated.
        high, low = 1 / np.quantile(sharpness_R, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Tempered(Interval(value, float(low), float(high)), after)
