"""Win rates: how often one contestant's reply is preferred, at equal lengths, and how strong each contestant is. Pure functions.

An outcome is 1 where the first of two won, 0 where it lost, ½ for a tie, NaN where there was no verdict. All intervals are percentile bootstraps over
prompts. Shape legend: P prompts, M pairs of contestants, K contestants, R resamples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression

from likelier.metrics import Interval, bootstrap, wilson

RESAMPLES = 400
"""A logistic regression is fitted to each."""

PRIOR_SPREAD = 5.0
"""Standard deviation, in nats of log-odds, of the normal prior on the effect of length: weak, and enough to keep it finite. With half of it a judge
that goes by length alone is not corrected all the way (53% instead of 50% on 500 prompts), with twice of it thirty prompts scatter more."""

LEVEL = 0.95


def win_rate(outcomes: ArrayLike) -> Interval:
    """Mean of `outcomes` (P,), a tie counting half, with its interval. Wilson's interval where all outcomes are the same: a bootstrap of equal
    values has no width, and twenty wins in a row are no proof of a hundred.

    >>> win_rate([1, 1, 0.5, 0]).value
    0.625
    """
    outcomes_P = _known(outcomes)
    if len(outcomes_P) > 1 and (outcomes_P == outcomes_P[0]).all():
        return wilson(float(outcomes_P.sum()), len(outcomes_P), level=LEVEL)
    return bootstrap(outcomes_P, range(len(outcomes_P)), level=LEVEL)


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

    def estimate(times_P: np.ndarray) -> np.ndarray:
        return np.array([_at_equal_lengths(outcomes_P, delta_P, times_P)])

    return _bootstrapped(estimate, len(outcomes_P), resamples, seed)[0]


def bradley_terry(outcomes: ArrayLike, pairs: Sequence[tuple[int, int]], *, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval]:
    """Strengths of all contestants on one scale, that of the first being 0:  P(i beats j) = σ(strength_i − strength_j).

    `outcomes` (P, M): how the first of each of the M `pairs` fared at each prompt. Maximum likelihood, a tie as half a win and half a loss, every
    two that met having one more tie than was seen: without it one that won always would have no finite strength. The bootstrap draws whole
    prompts, with the outcomes of all pairs at them. Source: Bradley & Terry 1952; fitted as the logistic regression that it is.

    >>> [round(strength.value, 2) for strength in bradley_terry([[1], [1], [1], [0]], [(0, 1)], resamples=2)]
    [0.0, -0.85]
    """
    outcomes_PM = np.asarray(outcomes, float)
    won_PM, lost_PM = np.nan_to_num(outcomes_PM), np.nan_to_num(1 - outcomes_PM)
    contestants = 1 + max(max(pair) for pair in pairs)
    design_MK = np.zeros((len(pairs), contestants))
    for row, (first, second) in enumerate(pairs):
        design_MK[row, first], design_MK[row, second] = 1, -1

    def estimate(times_P: np.ndarray) -> np.ndarray:
        model = _fitted(design_MK[:, 1:], times_P @ won_PM + 0.5, times_P @ lost_PM + 0.5, C=math.inf, fit_intercept=False)
        return np.array([0.0, *model.coef_[0]])

    return _bootstrapped(estimate, len(outcomes_PM), resamples, seed)


def extrapolates(lengths: ArrayLike, other_lengths: ArrayLike) -> bool:
    """Whether one side is the longer one at every prompt, so that `length_controlled` speaks of what was never seen."""
    delta_P = np.asarray(lengths, float) - np.asarray(other_lengths, float)
    return bool((delta_P > 0).all() or (delta_P < 0).all())


def _known(outcomes: ArrayLike) -> np.ndarray:
    values = np.asarray(outcomes, float)
    outcomes_P: np.ndarray = values[~np.isnan(values)]
    if not outcomes_P.size or not np.isin(outcomes_P, (0, 0.5, 1)).all():
        raise ValueError("a win rate is of one outcome or more, each 0, ½ or 1.")
    return outcomes_P


def _at_equal_lengths(outcomes_P: np.ndarray, delta_P: np.ndarray, times_P: np.ndarray) -> float:
    """σ(θ) of the drawn prompts. Where they all won, or all lost, θ is infinite."""
    drawn_P = times_P > 0
    first = outcomes_P[drawn_P][0]
    if first != 0.5 and (outcomes_P[drawn_P] == first).all():
        return float(first)
    scale = math.sqrt(float(times_P @ delta_P**2) / times_P.sum())
    feature_P1 = np.tanh(delta_P / scale if scale else np.zeros_like(delta_P))[:, None]
    model = _fitted(feature_P1, times_P * outcomes_P, times_P * (1 - outcomes_P), C=PRIOR_SPREAD**2)
    return float(1 / (1 + np.exp(-model.intercept_[0])))


def _fitted(features: np.ndarray, won: np.ndarray, lost: np.ndarray, **options: Any) -> LogisticRegression:
    """To each row as a win and as a loss, each as often as it was one."""
    labels = np.repeat([1, 0], len(features))
    model = LogisticRegression(solver="newton-cholesky", tol=1e-8, max_iter=1000, **options)
    model.fit(np.concatenate([features, features]), labels, sample_weight=np.concatenate([won, lost]))
    return model


def _bootstrapped(estimate: Callable[[np.ndarray], np.ndarray], prompts: int, resamples: int, seed: int) -> list[Interval]:
    """Each number of `estimate(how often each prompt counts)`, which is given once for all prompts and R times for draws of them."""
    values = estimate(np.ones(prompts))
    if prompts == 1:
        return [Interval(float(value), -math.inf, math.inf) for value in values]
    rng = np.random.default_rng(seed)
    drawn = np.array([estimate(rng.multinomial(prompts, np.full(prompts, 1 / prompts)).astype(float)) for _ in range(resamples)])
    lows, highs = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [Interval(float(value), float(low), float(high)) for value, low, high in zip(values, lows, highs, strict=True)]
