"""Verdicts on disk: one SQLite file, an answer under the hash of all that it depends on, written when it arrives.

Only choices are kept. A question that was not answered, or not so that it can be read, is asked again next time. Several processes may use one
file; SQLite lets them write one after the other.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from types import TracebackType

from likelier.errors import JudgeError
from likelier.judge.questions import Answer

TABLE = """CREATE TABLE IF NOT EXISTS verdicts
(key TEXT PRIMARY KEY, choice TEXT NOT NULL, reason TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, judge TEXT NOT NULL)"""

WAIT = 60  # seconds, for another process that writes
AT_ONCE = 500  # keys in one query; SQLite has a limit on them


class VerdictStore:
    """Answers by key. Raises JudgeError for a file that is no such store, or that cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            if self._database.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",):
                self._database.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing; only a power cut may cost the last verdicts
            self._database.execute(TABLE)
            self._database.execute("SELECT key, choice, reason, tokens_in, tokens_out FROM verdicts LIMIT 1")
        except (sqlite3.Error, OSError) as problem:
            raise self._unusable(problem) from None

    def __enter__(self) -> "VerdictStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()

    def find(self, keys: Iterable[str]) -> dict[str, Answer]:
        """What is known under these keys."""
        wanted, found = list(keys), {}
        with self._lock:
            for start in range(0, len(wanted), AT_ONCE):
                some = wanted[start : start + AT_ONCE]
                places = ", ".join("?" * len(some))
                try:
                    rows = self._database.execute(f"SELECT key, choice, reason, tokens_in, tokens_out FROM verdicts WHERE key IN ({places})", some)
                    found.update({key: Answer(choice, reason, "", tin, tout) for key, choice, reason, tin, tout in rows})
                except sqlite3.Error as problem:
                    raise self._unusable(problem) from None
        return found

    def keep(self, key: str, answer: Answer, judge: str) -> None:
        """Write one answer, which is on disk when this returns. Two processes that asked the same keep the first answer."""
        row = (key, answer.choice, answer.reason, answer.tokens_in, answer.tokens_out, judge)
        with self._lock:
            try:
                self._database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.Error as problem:
                raise self._unusable(problem) from None

    def _unusable(self, problem: Exception) -> JudgeError:
        return JudgeError(
            f"{self.path}: verdicts cannot be kept here ({problem}). Free space or get leave to write there, or move the file away if it is damaged: "
            "its verdicts are then asked for again."
        )
