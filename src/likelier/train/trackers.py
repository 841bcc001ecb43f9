"""Run trackers: what stands in metrics.jsonl, shown in TensorBoard, Trackio, Weights & Biases or MLflow while a run goes on.

metrics.jsonl stays the truth. A tracker gets a step's rows together, once the next step's begin, as scalars `train/loss`, `eval/accuracy` … at
that step; so whatever kills a run, a tracker holds whole steps. When training begins or goes on, each tracker says up to which step it has
them, is given those that it lacks from metrics.jsonl, and gets none twice. A tracker that fails later is let go, with a word, and the run goes on:
the next start fills the gap.

Each tool's own ways are in tracker_tools.py.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from typing import Any

from likelier.errors import RecipeError, RunError
from likelier.recipe import LogSettings, Recipe
from likelier.rundir import RunDir
from likelier.train.progress import Progress
from likelier.train.tracker_tools import TOOLS, Subject, Tracker, needs


def require_trackers(log: LogSettings) -> None:
    """Raises RecipeError for a tracker that is not installed, and says how it is mended."""
    for tool in log.trackers:
        for package in needs(tool):
            # A folder `wandb` that earlier runs left in the working directory counts as a package without files.
            spec = find_spec(package)
            if spec is None or spec.origin is None:
                raise RecipeError(f"log.trackers: `{tool}` lacks the package {package}. Mend: `pip install {tool}`, or leave it out.")


@contextmanager
def tracked(show: Progress, recipe: Recipe, run: RunDir) -> Iterator[Progress]:
    """`show`, with the recipe's trackers listening; they are finished however the run ends. Raises RunError where one does not start."""
    tools = list(dict.fromkeys(recipe.log.trackers))
    if not tools:
        yield show
        return
    subject = _subject(recipe, run)
    subject.folder.mkdir(parents=True, exist_ok=True)
    observer = Tracked(show, run)
    failed = True
    try:
        for tool in tools:
            try:
                observer.trackers[tool] = TOOLS[tool](subject, show.say)
            except Exception as problem:
                raise RunError(
                    f"log.trackers: `{tool}` did not start ({_said(problem)}). Mend that, or leave it out of log.trackers: the same "
                    "command goes on either way, and a tracker that comes back gets what it missed."
                ) from problem
        yield observer
        failed = False
    finally:
        observer.finish(failed=failed)


class Tracked(Progress):
    """Passes every hook on to `show`, and rows of metrics to trackers, a whole step at a time."""

    def __init__(self, show: Progress, run: RunDir) -> None:
        self.show = show
        self.run = run
        self.trackers: dict[str, Tracker] = {}
        self._held: dict[str, int] = {}  # the last step that a tracker has
        self._step = 0  # the step whose rows are being collected
        self._values: dict[str, float] = {}

    def say(self, text: str) -> None:
        self.show.say(text)

    def reference_scored(self, done: int, total: int) -> None:
        self.show.reference_scored(done, total)

    def begin_training(self, step: int, steps: int) -> None:
        """Ask each tracker what it has, and give it the rest of the `step` steps that metrics.jsonl has."""
        self.show.begin_training(step, steps)
        self._each(lambda tool, tracker: self._held.update({tool: tracker.begin(step)}))
        for row in self.run.read_metrics():
            self._collect(row)
        self._send()

    def logged(self, row: dict[str, Any]) -> None:
        self.show.logged(row)
        self._collect(row)

    def close(self) -> None:
        self.show.close()

    def finish(self, *, failed: bool) -> None:
        """End the trackers' runs. The last step of a failed run may lack its evaluation: the resumed run has it again, so it is left out."""
        if not failed:
            self._send()
        self._each(lambda _, tracker: tracker.finish(failed=failed))

    def _collect(self, row: Mapping[str, Any]) -> None:
        if row["kind"] == "symptom":  # words, and where a resumed run finds one late, of a step long sent
            return
        if row["step"] != self._step:
            self._send()
        self._step = row["step"]
        self._values |= scalars(row)

    def _send(self) -> None:
        step, values = self._step, self._values
        self._values = {}
        if values:
            self._each(lambda tool, tracker: tracker.log(step, values) if step > self._held[tool] else None)

    def _each(self, act: Callable[[str, Tracker], None]) -> None:
        for tool, tracker in list(self.trackers.items()):
            try:
                act(tool, tracker)
            except Exception as problem:
                del self.trackers[tool]
                self.show.say(f"{tool} no longer follows this run ({_said(problem)}). Training goes on; metrics.jsonl has every row.")


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's numbers by the names that trackers know them by: {"kind": "train", "step": 3, "loss": 0.5} → {"train/loss": 0.5}."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {f"{row['kind']}/{name}": float(value) for name, value in numbers.items() if name != "step"}


def _subject(recipe: Recipe, run: RunDir) -> Subject:
    manifest = run.read_manifest()
    place = run.path.resolve()
    # `created` stays over all starts of a run, and is another one with --fresh, whose rows must not meet the old ones.
    key = f"{place}\n{manifest['recipe']}\n{manifest['created']}"
    [header] = run.read_metrics("run")
    return Subject(
        folder=run.trackers.resolve(),
        project=recipe.log.project,
        name=recipe.log.name or place.name,
        id=sha256(key.encode()).hexdigest()[:16],
        recipe=recipe.model_dump(mode="json"),
        provenance={name: str(value) for name, value in header.items() if name not in ("kind", "step")},
    )


def _said(problem: Exception) -> str:
    """The error in a line, without what an address may hold of a password."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    return re.sub(r"://[^/@\s]*@", "://…@", text)[:300]
