"""Bad rows that are left out: counted by kind, and listed in a file beside the result."""

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from likelier.errors import DataError


class SkippedRows:
    """Takes the fault of each bad row (an `on_bad`) and writes it down at once: one line of JSON with `where`, `kind` and `fault`.

    The file appears with the first fault; one that an earlier run has left is removed, so that the list is always of this run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kinds: Counter[str] = Counter()
        self._file: IO[str] | None = None

    def __call__(self, problem: DataError) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        self.kinds[problem.kind] += 1
        line = {"where": problem.where, "kind": problem.kind, "fault": problem.fault}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def __enter__(self) -> Self:
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
