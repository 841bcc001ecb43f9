"""Win rates: how often one contestant's reply is preferred, at equal lengths, and how strong each contestant is. Pure functions.

An outcome is 1 where the first of two won, 0 where it lost, ½ for a tie, NaN where there was no verdict. Intervals are percentile bootstraps over
prompts. Where all outcomes are the same a bootstrap has no width: a win rate then has Wilson's interval, and a strength that rests on them has none.
Shape legend: P prompts, M pairs of contestants, K contestants, R resamples.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from likelier.metrics import Interval, bootstrap_share

RESAMPLES = 1000

DRAWS_AT_ONCE = 1_000_000
"""Resamples times prompts that are worked on at a time."""

NEWTON_STEPS = 100

PRIOR_SPREAD = 5.0
"""Standard deviation, in nats of log-odds, of the normal prior on the effect of length: weak, and enough to keep it finite. With half of it a judge
that goes by length alone is corrected less (to 53.3% instead of 51.6% on thirty prompts; the truth is 50%), with twice of it results scatter more (by
16.6 points instead of 12.4). `studies/made_up.py` counts."""

LEVEL = 0.95


def win_rate(outcomes: ArrayLike) -> Interval:
    """Mean of `outcomes` (P,), a tie counting half, with its interval.

    >>> win_rate([1, 1, 0.5, 0]).value
    0.625
    """
    outcomes_P = _known(outcomes)
    return bootstrap_share(outcomes_P, range(len(outcomes_P)), level=LEVEL)


def length_controlled(outcomes: ArrayLike, lengths: ArrayLike, other_lengths: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The win rate that the first contestant would have if both replies were always of one length.

        P(first wins) = σ(θ + φ·tanh(Δ / s)),   Δ = length − other length,   s = √(mean Δ²)        read at Δ = 0: σ(θ)

    Fitted by maximum likelihood to `outcomes` (P,), a tie as half a win and half a loss, with a normal prior on φ (mean 0, spread PRIOR_SPREAD) and
    none on θ, so that without an effect of length it is the win rate itself. Lengths (P,) are in any one unit. The bootstrap fits again, s included.

    Source: Dubois, Galambosi, Liang & Hashimoto 2024 (AlpacaEval 2, 2404.04475), section 3. Theirs has beside θ and φ a term for how hard each
    instruction is, estimated from many models on its own 805 instructions, and is regularised by L1, chosen by cross-validation, and by replies made
    longer or shorter on purpose. None of that exists for other prompts, so this has one slope and a fixed prior. s is the root mean square instead of
    the standard deviation, which is 0 where Δ never changes.

    Where one side is the longer one at every prompt, nothing was seen at equal lengths and this extrapolates.
    """
    outcomes_P, delta_P = np.asarray(outcomes, float), np.asarray(lengths, float) - np.asarray(other_lengths, float)
    known_P = ~np.isnan(outcomes_P)
    outcomes_P, delta_P = _known(outcomes_P), delta_P[known_P]
    if not delta_P.any() or (outcomes_P == outcomes_P[0]).all():
        return win_rate(outcomes_P)

    return _bootstrapped(partial(_at_equal_lengths, outcomes_P, delta_P), len(outcomes_P), resamples, seed)[0]


def bradley_terry(outcomes: ArrayLike, pairs: Sequence[tuple[int, int]], *, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval | None]:
    """Strengths of all contestants on one scale, that of the first being 0:  P(i beats j) = σ(strength_i − strength_j).

    `outcomes` (P, M): how the first of each of the M `pairs` fared at each prompt. Maximum likelihood, a tie as half a win and half a loss, every
    pair with a verdict having one more tie than was seen: without it one that won always would have no finite strength. The bootstrap draws whole
    prompts, with the outcomes of all pairs at them. Source: Bradley & Terry 1952; fitted as the logistic regression that it is.

    None for one that no verdicts join to the first, be it over others; for all where the first has none. Where they are joined only by pairs whose
    outcomes are all the same (one wins always, or all are ties), that added tie is all that keeps the strength where it is, and no resample differs:
    both ends are infinite, which is to say not known. Ford 1957 has the condition for finite strengths that this is stricter than.

    >>> [round(strength.value, 2) for strength in bradley_terry([[1], [1], [1], [0]], [(0, 1)], resamples=2)]
    [0.0, -0.85]
    """
    outcomes_PM = np.asarray(outcomes, float)
    contestants = 1 + max(max(pair) for pair in pairs)
    joined = _joined([pair for pair, some_P in zip(pairs, outcomes_PM.T, strict=True) if not np.isnan(some_P).all()], contestants)
    varied = _joined([pair for pair, some_P in zip(pairs, outcomes_PM.T, strict=True) if len(set(some_P[~np.isnan(some_P)])) > 1], contestants)
    if joined == {0}:
        return [None] * contestants
    used_M = ~np.isnan(outcomes_PM).all(axis=0) & [first in joined for first, _ in pairs]
    won_PM, lost_PM = np.nan_to_num(outcomes_PM[:, used_M]), np.nan_to_num(1 - outcomes_PM[:, used_M])
    columns = sorted(joined)
    design_MK = np.array([[(k == pair[0]) - (k == pair[1]) for k in columns] for pair, used in zip(pairs, used_M, strict=True) if used], float)

    def estimate(times_RP: np.ndarray) -> np.ndarray:
        features = np.broadcast_to(design_MK[:, 1:], (len(times_RP), len(design_MK), len(columns) - 1))
        strengths = _fitted(features, times_RP @ won_PM + 0.5, times_RP @ lost_PM + 0.5, np.zeros(len(columns) - 1))
        return np.concatenate([np.zeros((len(times_RP), 1)), strengths], axis=1)

    found = dict(zip(columns, _bootstrapped(estimate, len(outcomes_PM), resamples, seed), strict=True))
    unknown = {k: Interval(strength.value, -math.inf, math.inf) for k, strength in found.items() if k not in varied}
    return [{**found, **unknown}.get(k) for k in range(contestants)]


