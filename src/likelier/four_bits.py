"""A base held in 4 bits (QLoRA, Dettmers et al. 2023), by bitsandbytes."""

from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from likelier.errors import ModelError


def loaded_in_four_bits(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What transformers is to be told: 4-bit NormalFloat in blocks of 64, the blocks' scales in 8 bits; computed with in `dtype`."""
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ModelError("train.method: qlora holds the base in 4 bits with bitsandbytes, which is not installed: pip install 'likelier[qlora]'")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": str(device)}}


def compute_as_asked(model: Any) -> None:
    """Switch off a kernel of bitsandbytes that computes in bf16 whatever was asked for, and only where no gradient is wanted."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantisation(model: nn.Module) -> str | None:
    """How the base's weights are packed: their number of bits and blocks, and what packed them. None where none is."""
    states = [state for parameter in model.parameters() if (state := packing(parameter)) is not None]
    if not states:
        return None
    nested = f", scales in 8 bits in blocks of {states[0].state2.blocksize}" if states[0].nested else ""
    return f"{states[0].quant_type} in blocks of {states[0].blocksize}{nested}, bitsandbytes {version('bitsandbytes')}"


def packing(parameter: nn.Parameter) -> Any:
    """What bitsandbytes keeps beside a packed weight; None of a plain one."""
    return getattr(parameter, "quant_state", None)


def true_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the weight, packed or not."""
    state = packing(parameter)
    return parameter.shape if state is None else torch.Size(state.shape)


def held_bytes(parameter: nn.Parameter) -> int:
    """Bytes that a weight takes; of a packed one with all that unpacks it."""
    state = packing(parameter)
    beside = [] if state is None else [value for value in state.as_dict(packed=False).values() if isinstance(value, torch.Tensor)]
    return parameter.nbytes + sum(value.nbytes for value in beside)
