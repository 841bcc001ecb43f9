"""Every way to train, on a tiny model: it learns, a kill leaves no trace in the result, and what it saves loads without Likelier."""

import copy
import math
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from likelier.errors import ModelError, RecipeError, RunError
from likelier.evaluate import evaluate
from likelier.logprobs.plain import plain_token_logps
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.models import load_trained
from likelier.recipe import Recipe, parse_recipe
from likelier.report.summary import subtitle
from likelier.rundir import RunDir
from likelier.train.session import train_recipe
from likelier.verify import verify
from tests.conftest import built_model
from tests.train.conftest import changed, interrupted

SEQUENCES = [PromptResponse(tuple(range(5, 30)), tuple(range(first, first + 9))) for first in (60, 90)]
STEPS = 6


@dataclass(frozen=True)
class Way:
    train: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)


WAYS = {
    "dora": Way(adapter={"dora": True}),
    "rslora-head": Way(adapter={"rslora": True, "targets": "q_proj, lm_head"}),
    "start": Way(adapter={"start": "plain"}),
    "qlora": Way({"method": "qlora"}),
    "qlora-start-bf16": Way({"method": "qlora", "precision": "bf16", "gradient_checkpointing": True}, {"start": "dora"}),
    "8bit-lora": Way({"optimizer": "adamw-8bit"}, {"rank": 128}),
    "8bit-masters": Way({"method": "full", "precision": "bf16", "optimizer": "adamw-8bit", "gradient_checkpointing": "selective"}),
    "rounded": Way({"method": "full", "precision": "bf16", "bf16_weights": "stochastic-rounding"}),
    "rounded-8bit": Way({"method": "full", "precision": "bf16", "bf16_weights": "stochastic-rounding", "optimizer": "adamw-8bit"}),
}

HELD = {"8bit-masters": "bf16 with fp32 masters", "rounded": "stochastic-rounding", "rounded-8bit": "stochastic-rounding"}
"""`trained_weights` in the manifest, where they are not in fp32."""


@pytest.fixture(scope="session")
def starts(tmp_path_factory) -> Path:
    """Folders of adapters as PEFT writes them, not at zero."""
    folder = tmp_path_factory.mktemp("starts")
    for name, options in {"plain": {}, "dora": {"use_dora": True}}.items():
        torch.manual_seed(5)
        model = get_peft_model(copy.deepcopy(built_model()), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
    return folder


def recipe_of(way: Way, recipe: Recipe, starts: Path) -> Recipe:
    adapter = {**way.adapter, "start": str(starts / way.adapter["start"])} if "start" in way.adapter else way.adapter
    rate = 1e-3 if way.train.get("bf16_weights") is None else 3e-3
    return changed(recipe, adapter=adapter, train={"max_steps": STEPS, "checkpoint_every": 3, "learning_rate": rate, **way.train})


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    [file] = run.model.glob("*.safetensors")
    return load_file(file)


def plain_base(folder: Path, *, in_four_bits: bool, dtype: torch.dtype) -> Any:
    """The base by transformers and bitsandbytes alone."""
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    options = {"quantization_config": four_bits, "device_map": "cpu"} if in_four_bits else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # else fp32 is computed in bf16 where the processor can, and small layers fail
            module.support_avx512bf16_for_cpu = False
    return model


@torch.no_grad()
def logps(model, precision: str = "fp32") -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return torch.cat(plain_token_logps(model.eval(), SEQUENCES, pad_id=0))


@pytest.mark.parametrize("name", WAYS)
def test_it_learns_resumes_to_the_same_bits_and_loads_elsewhere(name, recipe, starts, model_folder, tmp_path, monkeypatch):
    recipe = recipe_of(WAYS[name], recipe, starts)
    whole = train_recipe(changed(recipe, out=str(tmp_path / "whole")))
    manifest, rows = whole.read_manifest(), whole.read_metrics("train")
    precision = manifest["numerics"]["precision"]
    assert len(rows) == STEPS
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5 if precision == "fp32" else 2e-2)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert manifest["reference"]["unchanged"] is True
    assert manifest["numerics"]["engine"] == "nodes"
    assert ("quantisation" in manifest["numerics"]) == ("bitsandbytes" in manifest["versions"] and "8bit" not in name) == ("qlora" in name)
    told, start = manifest["training"], WAYS[name].adapter.get("start")
    assert [told["method"], told["optimizer"], told["trained_weights"]] == [recipe.train.method, recipe.train.optimizer, HELD.get(name, "fp32")]
    if told["adapter"]:
        assert told["adapter"]["dora"] == (WAYS[name].adapter.get("dora", False) or start == "dora")
        assert told["adapter"]["rslora"] == WAYS[name].adapter.get("rslora", False)
        assert told["adapter"]["start"] == (recipe.adapter.start or None)
        assert told["adapter"]["rank"] == (4 if start else recipe.adapter.rank)
    card, title = (whole.model / "README.md").read_text(), subtitle(recipe, manifest)
    assert ("BitsAndBytesConfig" in card) == ("on 4 bits" in title) == (recipe.train.method == "qlora")
    assert ("A DoRA adapter" in card) == ("DoRA of rank" in title) == bool(told["adapter"] and told["adapter"]["dora"])
    assert manifest["model"]["parameters"] == sum(parameter.numel() for parameter in built_model().parameters())

    interrupted(recipe, monkeypatch)
    torch.manual_seed(1)  # what a new process would not know
    torch.rand(7)
    run = train_recipe(recipe)
    assert weights(run).keys() == weights(whole).keys()
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(run).items())

    four_bits, dtype = recipe.train.method == "qlora", torch.bfloat16 if precision == "bf16" else torch.float32
    held = {} if recipe.train.method == "full" else {"in_four_bits": four_bits, "start": recipe.adapter.start}
    ours = load_trained(run.model, recipe.model, dtype=dtype, **held).model
    if recipe.train.method == "full":
        elsewhere = AutoModelForCausalLM.from_pretrained(run.model, dtype=dtype)
    else:
        elsewhere = PeftModel.from_pretrained(plain_base(model_folder, in_four_bits=four_bits, dtype=dtype), run.model)
    tolerance = 1e-5 if precision == "fp32" else 0.05
    assert torch.allclose(logps(ours, precision), logps(elsewhere, precision), atol=tolerance)
    by_engine = torch.cat(Scorer(ours, engine="nodes", precision=precision).token_logps(SEQUENCES)).detach()
    assert torch.allclose(by_engine, logps(elsewhere, precision), atol=1e-4 if precision == "fp32" else 0.2)


