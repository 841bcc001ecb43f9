"""Replies to other prompts, which KTO's reference point is estimated on."""

import random
from collections import Counter

from likelier import examples as module
from likelier.examples import LabelledExample, PreferenceExample, all_pairs, with_others


def made(count: int) -> list[PreferenceExample | LabelledExample]:
    draw = random.Random(0)

    def ids(longest: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1000) for _ in range(draw.randint(1, longest)))

    prompts = [ids(30) for _ in range(count // 3 + 1)]
    return [
        PreferenceExample(prompts[n // 3], ids(20), ids(20), str(n)) if n % 2 else LabelledExample(prompts[n // 3], ids(20), n % 4 == 0, str(n))
        for n in range(count)
    ]


def test_pitfall_12_no_example_gets_a_reply_to_its_own_prompt():
    examples = made(90)
    given = with_others(examples)
    written_to = {reply: example.prompt_ids for example in examples for reply in example.replies}
    longest = max(map(len, examples))
    for before, after in zip(examples, given, strict=True):
        assert (after.id, after.replies, after.prompt_ids) == (before.id, before.replies, before.prompt_ids)
        assert len(after.others) == len(after.replies)
        for reply in after.others:
            assert written_to[reply] != after.prompt_ids
            assert len(after.prompt_ids) + len(reply) <= longest
    assert with_others(examples) == given


def test_replies_are_taken_from_all_over():
    taken = Counter(reply for example in with_others(made(90)) for reply in example.others)
    assert len(taken) > 60
    assert max(taken.values()) <= 6


def test_no_more_is_looked_at_than_it_takes(monkeypatch):
    """Fifty thousand examples are a common size."""
    drawn = []

    class Counting(random.Random):
        def sample(self, *arguments):
            drawn.append(1)
            return super().sample(*arguments)

    monkeypatch.setattr(module, "Random", Counting)
    with_others(made(300))
    assert 300 <= len(drawn) < 3 * 300


def test_where_there_is_no_other_prompt_there_are_none():
    alone = [PreferenceExample((1, 2), (3,), (4,)), LabelledExample((1, 2), (5,), True)]
    assert all(example.others == () for example in with_others(alone))
    assert with_others([]) == []


def test_pairs_and_mixtures_are_told_apart():
    assert all_pairs(made(8)[1::2])
    assert not all_pairs(made(8))
