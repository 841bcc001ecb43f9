"""Whole runs on a tiny model: what they write, what they refuse, and that a kill leaves no trace in the result."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from likelier.data.chat import Encoder
from likelier.errors import ModelError, RecipeError, RunError, TrainingStopped
from likelier.evaluate import answers, evaluate
from likelier.logprobs import scorer as scorer_module
from likelier.models import add_adapter
from likelier.objectives import TABLE
from likelier.recipe import load_recipe
from likelier.report import write_report
from likelier.rundir import RunDir
from likelier.train import checkpoint, session
from likelier.train.master import MasterWeights
from likelier.train.progress import Progress
from likelier.train.session import train_recipe
from tests.train.conftest import changed, interrupted

METHODS = ["lora", "full"]


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (run.model / "adapter_model.safetensors").exists() else "model.safetensors"
    return load_file(run.model / name)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_leaves_what_rundir_promises(recipe, method):
    run = train_recipe(changed(recipe, train={"method": method}))
    rows = run.read_metrics("train")
    outcome = run.read_manifest()["outcome"]
    assert [row["step"] for row in rows] == list(range(1, outcome["steps"] + 1))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert outcome["first_loss"] == rows[0]["loss"]
    assert outcome["first_loss_expected"] == pytest.approx(math.log(2))
    evaluations = run.read_metrics("eval")
    assert evaluations[-1]["loss"] < 0.6
    assert evaluations[-1]["accuracy"] > 0.8
    assert outcome["best_accuracy"] == max(row["accuracy"] for row in evaluations)
    assert run.read_manifest()["reference"]["unchanged"] is True
    assert not run.checkpoints.exists()
    assert "library_name: " in (run.model / "README.md").read_text()
    assert [row["kind"] for row in run.read_metrics()][:2] == ["run", "train"]
    assert not list(run.model.glob("*.bin"))


def test_the_data_sets_id_stands_wherever_a_result_goes(recipe):
    run = train_recipe(changed(recipe, train={"max_steps": 2}))
    manifest = run.read_manifest()
    dataset, held_out = manifest["data"]["train"]["id"], manifest["data"]["eval"]["id"]
    names = {"likelier.dataset": dataset, "likelier.recipe": recipe_fingerprint(run), "likelier.base": manifest["model"]["weights"]}
    with safe_open(run.model / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **names}
    [header] = run.read_metrics("run")
    assert (header["dataset"], header["held_out"]) == (dataset, held_out)
    for text in (run.model / "README.md", write_report(run)):
        assert all(name in text.read_text() for name in (*names.values(), held_out))


def recipe_fingerprint(run: RunDir) -> str:
    return load_recipe(run.recipe).fingerprint()


def test_the_best_weights_are_those_saved(recipe):
    run = train_recipe(changed(recipe, train={"learning_rate": 3e-3}))
    best = min(run.read_metrics("eval"), key=lambda row: (-row["accuracy"], row["loss"]))
    assert run.read_manifest()["outcome"]["best_step"] == best["step"]


def test_early_stopping(recipe):
    run = train_recipe(changed(recipe, train={"patience": 2, "eval_every": 1, "epochs": 30, "learning_rate": 2e-3}))
    outcome = run.read_manifest()["outcome"]
    assert outcome["stopped"].startswith("early stop")
    rows = run.read_metrics("eval")
    assert len(rows) < 100
    assert max(row["accuracy"] for row in rows[-2:]) <= max(row["accuracy"] for row in rows[:-2])


def test_a_second_run_with_another_beta_and_rate_scores_no_reference(recipe):
    """Pitfall 15."""
    first = train_recipe(recipe)
    second = train_recipe(changed(recipe, objective={"beta": 0.4}, train={"learning_rate": 1e-4, "seed": 3}, out=recipe.out + "-2"))
    assert first.read_manifest()["reference"]["computed"] > 0
    assert second.read_manifest()["reference"]["computed"] == 0
    assert second.read_manifest()["reference"]["reused"] == first.read_manifest()["reference"]["computed"]


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_records_are_tokenised_once_for_all_runs_and_again_where_the_cache_is_damaged(recipe, tmp_path, monkeypatch):
    first = session.prepare(recipe, Said())
    tokenised, work = [], Encoder._tokenized
    monkeypatch.setattr(Encoder, "_tokenized", lambda self, turns, prompts: tokenised.append(len(turns)) or work(self, turns, prompts))
    show = Said()
    second = session.prepare(changed(recipe, objective={"beta": 0.4}, out=recipe.out + "-2"), show)
    assert tokenised == []
    assert (second.train.examples, second.held_out.examples) == (first.train.examples, first.held_out.examples)
    damaged, *_ = (tmp_path / "cache" / "tokens").rglob("*.ids")
    damaged.write_bytes(b"damage")
    third = session.prepare(recipe, show)
    assert len(tokenised) == 1
    assert [line for line in show.lines if "damaged" in line] == [
        f"{damaged}: this kept file was damaged and is set aside; what it held is computed again."
    ]
    assert (third.train.examples, third.held_out.examples) == (first.train.examples, first.held_out.examples)


@pytest.mark.parametrize("method", METHODS)
def test_the_evaluation_finds_what_training_scored_and_tokenised(recipe, monkeypatch, method):
    run = train_recipe(changed(recipe, train={"method": method, "max_steps": 1}, eval={"probes": False}))
    computed, fill = [], answers.fill
    monkeypatch.setattr(answers, "fill", lambda *arguments, **options: computed.append(fill(*arguments, **options)))
    tokenised, work = [], Encoder._tokenized
    monkeypatch.setattr(Encoder, "_tokenized", lambda self, turns, prompts: tokenised.append(len(turns)) or work(self, turns, prompts))
    evaluate(run)
    assert computed == [0]
    assert tokenised == []


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if not row.needs_reference])
def test_an_objective_without_reference_scores_none_and_opens_no_store(recipe, tmp_path, monkeypatch, name):
    def refuse(*_, **__):
        raise AssertionError("a reference was asked for")

    for what in ("as_reference", "fill_together", "open_store", "ReferenceStore"):
        monkeypatch.setattr(session, what, refuse)
    run = train_recipe(changed(recipe, objective={"name": name}, train={"max_steps": 2}))
    assert run.read_manifest()["reference"] is None
    assert run.read_manifest()["outcome"]["first_loss_expected"] is None
    assert not (tmp_path / "cache" / "reference").exists()


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.needs_reference])
def test_a_run_of_any_objective_begins_where_the_objective_says(recipe, name):
    """The first loss is that of a policy at its reference."""
    run = train_recipe(
        changed(recipe, objective={"name": name}, train={"max_steps": 3, "tokens_per_batch": 4096, "schedule": "constant", "warmup": 0})
    )
    outcome = run.read_manifest()["outcome"]
    assert outcome["first_loss"] == pytest.approx(outcome["first_loss_expected"], rel=1e-4)
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in run.read_metrics("train"))


def test_a_step_that_must_not_be_cut_is_refused_before_the_run_leaves_a_trace(recipe, tmp_path):
    """Pitfall 8: sums over the batches of a step would be the gradient of another loss."""
    for name in ("aot", "aot-pair", "beta-dpo"):
        with pytest.raises(
            RecipeError, match=r"train.tokens_per_batch: this objective compares all pairs .* 4 pairs .* Raise train.tokens_per_batch"
        ):
            train_recipe(changed(recipe, objective={"name": name}, train={"tokens_per_batch": 60}))
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "cache" / "reference").exists()


@pytest.mark.parametrize("method, precision", [*((method, "fp32") for method in METHODS), ("full", "bf16")])
def test_kill_and_resume_gives_the_same_bits(recipe, method, precision, tmp_path):
    """Pitfall 20: kill −9 in the middle, resume, and compare with the unbroken run, bit for bit."""
    recipe = changed(recipe, train={"method": method, "precision": precision, "epochs": 3})
    whole = train_recipe(changed(recipe, out=str(tmp_path / "whole")))
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    run = RunDir(recipe.out)
    code = (
        "import torch, sys, time; torch.set_num_threads(1)\n"
        "from likelier.recipe import load_recipe; from likelier.train.session import train_recipe; from likelier.train.progress import Progress\n"
        "class Waiting(Progress):\n    def logged(self, row): time.sleep(600 if row['kind'] == 'train' and row['step'] == int(sys.argv[2]) else 0)\n"
        "train_recipe(load_recipe(sys.argv[1]), show=Waiting())"
    )
    for kill_after in (5, 11):
        child = subprocess.Popen([sys.executable, "-c", code, str(path), str(kill_after)], env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
        while child.poll() is None and len(run.read_metrics("train")) < kill_after:
            time.sleep(0.02)
        assert child.poll() is None, "the run ended before it could be killed"
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (run.model).exists()
    train_recipe(recipe)
    assert same_bits(weights(run), weights(whole))
    same = ("kind", "step", "loss", "margin", "accuracy", "chosen_logp")
    assert [{k: row.get(k) for k in same} for row in run.read_metrics()] == [{k: row.get(k) for k in same} for row in whole.read_metrics()]
    assert run.read_metrics("run") == whole.read_metrics("run")


def test_a_checkpoint_of_another_recipe_is_refused(recipe, monkeypatch):
    interrupted(recipe, monkeypatch, after=1)
    with pytest.raises(RunError, match=r"another recipe \(objective.beta\)"):
        train_recipe(changed(recipe, objective={"beta": 0.3}))
    train_recipe(changed(recipe, objective={"beta": 0.3}), fresh=True)


def test_changed_data_is_refused_on_resume(recipe, monkeypatch):
    interrupted(recipe, monkeypatch, after=1)
    with Path(recipe.data.train[0]).open("a") as file:
        file.write(json.dumps({"prompt": "One more?", "chosen": "Yes.", "rejected": "No."}) + "\n")
    with pytest.raises(RunError, match="the data are no longer those"):
        train_recipe(recipe)


def test_a_finished_run_and_a_foreign_folder_are_refused(recipe, tmp_path):
    train_recipe(recipe)
    with pytest.raises(RunError, match="has ended"):
        train_recipe(recipe)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="no run directory"):
        train_recipe(changed(recipe, out=str(tmp_path / "mine")))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_does_not_overwrite_what_it_begins_with(recipe, fresh):
    first = train_recipe(changed(recipe, train={"max_steps": 1}))
    for name, again in (
        ("adapter.start", changed(recipe, adapter={"start": str(first.model)})),
        ("model.name", changed(recipe, model={"name": str(first.model)}, train={"method": "full"})),
    ):
        with pytest.raises(RunError, match=f"{name} is the model in this folder"):
            train_recipe(again, fresh=fresh)
    assert weights(first)


def test_a_full_disk_leaves_earlier_checkpoints_whole(recipe, monkeypatch):
    real, calls = checkpoint.save_file, []

    def full_disk(tensors, path):
        calls.append(path)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(RunError, match=r"could not be written .*No space left"):
        train_recipe(recipe)
    run = RunDir(recipe.out)
    assert checkpoint.latest(run.checkpoints) is not None
    assert not list(run.checkpoints.glob(".*"))
    monkeypatch.undo()
    monkeypatch.setenv("LIKELIER_CACHE", str(run.path.parent / "cache"))
    train_recipe(recipe)


def test_a_policy_that_is_not_its_reference_is_stopped(recipe, monkeypatch):
    """The first loss is log 2 or the run stops: here the adapter does not start at zero."""

    def noisy(model, settings, *, seed):
        adapted = add_adapter(model, settings, seed=seed)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2)
        return adapted

    monkeypatch.setattr(session, "add_adapter", noisy)
    with pytest.raises(TrainingStopped, match=r"must be 0\.6931"):
        train_recipe(recipe)
    assert not RunDir(recipe.out).model.exists()


def test_a_moved_reference_is_noticed(recipe, monkeypatch):
    """The base under the adapter must be at the end what it was at the start."""
    fit = session.fit

    def tampering_fit(policy, *arguments, **options):
        result = fit(policy, *arguments, **options)
        next(p for n, p in policy.model.named_parameters() if "lora_" not in n).data += 1e-3
        return result

    monkeypatch.setattr(session, "fit", tampering_fit)
    with pytest.raises(TrainingStopped, match="the reference changed"):
        train_recipe(recipe)


@pytest.mark.parametrize("allowed", [0, 2])
def test_too_many_values_that_are_not_finite_stop_the_run(recipe, allowed):
    train = {"learning_rate": 1e30, "warmup": 0.0, "epochs": 20, "method": "full", "max_skipped_steps": allowed}
    with pytest.raises(TrainingStopped, match=r"The weights were not changed by it. .*pair-"):
        train_recipe(changed(recipe, train=train))
    assert len(RunDir(recipe.out).read_metrics("skipped")) == allowed + 1


@pytest.mark.parametrize("method, precision, begins_with", [("full", "bf16", "originals"), ("full", "fp32", None), ("lora", "bf16", None)])
def test_full_fine_tuning_in_bf16_begins_with_the_weights_as_they_are_on_disk(recipe, method, precision, begins_with, monkeypatch):
    given = []

    begin = MasterWeights.__init__

    def watched(self, model, originals=None):
        given.append(originals and {name: weight.clone() for name, weight in originals.items()})
        begin(self, model, originals)

    monkeypatch.setattr(MasterWeights, "__init__", watched)
    run = train_recipe(changed(recipe, train={"method": method, "precision": precision, "epochs": 1}))
    assert run.read_manifest()["reference"]["unchanged"] is True
    assert (given[0] is not None) == (begins_with == "originals")
    if begins_with:
        on_disk = load_file(Path(recipe.model.name) / "model.safetensors")
        assert all(given[0][name].equal(value) and given[0][name].dtype == torch.float32 for name, value in on_disk.items())


def test_no_room_for_one_sequence_of_the_reference_is_one_clear_error(recipe, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(scorer_module.Scorer, "token_logps", full)
    monkeypatch.setattr(session, "choose_engine", lambda *a, **k: scorer_module.Parity("nodes", 0.0))
    with pytest.raises(ModelError, match="not enough memory to score one sequence"):
        train_recipe(recipe)


def test_a_run_that_found_no_memory_says_what_takes_less_and_goes_on_with_that(recipe, monkeypatch):
    """What fails is a real allocation, of a petabyte, in the third step."""
    truth = train_recipe(changed(recipe, out=recipe.out + "-truth"))
    collect, calls = MasterWeights.collect_gradients, []

    def greedy(self):
        calls.append(1)
        collect(self) if len(calls) < 3 else torch.empty(2**50)

    monkeypatch.setattr(MasterWeights, "collect_gradients", greedy)
    with pytest.raises(RunError, match=r"not enough memory to train.*train.tokens_per_batch \(here 1024\).*gradient_checkpointing"):
        train_recipe(recipe)
    monkeypatch.setattr(MasterWeights, "collect_gradients", collect)
    run = train_recipe(changed(recipe, train={"tokens_per_batch": 100}))
    assert run.read_manifest()["outcome"]["steps"] == truth.read_manifest()["outcome"]["steps"]
    assert len(run.read_metrics("train")) == run.read_manifest()["outcome"]["steps"]


def test_other_errors_of_the_runtime_are_not_called_a_lack_of_memory(recipe, monkeypatch):
    def broken(self):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(MasterWeights, "collect_gradients", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train_recipe(recipe)


def test_gradient_checkpointing_changes_nothing(recipe):
    plain = train_recipe(recipe)
    for how in (True, "selective"):
        frugal = train_recipe(changed(recipe, train={"gradient_checkpointing": how}, out=f"{recipe.out}-{how}"))
        for a, b in zip(plain.read_metrics("train"), frugal.read_metrics("train"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
