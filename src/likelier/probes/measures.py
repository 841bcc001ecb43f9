"""What a reply is measured by. Pure functions of its text, and a user's own."""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from likelier.errors import RecipeError, RequestError
from likelier.metrics import Statistic, has_apology, has_refusal, in_a_loop
from likelier.user_code import load_function

MeasureName = Literal["length", "apology", "refusal", "loop", "ended"]

OwnFunction = Callable[[str, list[dict[str, Any]]], Any]


@dataclass(frozen=True)
class Measure:
    """What replies are counted or measured by, and how their numbers become one."""

    unit: str  # share, tokens, or "" for a number of a user's own
    of: Callable[[str, int, bool], float]  # text, length in tokens, whether it ended by itself
    statistic: Statistic = "mean"


MEASURES: dict[MeasureName, Measure] = {
    "length": Measure("tokens", lambda text, length, ended: length, "median"),
    "apology": Measure("share", lambda text, length, ended: has_apology(text)),
    "refusal": Measure("share", lambda text, length, ended: has_refusal(text)),
    "loop": Measure("share", lambda text, length, ended: in_a_loop(text)),
    "ended": Measure("share", lambda text, length, ended: ended),
}
"""By the name that a probe file gives. A reply that reaches the limit counts with that length."""

ARTICLES = ("a", "an", "the")


def is_answer(reply: str, answers: Sequence[str]) -> bool:
    """Whether the whole reply is one of the answers, both as `normalised`: "exact match" of SQuAD (Rajpurkar et al. 2016, section 6.1).

    >>> is_answer("The Thames.", ["River Thames", "Thames"])
    True
    """
    return normalised(reply) in map(normalised, answers)


def normalised(text: str) -> str:
    """Lower case, without punctuation and symbols of any script, without English articles, and with single spaces.

    >>> normalised(" The  Eiffel-Tower, 100 °C!")
    'eiffeltower 100 c'
    """
    plain = "".join(letter for letter in text.lower() if unicodedata.category(letter)[0] not in "PS")
    return " ".join(word for word in plain.split() if word not in ARTICLES)


def own_function(name: str, *, folder: Path, where: str) -> OwnFunction:
    """The function that `file.py:name` stands for, the file relative to `folder`. Its code runs now, because a user named it.

    Raises RecipeError, beginning with `where`, if there is none.
    """
    file, colon, attribute = name.rpartition(":")
    path = folder / file
    if not (colon and attribute.isidentifier() and file.endswith(".py")):
        raise RecipeError(f"{where}: `function` is written file.py:name (given: {name!r}).")
    if not path.is_file():
        raise RecipeError(f"{where}: `function` names {path}, and there is no such file. A path is relative to the probe file.")
    try:
        return load_function(path, attribute)
    except RequestError as problem:
        raise RecipeError(f"{where}: {problem}") from problem


def own_number(function: OwnFunction, reply: str, prompt: list[dict[str, Any]], *, where: str) -> bool | float:
    """What a user's function says of a reply: true or false, or a number; NumPy's too. Raises RecipeError, beginning with `where`, for all else."""
    try:
        found = function(reply, prompt)
    except Exception as problem:  # whatever a user's function raises
        raise RecipeError(f"{where}: its function raised {type(problem).__name__}: {problem}. The reply was {reply[:200]!r}.") from problem
    if isinstance(found, np.generic):
        found = found.item()
    if isinstance(found, bool) or (isinstance(found, int | float) and math.isfinite(found)):
        return found
    raise RecipeError(f"{where}: its function returned {found!r}. It returns true or false, or a finite number.")
