import pytest

from likelier.data.formats import read_all
from likelier.data.leaks import Leak, check_leaks, leaked
from likelier.data.split import split_pairs
from likelier.errors import Refused, RequestError
from likelier.records import Labelled, Message, Pair


def pair(prompt, reply=0, name=""):
    return Pair((Message("user", prompt),), (Message("assistant", f"good {reply}"),), (Message("assistant", "bad"),), id=name)


LONG = " ".join(f"word{n}" for n in range(40))


def test_leaks_are_named():
    train = [pair("Where is it?", name="t1"), pair("where is it?", 1, name="t2"), pair("other", name="t3")]
    held_out = [pair(" Where IS it?", 2, name="e1"), pair("new", name="e2"), pair("Where is it?", 3, name="e3")]
    assert leaked(train, held_out) == [Leak("e1", "t1", True, 1.0), Leak("e3", "t1", True, 1.0)]
    with pytest.raises(
        Refused, match=r"2 of 3 held-out records have a prompt that is also trained on: e1 \(trained on as t1\), e3 \(trained on as t1\)\."
    ) as caught:
        check_leaks(train, held_out)
    assert caught.value.exit_code == 1
    with pytest.raises(Refused, match="and 5 more"):
        check_leaks(train, [held_out[0]] * 10)


def test_the_same_words_in_another_role_or_conversation_are_no_leak():
    train = [pair("Where is it?", name="t")]
    system = Pair((Message("system", "Be brief."), Message("user", "Where is it?")), train[0].chosen, train[0].rejected, id="e")
    assert leaked(train, [system]) == []
    check_leaks(train, [system])


def test_near_duplicates_are_leaks_and_said_to_be_near():
    train = [pair("Where is it?", name="t1"), pair(LONG, name="t2"), pair(f"{LONG} today", name="t3")]
    held_out = [pair(LONG.replace("word39", "word40"), name="e1"), pair(f"{LONG} TODAY", name="e2"), pair(f"{LONG} {LONG[::-1]}", name="e3")]
    found = leaked(train, held_out)
    assert [(leak.held_out, leak.trained, leak.exact) for leak in found] == [("e1", "t2", False), ("e2", "t3", True)]
    assert found[0].similarity == pytest.approx(38 / 40, abs=0.1)
    with pytest.raises(Refused) as caught:
        check_leaks(train, held_out)
    assert str(caught.value) == (
        "1 of 3 held-out records have a prompt that is also trained on: e2 (trained on as t3). 1 of 3 held-out records have a prompt of which a "
        "near-duplicate is trained on (at least 80% of the word pairs in common): e1 (trained on as t2). Held-out accuracy would measure memory. "
        "Remove them from one side, or let `likelier split` make the split."
    )
    check_leaks(train, held_out[2:])


def test_how_near_can_be_said():
    train, held_out = [pair(LONG, name="t")], [pair(LONG.replace("word20", "other").replace("word10", "else"), name="e")]  # 35 of 43 word pairs
    assert [leak.trained for leak in leaked(train, held_out, similarity=0.7)] == ["t"]
    assert leaked(train, held_out, similarity=0.95) == []
    with pytest.raises(RequestError, match=r"similarity is 0\.5;"):
        leaked(train, held_out, similarity=0.5)


def test_streams_and_unpaired_records_can_be_asked_about():
    labelled = [Labelled(one.prompt, one.chosen, True, id=one.id) for one in (pair(LONG, name="a"), pair("no", name="b"))]
    assert leaked(iter([pair(LONG, name="t")]), iter(labelled)) == [Leak("a", "t", True, 1.0)]
    assert leaked([], labelled) == leaked(labelled, []) == []


def test_what_ships_was_split_so_and_does_not_leak():
    """`support-held-out` is what a split at 0.2 holds out; near-duplicates move none of it."""
    support = read_all(["embedded:support", "embedded:support-held-out"])
    train, held_out = split_pairs(support, eval_fraction=0.2)
    assert [one.id for one in held_out] == [one.id for one in read_all(["embedded:support-held-out"])]
    check_leaks([*train, *read_all(["embedded:facts"])], held_out)
    check_leaks(*split_pairs(read_all(["embedded:facts"]), eval_fraction=0.2))
