"""Shapes of preference data: rows, whatever container they came in, to `Pair` records and back.

    row ──shape──▶ rows with `prompt`, `chosen`, `rejected` ──checks──▶ Pair

A new shape is one function, which rewrites a row into rows of the first shape, and one row of SHAPES. Fields that no shape and no record knows
stay in `meta`. Every fault is a DataError that names file, row and mend; nothing is guessed.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from likelier.data.files import Row, plain, read_rows, write_rows
from likelier.errors import DataError, did_you_mean
from likelier.records import EXTRAS, Message, Messages, Pair

Fields = dict[str, Any]
"""The fields of one row: JSON values, or what a shape has already made of them (tuples of messages)."""

OnBad = Callable[[DataError], None]
"""Called with the fault of each row that is left out."""

ROLES = ("system", "developer", "user", "assistant", "tool")

SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating"))
"""Fields in which data sets keep the scores of both sides."""

VERDICTS = ("label", "preference", "winner", "verdict")
TIES = ("tie", "tied", "draw", "equal", "tie (bothbad)")


def stop(problem: DataError) -> None:
    """The strict way with a bad row: raise its fault."""
    raise problem


def read_pairs(source: str | Path, *, on_bad: OnBad = stop) -> Iterator[Pair]:
    """Stream the pairs of one source: a file, folder, glob, `hf:owner/name[:split]` or `embedded:name` (see `files.py`).

    Raises DataError for a source that cannot be read, and for the first bad row, unless `on_bad` takes it: then the row is left out.
    """
    return (pair for _, pair in _read(source, on_bad))


def stream_all(sources: Iterable[str | Path], *, on_bad: OnBad = stop) -> Iterator[Pair]:
    """The pairs of several sources one after the other, each with an id of its own.

    A pair without an id is named after its file and row ("train:17"); an id that was already taken gets "#2", "#3" … Raises as `read_pairs` does.
    """
    taken: dict[str, int] = {}
    for source in sources:
        for row, pair in _read(source, on_bad):
            yield _renamed(pair, _free_id(pair.id or f"{row.stem}:{row.number}", taken))


def read_all(sources: Iterable[str | Path], *, on_bad: OnBad = stop) -> list[Pair]:
    """The pairs of `stream_all` as a list."""
    return list(stream_all(sources, on_bad=on_bad))


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write pairs in their canonical shape, as `.jsonl`, `.jsonl.gz` or `.parquet`; reading them back gives equal records.

    The file appears whole or not at all. Raises DataError for another ending or where it cannot be written.
    """
    write_rows(path, (pair.as_dict() for pair in pairs))


def _read(source: str | Path, on_bad: OnBad) -> Iterator[tuple[Row, Pair]]:
    for row in read_rows(source):
        try:
            pairs = _pairs_of(row)
        except DataError as problem:
            on_bad(problem)
        else:
            yield from ((row, pair) for pair in pairs)


def _pairs_of(row: Row) -> list[Pair]:
    if isinstance(row.value, DataError):
        raise row.value
    try:
        if not isinstance(row.value, dict):
            raise DataError(f"this row is {_kind(row.value)}, not an object with fields such as `prompt`, `chosen` and `rejected`.")
        fields = {name: value for name, value in row.value.items() if value is not None}
        if row.table:
            fields = {name: _from_cell(name, cell) for name, cell in fields.items()}
        _refuse_tie(fields)
        shape = next((shape for shape in SHAPES if shape.fits(fields)), None) or _refuse_shape(fields)
        return [_pair(canonical) for canonical in shape.rewrite(fields)]
    except DataError as problem:
        raise DataError(f"{row.where}: {problem}") from None


def _free_id(wanted: str, taken: dict[str, int]) -> str:
    free = wanted
    while free in taken:
        taken[wanted] += 1
        free = f"{wanted}#{taken[wanted]}"
    taken[free] = 1
    return free


def _renamed(pair: Pair, name: str) -> Pair:
    return pair if pair.id == name else replace(pair, id=name)


# Shapes


class Shape(NamedTuple):
    """One way of writing a comparison down. `rewrite` turns a row that `fits` into rows whose `prompt`, `chosen` and `rejected` stand apart."""

    fits: Callable[[Fields], bool]
    rewrite: Callable[[Fields], Iterator[Fields]]


def explicit_prompt(fields: Fields) -> Iterator[Fields]:
    """`prompt` beside the two replies, each a string or messages: the canonical shape, and TRL's."""
    yield fields


def repeated_prompt(fields: Fields) -> Iterator[Fields]:
    """`prompt` beside two whole conversations that repeat it, as UltraFeedback-binarized has them: the conversations are believed."""
    for whole in implicit_prompt(fields):
        if not _texts(_prompt(fields["prompt"])) <= _texts(whole["prompt"]):
            raise DataError(
                "`chosen` and `rejected` are whole conversations, but they do not begin with what `prompt` says. "
                "Mend `prompt`, remove it, or leave only the replies in `chosen` and `rejected`."
            )
        yield whole


