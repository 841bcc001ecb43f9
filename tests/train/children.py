"""Runs in processes of their own: forked from one that has imported everything, so that a start costs no second."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from likelier.cli import main
from likelier.recipe import Recipe
from likelier.rundir import RunDir
from likelier.train import checkpoint, session

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.train.children", "peft", "tyro", "transformers.models.llama.modeling_llama"])


def nothing() -> None:
    """Changes nothing."""


def start(recipe: Recipe, *options: str, before: Callable[[], None] = nothing) -> BaseProcess:
    """`likelier train RECIPE --no-report` in another process, which first calls `before`. What it says goes to OUT.log."""
    path = Path(f"{recipe.out}.yaml")
    path.write_text(recipe.to_yaml())
    return begin(["train", str(path), "--no-report", *options], f"{recipe.out}.log", before)


def begin(words: Sequence[str], log: str, before: Callable[[], None] = nothing) -> BaseProcess:
    """`likelier WORDS` in another process. What it says goes to `log`."""
    child = FORKS.Process(target=_command, args=(words, os.environ["LIKELIER_CACHE"], log, before))
    child.start()
    return child


def ended(child: BaseProcess) -> int:
    """Its exit code; of one that a signal ended, minus the signal's number."""
    child.join(300)
    assert child.exitcode is not None, "it hangs"
    return child.exitcode


def said(recipe: Recipe) -> str:
    return Path(f"{recipe.out}.log").read_text()


def wait_for(condition: Callable[[], object], child: BaseProcess) -> None:
    while child.is_alive() and not condition():
        time.sleep(0.002)
    assert child.is_alive(), "it ended too early"


def step_saved(run: RunDir) -> int:
    """The step of the newest checkpoint, 0 without one."""
    newest = checkpoint.latest(run.checkpoints)
    return int(newest.name.removeprefix("step-")) if newest else 0


def hold_before_naming(target: Path) -> None:
    """Whoever is to give something this name waits there for its kill: a process that is watched never gets farther."""
    rename = Path.rename

    def rename_or_wait(path: Path, name: Path) -> Path:
        while Path(name) == target:
            time.sleep(60)
        return rename(path, name)

    Path.rename = rename_or_wait


def hold_after_step(out: str, step: int) -> None:
    """The run in `out` has logged this step and waits until there is a file OUT.go."""
    append = RunDir.append_metrics

    def append_and_wait(run: RunDir, row: dict) -> None:
        append(run, row)
        while (run.path, row["kind"], row.get("step")) == (Path(out), "train", step) and not Path(f"{out}.go").exists():
            time.sleep(0.01)

    RunDir.append_metrics = append_and_wait


def keep_checkpoints(hold: Path | None = None) -> None:
    """What a run has in checkpoints/ at its end stays, in kept/. It waits for its kill before it gives a checkpoint the name `hold`."""
    if hold:
        hold_before_naming(hold)
    save = session.save_trained

    def save_and_keep(model, tokenizer, folder, **options):
        shutil.copytree(folder.parent / "checkpoints", folder.parent / "kept", dirs_exist_ok=True)
        return save(model, tokenizer, folder, **options)

    session.save_trained = save_and_keep


def _command(words: Sequence[str], cache: str, log: str, before: Callable[[], None]) -> None:
    os.environ |= {"LIKELIER_CACHE": cache, "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    with Path(log).open("wb") as file:  # written by a process that knows no limits
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, start_new_session=True)
    os.dup2(writer.stdin.fileno(), 1)
    os.dup2(writer.stdin.fileno(), 2)
    writer.stdin.close()
    before()
    code = main(words)
    sys.stdout.flush()
    os.close(1)
    os.close(2)
    writer.wait()
    os._exit(code)
