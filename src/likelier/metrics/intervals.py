"""Estimates with their uncertainty: shares, means and medians with intervals over prompts; and what lengths are like.

Shape legend: N rows (pairs or replies), C clusters (prompts), R resamples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

DRAWS_AT_ONCE = 2_000_000

Statistic = Literal["mean", "median"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its confidence interval, in the unit of the values. Ends are infinite where the data cannot tell."""

    value: float
    low: float
    high: float

    def excludes(self, point: float = 0.0) -> bool:
        """Whether `point` lies outside."""
        return not self.low <= point <= self.high

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no infinity: an unknown end is None."""
        return {name: number if math.isfinite(number) else None for name, number in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Interval":
        """The inverse of `as_dict`; other keys are passed over."""
        low, high = fields["low"], fields["high"]
        return cls(float(fields["value"]), -math.inf if low is None else float(low), math.inf if high is None else float(high))


def wilson(hits: float, total: float, *, level: float = 0.95) -> Interval:
    """A share with its score interval, p̂ = hits / total; of nothing, the share is ½ and the interval is [0, 1].

        (p̂ + z²/2n ± z·√(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n)

    Unlike p̂ ± z·√(p̂(1−p̂)/n) it stays inside [0, 1] and has a width where no row hits. Raises ValueError unless 0 ≤ hits ≤ total.
    Source: Wilson 1927; Brown, Cai & DasGupta 2001, equation 4.

    >>> wilson(0, 100).low, round(wilson(0, 100).high, 3)
    (0.0, 0.037)
    """
    if not 0 <= hits <= total:
        raise ValueError(f"wilson: {hits} hits of {total} are no share.")
    if not total:
        return Interval(0.5, 0.0, 1.0)
    z, share = NormalDist().inv_cdf((1 + level) / 2), hits / total
    middle, spread = share + z * z / (2 * total), z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return Interval(share, max(0.0, min((middle - spread) / scale, share)), min(1.0, max((middle + spread) / scale, share)))  # rounding


def clustered_share(hits: ArrayLike, clusters: ArrayLike) -> Interval:
    """A share of rows (N, bool) with Wilson's interval for as many independent rows as the clusters (N, ids) leave of them.

    Rows of one prompt are not independent. The share's variance over clusters, Σ_c (Σ_i∈c (x_i − p̂))² / N², over that of independent rows,
    p̂(1−p̂)/N, is the design effect, by which N is divided where it is above 1. Source: Kish 1965, section 8.2.

    >>> clustered_share([1, 1, 0, 0], [0, 1, 2, 3]) == wilson(2, 4)
    True
    """
    hits_N = np.asarray(hits, float)
    if not hits_N.size:
        return wilson(0, 0)
    share = float(hits_N.mean())
    independent = share * (1 - share) * len(hits_N)
    residuals_C = np.bincount(np.unique(np.asarray(clusters), return_inverse=True)[1].ravel(), hits_N - share)
    effect = max(1.0, float((residuals_C**2).sum()) / independent) if independent else 1.0
    return wilson(float(hits_N.sum()) / effect, len(hits_N) / effect)


def bootstrap(
    values: ArrayLike,
    clusters: Sequence[str] | Sequence[int],
    *,
    statistic: Statistic = "mean",
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean or median of `values` (N,) with a percentile bootstrap interval that resamples whole clusters.

    Rows of one cluster (pairs of one prompt) are not independent, so clusters are drawn, C out of C with replacement, and a drawn cluster
    brings all of its rows: mean* = Σ sums[drawn] / Σ sizes[drawn]. The ends are the (1 ± level) / 2 quantiles of R such means (or medians).
    With a single cluster nothing is known about the spread and both ends are infinite; below some twenty clusters the interval is too narrow,
    and where all clusters agree it has no width (`bootstrap_share` and `bootstrap_share_difference` give shares one).

    Raises ValueError when `values` is empty, not finite, or of another length than `clusters`.
    Source: Efron & Tibshirani 1993, chapter 13 (percentile interval); Davison & Hinkley 1997, section 3.8 (resampling clusters).

    >>> bootstrap([1, 1, 0, 1], ["a", "a", "b", "c"]).value
    0.75
    >>> bootstrap([1, 2, 90], "abc", statistic="median").value
    2.0
    """
    values_N = finite(values)
    estimates_R = _resampled(values_N, clusters, statistic, seed, resamples)
    return _percentile_interval(_estimate(values_N, statistic), estimates_R, level)


def bootstrap_share(hits: ArrayLike, clusters: Sequence[str] | Sequence[int], *, seed: int = 0, level: float = 0.95) -> Interval:
    """`bootstrap` of a share: rows (N,) from 0 to 1. Where all rows agree, Wilson's interval for as many rows as there are clusters: equal values
    have no spread to resample, and twenty rights in a row are no proof of a hundred.

    >>> bootstrap_share([1, 1, 0, 1], "aabc").value, round(bootstrap_share([1, 1, 1, 1], "abcd").low, 2)
    (0.75, 0.51)
    """
    hits_N = finite(hits)
    prompts = len(set(clusters))
    if prompts > 1 and (hits_N == hits_N[0]).all():
        return wilson(float(hits_N[0]) * prompts, prompts, level=level)
    return bootstrap(hits_N, clusters, seed=seed, level=level)


def bootstrap_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[str] | Sequence[int],
    *,
    statistic: Statistic = "mean",
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean of `after` - `before`, paired row by row, with its interval: `bootstrap(after - before, clusters)`.

    Pairing takes out what the rows have in common, so this is narrower than the two single intervals suggest. With statistic "median" it is
    median(after) - median(before), which is not the median of the differences; both are taken over the same drawn clusters.

    >>> bootstrap_difference([0, 0], [1, 0], ["a", "b"]).value
    0.5
    """
    before_N, after_N = finite(before), finite(after)
    if len(before_N) != len(after_N):
        raise ValueError(f"bootstrap_difference: {len(before_N)} values before but {len(after_N)} after; a paired difference needs both of each row.")
    if statistic == "mean":
        return bootstrap(after_N - before_N, clusters, seed=seed, resamples=resamples, level=level)
    sides_R = [_resampled(side_N, clusters, statistic, seed, resamples) for side_N in (before_N, after_N)]  # one seed: the same draws
    return _percentile_interval(_estimate(after_N, statistic) - _estimate(before_N, statistic), sides_R[1] - sides_R[0], level)


def bootstrap_share_difference(
    before: ArrayLike, after: ArrayLike, clusters: Sequence[str] | Sequence[int], *, seed: int = 0, level: float = 0.95
) -> Interval:
    """`bootstrap_difference` of shares: rows (N,) from 0 to 1. Where all rows differ by one d there is no spread to resample. At least a share w of
    prompts differs by d, w the low end of Wilson's interval for C of C prompts, and the others by anything from -1 to 1: w·d ± (1 - w).

    So two or three prompts that all flip are no proof of a change; four are at the limit of one. Wider than Newcombe's score interval for paired
    shares (1998, method 10), whose low end is above 0 for two flips of two.

    >>> bootstrap_share_difference([0, 0], [1, 1], "ab").excludes(0.0)
    False
    """
    found = bootstrap_difference(before, after, clusters, seed=seed, level=level)
    differences_N, prompts = finite(after) - finite(before), len(set(clusters))
    if prompts == 1 or (differences_N != differences_N[0]).any():
        return found
    difference, others = found.value, 1 - wilson(prompts, prompts, level=level).low
    return Interval(difference, difference - others * (1 + difference), difference + others * (1 - difference))


def _estimate(values_N: np.ndarray, statistic: Statistic) -> float:
    return float(values_N.mean() if statistic == "mean" else np.median(values_N))


def _resampled(values_N: np.ndarray, clusters: Sequence[str] | Sequence[int], statistic: Statistic, seed: int, resamples: int) -> np.ndarray:
    """(R,) estimates over drawn clusters; empty with a single cluster."""
    if len(values_N) != len(clusters):
        raise ValueError(f"bootstrap: {len(values_N)} values but {len(clusters)} clusters; give the cluster of each value.")
    names_C, cluster_N = np.unique(np.array(list(clusters)), return_inverse=True)
    C = len(names_C)
    if C == 1:
        return np.empty(0)
    estimate = _cluster_means(values_N, cluster_N) if statistic == "mean" else _cluster_medians(values_N, cluster_N)
    rng = np.random.default_rng(seed)
    estimates_R = np.empty(resamples)
    rows = max(1, DRAWS_AT_ONCE // (C if statistic == "mean" else len(values_N)))
    for start in range(0, resamples, rows):
        drawn_RC = rng.integers(C, size=(min(rows, resamples - start), C))
        estimates_R[start : start + rows] = estimate(drawn_RC)
    return estimates_R


def _cluster_means(values_N: np.ndarray, cluster_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    sums_C, sizes_C = np.bincount(cluster_N, values_N), np.bincount(cluster_N)
    return lambda drawn_RC: np.asarray(sums_C[drawn_RC].sum(1) / sizes_C[drawn_RC].sum(1))


def _cluster_medians(values_N: np.ndarray, cluster_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    order = np.argsort(values_N)
    sorted_N, cluster_of_sorted_N = values_N[order], cluster_N[order]

    def medians(drawn_RC: np.ndarray) -> np.ndarray:
        R, C = drawn_RC.shape
        times_RC = np.bincount((drawn_RC + C * np.arange(R)[:, None]).ravel(), minlength=R * C).reshape(R, C)
        upto_RN = times_RC[:, cluster_of_sorted_N].cumsum(1)  # how many rows of the resample are at most as large as each value
        total_R1 = upto_RN[:, -1:]
        lower_R, upper_R = (2 * upto_RN >= total_R1).argmax(1), (2 * upto_RN > total_R1).argmax(1)
        return np.asarray(sorted_N[lower_R] + sorted_N[upper_R]) / 2

    return medians


def _percentile_interval(value: float, estimates_R: np.ndarray, level: float) -> Interval:
    if not estimates_R.size:
        return Interval(value, -math.inf, math.inf)
    low, high = np.quantile(estimates_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def accuracy(margins: ArrayLike) -> float:
    """Share of pairs whose chosen reply gets the higher reward: mean of 1[m > 0] + ½·1[m = 0]. A tie is a guess and counts half.

    `margins` (N,) is reward of chosen - reward of rejected. Before the first step all margins are 0 and this is 0.5, as it should be.

    >>> accuracy([2.0, 0.0, -1.0, 1.0])
    0.625
    """
    return float(correct(margins).mean())


def correct(margins: ArrayLike) -> np.ndarray:
    """Per pair (N,): 1 when the margin is above 0, ½ when it is 0, else 0. `accuracy` is its mean, `bootstrap` gives that its interval."""
    return np.asarray(np.heaviside(finite(margins), 0.5))


QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def length_summary(lengths: ArrayLike) -> dict[str, float]:
    """Mean, percentiles and maximum of `lengths` (N,), under the names mean, p5, p25, p50, p75, p95, max.

    Percentiles interpolate linearly between neighbours in rank (Hyndman & Fan 1996, definition 7). Raises ValueError when there are none.

    >>> length_summary([1, 2, 3, 4])["p50"]
    2.5
    """
    lengths_N = finite(lengths)
    cuts = np.quantile(lengths_N, list(QUANTILES.values()))
    return {"mean": float(lengths_N.mean()), **{name: float(cut) for name, cut in zip(QUANTILES, cuts, strict=True)}}


def histogram(lengths: Mapping[str, Sequence[float]], *, bins: int = 24) -> dict[str, list[float]]:
    """Counts over common equal-width bins: {"edges": bins + 1 numbers, name: bins counts, …}."""
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values, float) for values in lengths.values()]), bins=bins)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in lengths.items()}
    return {"edges": edges.tolist(), **counts}


def finite(values: ArrayLike) -> np.ndarray:
    """(N,) fp64. Raises ValueError for none, and for one that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"expected a non-empty list of numbers, got one of shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(
            f"value {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite ({array[~np.isfinite(array)][0]}); a mean over it says nothing."
        )
    return array
