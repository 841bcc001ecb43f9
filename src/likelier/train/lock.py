"""One process at a time works in a run directory."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from likelier.errors import RunError
from likelier.rundir import RunDir, writing


@contextmanager
def sole_use(run: RunDir) -> Iterator[None]:
    """Within it no other process runs in this directory. Raises RunError naming the process that does.

    The system lets go of the lock when its holder dies, however it dies. May be entered again by a thread that holds it. The lock file is gone
    afterwards, and so is a folder that was made for it and that nothing else came into.
    """
    made = not run.path.exists()
    with writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run.lock, is_singleton=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RunError(
                f"{run.path}: {_holder(run.lock)} is at work in this folder. Wait until it has ended, or choose another folder with --out."
            ) from None
    natural = isinstance(lock, FileLock)  # where the system has no locks it has become another kind, whose file says by itself what it must
    try:
        if natural and lock.lock_counter == 1:
            with writing(run.lock):
                run.lock.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        if natural and lock.lock_counter == 1:
            run.lock.unlink(missing_ok=True)  # before it is let go: whoever waits for it sees that this file guards nothing any more
        lock.release()
        if made:
            with suppress(OSError):  # not empty
                run.path.rmdir()


def _holder(path: Path) -> str:
    """Who wrote the lock file, in words."""
    try:
        by = json.loads(path.read_text())
        return f"another run (process {by['pid']} on {by['host']})"
    except (OSError, ValueError, KeyError):  # it has only just begun
        return "another run"
