"""The replies to watched prompts while the model learned: a strip of frames a prompt, and how length and repetition went."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from likelier.report import plots
from likelier.report.curves import Drawing, Key
from likelier.report.samples import turns_of
from likelier.wording import change, count, quantity

Row = Mapping[str, Any]

MOST_FRAMES = 12
"""Frames of a strip; of a longer run the first, the last and evenly spaced ones between."""

MOST_STRIPS = 16

REWRITTEN = 0.3
"""Share of words kept below which two replies are said to be different instead of having their differences marked."""


@dataclass(frozen=True)
class Frame:
    """A reply at one step. In `html` the words are marked that the frame before has not; `news` says in words what changed."""

    title: str
    html: Markup
    tags: str
    news: str
    same: bool


@dataclass(frozen=True)
class Strip:
    """One watched prompt. `shown` says how many of its frames stand here where it is not all of them."""

    id: str
    prompt: str
    frames: tuple[Frame, ...]
    shown: str


def view_filmstrip(rows: Sequence[Row]) -> list[Strip]:
    """Rows of filmstrip.jsonl, a strip a prompt in the order in which the prompts come."""
    by_id: dict[str, list[Row]] = {}
    for row in rows:
        by_id.setdefault(str(row["id"]), []).append(row)
    return [_strip(id, sorted(frames, key=lambda row: row["step"])) for id, frames in list(by_id.items())[:MOST_STRIPS]]


def _strip(id: str, rows: Sequence[Row]) -> Strip:
    kept = [rows[i] for i in spread(len(rows), MOST_FRAMES)]
    frames = [_frame(row, before) for before, row in zip([None, *kept[:-1]], kept, strict=True)]
    shown = f"{len(kept)} of {count(len(rows), 'frame')}; all are in filmstrip.jsonl." if len(kept) < len(rows) else ""
    return Strip(id, turns_of(rows[0]["prompt"])[-1][1], tuple(frames), shown)


def spread(whole: int, most: int) -> list[int]:
    """At most `most` of range(whole), evenly spaced, both ends among them.

    >>> spread(100, 4), spread(3, 4)
    ([0, 33, 66, 99], [0, 1, 2])
    """
    return sorted({round(place) for place in np.linspace(0, whole - 1, min(most, whole))})


def _frame(row: Row, before: Row | None) -> Frame:
    html, news = marked(row["reply"], before["reply"] if before else None)
    if before and row["length"] != before["length"]:
        news = f"{news}, {change(row['length'] - before['length'], 'tokens')}"
    marks = ("apology", row["apology"]), ("refusal", row["refusal"]), ("cut off", not row["ended"]), ("blank", not row["reply"].strip())
    repeated = [f"{quantity(row['repetition'], 'share')} repeated"] if row["repetition"] else []
    tags = [count(row["length"], "token"), *repeated, *(name for name, found in marks if found)]
    title = "Untrained" if row["step"] == 0 else f"Step {row['step']:,}"
    return Frame(title, html, " · ".join(tags), news, before is not None and row["reply"] == before["reply"])


def marked(text: str, before: str | None) -> tuple[Markup, str]:
    """The text with the words marked that `before` lacks, and what changed in words.

    >>> html, news = marked("It is on its way.", "It is not on its way.")
    >>> str(html), news
    ('It is on its way.', '0 words new, 1 gone')
    """
    if before is None:
        return escape(text), ""
    if text == before:
        return escape(text), "as before"
    new, old = _words(text), _words(before)
    blocks = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False).get_opcodes()
    kept = sum(stop - start for kind, _, _, start, stop in blocks if kind == "equal")
    if kept < REWRITTEN * max(len(new), len(old)):
        return escape(text), "another reply"
    pieces = [
        escape(part) if kind == "equal" else Markup("<ins>{}</ins>{}").format(part.rstrip(), part[len(part.rstrip()) :])
        for kind, _, _, start, stop in blocks
        if (part := "".join(new[start:stop]))
    ]
    return Markup("").join(pieces), f"{count(len(new) - kept, 'word')} new, {len(old) - kept:,} gone"


def _words(text: str) -> list[str]:
    """The text cut after white space, so that the words joined are the text."""
    return re.findall(r"\S+\s*|^\s+", text)


def draw_filmstrip(rows: Sequence[Row]) -> list[Drawing]:
    """Mean length and repetition of the watched replies over steps."""
    wanted = (("length", "Length of replies", "Tokens, mean over the watched prompts.", ""), ("repetition", "Repetition", REPETITION, "share"))
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        return []
    drawings = []
    for field, title, note, unit in wanted:
        means = [float(np.mean([row[field] for row in rows if row["step"] == step])) for step in steps]
        last = f"{quantity(means[0], unit)} untrained, {quantity(means[-1], unit)} at step {steps[-1]:,}"
        line = plots.Line(steps, means, plots.ACCENT, True)
        svg = plots.curves(f"watched-{field}", f"{title} over steps: {last}.", [line], share=unit == "share", from_zero=True)
        drawings.append(Drawing(title, note, (Key("accent", last),), svg))
    return drawings


REPETITION = "Share of a reply that repeats what it said before, mean over the watched prompts."
