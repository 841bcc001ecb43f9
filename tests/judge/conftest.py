"""Matches to judge, and a store for the verdicts."""

import pytest

from likelier.judge.asking import Match
from likelier.judge.store import VerdictStore
from likelier.records import Message


def match(n: int, a: str, b: str) -> Match:
    return Match((Message("user", f"Question {n}?"),), a, b)


@pytest.fixture
def matches():
    """Twelve matches: by length `a` wins nine of them; the last is a tie that need not be asked."""
    return [match(n, "a long reply " * (n % 4 + 2), f"short {n}") for n in range(9)] + [
        match(9, "no", "a longer one"),
        match(10, "four", "five"),
        match(11, "the same", "the same"),
    ]


@pytest.fixture
def store(tmp_path):
    with VerdictStore(tmp_path / "verdicts.sqlite") as opened:
        yield opened
