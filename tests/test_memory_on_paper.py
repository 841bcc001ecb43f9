"""benchmarks/memory_on_paper.py: models without values take what real ones do, and a table says which runs fit."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from likelier.models import load_model
from likelier.recipe import ModelSettings, TrainSettings
from likelier.train.memory import weights_bytes
from tests.conftest import built_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import memory_on_paper

SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 8}


def test_weights_on_paper_take_what_real_ones_take(tmp_path):
    """The packed ones, too, as bitsandbytes really packs them."""
    LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=8, bos_token_id=None, eos_token_id=2)).save_pretrained(tmp_path)
    built_tokenizer().save_pretrained(tmp_path)
    for method in ("full", "qlora"):
        settings = ModelSettings(name=str(tmp_path))
        real = load_model(settings, dtype=torch.bfloat16, device=torch.device("cpu"), in_four_bits=method == "qlora").model
        paper = memory_on_paper.on_paper(SIZES, method)
        adapter = 4 * sum(parameter.numel() for name, parameter in paper.named_parameters() if "lora" in name)
        assert weights_bytes(paper) - adapter == weights_bytes(real)


def test_each_run_has_a_row_and_what_does_not_fit_stands_in_brackets(monkeypatch, capsys):
    monkeypatch.setattr(memory_on_paper, "RUNS", [(name, SIZES, settings) for name, _, settings in memory_on_paper.RUNS])
    monkeypatch.setattr("sys.argv", ["memory_on_paper.py", "--tokens", "60", "--gib", "0.0018"])
    memory_on_paper.main()
    said, _, names, _, *table = capsys.readouterr().out.splitlines()
    assert said == "GB for 60 tokens a batch; (…) is more than 0.0018 GiB = 0 GB"
    assert names == "| | held | `false` | `selective` | `true` | `offload` |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in table] == [name for name, *_ in memory_on_paper.RUNS]
    assert all("(0.0)" in line for line in table[:2])
    assert "(0.0)" not in table[-1].split(" | ")[-1]


def test_the_sums_are_those_of_the_plan():
    """Of a full run with masters 18 bytes a weight are held from step to step, of which 2 stand there while gradients are added up."""
    model = memory_on_paper.on_paper(SIZES, "full")
    parts = memory_on_paper.parts_of(model, TrainSettings(method="full", precision="bf16"), 60)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert sum(part.bytes for part in parts if part.name in memory_on_paper.HELD) == (18 + 2) * weights
    assert {part.name for part in parts} == {*memory_on_paper.HELD, "activations", "head"}


@pytest.mark.parametrize("name, count", [("LLAMA_8B", 8_030_261_248), ("LLAMA_70B", 70_553_706_496)])
def test_the_models_have_as_many_weights_as_the_published_ones(name, count):
    sizes = getattr(memory_on_paper, name)
    width, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    head = width // sizes["num_attention_heads"]
    layer = 2 * width * width + 2 * width * 8 * head + 3 * width * inner + 2 * width
    assert 2 * sizes["vocab_size"] * width + layers * layer + width == count
