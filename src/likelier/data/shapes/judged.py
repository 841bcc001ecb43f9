"""Rows that judge one reply: unpaired data sets, KTO's, and the thumbs under a chat."""

from collections.abc import Iterator
from typing import Any

from likelier.data.fields import Fields, first_of, shown, without
from likelier.data.messages import messages, split_reply, take_prompt
from likelier.errors import DataError

REPLIES = ("response", "completion", "output", "reply", "answer")
"""Fields in which logs keep the reply that was judged."""

THUMBS = ("feedback", "thumbs", "thumb", "rating", "vote", "reaction", "label")
"""Fields in which logs keep what somebody thought of it."""

SCALES = ("rating",)
"""Of these, fields in which a number may be stars: 1 is then the worst."""

UP = ("up", "thumbs_up", "thumbsup", "thumbs up", "👍", "1", "+1", "true", "yes", "good", "positive", "like", "liked", "upvote")
DOWN = ("down", "thumbs_down", "thumbsdown", "thumbs down", "👎", "-1", "false", "no", "bad", "negative", "dislike", "disliked", "downvote")


def is_unpaired(row: Fields) -> bool:
    return "prompt" in row and "completion" in row and "label" in row and not ("chosen" in row and "rejected" in row)


def has_labelled_messages(row: Fields) -> bool:
    return "messages" in row and isinstance(row.get("label"), bool) and not any(name in row for name in REPLIES)


def has_thumbs(row: Fields) -> bool:
    return first_of(THUMBS, row) is not None and (first_of(REPLIES, row) is not None or "messages" in row)


def unpaired(fields: Fields) -> Iterator[Fields]:
    """`prompt`, `completion` and `label`: the canonical shape of one judged reply, and TRL's."""
    yield fields


def labelled_messages(fields: Fields) -> Iterator[Fields]:
    """`messages` that end with the reply, and its `label`."""
    prompt, completion = split_reply(messages(fields["messages"], "messages", "user"), "messages")
    yield {**without(fields, "messages"), "prompt": prompt, "completion": completion}


def thumbs(fields: Fields) -> Iterator[Fields]:
    """A chat log with thumbs: the reply stands in a field of its own or ends `messages`; the thumb may be an object with a `rating`."""
    judged = next(name for name in THUMBS if name in fields)
    label, details = _thumb(fields[judged], judged)
    rest = {**without(fields, judged), **details}
    reply = first_of(REPLIES, rest)
    if reply is None:
        prompt, completion = split_reply(messages(rest.pop("messages"), "messages", "user"), "messages")
    else:
        completion = messages(rest.pop(reply), reply, "assistant")
        prompt, rest = take_prompt(rest)
    yield {**rest, "prompt": prompt, "completion": completion, "label": label}


def _thumb(value: Any, field: str) -> tuple[bool, Fields]:
    """(whether it is up, what else was said). 0 and star ratings are refused: where they turn from bad to good, only their owner knows."""
    details: Fields = {}
    if isinstance(value, dict):
        said = first_of(("rating", "score", "value", "thumbs", "type"), value)
        if said is None:
            raise DataError(f"`{field}` is an object without a `rating`. Write up or down.", kind="unlabelled")
        details = {field: without(value, said)} if len(value) > 1 else {}
        value = value[said]
    if value is None or value == "" or value == "none":
        raise DataError(f"`{field}` is empty: nobody judged this reply. Drop the row.", kind="unlabelled")
    word = str(value).strip().lower().removesuffix(".0") if isinstance(value, str | bool) or value in (1, -1) else ""
    if field in SCALES and word in ("1", "+1"):
        raise DataError(f"`{field}` is 1, which is a thumb up or the worst of five stars. Write up or down, or rename the field to `thumbs`.")
    if word in UP or word in DOWN:
        return word in UP, details
    raise DataError(f"`{field}` is {shown(value)}, which is neither up nor down. Write up or down, 1 or -1, true or false.")
