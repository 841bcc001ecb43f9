"""A full disk, by real errors of the system: a limit on the size of files, beyond which a write fails as on a disk without space."""

import io
import resource
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from likelier import models
from likelier.cli import main
from likelier.errors import RunError, disk_fault
from likelier.logprobs import reference
from likelier.rundir import RunDir, write_atomic, writing
from likelier.train import checkpoint, folder, session
from likelier.train.session import train_recipe
from tests.train.children import ended, said, start, step_saved
from tests.train.conftest import changed


def limit_files(size: int) -> None:
    """No file of this process grows beyond so many bytes. Python ignores the signal that would come with it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill_the_disk(place: str) -> None:
    """From a place on the disk is full; where it gives no size, up to a few bytes beyond the metrics."""
    owner, name, call, size, _ = PLACES[place]
    real, calls = getattr(owner, name), []

    def on_a_full_disk(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            limit_files(arguments[0].metrics.stat().st_size + 10 if size is None else size)
        return real(*arguments, **options)

    setattr(owner, name, on_a_full_disk)


PLACES = {
    "store": (reference.ReferenceStore, "flush", 1, 1000, "reference"),
    "opened": (folder, "write_jsonl", 1, 0, "metrics.jsonl"),
    "checkpoint": (checkpoint, "save", 2, 5000, "step-000004"),
    "state of a checkpoint": (checkpoint, "asdict", 3, 100, "step-000002"),
    "best": (checkpoint, "save_best", 2, 5000, "best-"),
    "metrics": (RunDir, "append_metrics", 7, None, "metrics.jsonl"),
    "model": (session, "save_trained", 1, 5000, "run/model"),
    "card": (models, "add_notes", 1, 3000, "run/model"),
    "manifest": (session, "write_json", 1, 500, "manifest.json"),
}
"""Where the disk is full: a function, which call of it, the size of files from then on, and what the error names."""


@pytest.fixture(scope="module")
def whole() -> dict:
    """The unbroken run's weights and metrics, once there is one."""
    return {}


def result(run: RunDir) -> tuple[dict, list]:
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in run.read_metrics()]
    return load_file(next(run.model.glob("*.safetensors"))), [row for row in rows if row["kind"] != "run"]


USUAL = ("store", "checkpoint", "metrics", "model")


@pytest.mark.parametrize("place", [place if place in USUAL else pytest.param(place, marks=pytest.mark.slow) for place in PLACES])
def test_one_clear_error_and_the_run_goes_on_once_there_is_space(recipe, whole, place):
    recipe = changed(recipe, train={"max_steps": 6, "eval_every": 1, "learning_rate": 3e-4})
    assert ended(start(recipe, before=partial(fill_the_disk, place))) == 2
    told = " ".join(said(recipe).split())
    assert "Traceback" not in told
    assert told.count("could not be written") == 1
    assert "os error 27" in told or "File too large" in told
    assert PLACES[place][-1] in told.split("likelier: ")[1].split(": this could not be written")[0]
    assert "its last checkpoint too, is whole: free space on that disk" in told
    run = RunDir(recipe.out)
    assert not list(run.unfinished())
    assert not list(run.checkpoints.glob(".*"))
    if place == "metrics":
        assert not run.metrics.read_text().endswith("\n"), "half a line"
    if place in ("model", "metrics", "checkpoint"):
        assert step_saved(run) > 0

    ours = result(train_recipe(recipe))
    if not whole:
        whole["result"] = result(train_recipe(changed(recipe, out=recipe.out + "-whole")))
    assert all(ours[0][name].equal(value) for name, value in whole["result"][0].items())
    assert ours[1] == whole["result"][1]


def test_an_evaluation_or_a_report_that_finds_no_room_names_the_file(tmp_path):
    """Both are written by `write_atomic`, whose old file stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "report.html"
    write_atomic(path, "old")
    try:
        limit_files(1000)
        with pytest.raises(RunError, match=r"report.html: this could not be written \(.*File too large"):
            write_atomic(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("report.html", "old")]


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(ValueError, match="not of the disk"), writing(tmp_path):
        raise ValueError("not of the disk")
    assert not disk_fault(ValueError("x"))
    assert disk_fault(Exception("File too large (os error 27)"))  # as tokenizers says it
    with pytest.raises(RunError), writing(tmp_path):
        Path(tmp_path / "no" / "folder").write_text("")


def test_a_full_disk_under_the_output_of_a_command_is_no_traceback(recipe, monkeypatch, capsys):
    with io.TextIOWrapper(Path("/dev/full").open("wb", buffering=0), write_through=True) as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        assert main(["split", recipe.data.train[0]]) == 2
    assert capsys.readouterr().err.startswith("likelier: the disk is full ([Errno 28] No space left on device)")
