import hashlib
import random
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likelier.data import split
from likelier.data.leaks import check_leaks
from likelier.data.near import jaccard
from likelier.data.split import held_out, prompt_key, prompt_signature, split_pairs
from likelier.errors import DataError, RecipeError
from likelier.records import Labelled, Message, Pair


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
    with pytest.raises(DataError, match="Row 7 has no `group`"):
        split_pairs([*pairs, pair("q", name="7")], eval_fraction=0.3, by="group")


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_bad_fraction(fraction):
    with pytest.raises(RecipeError, match="`eval_fraction` is"):
        split_pairs(MANY, eval_fraction=fraction)


def test_unknown_fields():
    with pytest.raises(RecipeError, match=r"`by` is 'groups'. Did you mean `group`"):
        split_pairs(MANY, eval_fraction=0.1, by="groups")
    with pytest.raises(RecipeError, match=r"`stratify` is 'reasons'. Did you mean `reason`"):
        split_pairs(MANY, eval_fraction=0.1, stratify="reasons")


@pytest.mark.parametrize("by", ["prompt", "group"])
def test_own_splits_do_not_leak(by):
    pairs = [pair(f"q{n}", reply, group=f"g{n}") for n in range(50) for reply in range(3)]
    check_leaks(*split_pairs(pairs, eval_fraction=0.3, by=by))


# Near-duplicates

FRACTION = 0.5
ANCHORS = [pair("question 5", name="out"), pair("question 2", name="trained")]
"""Two short prompts, one on each side at any fraction from 0.3 to 0.5, so that neither side is ever empty."""


def long_pair(base, variant, reply=0):
    """One of a family of prompts of 60 words: variant 0 is alike to each of the others, which differ from it in four words; they are not alike."""
    draw = random.Random(base)
    said = [f"word{draw.randrange(10**6)}" for _ in range(60)]
    if variant:
        said[10 * variant : 10 * variant + 4] = [f"other{base}.{variant}.{n}" for n in range(4)]
    return pair(" ".join(said), reply, name=f"{base}.{variant}.{reply}")


def alike(one, other):
    return jaccard([prompt_signature(one.prompt)], [prompt_signature(other.prompt)])[0] >= 0.8


def is_star(base):
    """Whether the estimates say what is true (0.84 to variant 0, 0.71 between the others)."""
    return all(alike(long_pair(base, one), long_pair(base, other)) == (one == 0) for one, other in combinations(range(5), 2))


STARS = [base for base in range(60) if is_star(base)]
NEAR = {(base, variant): long_pair(base, variant) for base in STARS[:8] for variant in range(5)}


def own_share(one):
    return int(hashlib.sha256(prompt_key(one.prompt).encode()).hexdigest()[:16], 16) / 2**64


def families(pairs):
    """The slow twin: which rows hang together, by comparing all."""
    family = list(range(len(pairs)))
    for i, j in combinations(range(len(pairs)), 2):
        if prompt_key(pairs[i].prompt) == prompt_key(pairs[j].prompt) or alike(pairs[i], pairs[j]):
            family = [family[i] if one == family[j] else one for one in family]
    return family


some_near = st.lists(st.sampled_from(sorted(NEAR)), max_size=12, unique=True).map(lambda chosen: [NEAR[name] for name in chosen])


@settings(max_examples=60, deadline=None)
@given(some_near)
def test_a_family_is_held_out_if_all_its_prompts_belong_there(some):
    rows = some + ANCHORS
    family = families(rows)
    expected = [all(own_share(rows[other]) < FRACTION for other in range(len(rows)) if family[other] == mine) for mine in family]
    assert held_out(rows, eval_fraction=FRACTION).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(some_near, some_near, st.randoms(use_true_random=False))
def test_what_adding_rows_may_move(old, new, draw):
    """No row goes from training to held out; the other way round only a row whose family gets a new prompt that belongs in training."""
    before = ANCHORS + old
    after = draw.sample(before + new, len(before + new))
    was = dict(zip((one.id for one in before), held_out(before, eval_fraction=FRACTION).tolist(), strict=True))
    family = families(after)
    for row, is_out in enumerate(held_out(after, eval_fraction=FRACTION).tolist()):
        name = after[row].id
        if name in was and is_out != was[name]:
            relatives = [after[other] for other in range(len(after)) if family[other] == family[row]]
            assert was[name], "a row that was trained on is held out"
            assert any(own_share(one) >= FRACTION for one in relatives if not was.get(one.id, False))


