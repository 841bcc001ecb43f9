"""What looks on while a run is under way: it writes what was measured, has the watched prompts replied to, and tells symptoms once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from likelier.errors import LikelierError, lacks_memory
from likelier.rundir import RunDir, append_jsonl, write_jsonl
from likelier.train.checkpoint import State
from likelier.train.progress import Progress
from likelier.train.watch.diagnosis import Diagnosis
from likelier.train.watch.history import Setup, Symptom
from likelier.train.watch.prompts import WatchedPrompts


class Watch:
    """Rows into metrics.jsonl and onto the screen, replies into filmstrip.jsonl, symptoms into both.

    Whether it looks depends on the step alone, so that a resumed run looks when an unbroken one does.
    """

    def __init__(self, run: RunDir, show: Progress, setup: Setup, prompts: WatchedPrompts | None = None) -> None:
        self._run = run
        self._show = show
        self._setup = setup
        self._prompts = prompts if prompts else None
        self._diagnosis = Diagnosis(setup)
        self._steps = 0

    def begin(self, state: State, steps: int) -> None:
        """Training begins, or goes on after `state.step` of `steps`: what was written beyond that is forgotten."""
        self._steps = steps
        self._run.cut_metrics(state.step, evaluated=not state.evaluation_due)
        rows, filmstrip = self._run.read_metrics(), self._run.read_filmstrip()
        missed = self._diagnosis.catch_up(rows, filmstrip)
        self._show.begin_training(state.step, steps)
        self.tell(missed)
        if self._prompts and state.step:
            self._prompts.remember(filmstrip)
        elif self._prompts:
            self._film(self._prompts.first_replies, write_jsonl)  # in place of what a start that was killed at once may have left

    def log(self, row: dict[str, Any]) -> None:
        """Write and show a row of metrics, and what it shows for the first time. That of an evaluation says over how many prompts it is."""
        if row["kind"] == "eval" and self._setup.prompts:
            row = row | {"prompts": self._setup.prompts}
        self._append(row)
        self.tell(self._diagnosis.after(row))

    def look(self, step: int) -> float | None:
        """An evaluation is under way. Returns the KL of the watched prompts, in nats a reply; None without any."""
        if not self._prompts:
            return None
        if self._films_at(step):
            prompts = self._prompts
            self._film(lambda: prompts.replies(step))
        return self._tried(self._prompts.kl) if self._prompts else None

    def tell(self, symptoms: Sequence[Symptom]) -> None:
        """Write and show symptoms."""
        for symptom in symptoms:
            self._append(symptom.row())

    def _films_at(self, step: int) -> bool:
        every = self._setup.train.eval_every
        assert self._setup.recipe
        return step == self._steps or (every > 0 and step // every % self._setup.recipe.eval.watch_every == 0)

    def _film(self, reply: Callable[[], list[dict[str, Any]]], write: Callable[[Path, list[dict[str, Any]]], None] = append_jsonl) -> None:
        rows = self._tried(reply)
        if rows:
            write(self._run.filmstrip, rows)
            self._diagnosis.history.add_film(rows)

    def _tried(self, ask: Callable[[], Any]) -> Any:
        """What `ask` returns; None, and no more watching, where the model cannot do it: training does not depend on it."""
        try:
            return ask()
        except (LikelierError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as problem:
            if self._prompts and self._prompts.is_divided and lacks_memory(problem):
                raise  # of this rank alone, perhaps; the others would wait for it
            self._prompts = None
            self._show.say(f"Not watched any more: this model does not write replies while it is trained ({' '.join(str(problem).split())[:200]})")
            return None

    def _append(self, row: dict[str, Any]) -> None:
        self._run.append_metrics(row)
        self._show.logged(row)


class Unwatched(Watch):
    """What the ranks have that do not lead: nothing is written or shown. With `prompts` they compute what the leader does, which cannot compute
    alone where each rank holds a part of the model."""

    def __init__(self, run: RunDir, setup: Setup, prompts: WatchedPrompts | None = None) -> None:
        super().__init__(run, Progress(), setup, prompts)

    def begin(self, state: State, steps: int) -> None:
        self._steps = steps
        if self._prompts and state.step:
            self._prompts.remember(self._run.read_filmstrip())
        elif self._prompts:
            self._tried(self._prompts.first_replies)

    def log(self, row: dict[str, Any]) -> None:
        pass

    def tell(self, symptoms: Sequence[Symptom]) -> None:
        pass

    def _film(self, reply: Callable[[], list[dict[str, Any]]], write: Callable[[Path, list[dict[str, Any]]], None] = append_jsonl) -> None:
        self._tried(reply)
