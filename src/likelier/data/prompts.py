"""Prompts to reply to: from records of any shape, whose replies are left alone, from rows that have a prompt and no more, from lines of text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likelier.data.cells import from_cells
from likelier.data.fields import Fields, kind_of
from likelier.data.files import Row, read_rows
from likelier.data.formats import read_records
from likelier.data.messages import take_prompt
from likelier.data.shapes import SHAPES
from likelier.errors import DataError
from likelier.records import Message, Messages


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for a reply."""

    id: str
    messages: Messages
    tools: Any = None


@dataclass(frozen=True, slots=True)
class Prompts:
    """Each prompt once, and what was left out on the way."""

    prompts: list[Prompt]
    repeated: int  # rows whose prompt another row had before
    unusable: list[DataError]  # rows of records that give none


def read_prompts(source: str | Path, *, limit: int | None = None) -> Prompts:
    """The prompts of a source that `likelier convert` reads, of rows with a prompt alone ({"prompt": …}, {"messages": […]}), or of a .txt file that
    has one a line; the first `limit` of them. Of a conversation that ends with the assistant's reply, what comes before it.

    Raises DataError for a source that cannot be read or holds no prompt, for a row without one where rows are no records, and for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{source}: {limit} prompts are wanted of it; one is the least.")
    unusable: list[DataError] = []
    found: dict[str, Prompt] = {}
    repeated = 0
    ids: set[str] = set()
    for prompt in _prompts(source, unusable):
        if limit is not None and len(found) == limit:
            break
        key = repr((prompt.messages, prompt.tools))
        if key in found:
            repeated += 1
            continue
        if prompt.id in ids:
            raise DataError(f"{source}: two prompts have the id {prompt.id!r}. Give each one of its own.")
        ids.add(prompt.id)
        found[key] = prompt
    if not found:
        raise DataError(f"{source}: there is no prompt in it.{f' The first row: {unusable[0]}' if unusable else ''}")
    return Prompts(list(found.values()), repeated, unusable)


def _prompts(source: str | Path, unusable: list[DataError]) -> Iterator[Prompt]:
    if str(source).endswith(".txt"):
        return _of_lines(Path(source))
    return _of_records(source, unusable) if _holds_records(source) else _of_rows(source)


def _holds_records(source: str | Path) -> bool:
    """Whether the first row has one of the shapes of preference data."""
    fields = _fields(next(read_rows(source)))
    return any(shape.fits(fields) for shape in SHAPES)


def _of_records(source: str | Path, unusable: list[DataError]) -> Iterator[Prompt]:
    for record in read_records(source, on_bad=unusable.append):
        yield Prompt(record.id, record.prompt, record.meta.get("tools"))


def _of_rows(source: str | Path) -> Iterator[Prompt]:
    for row in read_rows(source):
        try:
            fields = _fields(row)
            messages, rest = take_prompt(fields)
            while messages and messages[-1].role == "assistant":
                messages = messages[:-1]
            if not any(message.content.strip() for message in messages):
                raise DataError("its prompt is empty. Write it or drop the row.", kind="empty")
        except DataError as problem:
            raise DataError(problem.fault, kind=problem.kind, where=row.where) from None
        yield Prompt(str(rest.get("id") or f"{row.stem}:{row.number}"), messages, rest.get("tools"))


def _of_lines(path: Path) -> Iterator[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: this file of prompts cannot be read ({problem}).") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Prompt(f"{path.stem}:{number}", (Message("user", line.strip()),))


def _fields(row: Row) -> Fields:
    if isinstance(row.value, DataError):
        raise row.value
    if not isinstance(row.value, dict):
        raise DataError(f"this row is {kind_of(row.value)}, not an object with a `prompt`.", where=row.where)
    fields = {name: value for name, value in row.value.items() if value is not None}
    return from_cells(fields) if row.table else fields
