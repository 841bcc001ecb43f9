"""How far annotators agree beyond chance, for labels without order (which of two replies is better)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """κ = (p_o − p_e) / (1 − p_e) of two annotators' labels (N,) of the same items: p_o the share of equal labels, p_e the share that their own
    frequencies would give by chance. NaN where chance alone agrees always. Raises ValueError for unequal or empty lists. Source: Cohen 1960.

    >>> cohen_kappa([0, 1, 0, 1], [0, 1, 1, 1])
    0.5
    """
    a_N, b_N = np.asarray(first), np.asarray(second)
    if a_N.shape != b_N.shape or a_N.ndim != 1 or not a_N.size:
        raise ValueError(f"cohen_kappa: two non-empty lists of one length are needed, not {a_N.shape} and {b_N.shape}.")
    by_chance = sum(float((a_N == label).mean() * (b_N == label).mean()) for label in np.union1d(a_N, b_N))
    return _beyond_chance(float((a_N == b_N).mean()), by_chance)


def fleiss_kappa(counts: ArrayLike) -> float:
    """κ of `counts` (N items, K labels): how many annotators gave item i label j. Items may have different numbers of annotators, at least two.

        P_i = Σ_j n_ij (n_ij − 1) / (n_i (n_i − 1))     p_e = Σ_j (Σ_i n_ij / Σ n)²     κ = (mean P_i − p_e) / (1 − p_e)

    NaN where chance alone agrees always. Raises ValueError for an item with fewer than two labels. Source: Fleiss 1971, equations 1 to 7.

    >>> round(fleiss_kappa([[3, 0], [0, 3], [2, 1], [1, 2]]), 3)
    0.333
    """
    counts_NK = np.asarray(counts, float)
    if counts_NK.ndim != 2 or not counts_NK.size or (counts_NK.sum(1) < 2).any():
        raise ValueError("fleiss_kappa: every item needs the labels of two annotators or more.")
    totals_N = counts_NK.sum(1)
    agreement_N = (counts_NK * (counts_NK - 1)).sum(1) / (totals_N * (totals_N - 1))
    return _beyond_chance(float(agreement_N.mean()), float(((counts_NK.sum(0) / totals_N.sum()) ** 2).sum()))


def krippendorff_alpha(counts: ArrayLike) -> float:
    """α = 1 − observed / expected disagreement of nominal labels, from `counts` (N, K) as in `fleiss_kappa`; items with one label do not count.
    NaN where only one label was ever given. Source: Krippendorff 2004, chapter 11; computed by the library `krippendorff`.

    >>> round(krippendorff_alpha([[3, 0], [0, 3], [2, 1], [1, 2]]), 3)
    0.389
    """
    import krippendorff

    counts_NK = np.asarray(counts, int)
    counts_NK = counts_NK[counts_NK.sum(1) > 1]
    if (counts_NK.sum(0) > 0).sum() < 2:
        return float("nan")
    return float(krippendorff.alpha(value_counts=counts_NK, level_of_measurement="nominal"))


def label_counts(items: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N, K) counts from one (item, label) a judgement, both numbered from 0."""
    counts_NK = np.zeros((int(np.max(items)) + 1, int(np.max(labels)) + 1), int)
    np.add.at(counts_NK, (np.asarray(items), np.asarray(labels)), 1)
    return counts_NK


def _beyond_chance(observed: float, expected: float) -> float:
    return float("nan") if expected >= 1 else (observed - expected) / (1 - expected)
