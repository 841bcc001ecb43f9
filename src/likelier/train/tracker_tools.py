"""How each run tracker is started, fed and ended. A tool is imported when a recipe names it, and only then.

Files go into the run directory's trackers/ unless the user's environment names another place (WANDB_DIR, TRACKIO_DIR, MLFLOW_TRACKING_URI, …).
"""

import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Any, Protocol

import yaml

Say = Callable[[str], None]
OFFLINE = ("offline", "dryrun")
"""W&B's modes that write a run to disk only."""


@dataclass(frozen=True)
class Subject:
    """What a tracker is told about a run."""

    folder: Path  # where its files go
    project: str
    name: str
    id: str  # the same over all starts of this run, and no other run's
    recipe: dict[str, Any]  # resolved
    provenance: dict[str, str]  # ids of data, recipe and base weights

    @property
    def config(self) -> dict[str, Any]:
        return {**self.recipe, "provenance": self.provenance}


class Tracker(Protocol):
    """One tool's record of a run."""

    def begin(self, step: int) -> int:
        """Training begins or goes on after `step`. Returns the last step that the record has, 0 if none; those up to there must not come again."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Everything that was measured at `step`."""
        ...

    def finish(self, *, failed: bool) -> None: ...


class TensorBoard:
    """Event files. What a resumed run does again is purged: TensorBoard's readers drop what stands there of these steps."""

    def __init__(self, subject: Subject, say: Say) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._subject = subject
        self._folder = str(subject.folder / "tensorboard")
        self._open = SummaryWriter
        self._writer: SummaryWriter | None = None
        say(f"TensorBoard: tensorboard --logdir {quote(self._folder)}")

    def begin(self, step: int) -> int:
        # A kill may have left the last step half written: it comes again.
        whole = max(0, min(self._last_step() - 1, step))
        self._writer = self._open(self._folder, purge_step=whole + 1 if whole else 0)
        if not whole:
            for title in ("recipe", "provenance"):
                self._writer.add_text(title, f"```yaml\n{yaml.safe_dump(getattr(self._subject, title), sort_keys=False, allow_unicode=True)}```")
        return whole

    def log(self, step: int, values: Mapping[str, float]) -> None:
        assert self._writer
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, *, failed: bool) -> None:
        if self._writer:
            self._writer.close()

    def _last_step(self) -> int:
        if not Path(self._folder).is_dir():
            return 0
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(self._folder).Reload()
        return max((events.Scalars(tag)[-1].step for tag in events.Tags()["scalars"]), default=0)


class Trackio:
    """A Trackio run: a SQLite file, or the Space or server that TRACKIO_SPACE_ID or TRACKIO_SERVER_URL name."""

    def __init__(self, subject: Subject, say: Say) -> None:
        folder = Path(os.environ.get("TRACKIO_DIR") or subject.folder / "trackio")
        # Trackio knows runs by name, and a folder or Space may hold another run's.
        name = f"{subject.name}-{subject.id[:8]}"
        with redirect_stdout(io.StringIO()):
            self._trackio = _trackio(folder)
            self._run = self._trackio.init(project=subject.project, name=name, config=subject.config, resume="allow", embed=False)
        here = f"TRACKIO_DIR={quote(str(folder))} trackio show --project {quote(subject.project)}"
        say(f"Trackio: {self._run.url or here}")

    def begin(self, step: int) -> int:
        return max(0, int(self._run._next_step) - 1)  # Trackio says it nowhere else for files, Spaces and servers alike

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, *, failed: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()


def _trackio(folder: Path) -> ModuleType:
    """Trackio, writing to `folder`. It reads TRACKIO_DIR once, when it is imported, so a process's second run takes a new import."""
    if "trackio" in sys.modules and folder != sys.modules["trackio"].TRACKIO_DIR:
        for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
            del sys.modules[name]
    with _environment("TRACKIO_DIR", str(folder)):
        return import_module("trackio")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class Wandb:
    """A W&B run. Without a configured key, or where the server does not take it or does not answer, it is written offline. Nobody is asked.

    A server's run goes on under its id. Offline runs cannot: each start writes a run of its own, and of several with one id a sync keeps the last. So
    those of earlier starts are removed, and the new one gets all rows from metrics.jsonl.
    """

    def __init__(self, subject: Subject, say: Say) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if mode == "online":
            try:
                lacks = "" if wandb.login(prompt=False) else "no API key is configured"
            except wandb.errors.AuthenticationError as problem:  # a wrong key, or no answer within ten seconds
                lacks = str(problem).rstrip(".")
            if lacks:
                say(f"W&B: {lacks}. So this run is written offline.")
                mode = "offline"
        self._run = self._start(wandb, subject, mode)
        later = f"wandb sync {quote(str(Path(self._run.dir).parent))}"
        say(f"W&B: {later if mode in OFFLINE else self._run.url}")

    def _start(self, wandb: ModuleType, subject: Subject, mode: str) -> Any:
        folder = Path(os.environ.get("WANDB_DIR") or subject.folder)
        if mode in OFFLINE:
            for earlier in folder.glob(f"wandb/offline-run-*-{subject.id}"):
                shutil.rmtree(earlier)
        return wandb.init(
            project=subject.project,
            name=subject.name,
            id=subject.id,
            config=subject.config,
            mode=mode,
            dir=str(folder),
            resume=None if mode in OFFLINE else "allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30, finish_timeout=120),
        )

    def begin(self, step: int) -> int:
        return max(0, int(self._run.starting_step) - 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """An MLflow run, found again by a tag: on the server of MLFLOW_TRACKING_URI, or in a SQLite file of the run directory."""

    TAG = "likelier.run"

    def __init__(self, subject: Subject, say: Say) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        folder = subject.folder / "mlflow"
        own = not mlflow.is_tracking_uri_set()
        if own:
            folder.mkdir(exist_ok=True)
        uri = f"sqlite:///{folder / 'mlflow.db'}" if own else mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(uri)
        known = self._client.get_experiment_by_name(subject.project)
        place = (folder / "artifacts").as_uri() if own else None
        experiment = known.experiment_id if known else self._client.create_experiment(subject.project, artifact_location=place)
        before = self._client.search_runs([experiment], f"tags.`{self.TAG}` = '{subject.id}'")
        self._id = before[0].info.run_id if before else self._create(experiment, subject)
        self._client.update_run(self._id, status="RUNNING")
        say(f"MLflow: mlflow ui --backend-store-uri {quote(uri)}" if own else f"MLflow: run {self._id}")

    def _create(self, experiment: str, subject: Subject) -> str:
        from mlflow.entities import Param

        tags = {self.TAG: subject.id, **{f"likelier.{name}": value for name, value in subject.provenance.items()}}
        run_id = str(self._client.create_run(experiment, run_name=subject.name, tags=tags).info.run_id)
        for section, settings in subject.recipe.items():
            named = {f"{section}.{name}": value for name, value in settings.items()} if isinstance(settings, dict) else {section: settings}
            self._client.log_batch(run_id, params=[Param(name, str(value)) for name, value in named.items()])
        return run_id

    def begin(self, step: int) -> int:
        known = self._client.get_run(self._id).data.metrics
        steps: list[int] = [point.step for name in known for point in self._client.get_metric_history(self._id, name)]
        return max(steps, default=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def finish(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


TOOLS: dict[str, Callable[[Subject, Say], Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb, "mlflow": MLflow}


def needs(tool: str) -> tuple[str, ...]:
    """The modules that a tracker takes. mlflow-skinny has no store of its own and needs a server."""
    return ("mlflow", "sqlalchemy") if tool == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI") else (tool,)
