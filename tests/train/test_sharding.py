"""Parts of a model: how they are written and read, and what cannot be divided. That ranks train with them as one does, test_parallel.py shows."""

import pytest
import torch
from safetensors.torch import save_file

from likelier.errors import RecipeError
from likelier.train.sharding import read_parts, write_parts
from likelier.train.ways import require_way
from tests.train.conftest import changed

TENSORS = {
    "a.weight": torch.randn(5, 3),
    "a.weight/exp_avg": torch.randn(5, 3).bfloat16(),
    "a.weight/step": torch.tensor(7.0),
    "rng": torch.arange(9, dtype=torch.uint8),
}


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_what_was_written_is_read(tmp_path):
    write_parts(tmp_path, TENSORS)
    assert_same(read_parts(tmp_path, {}))


def test_whole_files_are_read_too(tmp_path):
    names = [*TENSORS]
    save_file({name: TENSORS[name] for name in names[:1]}, tmp_path / "weights.safetensors")
    save_file({name: TENSORS[name] for name in names[1:]}, tmp_path / "optimizer.safetensors")
    assert_same(read_parts(tmp_path, {}))


def test_what_the_disk_refuses_is_an_error_of_the_disk(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_parts(tmp_path / "file", TENSORS)


@pytest.mark.parametrize(
    "settings", [{"method": "qlora"}, {"optimizer": "adamw-8bit"}, {"method": "full", "bf16_weights": "stochastic-rounding", "precision": "bf16"}]
)
def test_what_is_not_divided_is_refused(recipe, settings):
    require_way(changed(recipe, train=settings), settings.get("precision", "fp32"))
    with pytest.raises(RecipeError, match=r"train\.fsdp: with it train\.\w+ cannot be"):
        require_way(changed(recipe, train=settings | {"fsdp": True}), settings.get("precision", "fp32"))
