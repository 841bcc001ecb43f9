"""A GPU on paper: a device `paper` whose tensors have shapes and no numbers, so that a step of a model of any size is made in seconds on any machine.

What PyTorch would run is what runs: autograd, autocast with CUDA's rules, transformers, PEFT, the optimizer. Only kernels are not, and attention goes
where CUDA sends it: to flash attention, or with a mask to memory-efficient attention. PyTorch's `privateuseone` backend in Python and its FakeTensor
do this, as torch 2.13 has them: both are experimental, and set up for the whole process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from transformers import AutoModelForCausalLM

aten: Any = torch.ops.aten
NAME = "paper"

NARROW = ["matmul", "linear", "mm", "mv", "addmm", "addmv", "addbmm", "baddbmm", "bmm"]
"""What autocast runs in bf16 on CUDA, of what language models use."""

WIDE = ["exp", "log", "log1p", "reciprocal", "rsqrt", "pow.Tensor_Scalar", "softplus", "sum", "sum.dim_IntList", "cumsum", "prod", "softmax.int"]
WIDE += ["log_softmax.int", "logsumexp", "norm.Scalar", "layer_norm", "rms_norm"]
"""What it runs in fp32."""


class _Device(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, *_: Any) -> None:
        pass


def set_up() -> torch.device:
    """Register the device; once in a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Device())
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    rules = torch.library.Library("aten", "IMPL")
    for names, dtype in ((NARROW, torch.bfloat16), (WIDE, torch.float32)):
        for name in names:
            operation, _, overload = name.partition(".")
            rules.impl(name, _casting(getattr(getattr(aten, operation), overload or "default"), dtype), "AutocastPrivateUse1")
    rules.impl("silu_backward", lambda grad, state: torch.empty_like(grad), "PrivateUse1")  # else PyTorch takes it apart, unlike on CUDA
    rules.impl(
        "_fused_rms_norm", lambda x, shape, weight, eps: (torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)), "PrivateUse1"
    )
    rules.impl("_fused_rms_norm_backward", lambda grad, x, shape, rstd, weight, mask: (torch.empty_like(x), torch.empty_like(weight)), "PrivateUse1")
    _kept_for_good.extend([rest, rules])
    F.rms_norm = lambda x, shape, weight, eps: aten._fused_rms_norm(x, shape, weight, eps)[0]
    F.scaled_dot_product_attention = _attention
    return torch.device(NAME, 0)


_kept_for_good: list[Any] = []
"""A library's rules go with it."""

_cast: dict[int, tuple[Tensor, Tensor]] = {}
"""Weights in bf16, by the weights' ids: autocast casts a weight once."""

_WITHOUT_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _casting(operation: Any, dtype: torch.dtype) -> Any:
    def kernel(*arguments: Any, **options: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_WITHOUT_AUTOCAST):
            return operation(*_cast_to(arguments, dtype), **options)

    return kernel


def _cast_to(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_cast_to(each, dtype) for each in value)
    if not isinstance(value, Tensor) or value.device.type != NAME or value.dtype not in (torch.float32, torch.bfloat16) or value.dtype == dtype:
        return value
    if not (dtype == torch.bfloat16 and value.is_leaf and value.requires_grad and torch.is_autocast_cache_enabled()):
        return value.to(dtype)
    if id(value) not in _cast:
        _cast[id(value)] = value.to(dtype), value
    return _cast[id(value)][0]


def forget_cast_weights() -> None:
    """What autocast does where its outermost context ends."""
    _cast.clear()


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **options: Any) -> Tensor:
    scale, groups = options.get("scale"), query.shape[1] // key.shape[1]
    if torch.is_autocast_enabled(NAME):
        query, key, value = (_cast_to(each, torch.bfloat16) for each in (query, key, value))
    key, value = (each.repeat_interleave(groups, dim=1) if groups > 1 else each for each in (key, value))
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device).masked_fill(~attn_mask, -torch.inf)
    bias = attn_mask.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(query, key, value, bias, query.requires_grad, dropout_p, is_causal, scale=scale)[0]


def on_meta(config: Any, dtype: torch.dtype) -> Any:
    """A model that has no numbers, and no device yet."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


@contextmanager
def on_paper() -> Iterator[None]:
    """Within it tensors are made without numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def moved_to_paper(model: nn.Module, device: torch.device) -> Any:
    """`model` with its weights and buffers, of which only shapes count, on `device`. What is tied stays tied."""
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def of(tensor: Tensor) -> Tensor:
        if tensor.device == device:
            return tensor
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty, tensor
        return made[id(tensor)][0]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: of(tensor) for name, tensor in tensors.items() if tensor is not None})
    return model
