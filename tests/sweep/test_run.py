"""Whole sweeps with a tiny model: one reference pass, what survives a kill, what is given up, what is refused."""

import errno
import json
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from likelier.errors import DataError, RecipeError, Refused, RequestError, RunError, TrainingStopped
from likelier.logprobs import reference
from likelier.logprobs.scorer import Scorer
from likelier.rundir import RunDir, write_json, writing
from likelier.sweep import run as module
from likelier.sweep import sweep_recipe
from likelier.train import parallel
from likelier.train.progress import Progress
from tests.train.children import begin, ended, hold_after_step, hold_before_naming, wait_for
from tests.train.conftest import changed


def read(folder: Path) -> dict:
    return json.loads((folder / "sweep.json").read_text())


def tensors(folder: Path) -> dict:
    return {f"{path.relative_to(folder)}: {name}": value for path in folder.glob("*/model/*.safetensors") for name, value in load_file(path).items()}


def timeless(content: dict) -> dict:
    """What must be equal in two sweeps by the same settings."""
    return content | {"runs": [{name: value for name, value in row.items() if name != "seconds"} for row in content["runs"]]}


class Listening(Progress):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


def test_four_values_of_beta_score_the_reference_once(short, tmp_path, monkeypatch):
    """Counted where it happens: sequences that went through a model in its reference state to be kept."""
    scored: Counter = Counter()
    score_all = Scorer.score_all

    def counting(self, sequences, **options):
        for indices, values in score_all(self, sequences, **options):
            scored.update(sequences[i] for i in indices)
            yield indices, values

    def fill(store, scorer, sequences, **options):
        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "score_all", counting)
            return filled(store, scorer, sequences, **options)

    filled = reference.fill
    monkeypatch.setattr(parallel, "fill", fill)
    out, show = tmp_path / "sweep", Listening()
    sweep_recipe(short, grid={"objective.beta": [0.1]}, out=out)
    content = sweep_recipe(short, grid={"objective.beta": [0.03, 0.1, 0.3, 0.5]}, out=out, show=show)  # values can be added
    assert [text for text in show.heard if text.startswith("Run ")] == [f"Run {n} of 4: beta={beta}" for n, beta in ((2, 0.5), (3, 0.03), (4, 0.3))]
    assert len([text for text in show.heard if text.startswith("Plan: ")]) == 1, "what was said before is not said again"
    assert set(scored.values()) == {1}
    assert content["reference"] == {"computed": len(scored), "reused": 3 * len(scored)}
    assert [(row["name"], row["state"]) for row in content["runs"]] == [(f"beta={beta}", "done") for beta in (0.03, 0.1, 0.3, 0.5)]
    assert content == read(out)
    assert content["grid"] == {"objective.beta": [0.03, 0.1, 0.3, 0.5]}
    for row in content["runs"]:
        held_out = RunDir(out / row["folder"]).read_eval()["held_out"]
        assert row["accuracy"] == held_out["accuracy"]
        assert all(row[kl]["value"] == held_out[kl]["value"] for kl in ("kl", "kl_on_data"))
        assert row["steps"] == 8
    assert content["distance"] == "kl_on_data"
    distances = {row["name"]: row["kl_on_data"]["value"] for row in content["runs"]}
    assert content["frontier"] == sorted(content["frontier"], key=distances.get)
    page = (out / "sweep.html").read_text()
    assert "KL on held-out replies" in page
    assert all(f'href="beta%3D{beta}/report.html"' in page for beta in (0.03, 0.1, 0.3, 0.5))

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.parent != out}
    more = sweep_recipe(short, grid={"objective.beta": [0.03, 0.1, 0.3, 0.5]}, out=out)
    assert more == content
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished runs are not made again"

    for n, row in enumerate(content["runs"]):  # made up: the exact KL and the sampled one say the opposite
        run = RunDir(out / row["folder"])
        evaluation = run.read_eval()
        measured = {"accuracy": (0.9, 0.8, 0.95), "kl": (-n, -n - 1, -n + 1), "kl_on_data": (n + 1, n + 0.9, n + 1.1)}
        evaluation["held_out"] |= {name: dict(zip(("value", "low", "high"), ends, strict=True)) for name, ends in measured.items()}
        write_json(run.eval, evaluation | {"margins": None})
    chosen = sweep_recipe(short, grid={"objective.beta": [0.03, 0.1, 0.3, 0.5]}, out=out)["recommended"]
    assert chosen["name"] == "beta=0.03"
    assert "KL on held-out replies 1.00 nats a reply (0.90 to 1.10)" in chosen["reason"]
    del evaluation["held_out"]["kl_on_data"]
    write_json(run.eval, evaluation | {"margins": None})
    content = sweep_recipe(short, grid={"objective.beta": [0.03, 0.1, 0.3, 0.5]}, out=out)
    assert (content["distance"], content["recommended"]["name"]) == ("kl", "beta=0.5")


