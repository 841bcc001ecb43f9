"""Which setting is recommended, on made-up results whose answer is known."""

import numpy as np
import pytest

from likelier.metrics import Interval, bootstrap, correct
from likelier.sweep.choice import Result, are_paired, choose, frontier, lead


def result(name, accuracy, kl, *, half=0.04, prompts=200, **more):
    return Result(name, Interval(accuracy, accuracy - half, accuracy + half), None if kl is None else Interval(kl, kl - 1, kl + 1), prompts, **more)


def paired(name, margins, kl, **more):
    """A result with the margins of each pair, every one of its own prompt."""
    prompts = tuple(range(len(margins)))
    accuracy = bootstrap(correct(margins), prompts)
    return Result(name, accuracy, Interval(kl, kl - 1, kl + 1), len(margins), margins=tuple(margins), of_prompt=prompts, **more)


def test_the_frontier_holds_what_nobody_beats():
    runs = [result("a", 0.9, 30), result("b", 0.9, 20), result("c", 0.8, 25), result("d", 0.7, 5), result("e", 0.6, 5), result("f", 0.95, None)]
    assert frontier(runs) == ["d", "b"], "f has no KL, and so is no point of the plot"
    runs[-1] = result("f", 0.95, 60)
    assert frontier(runs) == ["d", "b", "f"]


def test_of_equals_the_one_that_moves_least_is_taken():
    chosen = choose([result("beta=0.01", 0.90, 90), result("beta=0.1", 0.885, 20), result("beta=0.3", 0.80, 4)])
    assert chosen.name == "beta=0.1"  # 0.015 below the best is within one standard error, √2 · 0.0204; 0.1 is not
    assert all(
        word in chosen.reason
        for word in ("2 runs are as accurate", "beta=0.01 (90.0%)", "moves least", "88.5%", "KL 20.0 nats a reply (19.0 to 21.0)")
    ), chosen.reason
    assert chosen.notes[0] == "200 held-out prompts cannot tell beta=0.01 from beta=0.1 by accuracy at 95%."


def test_a_clear_best_is_taken_whatever_it_costs():
    chosen = choose([result("far", 0.95, 90), result("near", 0.75, 4)])
    assert (chosen.name, chosen.frontier) == ("far", ["near", "far"])
    assert "No other run is within one standard error" in chosen.reason
    assert not [note for note in chosen.notes if "cannot tell" in note]


def test_symptoms_and_worse_probes_are_marked_down():
    near, far = result("near", 0.89, 4, worse=("Factual questions answered",)), result("far", 0.9, 20)
    chosen = choose([near, far])
    assert chosen.name == "far"
    assert "near moves less, but: worse: Factual questions answered." in chosen.reason
    both = choose([near, result("far", 0.9, 20, symptoms=("Gradient spikes",), worse=("Loops",))])
    assert both.name == "near"
    assert "Against it: worse: Factual questions answered." in both.reason


def test_it_says_when_the_data_cannot_tell():
    chosen = choose([result("a", 0.75, 9, half=0.2, prompts=12), result("b", 0.83, 30, half=0.2, prompts=12)])
    assert chosen.name == "a"
    assert "12 held-out prompts cannot tell these settings apart" in chosen.notes[0]
    assert any("as though on different prompts" in note for note in chosen.notes)


def test_it_says_when_kl_cannot_tell_either():
    runs = [result("a", 0.9, 9), result("b", 0.9, 10.5), result("c", 0.9, 30)]
    assert choose(runs).notes[-1] == "The KLs of a and b differ by less than their intervals, so that any of them will do."
    assert not [note for note in choose([runs[0], runs[2]]).notes if "differ by less" in note]


def test_a_run_without_others_is_compared_with_none():
    assert choose([result("a", 0.9, 9)]).reason.startswith("It is the only run that ended: held-out accuracy 90.0%")


def test_without_anything_learnt_nothing_is_recommended():
    chosen = choose([result("a", 0.53, 9), result("b", 0.48, 3)])
    assert chosen.as_dict()["recommended"] is None
    assert "better than chance" in chosen.notes[0]
    assert chosen.frontier == ["b", "a"]
    assert choose([]).as_dict()["recommended"] is None


def test_pairs_tell_more_than_intervals():
    """a is right wherever b is, and on 12 pairs more: alone the intervals overlap widely, pair by pair the lead is certain."""
    rng = np.random.default_rng(1)
    b = np.where(rng.random(200) < 0.7, 1.0, -1.0)
    a = b.copy()
    a[np.flatnonzero(b < 0)[:12]] = 1.0
    better, worse = paired("a", a, 20), paired("b", b, 5)
    assert are_paired(better, worse)
    assert lead(better, worse).value == pytest.approx(0.06)
    assert lead(better, worse).is_certain
    assert choose([better, worse]).name == "a"
    alone = [Result(each.name, each.accuracy, each.kl, each.prompts) for each in (better, worse)]
    assert not lead(*alone).is_certain


def test_one_prompt_makes_no_difference():
    margins = np.ones(40)
    one_wrong = margins.copy()
    one_wrong[7] = -1
    assert choose([paired("best", margins, 50), paired("near", one_wrong, 3)]).name == "near"
    one_wrong[8:12] = -1
    assert choose([paired("best", margins, 50), paired("near", one_wrong, 3)]).name == "best"


def test_other_held_out_sets_are_not_paired_and_that_is_said():
    one, other = paired("a", np.ones(30), 5, dataset="x"), paired("b", np.ones(30), 9, dataset="y")
    assert not are_paired(one, other)
    assert any("different held-out sets" in note for note in choose([one, other]).notes)