def extrapolates(outcomes: ArrayLike, lengths: ArrayLike, other_lengths: ArrayLike) -> bool:
    """Whether one side is the longer one at every prompt with a verdict, so that `length_controlled` speaks of what was never seen."""
    known_P = ~np.isnan(np.asarray(outcomes, float))
    delta_P = (np.asarray(lengths, float) - np.asarray(other_lengths, float))[known_P]
    return bool(delta_P.size and ((delta_P > 0).all() or (delta_P < 0).all()))


def _joined(pairs: Sequence[tuple[int, int]], contestants: int) -> set[int]:
    """The first contestant and all that these pairs join to it, be it over others."""
    table = np.zeros((contestants, contestants))
    for pair in pairs:
        table[pair] = 1
    groups_K = connected_components(table, directed=False)[1]
    return set(np.flatnonzero(groups_K == groups_K[0]).tolist())


def _known(outcomes: ArrayLike) -> np.ndarray:
    values = np.asarray(outcomes, float)
    outcomes_P: np.ndarray = values[~np.isnan(values)]
    if not outcomes_P.size or not np.isin(outcomes_P, (0, 0.5, 1)).all():
        raise ValueError("a win rate is of one outcome or more, each 0, ½ or 1.")
    return outcomes_P


def _at_equal_lengths(outcomes_P: np.ndarray, delta_P: np.ndarray, times_RP: np.ndarray) -> np.ndarray:
    """(R, 1) σ(θ) of prompts that count so many times each. Where those that count all won, or all lost, θ is infinite."""
    won_RP, lost_RP = times_RP * outcomes_P, times_RP * (1 - outcomes_P)
    scale_R1 = np.sqrt(times_RP @ delta_P**2 / times_RP.sum(1))[:, None]
    feature_RP = np.tanh(delta_P / np.where(scale_R1, scale_R1, 1))
    rates_R: np.ndarray = (lost_RP.sum(1) == 0).astype(float)
    both_R = (lost_RP.sum(1) > 0) & (won_RP.sum(1) > 0)
    features_RPD = np.stack([np.ones_like(feature_RP), feature_RP], axis=2)[both_R]
    theta_R = _fitted(features_RPD, won_RP[both_R], lost_RP[both_R], np.array([0, PRIOR_SPREAD**-2]))[:, 0]
    rates_R[both_R] = expit(theta_R)
    return rates_R[:, None]


def _fitted(features_RND: np.ndarray, won_RN: np.ndarray, lost_RN: np.ndarray, penalty_D: np.ndarray) -> np.ndarray:
    """(R, D) coefficients of R logistic regressions at once, by Newton's method: each row counts `won` times as a win and `lost` times as a loss,
    and ½·Σ penalty·coefficient² is added to the negative log-likelihood. What `sklearn.linear_model.LogisticRegression` gives for each of them (a
    test compares), which would take seconds for a thousand."""
    coefficients_RD = np.zeros((len(features_RND), len(penalty_D)))
    for _ in range(NEWTON_STEPS):
        chance_RN = expit(np.einsum("rnd,rd->rn", features_RND, coefficients_RD))
        total_RN = won_RN + lost_RN
        slope_RD = np.einsum("rnd,rn->rd", features_RND, won_RN - total_RN * chance_RN) - penalty_D * coefficients_RD
        bend_RDD = np.einsum("rnd,rn,rne->rde", features_RND, total_RN * chance_RN * (1 - chance_RN), features_RND) + np.diag(penalty_D)
        step_RD = np.linalg.solve(bend_RDD, slope_RD[..., None])[..., 0]
        coefficients_RD += np.clip(step_RD, -1, 1)  # a full step from afar may lead away
        if not step_RD.size or np.abs(step_RD).max() < 1e-9:
            break
    return coefficients_RD


def _bootstrapped(estimate: Callable[[np.ndarray], np.ndarray], prompts: int, resamples: int, seed: int) -> list[Interval]:
    """Each number of `estimate`, which takes how often each prompt counts (R, P) and returns (R, numbers)."""
    values = estimate(np.ones((1, prompts)))[0]
    if prompts == 1:
        return [Interval(float(value), -math.inf, math.inf) for value in values]
    rng, at_once = np.random.default_rng(seed), max(1, DRAWS_AT_ONCE // prompts)
    draws = [rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=min(at_once, resamples - k)) for k in range(0, resamples, at_once)]
    estimates = np.concatenate([estimate(times_RP.astype(float)) for times_RP in draws])
    lows, highs = np.quantile(estimates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [Interval(float(value), float(low), float(high)) for value, low, high in zip(values, lows, highs, strict=True)]
