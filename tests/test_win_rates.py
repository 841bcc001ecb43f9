"""Win rates against numbers worked by hand, simulated truth, and the MM algorithm."""

import math
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from likelier.metrics import wilson
from likelier.win_rates import PRIOR_SPREAD, _fitted, bradley_terry, extrapolates, length_controlled, win_rate

FEW = 40  # resamples, where the ends are not the point


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def judged(rng, prompts: int, theta: float, slope: float, longer: float):
    """Outcomes of a judge whose log-odds are θ + slope·tanh(Δ / s), by a contestant that writes `longer` characters more."""
    lengths, others = rng.normal(400 + longer, 120, prompts), rng.normal(400, 120, prompts)
    delta = lengths - others
    chance = sigmoid(theta + slope * np.tanh(delta / math.sqrt((delta**2).mean())))
    return (rng.random(prompts) < chance).astype(float), lengths, others


def test_ties_count_half_and_missing_verdicts_not_at_all():
    assert win_rate([1, 1, 0.5, 0, math.nan]).value == 0.625
    found = win_rate([1] * 60 + [0] * 40)
    assert found.value == 0.6
    assert (found.low, found.high) == pytest.approx((0.5, 0.7), abs=0.02)  # 0.6 ± 1.96·√(0.24 / 100)


def test_equal_outcomes_still_have_an_interval():
    assert win_rate([1] * 20) == wilson(20, 20)
    assert win_rate([0.5] * 10) == wilson(5, 10)
    assert win_rate([0] * 20).high > 0.1
    alone = win_rate([1])
    assert (alone.value, alone.low, alone.high) == (1, -math.inf, math.inf)


@pytest.mark.parametrize("outcomes", [[], [math.nan], [0.3, 1]])
def test_what_is_no_outcome_is_refused(outcomes):
    with pytest.raises(ValueError, match="each 0, ½ or 1"):
        win_rate(outcomes)


def test_without_an_effect_of_length_it_is_the_win_rate():
    outcomes = [1, 0, 1, 1, 0, 0.5]
    equal = length_controlled(outcomes, [10] * 6, [10] * 6, resamples=FEW)
    assert equal == win_rate(outcomes)
    # Two sorts of prompts, Δ = ±10, with the same outcomes: by symmetry φ is 0 and θ the log-odds of the win rate.
    mirrored = length_controlled(outcomes * 2, [20] * 6 + [10] * 6, [10] * 6 + [20] * 6, resamples=FEW)
    assert mirrored.value == pytest.approx(win_rate(outcomes).value, abs=1e-6)


def test_a_judge_of_length_alone_sees_no_difference_at_equal_lengths():
    """The longer one always wins, and the first is longer at three prompts of four: raw 75%, length-controlled 50%."""
    lengths, others = np.random.default_rng(4).normal(460, 90, 300), np.full(300, 400)
    outcomes = (lengths > others).astype(float)
    assert win_rate(outcomes).value > 0.7
    found = length_controlled(outcomes, lengths, others, resamples=FEW)
    assert found.value == pytest.approx(0.5, abs=0.1)
    assert found.low < 0.5 < found.high


def test_the_truth_of_a_simulation_is_found_and_covered():
    rng = np.random.default_rng(1)
    truth = sigmoid(0.4)
    found = [length_controlled(*judged(rng, 400, theta=0.4, slope=1.5, longer=100), resamples=60) for _ in range(12)]
    assert np.mean([interval.value for interval in found]) == pytest.approx(truth, abs=0.02)
    assert sum(interval.low <= truth <= interval.high for interval in found) >= 9
    raw = [win_rate(judged(rng, 400, theta=0.4, slope=1.5, longer=100)[0]).value for _ in range(12)]
    assert np.mean(raw) > truth + 0.08, "the raw rate must be wrong, or nothing is shown"


def test_few_prompts_and_perfect_separation_stay_finite_and_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert length_controlled([1, 1, 1], [9, 8, 7], [1, 2, 3], resamples=FEW) == win_rate([1, 1, 1])
        split = length_controlled([1, 1, 0, 0], [9, 8, 1, 2], [5, 5, 5, 5], resamples=FEW)
        constant = length_controlled([1, 0, 1, 0.5], [9] * 4, [5] * 4, resamples=FEW)
    assert 0 <= split.low <= split.value <= split.high <= 1
    assert constant.value == pytest.approx(win_rate([1, 0, 1, 0.5]).value, abs=1e-6)


def test_a_missing_verdict_takes_its_lengths_along():
    outcomes, lengths, others = [1, 0, 1, 0, 1], [9, 4, 8, 6, 7], [5, 6, 5, 5, 9]
    whole = length_controlled(outcomes, lengths, others, resamples=FEW)
    gap = length_controlled([*outcomes[:2], math.nan, *outcomes[2:]], [*lengths[:2], 999, *lengths[2:]], [*others[:2], 1, *others[2:]], resamples=FEW)
    assert gap == whole


def test_one_side_that_is_always_longer_is_an_extrapolation():
    assert extrapolates([1, 0], [3, 4], [1, 2])
    assert extrapolates([1, 0], [1, 2], [3, 4])
    assert not extrapolates([1, 0], [1, 4], [3, 2])
    assert not extrapolates([1, 0], [3, 4], [3, 2])


def test_only_prompts_with_a_verdict_tell_whether_it_is_one():
    assert extrapolates([1, 0, math.nan], [3, 4, 1], [1, 2, 9])
    assert not extrapolates([1, math.nan, math.nan], [1, 4, 4], [1, 2, 2])
    assert not extrapolates([math.nan], [3], [1])