def implicit_prompt(fields: Fields) -> Iterator[Fields]:
    """`chosen` and `rejected` as whole conversations: what they share is the prompt."""
    chosen, rejected = (_messages(fields[side], side, "assistant") for side in ("chosen", "rejected"))
    fork = _fork(chosen, rejected)
    yield {**fields, "prompt": chosen[:fork], "chosen": chosen[fork:], "rejected": rejected[fork:]}


def transcripts(fields: Fields) -> Iterator[Fields]:
    """HH-RLHF: two texts of "\\n\\nHuman: …\\n\\nAssistant: …" turns. The last turn is the reply, all before it the prompt."""
    chosen, rejected = (_messages(fields[side], side, "assistant") for side in ("chosen", "rejected"))
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1].role != "assistant":
            raise DataError(f"`{side}` does not end with an Assistant turn, so it holds no reply. Add the reply or drop the row.")
    if chosen[:-1] != rejected[:-1]:
        raise DataError(
            "`chosen` and `rejected` differ before their last Assistant turn: they answer different prompts. Make the prompts equal or drop the row."
        )
    yield {**fields, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


SHAPES = (
    Shape(lambda row: _is_paired(row) and "prompt" in row and _either_side(row, _is_conversation), repeated_prompt),
    Shape(lambda row: _is_paired(row) and "prompt" in row, explicit_prompt),
    Shape(lambda row: _is_paired(row) and _either_side(row, _is_transcript), transcripts),
    Shape(lambda row: _is_paired(row) and _either_side(row, _is_list), implicit_prompt),
)
"""The shapes, in the order in which they are tried."""


def _is_paired(row: Fields) -> bool:
    return "chosen" in row and "rejected" in row


def _either_side(row: Fields, looks: Callable[[Any], bool]) -> bool:
    return looks(row["chosen"]) or looks(row["rejected"])


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_conversation(value: Any) -> bool:
    """Whether a side holds more than a reply: it begins with somebody else's turn."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return value[0].get("role") in ("system", "developer", "user")
    return _is_transcript(value)


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def _refuse_shape(fields: Fields) -> Shape:
    has = ", ".join(f"`{name}`" for name in list(fields)[:12]) or "no field at all"
    missing = [side for side in ("chosen", "rejected") if side not in fields]
    if missing:
        others = [name for name in fields if name not in ("prompt", "chosen", "rejected")]
        raise DataError(
            f"this row has no `{missing[0]}`; it has {has}.{did_you_mean(missing[0], others)} A pair needs `prompt`, `chosen` and `rejected`."
        )
    raise DataError(
        f"this row has no `prompt`, and `chosen` and `rejected` are not whole conversations that would begin with it; it has {has}."
        f"{did_you_mean('prompt', fields)} Add `prompt`."
    )


def _refuse_tie(fields: Fields) -> None:
    """A tie is not a preference (pitfall 16)."""
    mend = "A tie is not a preference, and training on it would teach one. Drop the row."
    for name in VERDICTS:
        if isinstance(fields.get(name), str) and fields[name].strip().lower() in TIES:
            raise DataError(f"`{name}` says {fields[name]!r}: this row is a tie. {mend}")
    for chosen, rejected in SCORES:
        if chosen in fields and rejected in fields and fields[chosen] == fields[rejected]:
            raise DataError(f"`{chosen}` and `{rejected}` are equal: this row is a tie. {mend}")
    if "margin" in fields and fields["margin"] == 0:
        raise DataError(f"`margin` is 0: this row is a tie. {mend}")


def _fork(chosen: Messages, rejected: Messages) -> int:
    """Where the replies of two conversations begin: at the fork, or at the assistant's turn that leads up to it. The last message is never prompt."""
    shorter = min(len(chosen), len(rejected))
    if not shorter:
        raise DataError(f"`{'rejected' if chosen else 'chosen'}` is an empty response: a list without a message. Write the reply or drop the row.")
    fork = next((i for i in range(shorter - 1) if chosen[i] != rejected[i]), shorter - 1)
    roles = {chosen[fork].role, rejected[fork].role}
    if roles != {"assistant"}:
        raise DataError(
            f"the conversations in `chosen` and `rejected` part at message {fork + 1}, which is not the assistant's on both sides "
            f"({' and '.join(sorted(roles))}): they answer different prompts, or one holds no reply. Make the prompts equal or drop the row."
        )
    while fork and chosen[fork - 1].role == "assistant":
        fork -= 1
    return fork


def _texts(messages: Messages) -> set[str]:
    """What the messages say, whatever its white space."""
    return {" ".join(message.content.split()) for message in messages}


# Messages


def _prompt(value: Any) -> Messages:
    """A prompt's messages, without the open turn ("Assistant:") with which some end."""
    messages = _messages(value, "prompt", "user")
    return messages[:-1] if messages and messages[-1] == Message("assistant", "") else messages


def _messages(value: Any, field: str, role: str) -> Messages:
    """A string is one message of `role`, unless it is a transcript of several."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, str):
        return _turns(value) if _is_transcript(value) else (Message(role, value),)
    if isinstance(value, list):
        return tuple(_message(item, f"`{field}`, message {number}") for number, item in enumerate(value, 1))
    raise DataError(f'`{field}` is {_kind(value)}. It holds text, or a list of messages such as {{"role": "{role}", "content": "…"}}.')


def _turns(transcript: str) -> Messages:
    _, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", transcript.strip())
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(names[name], text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {_kind(value)}, not an object with `role` and `content`.")
    extra = {name: field for name, field in value.items() if field is not None}
    role, content = extra.pop("role", None), extra.pop("content", "" if extra.get("tool_calls") else None)
    if role not in ROLES:
        said = f"has the unknown role {role[:40]!r}" if isinstance(role, str) else "has no `role`"
        raise DataError(f"{where} {said}.{did_you_mean(str(role)[:40], ROLES)} Roles are {', '.join(ROLES)}.")
    if not isinstance(content, str):
        raise DataError(f"{where} has {'no `content`' if content is None else f'{_kind(content)} as `content`'}; it must be text.")
    return Message(role, content, extra)


def _from_cell(name: str, cell: Any) -> Any:
    """What a table's text stands for: messages and `meta` as JSON, numbers as digits. Any other text is left as it is."""
    if not isinstance(cell, str) or not (name in NUMBERS or cell.lstrip()[:1] in ("[", "{")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    is_number = name in NUMBERS and isinstance(value, int | float)
    is_messages = isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "role" in item for item in value)
    if not (is_number or is_messages or (name == "meta" and isinstance(value, dict))):
        return cell
    try:
        return plain(value)
    except (ValueError, RecursionError) as problem:
        raise DataError(f"`{name}`: {problem}") from None


# Checks


def _pair(fields: Fields) -> Pair:
    rest = dict(fields)
    prompt = _with_system(rest.pop("system", ""), _prompt(rest.pop("prompt")))
    chosen, rejected = (_messages(rest.pop(side), side, "assistant") for side in ("chosen", "rejected"))
    if not any(message.content.strip() for message in prompt):
        raise DataError("`prompt` is empty. A reply is only better than another one as the answer to something: write the prompt or drop the row.")
    _check_reply("chosen", chosen)
    _check_reply("rejected", rejected)
    if chosen == rejected:
        raise DataError("`chosen` and `rejected` are identical, so the row prefers nothing. Drop it, or mend the side that was copied.")
    return Pair(prompt, chosen, rejected, **_extras(rest))


def _with_system(system: Any, prompt: Messages) -> Messages:
    if not isinstance(system, str):
        raise DataError(f"`system` is {_kind(system)}; it must be text, the system prompt.")
    if not system.strip() or prompt[:1] == (Message("system", system),):
        return prompt
    if any(message.role == "system" for message in prompt):
        raise DataError("`system` and the system message of the prompt differ. Keep one of them.")
    return (Message("system", system), *prompt)


def _check_reply(side: str, reply: Messages) -> None:
    """One assistant message, or several turns that begin and end with one; none of the assistant's is empty (pitfall 17)."""
    blank = any(message.role == "assistant" and not message.content.strip() and not message.extra.get("tool_calls") for message in reply)
    if not reply or blank:
        raise DataError(f"`{side}` is an empty response: there is nothing to score. Write the reply or drop the row.")
    strangers = [message.role for message in (reply[0], reply[-1]) if message.role != "assistant"]
    if strangers:
        raise DataError(
            f"`{side}` begins or ends with a message of the {strangers[0]}; a reply begins and ends with the assistant's. Cut it or drop the row."
        )


def _extras(rest: Fields) -> Fields:
    """The record's optional fields, checked; what is left of the row becomes `meta`."""
    extras: Fields = {}
    for name in EXTRAS:
        value = rest.pop(name, "")
        if value != "":
            extras[name] = CHECKS.get(name, _name)(name, value)
    twice = sorted(rest.keys() & extras.get("meta", {}).keys())
    if twice:
        raise DataError(f"`{twice[0]}` stands both in the row and in its `meta`. Keep one of them.")
    return {**extras, "meta": {**extras.get("meta", {}), **rest}}


def _name(field: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"`{field}` is {_kind(value)}; it must be text. Mend it, or rename the field to keep it in `meta`.")


def _positive(field: str, value: Any) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 < number <= sys.float_info.max:
        raise DataError(f"`{field}` is {_shown(value)}; it must be a positive finite number. Mend it or leave it out.")
    return float(number)


def _object(field: str, value: Any) -> Fields:
    if not isinstance(value, dict):
        raise DataError(f"`{field}` is {_kind(value)}; it must be an object.")
    return dict(value)


CHECKS: dict[str, Callable[[str, Any], Any]] = {"weight": _positive, "margin": _positive, "meta": _object}
"""How each optional field is checked; any other is a name."""

NUMBERS = {"weight", "margin", *(name for names in SCORES for name in names)}


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


def _shown(value: Any) -> str:
    return str(value)[:40] if isinstance(value, int | float) else _kind(value)
