import doctest
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from likelier import metrics
from likelier.metrics import (
    APOLOGY,
    REFUSAL,
    Interval,
    accuracy,
    bootstrap,
    bootstrap_difference,
    calibration,
    correct,
    has_apology,
    has_refusal,
    in_a_loop,
    length_summary,
    repetition,
    wilson,
)


def test_docstring_examples() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted >= 6
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
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 30 * 7)
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
    "call, words",
    [
        (lambda: bootstrap([1.0, 2.0], ["a"]), "2 values but 1 clusters"),
        (lambda: bootstrap([], []), "non-empty"),
        (lambda: bootstrap([1.0, math.nan], ["a", "b"]), "value 1 is not finite"),
        (lambda: bootstrap_difference([1.0], [1.0, 2.0], ["a"]), "1 values before but 2 after"),
        (lambda: accuracy([math.inf]), "not finite"),
        (lambda: length_summary([]), "non-empty"),
    ],
)
def test_unusable_numbers_are_refused(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_accuracy_counts_a_tie_half() -> None:
    assert accuracy([0.3, -0.1, 0.0, 2.0]) == 2.5 / 4
    assert accuracy([0.0, 0.0]) == 0.5
    assert correct([0.3, -0.1, 0.0]).tolist() == [1.0, 0.0, 0.5]


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


def test_length_summary_by_hand() -> None:
    assert length_summary(range(1, 22)) == {"mean": 11, "p5": 2, "p25": 6, "p50": 11, "p75": 16, "p95": 20, "max": 21}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that.",
        "Sorry! That was our fault.",
        "We apologise for the delay.",
        "We apologize for the delay.",
        "Please accept my apologies.",
        "My apology is sincere.",
        "I am apologizing on behalf of the team.",
        "Please forgive\nme.",
        "I beg your pardon.",
        "We regret any inconvenience.",
    ],
)
def test_apologies_are_seen(text: str) -> None:
    assert has_apology(text)


@pytest.mark.parametrize(
    "text",
    [
        "An unapologetic fan.",
        "Better safe than sorry.",
        "They felt sorry for him.",
        "The bank may forgive the loan.",
        "Christian apologetics",
        "Your order ships today.",
        "",
    ],
)
def test_other_text_is_no_apology(text: str) -> None:
    assert not has_apology(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I can’t assist with this request.",
        "I cannot provide instructions for that.",
        "I am unable to answer this.",
        "I'm not able to discuss that.",
        "Unfortunately, I simply cannot do that.",
        "We will not share customer data.",
        "I must respectfully decline.",
        "As an AI language model, I have no opinions.",
        "That goes against my guidelines.",
    ],
)
def test_refusals_are_seen(text: str) -> None:
    assert has_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I can't help but admire it.",
        "I cannot recommend this film highly enough.",
        "You cannot give the same code twice.",
        "I can help with that.",
        "The pump will not do this.",
        "He declined the offer.",
        "",
    ],
)
def test_other_text_is_no_refusal(text: str) -> None:
    assert not has_refusal(text)


def test_loops_need_four_equal_four_grams() -> None:
    assert in_a_loop("a a a a a a a")
    assert not in_a_loop("a a a a a a")
    assert in_a_loop([7, 8, 9, 10, 1] * 4)
    assert not in_a_loop([7, 8, 9, 10, 1] * 3)
    assert not in_a_loop(list(range(1000)))
    assert not in_a_loop("")
    assert in_a_loop("no no no", n=1, times=3)


PHRASES = [
    "I",
    "we",
    "can't",
    "cannot",
    "can",
    "not",
    "won't",
    "will",
    "couldn't",
    "unable",
    "to",
    "not",
    "able",
    "allowed",
    "permitted",
    "going",
    "refuse",
    "help",
    "assist",
    "must",
    "respectfully",
    "decline",
    "as",
    "an",
    "AI",
    "artificial",
    "intelligence",
    "language",
    "model",
    "against",
    "my",
    "our",
    "guidelines",
    "policy",
    "sorry",
    "apologies",
    "apologise",
    "forgive",
    "me",
    "pardon",
    "regret",
    "the",
    "beg",
    "your",
    "’",
    ",",
    ".",
    "but",
]


@given(st.lists(st.sampled_from(PHRASES), max_size=12))
def test_looking_for_stems_first_changes_no_verdict(words):
    text = " ".join(words)
    for said in (text, text.upper(), text.title()):
        whole = " ".join(said.replace("’", "'").split())
        assert has_refusal(said) == (REFUSAL.search(whole) is not None)
        assert has_apology(said) == (APOLOGY.search(whole) is not None)


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


def test_repetition_is_the_share_of_n_grams_that_stood_there_before():
    assert repetition("a b c d e f g") == 0
    assert repetition("go on " * 8) == pytest.approx(1 - 2 / 13)
    assert repetition([7] * 10) == pytest.approx(1 - 1 / 7)
    assert repetition("one two three") == repetition("") == 0
    assert repetition("a b a b a b", n=2) == pytest.approx(1 - 2 / 5)
