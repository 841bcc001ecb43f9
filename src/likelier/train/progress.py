"""What a person sees while a run is under way. The base class shows nothing; `Bars` draws progress bars in a terminal."""

from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text


class Progress:
    """Hooks that a run calls; override what you want to see."""

    def say(self, text: str) -> None: ...
    def reference_scored(self, done: int, total: int) -> None: ...
    def begin_training(self, step: int, steps: int) -> None: ...
    def logged(self, row: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Bars(Progress):
    """Progress bars with loss, margin, accuracy, tokens a second and time left; evaluations and symptoms stay as lines above."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self._task: TaskID | None = None
        self._title = ""
        self._recent: deque[tuple[int, float]] = deque(maxlen=20)

    def say(self, text: str) -> None:
        self.console.print(Text(text))  # not its markup: groups and replies may hold brackets

    def reference_scored(self, done: int, total: int) -> None:
        self._show("reference", done, total)

    def begin_training(self, step: int, steps: int) -> None:
        self._recent.clear()
        self._show("training", step, steps)

    def logged(self, row: dict[str, Any]) -> None:
        if row["kind"] == "skipped":
            return
        if row["kind"] == "symptom":
            self.say(f"  step {row['step']}: {row['title']}. {row['evidence']} Mend: {row['mend']}.")
            return
        margin = "" if row["margin"] is None else f" margin {row['margin']:+.2f}"
        numbers = f"loss {row['loss']:.3f}{margin} acc {row['accuracy']:.0%}"
        if row["kind"] == "eval":
            self.say(f"  step {row['step']}: held-out {numbers}")
            return
        self._recent.append((row["tokens"], row["seconds"]))
        tokens, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        if self._task is not None:
            self._bars.update(self._task, completed=row["step"], note=f"{numbers} {tokens / seconds:,.0f} tok/s")

    def close(self) -> None:
        self._bars.stop()
        self._task = None

    def _show(self, title: str, done: int, total: int) -> None:
        if self._task is None or title != self._title:
            self.close()
            self._title = title
            self._bars.start()
            for old in self._bars.task_ids:
                self._bars.remove_task(old)
            self._task = self._bars.add_task(title, total=total, completed=done, note="")
            return
        self._bars.update(self._task, completed=done, total=total)
        if done >= total:
            self._bars.refresh()
