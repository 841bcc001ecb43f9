"""Adapters of every kind on tiny models: what is theirs, what the reference is, and which folders are refused."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from likelier.adapters import described, start_files
from likelier.errors import ModelError
from likelier.four_bits import quantisation
from likelier.models import (
    add_adapter,
    as_reference,
    base_fingerprint,
    count_parameters,
    fingerprint,
    load_model,
    load_trained,
    save_trained,
    trainable,
    weights_dtype,
)
from likelier.recipe import AdapterSettings, ModelSettings
from likelier.recompute import recompute_activations
from tests.conftest import built_model, built_tokenizer

IDS = torch.tensor([[3, 61, 40, 71, 50, 90, 22, 63]])
CPU = torch.device("cpu")


def model():
    return copy.deepcopy(built_model())


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@torch.no_grad()
def move(model):
    for parameter in trainable(model).values():
        parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    built_model().save_pretrained(folder)
    built_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(params=["lora", "dora"])
def start(request, tmp_path) -> Path:
    """An adapter as PEFT writes it, off zero."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], use_dora=request.param == "dora")
    made = get_peft_model(model(), config)
    move(made)
    made.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def lora(tmp_path) -> Path:
    made = get_peft_model(model(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
    made.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("settings", [{"dora": True}, {"rslora": True}, {"dora": True, "rslora": True}, {"targets": "embed_tokens, lm_head"}])
def test_a_fresh_adapter_of_any_kind_changes_nothing_and_the_bases_fingerprint_ignores_it(settings):
    adapted = add_adapter(model(), AdapterSettings(rank=4, **settings), seed=0)
    assert torch.allclose(logits(adapted), logits(model()), atol=1e-5)
    assert fingerprint(adapted) == base_fingerprint(adapted) == fingerprint(model())
    assert count_parameters(adapted) == sum(parameter.numel() for parameter in model().parameters())
    move(adapted)
    assert not torch.allclose(logits(adapted), logits(model()), atol=1e-2)
    assert fingerprint(adapted) == fingerprint(model())
    with as_reference(adapted):
        assert logits(adapted).equal(logits(model()))


def test_dora_trains_the_lengths_and_rslora_scales_by_the_root_of_the_rank():
    adapted = add_adapter(model(), AdapterSettings(rank=16, alpha=8, dora=True, rslora=True), seed=0)
    assert sum("lora_magnitude_vector" in name for name in trainable(adapted)) == 14
    assert adapted.get_base_model().model.layers[0].mlp.down_proj.scaling["default"] == 2.0
    about = described(adapted)
    assert about is not None
    assert (about.rank, about.alpha, about.dora, about.rslora) == (16, 8, True, True)
    assert set(about.targets) == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert described(model()) is None


def test_a_continued_adapter_is_policy_and_reference_and_is_saved_once(start, tmp_path):
    """Pitfall 21."""
    given = PeftModel.from_pretrained(model(), start)
    adapted = add_adapter(model(), AdapterSettings(start=str(start)), seed=0)
    assert logits(adapted).equal(logits(given))
    names = list(trainable(adapted))
    assert names
    assert all(".default" in name for name in names)
    move(adapted)
    moved = logits(adapted)
    assert not torch.allclose(moved, logits(given), atol=1e-2)
    with as_reference(adapted):
        assert logits(adapted).equal(logits(given))
        assert not trainable(adapted)
    assert logits(adapted).equal(moved)
    assert list(trainable(adapted)) == names
    save_trained(adapted, built_tokenizer(), tmp_path / "out", card="")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == ["adapter_model.safetensors"]
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == load_file(start / "adapter_model.safetensors").keys()
    assert logits(PeftModel.from_pretrained(model(), tmp_path / "out")).equal(moved)


def test_the_references_fingerprint_covers_the_adapter_it_began_with_and_not_the_trained_one(start, tmp_path):
    settings = AdapterSettings(start=str(start))
    adapted = add_adapter(model(), settings, seed=0)
    name = fingerprint(adapted)
    assert name != base_fingerprint(adapted) == fingerprint(model())
    move(adapted)
    assert fingerprint(adapted) == name
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if ".reference" in n).view(-1)[0] += 1e-3
    assert fingerprint(adapted) != name
    config = json.loads((start / "adapter_config.json").read_text())
    (start / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 16}))
    assert fingerprint(add_adapter(model(), settings, seed=0)) != name


def test_a_trained_adapter_is_read_back_with_the_one_it_began_with(start, model_folder, tmp_path):
    base = ModelSettings(name=str(model_folder))
    adapted = add_adapter(load_model(base, dtype=torch.float32, device=CPU).model, AdapterSettings(start=str(start)), seed=0)
    move(adapted)
    save_trained(adapted, built_tokenizer(), tmp_path / "out", card="")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model_folder)
    again = load_trained(tmp_path / "out", base, dtype=torch.float32, device=CPU, start=str(start)).model
    assert fingerprint(again) == fingerprint(adapted)
    assert logits(again).equal(logits(adapted))
    with as_reference(again):
        assert logits(again).equal(logits(PeftModel.from_pretrained(model(), start)))
    assert not trainable(again)
    halves = load_trained(tmp_path / "out", base, dtype=torch.bfloat16, device=CPU, start=str(start)).model
    assert {p.dtype for n, p in halves.named_parameters() if ".reference" in n} == {torch.float32}


