"""Which reply a judgement means: labelling tools say "left", "Response A" or "answer2", and the task holds the text."""

import re
from typing import Any

from likelier.data.checks import tie
from likelier.data.fields import listed, shown
from likelier.errors import DataError

SIDE = "(1|2|a|b|left|right|first|second)"
NUMBERED = re.compile(rf"(.*?)[-_ ]?{SIDE}", re.IGNORECASE)
SAID = re.compile(rf"(?:the )?(?:response|answer|reply|model|option|output|completion|text|chat)?[-_ ]?{SIDE}(?: is better)?", re.IGNORECASE)
FIRST = ("1", "a", "left", "first")
EQUAL = ("tie", "tied", "draw", "equal", "same", "both", "neither", "both good", "both bad", "about the same", "no preference")


def two_replies(names: list[str]) -> tuple[str, str]:
    """The two fields of a task that differ only in their number or letter: ("answer1", "answer2"). Raises DataError if there is not one such pair."""
    found: dict[str, dict[bool, str]] = {}
    for name in names:
        match = NUMBERED.fullmatch(name)
        if match:
            found.setdefault(match[1].lower(), {})[match[2].lower() in FIRST] = name
    pairs = [(sides[True], sides[False]) for sides in found.values() if len(sides) == 2]
    if len(pairs) != 1:
        raise DataError(
            f"which two fields hold the replies is not clear from their names: the task has {listed(names)}. "
            "Name them response1 and response2 (or answer1 and answer2, text1 and text2)."
        )
    return pairs[0]


def names_side(said: str) -> bool:
    """Whether a judgement's words name one of two replies, or neither."""
    return SAID.fullmatch(said.strip()) is not None or said.strip().lower() in EQUAL


def is_first(said: Any, first: str, second: str) -> bool:
    """Whether a judgement means the first of two replies, by its field's name or by words such as "left" and "Response A".

    Raises DataError for a judgement that means neither.
    """
    if same_name(said, first) or same_name(said, second):
        return same_name(said, first)
    if isinstance(said, str) and said.strip().lower() in EQUAL:
        raise tie(f"the annotation says {said!r}")
    match = SAID.fullmatch(said.strip()) if isinstance(said, str) else None
    if match is None:
        raise DataError(f"the annotation says {shown(said)}, which names neither `{first}` nor `{second}`. Write left or right.")
    return match[1].lower() in FIRST


def same_name(said: Any, name: str) -> bool:
    """Whether a judgement names a field, however it spells it: "Reply-2" is `reply_2`."""
    return isinstance(said, str) and letters(said) == letters(name)


def letters(name: str) -> str:
    """A name's letters and digits, in one case."""
    return re.sub(r"[\W_]", "", name).casefold()
