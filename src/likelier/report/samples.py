"""Replies side by side, each token coloured by how much likelier training made it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from likelier.metrics import has_apology, has_refusal, in_a_loop
from likelier.wording import change, count

MOST_SAMPLES = 48
MOST_COLOURED = 16_000
"""Tokens of a page that get a colour, some 40 bytes each; replies beyond them are plain text."""

LEVELS = (0.1, 0.5, 1.0, 2.0)
"""Nats from which on a token gets the next stronger colour, of either sign; below the first it gets none."""

END = "∎"


@dataclass(frozen=True)
class Reply:
    """One reply. `html` is its text, escaped, with coloured tokens where their log-ratios are known."""

    name: str
    title: str
    html: Markup
    tags: str


@dataclass(frozen=True)
class Sample:
    """One prompt with its replies: `sampled` by the models before and after, and `given` in the data. `earlier` are the turns before the last one."""

    id: str
    earlier: tuple[tuple[str, str], ...]
    prompt: tuple[str, str]
    sampled: tuple[Reply, ...]
    given: tuple[Reply, ...]
    same: bool


SIDES = (("before", "Before"), ("after", "After"), ("chosen", "Chosen"), ("rejected", "Rejected"))


def view_samples(rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """The first rows of samples.jsonl."""
    left, views = MOST_COLOURED, []
    for row in rows[:MOST_SAMPLES]:
        tokens = row.get("tokens") or {}
        left -= sum(len(tokens.get(side) or ()) for side, _ in SIDES)
        views.append(_sample(row, tokens if left >= 0 else {}))
    return views


def _sample(row: Mapping[str, Any], tokens: Mapping[str, Any]) -> Sample:
    """The last message of the prompt is the one that is answered."""
    turns = turns_of(row["prompt"])
    replies = [_reply(side, title, row[side], tokens.get(side)) for side, title in SIDES if row.get(side) is not None]
    return Sample(
        id=str(row.get("id", "")),
        earlier=tuple(turns[:-1]),
        prompt=turns[-1],
        sampled=tuple(reply for reply in replies if reply.name in ("before", "after")),
        given=tuple(reply for reply in replies if reply.name in ("chosen", "rejected")),
        same=row["before"] == row["after"],
    )


def turns_of(prompt: Sequence[Mapping[str, str]] | str) -> list[tuple[str, str]]:
    """A prompt, messages or plain text, as (role, content); at least one."""
    if isinstance(prompt, str):
        return [("user", prompt)]
    return [(message["role"], message["content"]) for message in prompt] or [("prompt", "")]


def _reply(name: str, title: str, text: str, tokens: Sequence[tuple[str, float]] | None) -> Reply:
    seen = (("apology", has_apology(text)), ("refusal", has_refusal(text)), ("loop", in_a_loop(text)))
    tags = [count(len(text.split()), "word"), *(tag for tag, found in seen if found)]
    if not tokens:
        return Reply(name, title, escape(text), " · ".join(tags))
    return Reply(name, title, coloured(tokens), " · ".join([*tags, change(sum(nats for _, nats in tokens), "nats")]))


def coloured(tokens: Iterable[tuple[str, float]]) -> Markup:
    """The pieces as text, each in an element with the class of its level and its log-ratio as title; an end token, a last piece
    without text, shows as ∎.

    >>> print(coloured([("Hel", 0.02), ("lo", 0.7), ("", -3.0)]))
    Hel<i class="p2" title="+0.70">lo</i><i class="n4" title="end of reply: −3.00">∎</i>
    """
    return Markup("").join(_piece(piece, nats) for piece, nats in tokens)


def _piece(piece: str, nats: float) -> Markup:
    level = sum(abs(nats) >= limit for limit in LEVELS)
    if not level:
        return escape(piece)
    note = f"{'+' if nats > 0 else '−'}{abs(nats):.2f}"
    return Markup('<i class="{}" title="{}">{}</i>').format(
        f"{'p' if nats > 0 else 'n'}{level}", note if piece else f"end of reply: {note}", piece or END
    )


def legend() -> list[tuple[str, str]]:
    """The class of every colour and the nats from which on a token gets it, from far less likely to far likelier."""
    names = [f"{limit:g}" for limit in LEVELS]
    names[-1] += " or more"
    steps = list(enumerate(names, start=1))
    return [*((f"n{i}", f"−{name}") for i, name in reversed(steps)), ("", "0"), *((f"p{i}", f"+{name}") for i, name in steps)]
