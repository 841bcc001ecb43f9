"""A JSON file that is one list, item by item: what is held is one item and a piece of the file, however long the file is."""

import json
from collections.abc import Iterator
from typing import IO, Any

PIECE = 1 << 20
"""Characters that are read at a time."""

BLANK = " \t\r\n"
CUT = 16
"""An error so close to the end of what has been read may be a cut: the longest word of JSON, `-Infinity`, and an escape are shorter."""


def list_items(file: IO[str]) -> Iterator[Any]:
    """What `json.load(file)` would return as a list, streamed; the file's first character but white space is a "[".

    Raises ValueError, with line and column, where the text is not JSON, once the items before are given.
    """
    text = _Text(file)
    text.take("[")
    if text.next() == "]":
        text.take("]")
    else:
        while True:
            text.next()
            yield text.value()
            if text.next() != ",":
                break
            text.take(",")
        text.take("]")
    if text.next():
        raise text.fault("Extra data")


def not_json(message: str, line: int, column: int) -> ValueError:
    """The fault of a JSON file, in the parser's words."""
    mend = "A file with one object a line is named .jsonl" if message == "Extra data" else "Mend it there"
    return ValueError(f"line {line}, column {column}: this is not valid JSON: {message}. {mend}")


class _Text:
    """The part of the file that has been read and not yet used, and where it stands."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._rest = ""
        self._at = 0
        self._line, self._column = 1, 1  # of the first character of _rest
        self._ended = False

    def next(self) -> str:
        """The next character that is not blank, without using it; empty at the end of the file."""
        while True:
            while self._at < len(self._rest) and self._rest[self._at] in BLANK:
                self._at += 1
            if self._at < len(self._rest) or not self._read():
                return self._rest[self._at : self._at + 1]

    def take(self, character: str) -> None:
        """Use the next character, which must be this one."""
        if self.next() != character:
            raise self.fault("Expecting ',' delimiter" if character == "]" else f"Expecting '{character}'")
        self._at += 1

    def value(self) -> Any:
        """Use the next value. One that ends where reading has ended (12 of 123, 1 of 1e-5) is only believed at the end of the file."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._rest, self._at)
            except json.JSONDecodeError as problem:
                is_cut = problem.pos > len(self._rest) - CUT or problem.msg.startswith(("Unterminated", "Invalid \\"))
                if not (is_cut and self._read()):
                    raise self.fault(problem.msg, problem.pos) from None
            except RecursionError:
                raise ValueError("its JSON is nested too deeply") from None
            else:
                if end < len(self._rest) - len("e-") or not self._read():
                    self._at = end
                    return value

    def fault(self, message: str, at: int | None = None) -> ValueError:
        return not_json(message, *self._place(self._at if at is None else at))

    def _read(self) -> bool:
        """Read on, at least as much as is held, so that a long value is not tried too often; false at the end of the file."""
        more = "" if self._ended else self._file.read(max(PIECE, len(self._rest) - self._at))
        self._ended = not more
        if more:
            self._line, self._column = self._place(self._at)
            self._rest, self._at = self._rest[self._at :] + more, 0
        return bool(more)

    def _place(self, at: int) -> tuple[int, int]:
        lines = self._rest.count("\n", 0, at)
        return self._line + lines, at - self._rest.rfind("\n", 0, at) if lines else self._column + at
