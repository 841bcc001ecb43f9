"""Pairs in batches: nothing is cut, nothing over the budget, as few as can be."""

import math
import random
from itertools import combinations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from likelier.logprobs.batches import cut_into_batches
from likelier.logprobs.tree import PromptResponse, count_unique_tokens

some_ids = st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple)  # three tokens only: prefixes meet all the time
pair = st.builds(lambda prompt, a, b: [PromptResponse(prompt, a), PromptResponse(prompt, b)], some_ids, some_ids, some_ids)


@given(st.lists(pair, max_size=30), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_each_unit_goes_into_one_batch_within_the_budget(units, budget):
    batches = cut_into_batches(units, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(units)))
    for batch in batches:
        tokens = count_unique_tokens(sequence for i in batch for sequence in units[i])
        assert tokens <= max(budget, *(count_unique_tokens(units[i]) for i in batch), 0)


def lone_pair(token: int, size: int) -> list[PromptResponse]:
    """A pair of `size` unique tokens that begins with `token`."""
    return [PromptResponse((token,), (1,)), PromptResponse((token,), (2,) * (size - 2))]


def sizes_of(units, batches):
    return [count_unique_tokens(sequence for i in batch for sequence in units[i]) for batch in batches]


def test_batches_are_about_even():
    units = [lone_pair(n, 10) for n in range(100, 150)]  # 500 tokens
    assert sizes_of(units, cut_into_batches(units, 160)) == [130, 130, 120, 120]


def test_a_lone_large_unit_gets_a_batch_and_leaves_the_others_even():
    units = [lone_pair(n, 10) for n in range(100, 140)]
    units[7] = lone_pair(107, 900)
    batches = cut_into_batches(units, 100)
    assert [7] in batches
    assert all(size in range(50, 101) for batch, size in zip(batches, sizes_of(units, batches), strict=True) if batch != [7])
    assert len(batches) <= 6


def test_a_prefix_that_all_share_counts_in_every_batch():
    system = tuple(range(1000, 1500))
    units = [[PromptResponse((*system, n), (1,) * 20), PromptResponse((*system, n), (2,) * 29)] for n in range(60)]  # 50 tokens each
    batches = cut_into_batches(units, 1000)
    assert max(sizes_of(units, batches)) <= 1000
    assert len(batches) == 6


def test_a_unit_that_adds_no_token_joins_the_batch_that_has_its_tokens():
    units = [lone_pair(n, 30) for n in (100, 101, 102, 100, 100)]
    assert sorted(map(sorted, cut_into_batches(units, 20))) == [[0, 3, 4], [1], [2]]


def test_units_that_begin_alike_meet():
    units = [lone_pair(n % 5, 10) for n in range(40)]
    assert all(len({units[i][0].prompt_ids for i in batch}) == 1 for batch in cut_into_batches(units, 12))


def test_nothing_to_cut():
    assert cut_into_batches([], 100) == []
    assert count_unique_tokens([]) == 0


def drawn(prompts: int, of_prompt: int, of_reply: int, replies: int) -> list[list[PromptResponse]]:
    """Pairs of all replies to each prompt, lengths log-normal around these medians."""
    draw = random.Random(0)

    def ids(median):
        return tuple(draw.randrange(50_000) for _ in range(max(2, int(draw.lognormvariate(math.log(median), 0.6)))))

    units = []
    for _ in range(prompts):
        prompt, answers = ids(of_prompt), [ids(of_reply) for _ in range(replies)]
        units += [[PromptResponse(prompt, better), PromptResponse(prompt, worse)] for better, worse in combinations(answers, 2)]
    return units


@pytest.mark.parametrize("shape", [(128, 250, 250, 2), (128, 1700, 125, 2), (40, 250, 250, 4)], ids=["two replies", "long prompts", "four replies"])
def test_batches_are_filled_and_no_token_stands_in_two(shape):
    units, budget = drawn(*shape), 16384
    sizes = sizes_of(units, cut_into_batches(units, budget))
    unique = count_unique_tokens(sequence for unit in units for sequence in unit)
    assert sum(sizes) == unique
    assert len(sizes) == math.ceil(unique / budget), "as few as if pairs could be cut anywhere"
    assert sum(sizes) / len(sizes) >= 0.97 * max(sizes)


def test_a_prompt_with_more_replies_than_fit_is_cut():
    units = drawn(1, 50, 50, 12)
    batches = cut_into_batches(units, 1000)
    assert len(batches) > 1
    assert max(sizes_of(units, batches)) <= 1000


def test_dialogues_that_go_on_meet():
    dialogues = [tuple(range(100 * n, 100 * n + 40)) for n in range(6)]
    units = [[PromptResponse(ids[:stop], (7,) * 5), PromptResponse(ids[:stop], (8,) * 5)] for ids in dialogues for stop in (20, 30, 40)]
    sizes = sizes_of(units, cut_into_batches(units, 150))
    assert sum(sizes) == count_unique_tokens(sequence for unit in units for sequence in unit)
