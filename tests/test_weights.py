"""Weights as files, against torch: the same fingerprint, the same numbers after a note was added."""

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from likelier import model_files, models
from likelier.errors import ModelError
from likelier.model_files import cache_dir, embedded_gguf, imported_folder, local_folder
from likelier.models import fingerprint, load_model, locate
from likelier.recipe import ModelSettings
from likelier.verify import AS_FILED
from likelier.weights import _rounded, add_notes, filed_fingerprint, read_notes
from tests.test_models import CPU, SIZES, tiny_model, tiny_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def loaded_fingerprint(folder, dtype):
    return fingerprint(load_model(ModelSettings(name=str(folder)), dtype=DTYPES[dtype], device=CPU).model)


@pytest.mark.parametrize("loaded_as", DTYPES)
@pytest.mark.parametrize("filed_as", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_files_have_the_fingerprint_of_the_model_that_they_load_as(tied, filed_as, loaded_as, tmp_path):
    folder = save(tiny_model(tie_word_embeddings=tied).to(filed_as), tmp_path / "model")
    assert filed_fingerprint(folder, loaded_as=loaded_as) == loaded_fingerprint(folder, loaded_as)


@pytest.mark.parametrize("loaded_as", DTYPES)
@pytest.mark.parametrize("kind", AS_FILED)
def test_kinds_of_models_whose_weights_are_called_alike_in_the_files(kind, loaded_as, tmp_path):
    config = AutoConfig.for_model(kind, vocab_size=261, head_dim=8, pad_token_id=0, bos_token_id=0, eos_token_id=1, **SIZES)
    folder = save(AutoModelForCausalLM.from_config(config), tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["model_type"] == kind
    assert filed_fingerprint(folder, loaded_as=loaded_as) == loaded_fingerprint(folder, loaded_as)


def test_weights_in_several_files(tmp_path):
    folder = save(tiny_model(), tmp_path / "model", max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert filed_fingerprint(folder, loaded_as="float32") == fingerprint(tiny_model())
    for broken in ("", "[]", "{}", '{"weight_map": 3}'):
        (folder / "model.safetensors.index.json").write_text(broken)
        with pytest.raises(ModelError, match="this index of weight files cannot be read"):
            filed_fingerprint(folder, loaded_as="float32")


def test_every_byte_of_the_numbers_counts(tmp_path):
    file = save(tiny_model(), tmp_path / "model") / "model.safetensors"
    content, said = bytearray(file.read_bytes()), filed_fingerprint(file.parent, loaded_as="float32")
    start = 8 + struct.unpack("<Q", content[:8])[0]
    for place in (start, (start + len(content)) // 2, len(content) - 1):
        content[place] ^= 1
        file.write_bytes(content)
        assert filed_fingerprint(file.parent, loaded_as="float32") != said
        content[place] ^= 1


def test_numbers_of_another_type_have_no_fingerprint_here(tmp_path):
    save_file({"a": torch.zeros(3, dtype=torch.int8)}, tmp_path / "model.safetensors")
    assert filed_fingerprint(tmp_path, loaded_as="float32") is None


def test_rounding_is_that_of_torch():
    draw = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=draw, dtype=torch.int64).to(torch.int32)
    ties = torch.arange(0x3F800000, 0x3F800000 + 2**20, 2**15, dtype=torch.int32)
    values = torch.cat([bits, ties]).view(torch.float32)
    values = torch.cat([values[~values.isnan()], torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3.4e38, 1e-45])])
    assert torch.from_numpy(_rounded(values.numpy())).equal(values.bfloat16().float())


def test_notes_are_added_and_the_numbers_stay(tmp_path):
    path = tmp_path / "some.safetensors"
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "empty": torch.zeros(0, 2)}
    save_file(tensors, path, metadata={"format": "pt"})
    add_notes(path, {"likelier.dataset": "ab" * 32, "é": "ü"})
    add_notes(path, {"likelier.dataset": "cd" * 32})
    assert read_notes(path) == {"format": "pt", "likelier.dataset": "cd" * 32, "é": "ü"}
    with safe_open(path, "pt") as file:
        assert file.metadata() == read_notes(path)
    read_back = load_file(path)
    assert read_back.keys() == tensors.keys()
    assert all(read_back[name].equal(tensor) for name, tensor in tensors.items())
    assert [left.name for left in tmp_path.iterdir()] == ["some.safetensors"]


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ModelError, match="there is no such file"):
        read_notes(path)
    save_file({"a": torch.zeros(100)}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[:40], whole[:-1], b"\xff" * 200, whole[:8] + b"[]" + b" " * (len(whole) - 10), whole + b"more"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            add_notes(path, {"a": "b"})
        assert path.read_bytes() == content
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            filed_fingerprint(tmp_path, loaded_as="float32")


def test_where_models_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_files, "EMBEDDED_PACKAGE", "no_such_package_at_all")
    (tmp_path / "m.gguf").write_bytes(b"content")
    assert local_folder(str(tmp_path)) == tmp_path
    assert local_folder(str(tmp_path / "m.gguf")) == imported_folder(tmp_path / "m.gguf")
    assert imported_folder(tmp_path / "m.gguf").parent == tmp_path / "cache" / "models"
    assert local_folder("owner/name") is local_folder("embedded") is local_folder(str(tmp_path / "none.gguf")) is None


def test_the_embedded_model_is_found_without_importing_its_package(monkeypatch, tmp_path):
    package = tmp_path / "made_up_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('this package is never imported')")
    (package / "weights.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(model_files, "EMBEDDED_PACKAGE", "made_up_package")
    assert embedded_gguf() == package / "weights.gguf"
    monkeypatch.setattr(model_files, "EMBEDDED_PACKAGE", "no_such_package_at_all")
    assert embedded_gguf() is None
    assert locate("embedded") == models.EMBEDDED_ON_HUB


def test_the_cache_is_where_it_is_told_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("LIKELIER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "likelier"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "likelier"
