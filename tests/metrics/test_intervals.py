"""Intervals over prompts against enumeration, numpy and scipy."""

import doctest
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from likelier.metrics import (
    Interval,
    accuracy,
    bootstrap,
    bootstrap_difference,
    bootstrap_share,
    bootstrap_share_difference,
    correct,
    intervals,
    length_summary,
    reliability,
    text,
    wilson,
)


@pytest.mark.parametrize("module", [intervals, reliability, text])
def test_docstring_examples(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 1
    assert result.failed == 0


def test_bootstrap_agrees_with_the_enumeration_of_all_resamples() -> None:
    values, clusters = [0.0, 1.0, 5.0, 2.0, 2.0, 9.0], ["a", "a", "b", "c", "c", "c"]
    members = {"a": [0.0, 1.0], "b": [5.0], "c": [2.0, 2.0, 9.0]}
    exact = [np.mean([value for name in drawn for value in members[name]]) for drawn in itertools.product("abc", repeat=3)]
    for level in (0.5, 0.8):
        found = bootstrap(values, clusters, resamples=40_000, level=level)
        assert found.value == pytest.approx(19 / 6)
        low, high = np.quantile(exact, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        assert (found.low, found.high) == pytest.approx((low, high))


def test_bootstrap_of_many_clusters_matches_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found = bootstrap(values, range(2000))
    half = 1.96 * values.std() / math.sqrt(2000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    assert found.value == pytest.approx(values.mean())


def test_bootstrap_of_the_median_agrees_with_numpy_on_every_resample() -> None:
    rng = np.random.default_rng(7)
    values, clusters = rng.integers(0, 9, 50).astype(float), rng.integers(0, 12, 50)
    names, C = np.unique(clusters), len(np.unique(clusters))
    drawn = np.random.default_rng(0).integers(C, size=(300, C))
    medians = [np.median(np.concatenate([values[clusters == names[i]] for i in row])) for row in drawn]
    found = bootstrap(values, clusters.tolist(), statistic="median", resamples=300)
    assert found.value == np.median(values)
    assert (found.low, found.high) == tuple(np.quantile(medians, [0.025, 0.975]))


def test_difference_of_medians_is_taken_over_the_same_draws() -> None:
    before = np.random.default_rng(8).exponential(50, 60)
    shifted = bootstrap_difference(before, before - 7, range(60), statistic="median")
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((-7, -7, -7))
    halved = bootstrap_difference(before, before / 2, range(60), statistic="median")
    assert halved.value == pytest.approx(-np.median(before) / 2)
    assert halved.high < 0
    alone = bootstrap_difference([1.0, 2.0], [3.0, 4.0], ["a", "a"], statistic="median")
    assert alone == Interval(2.0, -math.inf, math.inf)


def test_rows_of_one_cluster_do_not_count_as_independent() -> None:
    rng = np.random.default_rng(2)
    per_prompt = rng.normal(size=100)
    once = bootstrap(per_prompt, range(100))
    repeated = bootstrap(np.repeat(per_prompt, 4), np.repeat(np.arange(100), 4))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))
    naive = bootstrap(np.repeat(per_prompt, 4), range(400))
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(50), 2)
    covered = 0
    for seed in range(200):
        values = np.repeat(rng.normal(size=50), 2) + rng.normal(size=100)
        covered += not bootstrap(values, clusters, seed=seed, resamples=400).excludes(0.0)
    assert 178 <= covered <= 198


def test_bootstrap_does_not_depend_on_row_order_or_cluster_names_and_repeats() -> None:
    rng = np.random.default_rng(4)
    values, clusters = rng.normal(size=60), np.repeat(np.arange(20), 3)
    shuffled = rng.permutation(60)
    first = bootstrap(values, clusters)
    assert bootstrap(values, clusters) == first
    again = bootstrap(values[shuffled], [f"prompt {clusters[i]:02d}" for i in shuffled])
    assert (again.low, again.high) == pytest.approx((first.low, first.high))
    assert bootstrap(values, clusters, seed=1) != first


def test_blocks_of_resamples_fill_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=30)
    whole = bootstrap(values, range(30))
    monkeypatch.setattr(intervals, "DRAWS_AT_ONCE", 30 * 7)
    blocks = bootstrap(values, range(30))
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), abs=0.06)


