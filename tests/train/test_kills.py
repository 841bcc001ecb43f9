"""kill −9 at random moments, again and again: the run ends as if nothing had happened. And what a kill between any two writes leaves."""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from likelier.recipe import load_recipe
from likelier.rundir import RunDir
from likelier.train import checkpoint
from likelier.train.folder import check_folder
from likelier.train.session import train_recipe
from tests.train.children import ended, keep_checkpoints, said, start, step_saved, wait_for
from tests.train.conftest import changed


def being_written(run: RunDir) -> list[Path]:
    """Checkpoints that have not got their names yet."""
    return list(run.checkpoints.glob(".*"))


def tensors(run: RunDir) -> dict[str, torch.Tensor]:
    """All that a run saved: the model's weights, and of its last checkpoint weights, optimizer and best weights."""
    files = [*run.model.glob("*.safetensors"), *(run.path / "kept").glob("*/*.safetensors")]
    return {f"{file.relative_to(run.path)}: {name}": value for file in files for name, value in load_file(file).items()}


def rows(run: RunDir) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.read_metrics()]


def kill_and_compare(recipe, kills: int, seed: int) -> Counter[str]:
    """Kill a run so often, then let it end; it must be the unbroken run, bit for bit. Returns where the kills hit."""
    whole, run, moments = RunDir(recipe.out + "-whole"), RunDir(recipe.out), random.Random(seed)
    began = time.perf_counter()
    child = start(changed(recipe, out=str(whole.path)), before=keep_checkpoints)
    wait_for(lambda: step_saved(whole), child)
    training = time.perf_counter()
    assert ended(child) == 0
    steps = whole.read_manifest()["outcome"]["steps"]
    to_start, to_step = training - began, (time.perf_counter() - training) / steps

    hits: Counter[str] = Counter()
    for _ in range(kills):
        at = step_saved(run)
        wanted = at + moments.randint(1, steps // kills - 2)
        child = start(recipe, before=partial(keep_checkpoints, run.checkpoints / f"step-{wanted + 2:06d}"))
        if moments.random() < 0.3:
            time.sleep(moments.uniform(0, min(1, to_start)))
        else:
            wait_for(lambda wanted=wanted: step_saved(run) >= wanted, child)
            if moments.random() < 0.5:
                time.sleep(moments.uniform(0, to_step))
            else:
                wait_for(lambda: being_written(run), child)
        assert child.is_alive(), "the run ended before it could be killed"
        child.kill()
        assert ended(child) == -9
        assert not run.model.exists()
        hits["while a checkpoint was written" if being_written(run) else "between steps" if step_saved(run) > at else "before its first step"] += 1
    assert ended(start(recipe, before=keep_checkpoints)) == 0

    ours, theirs = tensors(run), tensors(whole)
    assert {name.split("/")[0] for name in ours} == {"model", "kept"}
    assert any("optimizer" in name for name in ours)
    assert any("best-" in name for name in ours)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []
    assert rows(run) == rows(whole)
    assert [row["step"] for row in run.read_metrics("train")] == list(range(1, steps + 1))
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]
    return hits


def many_checkpoints(recipe, method: str, steps: int):
    return changed(recipe, train={"method": method, "epochs": 15, "max_steps": steps, "checkpoint_every": 1, "eval_every": 3, "learning_rate": 3e-4})


def test_three_kills_leave_no_trace(recipe):
    hits = kill_and_compare(many_checkpoints(recipe, "full", steps=12), kills=3, seed=1)
    assert sum(hits.values()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_ten_kills_leave_no_trace(recipe, method):
    hits = kill_and_compare(many_checkpoints(recipe, method, steps=100), kills=10, seed=7)
    print(f"\n{method}: ten kills, {dict(hits)}")
    assert hits["while a checkpoint was written"] > 0


# A kill between any two changes of the disk


def die_before_change(folder: str, number: int, log: str) -> None:
    """Have this process killed before it makes change `number` in a folder, and list in `log` the changes that it comes to. Python tells of each."""
    listed, come_to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), itertools.count(1)

    def changes(event: str, arguments: tuple) -> bool:
        within = str(arguments[0]).startswith(folder + os.sep) if arguments else False
        if event == "open":
            return within and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if event in ("os.remove", "os.rmdir"):  # a file of a folder that is being removed has a relative name
            return within or not str(arguments[0]).startswith(os.sep)
        return within and event in ("os.rename", "os.mkdir", "shutil.rmtree")

    def hook(event: str, arguments: tuple) -> None:
        if changes(event, arguments):
            os.write(listed, f"{event} {arguments[0]}\n".encode())
            if next(come_to) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed_before_change(recipe, number: int, *options: str) -> int:
    """Run it until that change, which it may not come to. Returns the exit code."""
    return ended(start(recipe, *options, before=partial(die_before_change, recipe.out, number, f"{recipe.out}.changes")))


