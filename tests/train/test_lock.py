"""Two runs in one folder: the second is refused before it touches anything, and a dead process holds no lock."""

import os
import signal
import socket
import threading
import time

import pytest

from likelier.errors import RunError
from likelier.pipeline import train_and_report
from likelier.rundir import RunDir
from likelier.train import session
from likelier.train.lock import sole_use
from likelier.train.progress import Progress
from likelier.train.session import train_recipe
from tests.train.children import FORKS, ended, said, start
from tests.train.conftest import changed


def hold(path: str, holds) -> None:
    """Another process at work in a folder."""
    with sole_use(RunDir(path)):
        holds.set()
        time.sleep(60)


@pytest.fixture
def holder(recipe):
    """A process that holds the run directory's lock."""
    holds = FORKS.Event()
    child = FORKS.Process(target=hold, args=(recipe.out, holds), daemon=True)
    child.start()
    assert holds.wait(30)
    yield child
    child.kill()
    child.join()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_second_run_is_told_who_is_at_work_before_it_prepares_or_removes(recipe, holder, monkeypatch, fresh):
    monkeypatch.setattr(session, "prepare", lambda *_: pytest.fail("it prepared"))
    run = RunDir(recipe.out)
    run.metrics.write_text("theirs")
    with pytest.raises(RunError, match=rf"process {holder.pid} on {socket.gethostname()}\) is at work in this folder. Wait .* --out"):
        train_recipe(recipe, fresh=fresh)
    assert run.metrics.read_text() == "theirs"
    assert run.lock.exists()


def test_the_command_says_so_and_ends_with_2(recipe, holder):
    assert ended(start(recipe, "--fresh")) == 2
    assert f"process {holder.pid} on" in said(recipe)
    assert "Traceback" not in said(recipe)


def test_a_killed_process_holds_no_lock(recipe, holder):
    holder.kill()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    assert RunDir(recipe.out).lock.exists()
    run = train_recipe(changed(recipe, train={"max_steps": 1}))
    assert not run.lock.exists()


def test_another_thread_is_another_run(tmp_path):
    refused = []

    def second() -> None:
        try:
            with sole_use(RunDir(tmp_path)):
                pass
        except RunError as problem:
            refused.append(str(problem))

    with sole_use(RunDir(tmp_path)):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        with sole_use(RunDir(tmp_path)):
            pass
        assert (tmp_path / ".lock").exists(), "a lock entered twice is held until it is left twice"
    assert [f"process {os.getpid()}" in text for text in refused] == [True]
    assert not list(tmp_path.iterdir())


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(RunError), sole_use(RunDir(tmp_path / "deep" / "run")):
        raise RunError("no")
    assert not (tmp_path / "deep" / "run").exists()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"run: this could not be written .* Choose another path"), sole_use(RunDir(tmp_path / "file" / "run")):
        pass


def test_the_lock_is_held_until_the_report_is_written(recipe, monkeypatch):
    from likelier import pipeline

    held = []
    for stage in ("evaluate", "write_report"):
        monkeypatch.setattr(pipeline, stage, lambda run, *_: held.append(run.lock.exists()))
    train_and_report(changed(recipe, train={"max_steps": 1}), show=Progress())
    assert held == [True, True]


def test_what_an_interrupted_evaluation_left_undone_is_done_by_the_same_command(recipe, monkeypatch):
    from likelier import pipeline

    def interrupt(*_):
        raise KeyboardInterrupt

    recipe = changed(recipe, train={"max_steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_and_report(recipe, show=Progress())
    monkeypatch.setattr(pipeline, "train_recipe", lambda *_, **__: pytest.fail("it trained again"))
    run = RunDir(recipe.out)
    assert pipeline._goes_on(run, recipe)
    assert not pipeline._goes_on(run, changed(recipe, train={"seed": 5}))
    assert train_and_report(recipe, show=Progress()).report.is_file()
    monkeypatch.undo()
    assert not pipeline._goes_on(run, recipe), "the demo replaces one that has ended"
    with pytest.raises(RunError, match="has ended"):
        train_and_report(recipe, show=Progress())
