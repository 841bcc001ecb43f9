"""Which pairs a step takes, and the learning rate it takes them at."""

from collections import Counter
from itertools import pairwise

import pytest

from likelier.examples import PreferenceExample
from likelier.recipe import TrainSettings
from likelier.train.order import ExampleOrder, learning_rate


def examples(count: int) -> list[PreferenceExample]:
    return [PreferenceExample((1, n // 2), (2, n), (3, n), id=str(n)) for n in range(count)]


@pytest.mark.parametrize("count, per_step, epochs", [(23, 4, 1), (23, 4, 3), (7, 16, 2), (10, 5, 1.5), (1, 1, 1)])
def test_every_epoch_takes_every_pair_once(count, per_step, epochs):
    order = ExampleOrder(examples(count), TrainSettings(pairs_per_step=per_step, epochs=epochs))
    taken = [pair.id for step in range(order.steps) for pair in order.step(step)]
    assert len(taken) == round(epochs * count)
    for epoch in range(int(epochs)):
        assert Counter(taken[epoch * count : (epoch + 1) * count]) == Counter(str(n) for n in range(count))


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    def order(seed):
        return ExampleOrder(examples(40), TrainSettings(pairs_per_step=40, epochs=2, seed=seed))

    assert order(0).step(1) == order(0).step(1)
    assert order(0).step(0) != order(0).step(1)
    assert order(0).step(0) != order(1).step(0)


def test_pairs_of_one_prompt_stay_together():
    order = ExampleOrder(examples(40), TrainSettings(pairs_per_step=40))
    prompts = [pair.prompt_ids for pair in order.step(0)]
    assert all(prompts[n] == prompts[n + 1] for n in range(0, 40, 2))


def test_max_steps_cuts():
    assert ExampleOrder(examples(40), TrainSettings(pairs_per_step=4, max_steps=3)).steps == 3


@pytest.mark.parametrize("schedule, last", [("cosine", 0.0), ("linear", 0.0), ("constant", 1.0)])
def test_schedules(schedule, last):
    settings = TrainSettings(schedule=schedule, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate(step, 100, settings) for step in range(101)]
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert max(rates) == 1.0
    assert rates[100] == pytest.approx(last)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(1.0 if schedule == "constant" else 0.5)
