import random

import pytest

from likelier.data.split import check_leaks, leaked, prompt_key, split_pairs
from likelier.errors import DataError, RecipeError, Refused
from likelier.records import Message, Pair


def pair(prompt, reply=0, group=None, name=""):
    return Pair((Message("user", prompt),), (Message("assistant", f"good {reply}"),), (Message("assistant", "bad"),), id=name, group=group)


def prompts(pairs):
    return {prompt_key(one.prompt) for one in pairs}


MANY = [pair(f"question {n}", reply, name=f"{n}.{reply}") for n in range(2000) for reply in range(2)]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_about_the_fraction_of_prompts_is_held_out_and_no_prompt_on_both_sides(fraction):
    train, held_out = split_pairs(MANY, eval_fraction=fraction)
    assert not prompts(train) & prompts(held_out)
    assert sorted(one.id for one in train + held_out) == sorted(one.id for one in MANY)
    deviation = (fraction * (1 - fraction) / 2000) ** 0.5  # of a binomial share
    assert abs(len(prompts(held_out)) / 2000 - fraction) < 4 * deviation


def test_sides_keep_the_order_of_the_file():
    position = {one.id: n for n, one in enumerate(MANY)}
    for side in split_pairs(MANY, eval_fraction=0.5):
        positions = [position[one.id] for one in side]
        assert positions == sorted(positions)


def test_adding_rows_and_shuffling_move_no_row():
    _, before = split_pairs(MANY[:1000], eval_fraction=0.1)
    shuffled = random.Random(0).sample(MANY, len(MANY))
    _, after = split_pairs(shuffled, eval_fraction=0.1)
    old = {one.id for one in MANY[:1000]}
    assert {one.id for one in before} == {one.id for one in after} & old


def test_a_larger_fraction_keeps_what_was_held_out():
    _, few = split_pairs(MANY, eval_fraction=0.1)
    _, more = split_pairs(MANY, eval_fraction=0.2)
    assert {one.id for one in few} < {one.id for one in more}


def test_the_side_is_decided_by_content_alone():
    """The same in every process, version and machine: a change here would mix the two sides of everybody's runs."""
    train, held_out = split_pairs([pair(f"question {n}") for n in range(10)], eval_fraction=0.3)
    assert [one.prompt[0].content for one in held_out] == ["question 5", "question 8", "question 9"]
    assert len(train) == 7


def test_prompts_that_differ_in_case_or_white_space_stay_together():
    for n in range(50):
        train, held_out = split_pairs([pair(f"Where  is\n{n}?"), pair(f" where IS {n}? "), pair("other"), pair("more")], eval_fraction=0.5)
        sides = [{prompt_key(one.prompt) for one in side} for side in (train, held_out)]
        assert not sides[0] & sides[1]
        assert len(sides[0] | sides[1]) == 3


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_neither_side_of_a_tiny_set_is_empty(fraction, count):
    for start in range(30):
        train, held_out = split_pairs([pair(f"q{start + n}", reply) for n in range(count) for reply in range(2)], eval_fraction=fraction)
        assert train
        assert held_out
        assert not prompts(train) & prompts(held_out)


def test_nothing_is_held_out_of_one_prompt_or_at_fraction_0():
    for n in range(20):
        assert split_pairs([pair(f"q{n}"), pair(f"q{n}", 1)], eval_fraction=0.9)[1] == []
    assert split_pairs(MANY, eval_fraction=0) == (MANY, [])
    assert split_pairs([], eval_fraction=0.5) == ([], [])


def test_split_by_group():
    pairs = [pair(f"q{n}", group=f"customer {n % 40}") for n in range(400)]
    train, held_out = split_pairs(pairs, eval_fraction=0.3, by="group")
    assert held_out
    assert not {one.group for one in train} & {one.group for one in held_out}
    with pytest.raises(DataError, match="Pair 7 has no `group`"):
        split_pairs([*pairs, pair("q", name="7")], eval_fraction=0.3, by="group")


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_bad_fraction(fraction):
    with pytest.raises(RecipeError, match="`eval_fraction` is"):
        split_pairs(MANY, eval_fraction=fraction)


def test_unknown_by():
    with pytest.raises(RecipeError, match="Did you mean `group`"):
        split_pairs(MANY, eval_fraction=0.1, by="groups")


def test_leaks_are_named():
    train = [pair("Where is it?", name="t1"), pair("where is it?", 1, name="t2"), pair("other", name="t3")]
    held_out = [pair(" Where IS it?", 2, name="e1"), pair("new", name="e2"), pair("Where is it?", 3, name="e3")]
    assert leaked(train, held_out) == [("e1", "t1"), ("e3", "t1")]
    with pytest.raises(Refused, match=r"2 of 3 held-out pairs .* e1 \(trained on as t1\), e3 \(trained on as t1\)\.") as caught:
        check_leaks(train, held_out)
    assert caught.value.exit_code == 1
    with pytest.raises(Refused, match="and 5 more"):
        check_leaks(train, [held_out[0]] * 10)


def test_the_same_words_in_another_role_or_conversation_are_no_leak():
    train = [pair("Where is it?", name="t")]
    system = Pair((Message("system", "Be brief."), Message("user", "Where is it?")), train[0].chosen, train[0].rejected, id="e")
    assert leaked(train, [system]) == []
    check_leaks(train, [system])


@pytest.mark.parametrize("by", ["prompt", "group"])
def test_own_splits_do_not_leak(by):
    pairs = [pair(f"q{n}", reply, group=f"g{n}") for n in range(50) for reply in range(3)]
    check_leaks(*split_pairs(pairs, eval_fraction=0.3, by=by))