@pytest.mark.parametrize("name", ["start", "qlora", "qlora-start-bf16"])
def test_what_was_before_is_the_base_with_the_adapter_that_the_run_began_with(name, recipe, starts, tmp_path, monkeypatch):
    """Pitfall 21, in evaluation and proof."""
    recipe = changed(recipe_of(WAYS[name], recipe, starts), eval={"probes": False}, train={"max_steps": 3})
    if recipe.adapter.start:
        shutil.copytree(recipe.adapter.start, tmp_path / "mine")
        recipe = changed(recipe, adapter={"start": str(tmp_path / "mine")})
    run = train_recipe(recipe)
    scored = []
    monkeypatch.setattr("likelier.evaluate.answers.fill", lambda store, scorer, sequences, **_: scored.extend(s for s in sequences if s not in store))
    result = evaluate(run)
    assert not scored, "the reference of training and the model before are one"
    assert result is not None
    assert result["held_out"]["margin"]["value"] != 0

    verdicts = {check.what: check.verdict for check in verify(run.path)}
    assert verdicts["base weights"] == "holds"
    if recipe.adapter.start:
        names = ("adapter_model.safetensors", "adapter_config.json")
        assert [verdicts[f"start adapter's {file}"] for file in names] == ["holds", "holds"]
        file = tmp_path / "mine" / names[0]
        tensors = load_file(file)
        save_file({key: value + 1e-3 for key, value in tensors.items()}, file)
        assert {check.what: check.verdict for check in verify(run.path)}[f"start adapter's {names[0]}"] == "differs"
        with pytest.raises(RunError, match="no longer has the weights that this run began with"):
            evaluate(run)
        file.unlink()
        assert {check.what: check.verdict for check in verify(run.path)}[f"start adapter's {names[0]}"] == "not checked"


def test_a_start_adapter_that_changed_is_no_ground_to_go_on_from(recipe, starts, tmp_path, monkeypatch):
    shutil.copytree(starts / "plain", tmp_path / "mine")
    recipe = changed(recipe, adapter={"start": str(tmp_path / "mine")}, train={"max_steps": STEPS, "checkpoint_every": 3})
    interrupted(recipe, monkeypatch)
    file = tmp_path / "mine" / "adapter_model.safetensors"
    save_file({key: value * 2 for key, value in load_file(file).items()}, file)
    with pytest.raises(RunError, match="the model are no longer those that this run began with"):
        train_recipe(recipe)


def test_what_makes_no_sense_is_refused_before_the_run_leaves_a_trace(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("likelier.models._cpu_flags", lambda: "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for train in ({"method": "lora", "precision": "bf16"}, {"method": "full", "precision": "fp32"}, {"method": "full", "precision": "auto"}):
        with pytest.raises(RecipeError, match=r"train.bf16_weights: stochastic-rounding is for train.method: full in bf16"):
            train_recipe(changed(recipe, train={"bf16_weights": "stochastic-rounding", **train}))
    with pytest.raises(RecipeError, match=r"adapter.start: train.method: full trains no adapter"):
        train_recipe(changed(recipe, adapter={"start": str(tmp_path)}, train={"method": "full"}))
    monkeypatch.setattr("likelier.train.session.load_model", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match=r"adapter.start: .*: there is no adapter_model.safetensors in it"):
        train_recipe(changed(recipe, adapter={"start": str(tmp_path)}))
    monkeypatch.setattr("likelier.train.ways.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'likelier\[eight-bit\]'"):
        train_recipe(changed(recipe, train={"optimizer": "adamw-8bit"}))
    assert not (tmp_path / "run").exists()


def test_the_recipes_of_the_docs_are_valid():
    blocks = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "ways-to-train.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        parse_recipe({"data": {"train": ["pairs.jsonl"]}, **yaml.safe_load(block)}, where="docs/ways-to-train.md")