def test_a_sweep_killed_in_the_middle_ends_as_if_it_had_not_been(short, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(short.to_yaml())

    def start(out: Path, **options: Any):
        words = ["sweep", str(path), "--grid", "objective.beta=0.1,0.5", "--out", str(out)]
        return begin(words, f"{out}.log", **options)

    ours, whole = tmp_path / "ours", tmp_path / "whole"
    second = RunDir(ours / "beta=0.5")
    child = start(ours, before=partial(hold_before_naming, second.checkpoints / "step-000006"))
    wait_for(lambda: list(second.checkpoints.glob("step-*")), child)
    child.kill()
    assert ended(child) == -signal.SIGKILL
    assert RunDir(ours / "beta=0.1").report.is_file()
    assert not second.model.exists()
    assert [row["state"] for row in read(ours)["runs"]] == ["done", "waiting"]
    first = (ours / "beta=0.1" / "eval.json").stat().st_mtime_ns
    assert ended(start(ours)) == 0, Path(f"{ours}.log").read_text()
    assert f"{ours}/sweep.html" in Path(f"{ours}.log").read_text()
    assert ended(start(whole)) == 0
    assert (ours / "beta=0.1" / "eval.json").stat().st_mtime_ns == first
    mine, theirs = tensors(ours), tensors(whole)
    assert mine.keys() == theirs.keys()
    assert len({name.split("/")[0] for name in mine}) == 2
    assert all(mine[name].equal(theirs[name]) for name in mine)
    got, wanted = timeless(read(ours)), timeless(read(whole))
    theirs_alone = {"recipe": None, "reference": None}  # its folder, and it finds the reference in the store
    assert got | theirs_alone == wanted | theirs_alone
    assert not list(ours.rglob(".lock"))


def test_a_signal_leaves_at_a_checkpoint_and_names_the_run(short, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(short.to_yaml())
    out = tmp_path / "sweep"
    first = RunDir(out / "beta=0.1")
    words = ["sweep", str(path), "--grid", "objective.beta=0.1,0.5", "--out", str(out)]
    child = begin(words, f"{out}.log", before=partial(hold_after_step, str(first.path), 3))
    wait_for(lambda: len(first.read_metrics("train")) == 3, child)
    os.kill(child.pid, signal.SIGTERM)
    Path(f"{first.path}.go").touch()
    assert ended(child) == 128 + signal.SIGTERM
    assert "likelier: beta=0.1: stopped by SIGTERM at step 3" in Path(f"{out}.log").read_text()
    assert list(first.checkpoints.glob("step-*"))


def test_a_hopeless_run_is_given_up_with_a_checkpoint_and_goes_on_with_keep_all(short, tmp_path, monkeypatch):
    """The second run's evaluations are made to look bad; the rule itself has tests of its own."""
    monkeypatch.setattr(module, "rivals", lambda trial, trials: [object()] if trial.name == "beta=0.5" else [])
    judged = []

    def judge(rows, steps, rivals):
        judged.append((len(rows), steps))
        return "given up, as it is behind" if rivals and len(rows) == 2 else ""

    monkeypatch.setattr("likelier.sweep.hopeless.why_hopeless", judge)
    out, grid = tmp_path / "sweep", {"objective.beta": [0.1, 0.5]}
    content = sweep_recipe(short, grid=grid, out=out)
    assert judged[-3:] == [(0, 8), (1, 8), (2, 8)]
    assert [row["state"] for row in content["runs"]] == ["done", "stopped"]
    row, run = content["runs"][1], RunDir(out / "beta=0.5")
    first = RunDir(out / "beta=0.1").read_manifest()["reference"]["computed"]
    assert content["reference"] == {"computed": first, "reused": first}, "of runs that were given up, too"
    assert (row["why"], row["steps"], row["accuracy"]) == ("given up, as it is behind", 6, None)
    assert (run.checkpoints / "step-000006").is_dir()
    assert not run.model.exists()
    assert sweep_recipe(short, grid=grid, out=out) == content, "it stays given up"

    kept = sweep_recipe(short, grid=grid, out=out, keep_all=True)
    assert [row["state"] for row in kept["runs"]] == ["done", "done"]
    assert [row["step"] for row in run.read_metrics("train")] == list(range(1, 9))
    whole = sweep_recipe(short, grid={"objective.beta": [0.5]}, out=tmp_path / "whole", keep_all=True)
    ours, theirs = tensors(out), tensors(tmp_path / "whole")
    assert theirs
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert timeless(kept)["runs"][1] == timeless(whole)["runs"][0]


def test_rivals_are_finished_runs_of_the_same_pace(short, tmp_path):
    runs = [{"objective.beta": 0.1}, {"objective.beta": 0.5}, {"train.pairs_per_step": 8}, {"objective.name": "kto"}, {"train.learning_rate": 2e-3}]
    trials = module.make_trials(short, runs, tmp_path / "sweep")
    module.train_and_report(trials[0].recipe, show=Progress())
    found = [module.rivals(trial, trials) for trial in trials]
    assert [[rival.name for rival in each] for each in found] == [[], ["beta=0.1"], [], [], ["beta=0.1"]]
    [rival] = found[1]
    assert rival.prompts == RunDir(trials[0].folder).read_manifest()["data"]["eval"]["prompts"]
    assert [row["step"] for row in rival.rows] == [3, 6, 8]
    assert not rival.same_loss


def test_a_failing_run_is_noted_and_the_next_begins(short, tmp_path, monkeypatch):
    train = module.train_and_report

    def fails(recipe, **options):
        if recipe.objective.beta == 0.1:
            raise TrainingStopped("step 4: the loss is nan")
        if recipe.objective.beta == 0.2:
            raise RunError("not enough memory to train this model.")
        if recipe.objective.beta == 0.3:
            raise MemoryError
        train(recipe, **options)

    monkeypatch.setattr(module, "train_and_report", fails)
    content = sweep_recipe(short, grid={"objective.beta": [0.1, 0.2, 0.3, 0.5]}, out=tmp_path / "sweep")
    assert [row["state"] for row in content["runs"]] == ["failed", "failed", "failed", "done"]
    assert ["nan" in content["runs"][0]["why"], *("memory" in row["why"] for row in content["runs"][1:3])] == [True] * 3
    with pytest.raises(Refused, match=r"no run of this sweep ended: beta=0\.1: step 4: the loss is nan") as refusal:
        sweep_recipe(short, grid={"objective.beta": [0.1, 0.2]}, out=tmp_path / "other")
    assert refusal.value.exit_code == 1
    monkeypatch.setattr(module, "train_and_report", train)
    assert {row["state"] for row in sweep_recipe(short, grid={"objective.beta": [0.1, 0.5]}, out=tmp_path / "sweep")["runs"]} == {"done"}


def test_a_setting_with_which_there_is_no_data_is_noted_and_the_next_run_begins(short, tmp_path):
    content = sweep_recipe(short, grid={"data.max_length": [16, 1024]}, out=tmp_path / "sweep")
    assert [(row["name"], row["state"]) for row in content["runs"]] == [("max_length=16", "failed"), ("max_length=1024", "done")]
    assert "max_length" in content["runs"][0]["why"]


def test_a_full_disk_is_no_fault_of_a_setting(short, tmp_path, monkeypatch):
    begun = []

    def fails(recipe, **options):
        begun.append(recipe.objective.beta)
        with writing(Path(recipe.out)):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "train_and_report", fails)
    with pytest.raises(RunError, match="No space left"):
        sweep_recipe(short, grid={"objective.beta": [0.1, 0.5]}, out=tmp_path / "sweep")
    assert len(begun) == 1


def test_another_recipe_in_the_same_folder_is_refused_by_name(short, tmp_path):
    out, grid = tmp_path / "sweep", {"objective.beta": [0.1]}
    sweep_recipe(short, grid=grid, out=out)
    before = (out / "sweep.json").read_text()
    for other, words in (
        (changed(short, train={"seed": 5}), r"another recipe \(train\.seed.*--out"),
        (changed(short, eval={"samples": 2}), r"another recipe \(eval\.samples"),
    ):
        with pytest.raises(RunError, match=words):
            sweep_recipe(other, grid=grid, out=out)
    assert (out / "sweep.json").read_text() == before
    assert sweep_recipe(changed(short, train={"tokens_per_batch": 300}), grid=grid, out=out)["runs"][0]["state"] == "done"
    with pytest.raises(RunError, match="holds a run, not a sweep"):
        sweep_recipe(short, grid=grid, out=out / "beta=0.1")


def test_a_fault_in_the_last_run_stops_the_first(short, tmp_path):
    out = tmp_path / "sweep"
    with pytest.raises(RecipeError, match="rank"):
        sweep_recipe(short, grid={"adapter.rank": [4, 0]}, out=out)
    with pytest.raises(RecipeError, match=r"train\.bf16_weights"):
        sweep_recipe(short, grid={"train.bf16_weights": ["fp32-master", "stochastic-rounding"]}, out=out)
    with pytest.raises(RequestError, match="one of the two"):
        sweep_recipe(short, out=out)
    with pytest.raises(DataError, match=r"nothing\.jsonl: there is no such file"):
        sweep_recipe(short, grid={"data.eval": [list(short.data.eval), [str(tmp_path / "nothing.jsonl")]]}, out=out)
    assert not out.exists()


def test_one_process_at_a_time(short, tmp_path):
    with module.sole_use(RunDir(tmp_path / "sweep")):
        child = begin(["sweep", _recipe_file(short, tmp_path), "--grid", "objective.beta=0.1", "--out", str(tmp_path / "sweep")], f"{tmp_path}/log")
        assert ended(child) == 2
    assert "is at work in this folder" in Path(f"{tmp_path}/log").read_text()


def _recipe_file(recipe, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    return str(path)