def kill_before_changes(recipe, choose) -> None:
    """Kill one run before each of the changes that `choose` takes of all; each goes on and ends as the whole one did."""
    recipe = changed(recipe, train={"method": "full", "max_steps": 5, "eval_every": 1, "checkpoint_every": 2})
    whole = changed(recipe, out=recipe.out + "-whole")
    assert killed_before_change(whole, 0) == 0
    numbers = range(1, 1 + len(Path(f"{whole.out}.changes").read_text().splitlines()))
    assert len(numbers) > 50
    for number in choose(numbers):
        ours = changed(recipe, out=f"{recipe.out}-{number}")
        assert killed_before_change(ours, number) == -signal.SIGKILL
        last = Path(f"{ours.out}.changes").read_text().splitlines()[-1]
        has_ended = RunDir(ours.out).manifest.is_file() and RunDir(ours.out).read_manifest()["outcome"]
        assert ended(start(ours)) == (2 if has_ended else 0), f"{last}: {said(ours)}"
        assert_same(RunDir(ours.out), RunDir(whole.out), last)


def assert_same(run: RunDir, truth: RunDir, where: str = "") -> None:
    ours, theirs = tensors(run), tensors(truth)
    assert ours.keys() == theirs.keys(), where
    assert all(ours[name].equal(theirs[name]) for name in ours), where
    assert rows(run) == rows(truth), where
    assert not list(run.unfinished()), where


def test_a_kill_before_some_changes_of_the_disk(recipe):
    kill_before_changes(recipe, lambda numbers: random.Random(3).sample(numbers, 3))


@pytest.mark.slow
def test_a_kill_before_each_change_of_the_disk(recipe):
    kill_before_changes(recipe, lambda numbers: numbers)


@pytest.mark.slow
def test_a_kill_before_each_change_by_a_run_that_replaces_another(recipe):
    """What is left of the older run must never go on as the new one, nor as itself with parts missing."""
    recipe = changed(recipe, train={"max_steps": 4})
    older, whole = changed(recipe, train={"seed": 5}), changed(recipe, out=recipe.out + "-whole")
    assert ended(start(whole)) == 0
    assert killed_before_change(older, 40) == -signal.SIGKILL
    for number in itertools.count(1):
        ours = changed(recipe, out=f"{recipe.out}-{number}")
        shutil.copytree(older.out, ours.out)
        if killed_before_change(ours, number, "--fresh") == 0:
            break
        if number % 2 and RunDir(ours.out).recipe.is_file():  # without --fresh it goes on if it is the new one, else it is refused
            code = ended(start(ours))
            assert (code == 0) == (load_recipe(RunDir(ours.out).recipe).train.seed == recipe.train.seed) or "has ended" in said(ours)
        if not (RunDir(ours.out).model).exists():
            assert ended(start(ours, "--fresh")) == 0, said(ours)
        assert_same(RunDir(ours.out), RunDir(whole.out))
    assert number > 40


# The same by hand, where it once went wrong


@pytest.fixture
def short(recipe):
    return changed(recipe, train={"max_steps": 6, "eval_every": 1, "checkpoint_every": 4})


def test_a_folder_in_which_a_run_was_hardly_begun_is_still_its_own(short):
    for name in (".lock", ".recipe.yaml.x1y2"):
        run = RunDir(short.out)
        run.path.mkdir(exist_ok=True)
        (run.path / name).write_text("")
        check_folder(run, short, fresh=False)
    run.recipe.write_text(short.to_yaml())
    run.checkpoints.mkdir()
    (run.checkpoints / "step-000004").mkdir()  # of a run whose manifest somebody had removed
    assert train_recipe(short).read_manifest()["outcome"]["steps"] == 6
    assert not list(run.path.glob(".*"))


def test_a_best_later_than_the_checkpoint_does_not_replace_the_one_that_it_names(short, monkeypatch):
    """On a device whose sums vary the resumed run may not find the later one again: then the earlier is still there."""
    seen = []

    def watched(run, row):
        append(run, row)
        if row["kind"] == "train" and row["step"] == 6:
            named = json.loads((run.checkpoints / "step-000004" / "state.json").read_text())["best"]["step"]
            seen.append((f"best-{named:06d}", {path.name for path in run.checkpoints.iterdir()}))
            checkpoint.sweep(run.checkpoints)
            seen.append({path.name for path in run.checkpoints.iterdir()})
            raise KeyboardInterrupt

    append = RunDir.append_metrics
    monkeypatch.setattr(RunDir, "append_metrics", watched)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(changed(short, train={"learning_rate": 2e-3}))
    (named, before), after = seen
    assert before == {"step-000004", named, "best-000005"}
    assert named != "best-000005"
    assert after == {"step-000004", named}


def test_the_millionth_checkpoint_is_later_than_the_one_before(tmp_path):
    for step in ("step-999999", "step-1000000"):
        (tmp_path / step).mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-1000000"
