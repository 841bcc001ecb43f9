"""Every way to train, on a tiny model: it learns, a kill leaves no trace in the result, and what it saves loads without Likelier."""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from likelier.logprobs.plain import plain_token_logps
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.models import load_trained
from likelier.recipe import Recipe
from likelier.rundir import RunDir
from likelier.train import checkpoint
from likelier.train.session import train_recipe
from tests.conftest import built_model
from tests.train.conftest import changed

SEQUENCES = [PromptResponse(tuple(range(5, 30)), tuple(range(first, first + 9))) for first in (60, 90)]
STEPS = 6


@dataclass(frozen=True)
class Way:
    train: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)


WAYS = {
    "dora": Way(adapter={"dora": True}),
    "rslora": Way(adapter={"rslora": True}),
    "head": Way(adapter={"targets": "q_proj, lm_head"}),
    "start": Way(adapter={"start": "plain"}),
    "start-dora": Way(adapter={"start": "dora"}),
    "qlora": Way({"method": "qlora"}),
    "qlora-bf16": Way({"method": "qlora", "precision": "bf16", "gradient_checkpointing": True}),
    "qlora-dora-start": Way({"method": "qlora"}, {"start": "dora"}),
    "8bit-lora": Way({"optimizer": "adamw-8bit"}, {"rank": 128}),
    "8bit-masters": Way({"method": "full", "precision": "bf16", "optimizer": "adamw-8bit"}),
    "rounded": Way({"method": "full", "precision": "bf16", "bf16_weights": "stochastic-rounding"}),
    "rounded-8bit": Way(
        {"method": "full", "precision": "bf16", "bf16_weights": "stochastic-rounding", "optimizer": "adamw-8bit", "gradient_checkpointing": True}
    ),
}


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


def interrupted(recipe: Recipe, monkeypatch) -> None:
    """Run until the first checkpoint is on disk."""
    save = checkpoint.save

    def save_and_die(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe)


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
