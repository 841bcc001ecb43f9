"""What a probe is."""

import re
from dataclasses import dataclass
from typing import Literal

from likelier.probes.measures import Measure, OwnFunction
from likelier.records import Messages

Want = Literal["higher", "lower", "none"]


@dataclass(frozen=True)
class Item:
    """One prompt of a probe, and what is right for it: of `choices` the one at `right`, one of `answers`, or a match of `pattern`."""

    id: str
    prompt: Messages
    choices: tuple[str, ...] = ()
    right: int = 0
    answers: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Probe:
    """What to ask, how to measure it, and which way is better. Its items all have choices, all answers, all patterns, or else `measure` or
    `function` says what counts."""

    name: str
    title: str
    set: str  # name@version of the prompts and of what is right for them
    want: Want
    items: tuple[Item, ...]
    max_new_tokens: int | None
    measure: Measure | None = None
    function: OwnFunction | None = None
