"""A folder of immutable chunks, each named by the hash of its bytes: what has been worked out once, kept on disk for any number of processes.

    <folder>/<sha256 of the file>.<ending>

A chunk is written beside and renamed, so a kill leaves whole chunks only; two writers at most keep a thing twice. Damage is seen when a chunk is
read: it is set aside, and what it held is worked out again, never trusted.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from likelier.atomic import atomic_file
from likelier.rundir import writing


class Chunks:
    """The chunks of one folder. Making the object touches nothing on disk; `damaged` names what reading has set aside."""

    def __init__(self, folder: Path, ending: str) -> None:
        self.folder = folder
        self.ending = ending
        self.damaged: list[Path] = []

    def read(self) -> Iterator[bytes]:
        """All whole chunks."""
        for path in sorted(self.folder.glob(f"*.{self.ending}")):
            try:
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == path.stem:
                    yield content
                else:
                    self.damaged.append(path)
                    path.replace(path.with_suffix(".damaged"))
            except FileNotFoundError:  # another run that reads the same folder was first to set it aside
                continue

    def write(self, content: bytes) -> None:
        """One chunk more. Raises RunError if the disk does not take it."""
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.{self.ending}"
        with writing(path), atomic_file(path) as file:
            file.write(content)


def say_damaged(damaged: Iterable[Path], say: Callable[[str], object]) -> None:
    """A line for each chunk that reading has set aside."""
    for path in damaged:
        say(f"{path}: this kept file was damaged and is set aside; what it held is computed again.")