def by_mm(wins_KK, rounds: int = 20_000):
    """Strengths by minorisation and maximisation (Hunter 2004), the slow and obvious way."""
    K = len(wins_KK)
    strength = np.ones(K)
    met = wins_KK + wins_KK.T
    for _ in range(rounds):
        strength = np.array([wins_KK[i].sum() / sum(met[i, j] / (strength[i] + strength[j]) for j in range(K) if j != i) for i in range(K)])
        strength /= strength[0]
    return np.log(strength)


def test_strengths_are_those_of_the_mm_algorithm():
    rng = np.random.default_rng(2)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    outcomes = rng.choice([0, 0.5, 1], p=[0.2, 0.2, 0.6], size=(30, len(pairs)))
    outcomes[3:7, 2] = math.nan
    outcomes[:, 5] = 1  # the last never beats the one before
    wins = np.zeros((4, 4))
    for column, (i, j) in enumerate(pairs):
        wins[i, j] += np.nansum(outcomes[:, column]) + 0.5
        wins[j, i] += np.nansum(1 - outcomes[:, column]) + 0.5
    found = bradley_terry(outcomes, pairs, resamples=FEW)
    assert [strength.value for strength in found] == pytest.approx(by_mm(wins).tolist(), abs=1e-5)
    assert all(strength.low <= strength.value <= strength.high for strength in found)
    assert (found[0].value, found[0].low, found[0].high) == (0, 0, 0)


def test_two_contestants_by_hand():
    """Seven wins and three losses, and the tie that is added: log(7.5 / 3.5) apart."""
    first, second = bradley_terry([[1]] * 7 + [[0]] * 3, [(0, 1)], resamples=FEW)
    assert first.value - second.value == pytest.approx(math.log(7.5 / 3.5), abs=1e-6)


EVERY_TWO = [(0, 1), (0, 2), (1, 2)]
UNKNOWN = (-math.inf, math.inf)


def ends(strengths):
    return [(strength.low, strength.high) for strength in strengths]


@pytest.mark.parametrize("same", [0, 0.5, 1])
def test_outcomes_that_are_all_the_same_leave_a_strength_without_an_interval(same):
    first, second = bradley_terry([[same]] * 20, [(0, 1)], resamples=FEW)
    assert second.value == pytest.approx(math.log((20 - 20 * same + 0.5) / (20 * same + 0.5)), abs=1e-6)
    assert ends([first, second]) == [(0, 0), UNKNOWN]


def test_an_interval_needs_a_way_of_outcomes_that_differ():
    mixed = np.tile([0, 1, 1, 0, 1], 4)
    assert ends(bradley_terry(np.stack([mixed, mixed * 0 + 1, mixed * 0 + 1], axis=1), EVERY_TWO, resamples=FEW))[2] == UNKNOWN, "loses to both"
    through_the_third = bradley_terry(np.stack([mixed * 0 + 1, mixed, mixed[::-1]], axis=1), EVERY_TWO, resamples=FEW)
    assert all(math.isfinite(end) for both in ends(through_the_third) for end in both)
    assert through_the_third[1].low < through_the_third[1].high


def test_what_no_verdict_joins_to_the_first_has_no_strength():
    mixed, none = np.array([0, 1, 1, 0, 1.0]), np.full(5, math.nan)
    two = bradley_terry(mixed[:, None], [(0, 1)], resamples=FEW)
    assert bradley_terry(np.stack([mixed, none, none], axis=1), EVERY_TWO, resamples=FEW) == [*two, None]
    assert bradley_terry(np.stack([none, none, mixed], axis=1), EVERY_TWO, resamples=FEW) == [None] * 3
    over_the_second = bradley_terry(np.stack([mixed, none, mixed], axis=1), EVERY_TWO, resamples=FEW)
    assert over_the_second[2].value == pytest.approx(2 * over_the_second[1].value), "no tie is added where nothing was seen"


def test_simulated_strengths_are_recovered():
    rng, truth, pairs = np.random.default_rng(3), np.array([0.0, 1.0, -0.7]), [(0, 1), (0, 2), (1, 2)]
    chance = sigmoid(np.array([truth[i] - truth[j] for i, j in pairs]))
    found = bradley_terry((rng.random((600, 3)) < chance).astype(float), pairs, resamples=100)
    assert [strength.value for strength in found] == pytest.approx(truth.tolist(), abs=0.2)
    assert all(strength.low <= value <= strength.high for strength, value in zip(found, truth, strict=True))
    assert found[1].low > 0 > found[2].high


def test_many_fits_at_once_are_those_of_scikit_learn():
    """Ordinary draws, few rows, nearly separated ones, and rows that do not count."""
    rng, penalty = np.random.default_rng(5), np.array([0, PRIOR_SPREAD**-2])
    features = np.stack([np.ones((12, 12)), np.tanh(rng.normal(scale=2, size=(12, 12)))], axis=2)
    won = (features[..., 1] > rng.normal(scale=np.linspace(0, 2, 12)[:, None], size=(12, 12))).astype(float)
    won[:, 0], won[:, 1] = 0, 0.5
    times = rng.multinomial(12, np.full(12, 1 / 12), size=12) + np.eye(12)[0]
    found = _fitted(features, times * won, times * (1 - won), penalty)
    for r in range(12):
        rows, labels = np.tile(features[r, :, 1:], (2, 1)), np.repeat([1, 0], 12)
        model = LogisticRegression(C=PRIOR_SPREAD**2, tol=1e-10, max_iter=10_000)
        model.fit(rows, labels, sample_weight=np.concatenate([times[r] * won[r], times[r] * (1 - won[r])]))
        assert found[r].tolist() == pytest.approx([model.intercept_[0], model.coef_[0, 0]], abs=2e-3)
