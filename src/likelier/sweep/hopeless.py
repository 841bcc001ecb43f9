"""When a run of a sweep is given up: others were clearly better at the same point of theirs.

A median stopping rule (Golovin et al. 2017, section 3.2.2: a trial's best value up to step s against the others' at s), guarded: against single runs
that have ended and not their median, because a sweep has few, and only where an interval says that chance does not make the difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likelier.metrics import wilson
from likelier.rundir import RunDir
from likelier.train.progress import Progress
from likelier.train.stop import Stop
from likelier.wording import count, quantity

Row = Mapping[str, Any]

LEVEL = 0.99
"""Of the interval that must lie on one side. A run is looked at many times, so 95% would give up too many by chance."""
TIMES = 2
"""Evaluations in a row at which it must."""
FROM = 0.25
"""Share of the steps before which nothing is given up: the learning rate warms up, and a slow start is not a bad end."""


@dataclass(frozen=True)
class Rival:
    """A run that has ended: its evaluations, and over how many held-out prompts."""

    name: str
    rows: Sequence[Row]
    prompts: int
    same_loss: bool  # the objective is the same, so that losses can be compared


def why_hopeless(rows: Sequence[Row], steps: int, rivals: Sequence[Rival]) -> str:
    """Why a run of so many `steps` with these evaluations is to be given up; empty where it is not.

    It is if at each of its last `TIMES` evaluations, all past `FROM` of the steps and before the last, one and the same rival was clearly better.
    """
    last = rows[-TIMES:]
    if len(last) < TIMES or last[0]["step"] < FROM * steps or last[-1]["step"] >= steps:
        return ""
    for rival in rivals:
        if all(_clearly_worse([row for row in rows if row["step"] <= at["step"]], rival) for at in last):
            step, theirs = last[-1]["step"], _at(rival.rows, last[-1]["step"])
            ours = max(row["accuracy"] for row in rows)
            return (
                f"given up at step {step} of {steps}: its held-out accuracy had reached {quantity(ours, 'share')}, when that of {rival.name} was "
                f"{quantity(theirs['accuracy'] if theirs else None, 'share')}. On {count(rival.prompts, 'prompt')} that is no chance "
                f"({LEVEL:.0%} interval, {TIMES} evaluations in a row)."
            )
    return ""


def _clearly_worse(rows: Sequence[Row], rival: Rival) -> bool:
    """Whether the best of `rows` is clearly worse than the rival at the step of the last of them."""
    theirs = _at(rival.rows, rows[-1]["step"])
    if theirs is None:
        return False
    if rival.same_loss and min(row["loss"] for row in rows) <= theirs["loss"]:
        return False
    return certain_lead(theirs["accuracy"], max(row["accuracy"] for row in rows), rival.prompts) > 0


def _at(rows: Sequence[Row], step: int) -> Row | None:
    """The evaluation at `step`, or the last one before it."""
    return next((row for row in reversed(rows) if row["step"] <= step), None)


def certain_lead(better: float, worse: float, prompts: int) -> float:
    """By how much one share leads another for certain: the lower end of the interval of their difference, both being of so many prompts.

        (p − q) − √((p − low_p)² + (high_q − q)²)     low and high: Wilson's

    It takes the two for independent. Shares of the same prompts mostly rise and fall together, so the lead is rather larger.
    Source: Newcombe 1998, method 10.
    """
    p, q = (wilson(share * prompts, prompts, level=LEVEL) for share in (better, worse))
    return p.value - q.value - math.hypot(p.value - p.low, q.high - q.value)


class GivingUp(Progress):
    """Shows what `show` shows, and gives the run up through `stop` when it is hopeless. What was `said` of data and settings before an earlier run
    is not said again."""

    def __init__(self, show: Progress, run: RunDir, rivals: Sequence[Rival], stop: Stop, said: set[str]) -> None:
        self.show, self.run, self.rivals, self.stop, self.said = show, run, rivals, stop, said
        self.steps = 0

    def say(self, text: str) -> None:
        if self.steps or text not in self.said:
            self.show.say(text)
        self.said.add(text)

    def reference_scored(self, done: int, total: int) -> None:
        self.show.reference_scored(done, total)

    def begin_training(self, step: int, steps: int) -> None:
        self.show.begin_training(step, steps)
        self.steps = steps
        self._judge()  # a kill may have come between the evaluation that decided and the checkpoint

    def logged(self, row: dict[str, Any]) -> None:
        self.show.logged(row)
        if row["kind"] == "eval":
            self._judge()

    def close(self) -> None:
        self.show.close()

    def _judge(self) -> None:
        if why := why_hopeless(self.run.read_metrics("eval"), self.steps, self.rivals):
            self.stop.give_up(why)