def test_a_start_that_says_something_else_than_the_recipe_is_refused(lora):
    for setting, value in {"rank": 8, "alpha": 9.0, "targets": "v_proj", "dora": True, "rslora": True}.items():
        with pytest.raises(ModelError, match=rf"adapter.{setting}: .*but the adapter in .* has .*Leave it out"):
            add_adapter(model(), AdapterSettings(start=str(lora), **{setting: value}), seed=0)
    add_adapter(model(), AdapterSettings(start=str(lora), rank=4, alpha=8, targets="q_proj"), seed=0)
    wide = get_peft_model(model(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    wide.save_pretrained(lora)
    add_adapter(model(), AdapterSettings(start=str(lora), targets="q_proj,down_proj"), seed=0)


def test_folders_that_cannot_be_continued_are_refused(lora, tmp_path):
    def refused(match, **config):
        folder = tmp_path / "odd"
        shutil.copytree(lora, folder, dirs_exist_ok=True)
        original = json.loads((lora / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(original | config))
        with pytest.raises(ModelError, match=match):
            add_adapter(model(), AdapterSettings(start=str(folder)), seed=0)

    refused("type IA3", peft_type="IA3")
    refused("whole modules of its own", modules_to_save=["lm_head"])
    refused("biases of its own", bias="all")
    refused(r"weights taken out of the base \(pissa\)", init_lora_weights="pissa")
    refused(r"does not fit `.*` \(.*size mismatch", r=8)
    refused(r"4 of its weights have no counterpart", target_modules=["q_proj", "v_proj"], layers_to_transform=[0])
    with pytest.raises(ModelError, match=r"there is no adapter_model.safetensors in it"):
        start_files(str(tmp_path))
    weights = load_file(lora / "adapter_model.safetensors")
    torch.save(weights, lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"there is no adapter_model.safetensors in it.*held as safetensors"):
        add_adapter(model(), AdapterSettings(start=str(lora)), seed=0)
    del weights[min(weights)]
    save_file(weights, lora / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="1 of its weights have no counterpart"):
        add_adapter(model(), AdapterSettings(start=str(lora)), seed=0)


def test_a_base_in_four_bits_is_counted_and_named_by_what_it_stands_for(model_folder):
    def four_bits():
        return load_model(ModelSettings(name=str(model_folder)), dtype=torch.float32, device=CPU, in_four_bits=True).model

    packed = four_bits()
    assert sum(parameter.numel() for parameter in packed.parameters()) < count_parameters(packed) == count_parameters(model())
    assert quantisation(model()) is None
    assert "nf4 in blocks of 64, scales in 8 bits in blocks of 256, bitsandbytes" in str(quantisation(packed))
    assert weights_dtype(packed) == torch.float32
    name = fingerprint(packed)
    assert name == fingerprint(four_bits()) != fingerprint(model())
    logits(packed)
    assert fingerprint(packed) == name, "scoring packs nothing anew"
    adapted = add_adapter(packed, AdapterSettings(rank=4), seed=0)
    assert fingerprint(adapted) == name
    assert count_parameters(adapted) == count_parameters(model())
    weight = adapted.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight
    for tensor in (weight.data, weight.quant_state.absmax, weight.quant_state.state2.absmax):
        kept = tensor.clone()
        tensor.view(-1)[0] += 1
        assert fingerprint(adapted) != name
        tensor.copy_(kept)
    assert fingerprint(adapted) == name


def test_without_bitsandbytes_the_error_says_what_to_install(model_folder, monkeypatch):
    monkeypatch.setattr("likelier.four_bits.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'likelier\[qlora\]'"):
        load_model(ModelSettings(name=str(model_folder)), dtype=torch.float32, device=CPU, in_four_bits=True)


@pytest.mark.parametrize("kind", ["dora", "start", "head", "four-bits", "four-bits-dora"])
def test_recomputed_activations_give_the_same_gradient(kind, lora, model_folder):
    settings = {"dora": {"dora": True}, "start": {"start": str(lora)}, "head": {"targets": "q_proj, lm_head"}, "four-bits-dora": {"dora": True}}
    found = []
    for recompute in (False, True):
        base = load_model(ModelSettings(name=str(model_folder)), dtype=torch.float32, device=CPU, in_four_bits="bits" in kind).model
        adapted = add_adapter(base, AdapterSettings(**settings.get(kind, {})), seed=0)
        move(adapted)
        if recompute:
            recompute_activations(adapted)
            adapted.train()
        adapted(IDS).logits.log_softmax(-1)[..., 7].sum().backward()
        found.append([parameter.grad for parameter in trainable(adapted).values()])
    assert all(torch.allclose(a, b, atol=1e-6) and a.abs().max() > 0 for a, b in zip(*found, strict=True))