def test_one_cluster_says_nothing_about_the_spread() -> None:
    found = bootstrap([1.0, 2.0], ["a", "a"])
    assert found == Interval(1.5, -math.inf, math.inf)
    assert not found.excludes(0.0)
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert Interval.from_dict(json.loads(text)) == found


def test_difference_is_paired() -> None:
    rng = np.random.default_rng(6)
    level = rng.normal(0, 10, size=80)
    before, after = level + rng.normal(size=80), level + 1 + rng.normal(size=80)
    found = bootstrap_difference(before, after, range(80))
    assert found.value == pytest.approx(after.mean() - before.mean())
    assert found.excludes(0.0)
    assert found.high - found.low < 0.2 * (bootstrap(before, range(80)).high - bootstrap(before, range(80)).low)


def test_difference_of_booleans() -> None:
    found = bootstrap_difference([True, True, False, False], [False, True, False, False], "abcd")
    assert (found.value, found.high) == (-0.25, 0.0)
    assert not found.excludes(0.0)


@pytest.mark.parametrize(
    "prompts, before, after, value, low, high",
    [
        (2, 0, 1, 1, -0.315, 1),  # n / (n + 1.96²) of the prompts at least: 0.342
        (2, 1, 0, -1, -1, 0.315),
        (3, 0, 1, 1, -0.123, 1),  # 0.438
        (4, 0, 1, 1, 0.020, 1),  # 0.510
        (25, 1, 1, 0, -0.133, 0.133),  # 0.867
        (25, 0, 0, 0, -0.133, 0.133),
    ],
)
def test_where_all_prompts_differ_alike_a_difference_of_shares_has_a_width(prompts, before, after, value, low, high) -> None:
    found = bootstrap_share_difference([before] * prompts, [after] * prompts, range(prompts))
    assert found.value == value
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.0005)
    rows = bootstrap_share_difference([before] * 2 * prompts, [after] * 2 * prompts, [*range(prompts)] * 2)
    assert rows == found, "prompts count, not rows"


def test_a_difference_of_shares_is_else_the_bootstraps() -> None:
    before, after = [1, 1, 0, 0], [0, 1, 0, 0]
    assert bootstrap_share_difference(before, after, "abcd") == bootstrap_difference(before, after, "abcd")
    assert bootstrap_share_difference([0, 0], [1, 1], "aa") == Interval(1.0, -math.inf, math.inf), "one prompt says nothing about the spread"


def test_accuracy_counts_a_tie_half() -> None:
    assert accuracy([0.3, -0.1, 0.0, 2.0]) == 2.5 / 4
    assert accuracy([0.0, 0.0]) == 0.5
    assert correct([0.3, -0.1, 0.0]).tolist() == [1.0, 0.0, 0.5]


def test_length_summary_by_hand() -> None:
    assert length_summary(range(1, 22)) == {"mean": 11, "p5": 2, "p25": 6, "p50": 11, "p75": 16, "p95": 20, "max": 21}


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_holds_the_share_and_narrows(hits, misses):
    interval = wilson(hits, hits + misses)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    wider = wilson(hits, hits + misses, level=0.99)
    assert wider.low <= interval.low
    assert interval.high <= wider.high


def test_wilson_against_scipy():
    for hits, total in ((0, 7), (3, 7), (7, 7), (50, 1000)):
        theirs = binomtest(hits, total).proportion_ci(method="wilson")
        ours = wilson(hits, total)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2)


def test_a_share_on_which_all_rows_agree_is_not_certain():
    """Twelve pairs of four prompts are four rows at most."""
    assert bootstrap_share([1.0] * 12, [0, 1, 2, 3] * 3) == wilson(4, 4)
    assert bootstrap_share([0.0] * 5, "abcde") == wilson(0, 5)
    assert bootstrap_share([0.5] * 6, range(6)) == wilson(3, 6)
    assert bootstrap_share([1, 0, 1], "abc") == bootstrap([1, 0, 1], "abc")
    assert bootstrap_share([1, 1], "aa").low == -math.inf, "one prompt says nothing about others"
