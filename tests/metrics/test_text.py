"""What a reply's surface shows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likelier.metrics import (
    APOLOGY,
    REFUSAL,
    accuracy,
    bootstrap,
    bootstrap_difference,
    has_apology,
    has_refusal,
    in_a_loop,
    length_summary,
    repetition,
)


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
        "I'm sorry for your loss, but as a chatbot, I don't have the ability to access personal data.",
        "I'm here to assist you, but I'm not equipped to provide personal advice.",
        "I cannot condone violence.",
        "I'm not comfortable with writing that.",
        "As a large language model, I have no home.",
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
        "The kitchen is not equipped to serve fish.",
        "You do not have the ability to see hidden files; turn it on in the settings.",
        "The chair is not comfortable sitting in.",
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
    "equipped",
    "comfortable",
    "helping",
    "do",
    "have",
    "ability",
    "condone",
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


def test_repetition_is_the_share_of_n_grams_that_stood_there_before():
    assert repetition("a b c d e f g") == 0
    assert repetition("go on " * 8) == pytest.approx(1 - 2 / 13)
    assert repetition([7] * 10) == pytest.approx(1 - 1 / 7)
    assert repetition("one two three") == repetition("") == 0
    assert repetition("a b a b a b", n=2) == pytest.approx(1 - 2 / 5)
