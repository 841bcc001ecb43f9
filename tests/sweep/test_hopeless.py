"""A run is given up when another was clearly better at the same step, never by the chance of few prompts."""

import numpy as np
import pytest

from likelier.metrics import wilson
from likelier.sweep.hopeless import LEVEL, Rival, certain_lead, why_hopeless

STEPS = 100


def rows(*accuracies, every=10, loss=0.5):
    return [{"kind": "eval", "step": every * (i + 1), "accuracy": accuracy, "loss": loss} for i, accuracy in enumerate(accuracies)]


def rival(*accuracies, prompts=200, same_loss=False, loss=0.5):
    return Rival("beta=0.1", rows(*accuracies, loss=loss), prompts, same_loss)


GOOD = (0.6, 0.75, 0.85, 0.88, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9)


def test_the_interval_of_a_difference_is_newcombes():
    """Newcombe 1998, table II, row (a) of method 10: 56/70 − 48/80 at 95% is 0.0524 to 0.3339."""
    p, q = wilson(56, 70), wilson(48, 80)
    assert 0.8 - 0.6 - np.hypot(p.value - p.low, q.high - q.value) == pytest.approx(0.0524, abs=1e-4)
    p, q = wilson(160, 200, level=LEVEL), wilson(120, 200, level=LEVEL)
    assert certain_lead(0.8, 0.6, 200) == pytest.approx(0.2 - np.hypot(p.value - p.low, q.high - q.value))


def test_clearly_worse_twice_in_a_row_is_given_up_with_the_numbers():
    why = why_hopeless(rows(0.5, 0.5, 0.55, 0.55), STEPS, [rival(*GOOD)])
    assert all(word in why for word in ("step 40 of 100", "55.0%", "beta=0.1", "88.0%", "200 prompts", "99%")), why


def test_once_is_not_enough():
    assert not why_hopeless(rows(0.5, 0.7, 0.7), STEPS, [rival(0.5, 0.7, 0.9)])
    assert why_hopeless(rows(0.5, 0.7, 0.7, 0.7), STEPS, [rival(0.5, 0.7, 0.9, 0.9)])


def test_what_chance_can_do_on_few_prompts_gives_nothing_up():
    assert not why_hopeless(rows(0.5, 0.5, 0.6, 0.6), STEPS, [rival(*GOOD, prompts=20)])
    assert why_hopeless(rows(0.5, 0.5, 0.6, 0.6), STEPS, [rival(*GOOD, prompts=100)])


def test_a_slow_start_and_the_last_step_are_left_alone():
    assert not why_hopeless(rows(0.5, 0.5, every=10), STEPS, [rival(0.9, 0.9)])
    assert not why_hopeless(rows(*[0.5] * 10), STEPS, [rival(*GOOD)]), "all that could be saved is spent"


def test_the_best_so_far_counts_not_a_dip():
    assert not why_hopeless(rows(0.6, 0.86, 0.5, 0.5), STEPS, [rival(*GOOD)])


def test_a_rival_is_looked_at_where_the_run_is_not_at_its_end():
    late = rival(*[0.5] * 8, 0.95, 0.95)
    assert not why_hopeless(rows(0.5, 0.5, 0.5, 0.5), STEPS, [late])
    short = rival(0.8, 0.9)  # it stopped early, at step 20; then its last counts on
    assert why_hopeless(rows(0.5, 0.5, 0.5, 0.5), STEPS, [short])


def test_a_better_loss_saves_a_run_where_losses_can_be_compared():
    ours = rows(0.5, 0.5, 0.55, 0.55, loss=0.4)
    assert not why_hopeless(ours, STEPS, [rival(*GOOD, same_loss=True, loss=0.45)])
    assert why_hopeless(ours, STEPS, [rival(*GOOD, same_loss=True, loss=0.3)])
    assert why_hopeless(ours, STEPS, [rival(*GOOD, same_loss=False, loss=0.45)])


def test_equal_runs_are_hardly_ever_given_up():
    """Both learn alike and differ by chance alone, on 50 prompts each: of 400 runs, looked at ten times, at most 1% may go."""
    rng = np.random.default_rng(0)
    truth = np.array(GOOD)
    ours, theirs = (rng.binomial(50, truth, size=(400, 10)) / 50 for _ in range(2))
    gone = 0
    for mine, other in zip(ours, theirs, strict=True):
        looks = [why_hopeless(rows(*mine[: k + 1]), STEPS, [rival(*other, prompts=50)]) for k in range(10)]
        gone += any(looks)
    assert gone <= 4, gone
