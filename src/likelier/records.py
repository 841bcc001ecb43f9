"""Records: what one line of preference data says, whatever file it came from.

A `Pair` says that `chosen` is the better reply to `prompt` than `rejected`; a `Labelled` record says that one reply is good or bad.
All three sides are lists of messages, the shape that chat templates and the field's other tools read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `extra` keeps what else the turn had (tool calls, names), handed to the chat template as it is."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.extra}


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison: `chosen` is preferred to `rejected` as the reply to `prompt`.

    `prompt` is empty or ends before the reply; `chosen` and `rejected` hold the reply's messages (nearly always one assistant message).
    `id` names the record to people and does not count towards its content hash; everything else does.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    id: str = ""
    weight: float = 1.0
    margin: float | None = None  # how much better, in the annotator's scale
    group: str | None = None  # a segment to split or report by
    source: str | None = None
    annotator: str | None = None
    reason: str | None = None  # why the rejected side is worse
    meta: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The canonical JSON shape, without fields that hold their default."""
        sides = {"prompt": _dicts(self.prompt), "chosen": _dicts(self.chosen), "rejected": _dicts(self.rejected)}
        return _with_extras(sides, self)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One unpaired judgement: `completion` is a good (`label` true) or bad reply to `prompt`."""

    prompt: Messages
    completion: Messages
    label: bool
    id: str = ""
    weight: float = 1.0
    group: str | None = None
    source: str | None = None
    annotator: str | None = None
    reason: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The canonical JSON shape, without fields that hold their default."""
        return _with_extras({"prompt": _dicts(self.prompt), "completion": _dicts(self.completion), "label": self.label}, self)


Record = Pair | Labelled

EXTRAS = ("id", "weight", "margin", "group", "source", "annotator", "reason", "meta")
"""Optional fields of a record, in the order in which they are written."""


def content_hash(record: Record) -> str:
    """SHA-256 (hex) of the record's canonical JSON without its `id`: equal content, equal hash, whatever it is called."""
    content = {name: value for name, value in record.as_dict().items() if name != "id"}
    return hashlib.sha256(_CANONICAL.encode(content).encode("utf-8", "surrogatepass")).hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))
"""Made once: `json.dumps` would make one for each record."""


def _dicts(messages: Messages) -> list[dict[str, Any]]:
    return [message.as_dict() for message in messages]


def _with_extras(sides: dict[str, Any], record: Record) -> dict[str, Any]:
    for name in EXTRAS:
        value = getattr(record, name, None)
        if value not in (None, "", {}) and not (name == "weight" and value == 1.0):
            sides[name] = dict(value) if name == "meta" else value
    return sides
