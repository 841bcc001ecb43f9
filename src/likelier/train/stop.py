"""A request to stop in good order: SIGTERM, Ctrl-C, or a program that gives the run up."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from types import FrameType
from typing import TypeVar

from likelier.errors import GivenUp, Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Item = TypeVar("Item")


class Stop:
    """Whether somebody has asked the run to stop, and by which signal or for what reason."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.reason = ""

    @property
    def requested(self) -> bool:
        return self.signal is not None or bool(self.reason)

    def give_up(self, reason: str) -> None:
        """Ask the run to stop for a reason that lies in the run."""
        self.reason = reason

    def until(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items` up to the moment of the request."""
        return takewhile(lambda _: not self.requested, items)

    def leave(self, where: str) -> None:
        """Raises Interrupted, which says `where` the run stands, if it was asked to stop, or GivenUp with the reason."""
        if self.signal is None and self.reason:
            raise GivenUp(self.reason)
        if self.signal is not None:
            raise Interrupted(f"stopped by {self.signal.name} {where}. The same command, without --fresh, goes on from there.", self.signal)


NEVER = Stop()
"""Nobody asks."""


@contextmanager
def heed_signals(stop: Stop | None = None) -> Iterator[Stop]:
    """Within it the first SIGINT or SIGTERM is a request to `stop`, met at the run's next convenience; a second one does what it did before.

    Signals that the process ignores, as under nohup, stay ignored. Outside the main thread, where no handlers can be set, nothing changes.
    """
    stop = stop or Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        put_back()
        stop.signal = signal.Signals(number)
        # Not print, which the signal may have interrupted in the middle.
        os.write(2, f"\nlikelier: {stop.signal.name}: the step at hand is finished and a checkpoint written; again to stop at once.\n".encode())

    try:
        for number in before:
            signal.signal(number, request)
        yield stop
    finally:
        put_back()