@settings(max_examples=30, deadline=None)
@given(some_near, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_count(some, draw):
    rows = some + ANCHORS
    order = draw.sample(range(len(rows)), len(rows))
    assert held_out([rows[row] for row in order], eval_fraction=0.3).tolist() == held_out(rows, eval_fraction=0.3)[order].tolist()


def test_a_missed_group_is_still_no_leak(monkeypatch):
    """Where the search for groups has missed a pair, the search for leaks sends it to the training side."""
    rows = [*NEAR.values(), *ANCHORS]
    monkeypatch.setattr(split, "groups", lambda signatures: np.arange(len(signatures)))
    train, out = split_pairs(rows, eval_fraction=FRACTION)
    assert out
    check_leaks(train, out)


LAW = " ".join(f"rule{n}" for n in range(900))


def test_a_long_system_prompt_makes_no_near_duplicates():
    system = Message("system", LAW)
    rows = [replace(one, prompt=(system, *one.prompt)) for one in (long_pair(base, 0) for base in range(40))]
    train, out = split_pairs(rows, eval_fraction=0.3)
    assert len(train) > 20
    assert len(out) > 4


def test_another_system_prompt_makes_no_new_prompt_of_a_long_one():
    systems = [(), (Message("system", "Be brief."),), (Message("developer", LAW),)]
    for base in range(20):
        rows = [replace(long_pair(base, 0), prompt=(*system, *long_pair(base, 0).prompt)) for system in systems]
        out = held_out([*rows, *ANCHORS], eval_fraction=0.3)[:3]
        assert out.all() or not out.any()


# Fields


@pytest.mark.parametrize("by", ["group", "source", "annotator", "reason", "meta.customer"])
def test_rows_of_one_value_stay_together_and_so_do_near_prompts(by):
    """Values are linked where they share a prompt: here each base has prompts of two customers."""

    def of(one, customer):
        return replace(one, meta={"customer": customer}) if by == "meta.customer" else replace(one, **{by: f"customer {customer}"})

    rows = [of(pair(f"q{n}"), n % 40) for n in range(400)]
    rows += [of(long_pair(base, variant), 100 + 2 * base + variant) for base in range(30) for variant in range(2)]
    train, out = split_pairs(rows, eval_fraction=0.3, by=by)
    value = (lambda one: one.meta["customer"]) if by == "meta.customer" else (lambda one: getattr(one, by))
    assert not {value(one) for one in train} & {value(one) for one in out}
    assert 5 < len({value(one) for one in out}) < 30
    check_leaks(train, out)


def test_a_value_of_any_kind_is_told_apart():
    levels = [1, 1.5, True, [1], {"a": 1}, {"a": 2}, 2, "two"]
    rows = [replace(pair(f"q{n}"), meta={"level": level}) for n, level in enumerate(levels * 5)]
    train, out = split_pairs(rows, eval_fraction=0.5, by="meta.level")
    sides = [{repr(one.meta["level"]) for one in side} for side in (train, out)]
    assert not sides[0] & sides[1]
    assert min(map(len, sides)) > 0
    with pytest.raises(DataError, match=r"has no `meta.level`"):
        split_pairs([*rows, pair("q")], eval_fraction=0.5, by="meta.level")


def test_each_stratum_has_both_sides():
    rows = [replace(pair(f"q{n}"), reason=f"reason {n % 50}" if n % 50 else None) for n in range(200)]  # four prompts of each
    strata = {one.reason for one in rows}
    plain, stratified = (split_pairs(rows, eval_fraction=0.1, stratify=stratify) for stratify in (None, "reason"))
    assert {one.reason for one in plain[1]} < strata
    assert {one.reason for one in stratified[0]} == {one.reason for one in stratified[1]} == strata
    assert {one.id for one in plain[1]} <= {one.id for one in stratified[1]}


def test_a_stratum_of_one_prompt_is_trained_on():
    rows = [replace(pair(f"q{n}"), source="many") for n in range(50)] + [replace(pair(f"single {n}"), source=f"{n}") for n in range(20)]
    train, out = split_pairs(rows, eval_fraction=0.5, stratify="source")
    assert {one.source for one in out} == {"many"}
    assert len({one.source for one in train}) == 21


def test_strata_large_enough_keep_every_row_where_it_was():
    rows = [replace(pair(f"q{n}"), reason=f"reason {n % 4}", id=str(n)) for n in range(2000)]
    before, after = (held_out(some, eval_fraction=0.1, stratify="reason") for some in (rows[:1000], rows))
    assert after[:1000].tolist() == before.tolist() == held_out(rows[:1000], eval_fraction=0.1).tolist()


def test_unpaired_records_are_split_alike():
    labelled = [Labelled(one.prompt, one.chosen, True, id=one.id) for one in MANY[:200]]
    assert held_out(labelled, eval_fraction=0.3).tolist() == held_out(MANY[:200], eval_fraction=0.3).tolist()
