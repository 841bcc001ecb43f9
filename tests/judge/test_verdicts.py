"""Reading verdicts out of what language models write."""

import pytest

from likelier.judge.verdicts import read_verdict


@pytest.mark.parametrize(
    "text, choice",
    [
        ('{"reason": "x", "verdict": "A"}', "first"),
        ('```json\n{"reason": "a {brace} in it", "verdict": "b"}\n```', "second"),
        ('<think>maybe {"verdict": "A"}</think>{"verdict": " Tie "}', "tie"),
        ('<think>maybe {"verdict": "A"} but wait', None),
        ('maybe {"verdict": "A"} but wait</think>{"verdict": "B"}', "second"),
        ('<think>one</think>{"verdict": "A"}<think>two</think>{"verdict": "B"}', "second"),
        ('{"verdict": "A"}<think>or maybe {"verdict": "B"}', "first"),
        ('{"reason": "A says </think> aloud, and <think>", "verdict": "B"}', "second"),
        ('[{"verdict": "A"}]', "first"),
        ('{"verdict": "A"} I repeat: {"verdict": "A"}', "first"),
        ('{"verdict": ["A"]}', None),
        ('{"verdict": null}', None),
        ('{"winner": "A"}', None),
        ("A", None),
        ("{" * 5000, None),
    ],
)
def test_reading_a_verdict(text, choice):
    found, _, fault = read_verdict(text)
    assert found == choice
    assert bool(fault) == (choice is None)


@pytest.mark.parametrize(
    "text, choice",
    [
        ('maybe {"verdict": "A"} but wait', None),
        ('<think>maybe {"verdict": "A"} but wait', None),
        ('<think>hm</think>{"reason": "x", "verdict": "B"}\n\n\n', "second"),
        ('{"reason": "x", "verdict": "A"}   ', "first"),
        ('{"reason": "x", "verdict": "A"', None),
    ],
)
def test_an_answer_that_was_cut_counts_only_whole(text, choice):
    assert read_verdict(text, cut=True)[0] == choice
