"""Calibration worked out by hand and against simulated truth."""

import json
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from likelier.metrics import (
    Tempered,
    calibration,
    fit_temperature,
    tempered,
)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_calibration_by_hand() -> None:
    margins = [logit(0.6), -logit(0.6), logit(0.9), logit(0.8)]
    found = calibration(margins, bins=2)
    assert [(b.confidence, b.accuracy, b.count) for b in found.bins] == [
        (pytest.approx(0.6), 0.5, 2),
        (pytest.approx(0.85), 1.0, 2),
    ]
    assert found.ece == pytest.approx(0.5 * 0.1 + 0.5 * 0.15)


def test_calibration_keeps_equal_confidences_together_in_any_order() -> None:
    margins = [1.0, -1.0] * 3 + [2.0] * 4
    found = calibration(margins, bins=5)
    assert [(b.accuracy, b.count) for b in found.bins] == [(0.5, 6), (1.0, 4)]
    assert calibration(margins[::-1], bins=5).ece == pytest.approx(found.ece)


def test_calibration_of_a_calibrated_model_is_near_zero_and_of_a_boastful_one_is_not() -> None:
    rng = np.random.default_rng(7)
    sizes = np.abs(rng.normal(0, 2, 20_000))
    right = rng.random(20_000) < 1 / (1 + np.exp(-sizes))
    margins = np.where(right, sizes, -sizes)
    honest, boastful = calibration(margins), calibration(3 * margins)
    assert honest.ece < 0.01
    assert boastful.ece > 0.1
    assert [b.count for b in honest.bins] == [2000] * 10
    assert all(b.confidence > b.accuracy for b in boastful.bins)


def test_calibration_survives_huge_margins_and_fewer_pairs_than_bins() -> None:
    found = calibration([1e4, -1e4, 0.0], bins=10)
    assert [(b.confidence, b.accuracy, b.count) for b in found.bins] == [(0.5, 0.5, 1), (1.0, 0.5, 2)]
    assert found.ece == pytest.approx(1 / 3)
    assert json.loads(json.dumps(found.as_dict()))["bins"][1]["count"] == 2


def test_brier_and_likelihood_by_hand_in_either_order():
    found = calibration([logit(0.6), -logit(0.6), logit(0.9)])
    assert found.brier == pytest.approx((0.4**2 + 0.6**2 + 0.1**2) / 3)
    assert found.nll == pytest.approx(-(math.log(0.6) + math.log(0.4) + math.log(0.9)) / 3)
    # Shown the other way round a pair has outcome 0 and margin −m.
    assert found.brier == pytest.approx(np.mean([(0 - (1 - p)) ** 2 for p in (0.6, 0.4, 0.9)]))
    assert (calibration([0.0]).brier, calibration([0.0]).nll) == (0.25, pytest.approx(math.log(2)))
    assert calibration([-800.0]).nll == 800.0


def test_temperature_by_hand():
    # Of equal margins m, of which a share p is right, σ(m/T) = p.
    assert fit_temperature([2.0, 2.0, 2.0, -2.0]) == pytest.approx(2.0 / logit(0.75))
    assert fit_temperature([2.0, -2.0], weights=[3, 1]) == pytest.approx(2.0 / logit(0.75))
    assert fit_temperature([1e-6, 1e-6, 1e-6, -1e-6]) == pytest.approx(1e-6 / logit(0.75))
    assert fit_temperature([3.0, 0.0]) == 0.0
    assert fit_temperature([-1.0, -2.0, 0.5]) == math.inf
    assert fit_temperature([0.0, 0.0]) == math.inf


def test_temperature_is_that_of_logistic_regression_without_an_offset():
    margins = np.random.default_rng(9).normal(0.7, 2.0, 60)
    both_orders, outcomes = np.concatenate([margins, -margins])[:, None], np.repeat([1, 0], 60)
    theirs = LogisticRegression(C=1e10, fit_intercept=False, tol=1e-10).fit(both_orders, outcomes)
    assert fit_temperature(margins) == pytest.approx(1 / float(theirs.coef_[0, 0]), rel=1e-4)


def simulated(pairs, temperature, seed):
    """Margins that are `temperature` times the true logit of being right."""
    rng = np.random.default_rng(seed)
    sizes = np.abs(rng.normal(0, 2, pairs))
    return temperature * np.where(rng.random(pairs) < 1 / (1 + np.exp(-sizes)), sizes, -sizes)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 4.0])
def test_the_true_temperature_is_found_and_mends_what_is_off(temperature):
    margins = simulated(4000, temperature, seed=10)
    found = tempered(margins, range(4000))
    assert found.temperature.low < temperature < found.temperature.high
    assert found.temperature.high / found.temperature.low < 1.25
    before = calibration(margins)
    assert found.after.ece < 0.02
    assert found.after.nll == pytest.approx(calibration(simulated(4000, 1.0, seed=10)).nll, rel=0.01)
    if temperature != 1.0:
        assert before.ece > 0.1
        assert (found.after.brier < before.brier, found.after.nll < before.nll) == (True, True)


def test_after_is_out_of_sample():
    """Pairs of one prompt that would betray their temperature to each other are judged by that of the others."""
    margins = np.concatenate([simulated(400, 1.0, seed=11), np.repeat(-5.0, 40)])
    alone = tempered(margins, range(440))
    together = tempered(margins, [*range(400), *[400] * 40])
    assert together.temperature.value == alone.temperature.value
    assert together.after.nll > 1.1 * alone.after.nll, "the wrong prompt's own fold has not seen it"
    assert together.temperature.high - together.temperature.low > 2 * (alone.temperature.high - alone.temperature.low)


def test_where_no_temperature_can_be_told_there_is_none():
    assert tempered([1.0, -0.5, 2.0], "abc") == Tempered(None, None), "three prompts"
    assert tempered([1.0] * 30, range(30)) == Tempered(None, None), "never wrong"
    assert tempered([-1.0] * 20 + [0.5] * 10, range(30)) == Tempered(None, None), "worse than a guess"
    one_wrong = tempered([1.0] * 29 + [-1.0], range(30))
    assert one_wrong.temperature.low == 0.0, "many resamples lack the one wrong pair"
    assert one_wrong.after is None, "and so does the fold that leaves it out"
    assert json.dumps(one_wrong.temperature.as_dict(), allow_nan=False)
