"""What a language model wrote as a judge → its choice. One verdict or none: never that of a thought which it may have left again."""

import json
from collections.abc import Callable
from typing import Any

from likelier.judge.questions import Choice

SAID: dict[str, Choice] = {"A": "first", "B": "second", "TIE": "tie"}

THOUGHT, THOUGHT_ENDS = "<think>", "</think>"

SHOWN = 80
"""Characters of an answer that a fault quotes."""


def read_verdict(text: str, *, cut: bool = False, hide: Callable[[str], str] = str) -> tuple[Choice | None, str, str]:
    """(choice, reason, fault) of what a judge wrote: that of the JSON objects behind its thoughts, which must all say the same.

    Of a text that was `cut` at the limit it counts only where it is one whole object: the thoughts of a server that marks nothing but their end
    look like an answer until that mark. `hide` is done to what a fault quotes, before that is shortened.
    """
    answer = text if _is_object(text) else _behind_thoughts(text)
    said = [found for found in _objects(answer) if "verdict" in found] if not cut or _is_object(answer) else []
    if not said:
        return None, "", f"no JSON object with a verdict in {_shown(hide(text))}"
    verdicts = {str(found["verdict"]).strip().upper() for found in said}
    if len(verdicts) > 1:
        return None, "", f"several verdicts in {_shown(hide(text))}"
    [verdict] = verdicts
    if verdict not in SAID:
        return None, "", f"its verdict is {_shown(hide(str(said[-1]['verdict'])))}, which is none of A, B and tie"
    return SAID[verdict], str(said[-1].get("reason", "")), ""


def _behind_thoughts(text: str) -> str:
    """What follows the last thought that ended, without one that did not end. Some servers leave out the mark at the beginning."""
    return text.rpartition(THOUGHT_ENDS)[2].partition(THOUGHT)[0]


def _is_object(text: str) -> bool:
    """Whether it is one JSON object and nothing else; marks of thoughts in it are words of its reason."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _objects(text: str) -> list[dict[str, Any]]:
    """All JSON objects in a text, whatever stands around them."""
    found, place, decoder = [], text.find("{"), json.JSONDecoder()
    while place >= 0:
        try:
            value, place = decoder.raw_decode(text, place)
            found.append(value)
        except (ValueError, RecursionError):
            place += 1
        place = text.find("{", place)
    return found


def _shown(text: str) -> str:
    short = " ".join(text.split())
    return repr(short if len(short) <= SHOWN else f"{short[: SHOWN - 1]}…")
