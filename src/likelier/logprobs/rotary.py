"""Rotary position embeddings of queries and keys by one kernel each, in place of slices, a sign, two products and a sum.

    first half    x₁ · cos₁ − x₂ · sin₁
    second half   x₂ · cos₂ + x₁ · sin₂

transformers' attention modules call a function of their file for it; a fused module's forward pass is the same code, in which that name stands
for another.

Reference: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", equation 34, in halves as GPT-NeoX has it.

Shape legend: B batch, H heads, T tokens, D width of a head.
"""

from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from likelier.logprobs import kernels
from likelier.logprobs.swapping import swap, with_forward

NAME = "apply_rotary_pos_emb"

NEAR = 1e-5
"""Largest difference of a model's own rotation from the one above, in fp32. Neighbours in place of halves cost 1."""


def fuse_rotations(model: nn.Module) -> int:
    """From here on `model`'s attention modules rotate by the kernel, if their rotation is the one above; that is tried out once for each kind.
    Returns how many."""
    return swap(model, kind=type, is_plain=lambda module: _is_plain(type(module).forward), other=_fused)


@cache
def _fused(own: Any) -> Any:
    """The class `own` whose forward pass finds `rotate` where it looks for its file's function."""
    code = own.forward
    spelled = code.__globals__[NAME]

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if others or options or not takes(q, k, cos, sin):
            rotated: tuple[Tensor, Tensor] = spelled(q, k, cos, sin, *others, **options)
            return rotated
        return _Rotated.apply(q, cos, sin), _Rotated.apply(k, cos, sin)

    forward = FunctionType(code.__code__, {**code.__globals__, NAME: rotate}, code.__name__, code.__defaults__)
    forward.__kwdefaults__ = code.__kwdefaults__
    return with_forward(own, forward)


def takes(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether there is a kernel for these: queries and keys (B, H, T, D), and angles (1 or B, T, D) of the same type."""
    if not (kernels.are_for(q) and q.dtype == k.dtype == cos.dtype == sin.dtype and q.dim() == k.dim() == 4 and cos.dim() == 3):
        return False
    fits = cos.shape == sin.shape and all(x.shape[2:] == cos.shape[1:] and cos.shape[0] in (1, x.shape[0]) for x in (q, k))
    side_by_side = all(x.stride(-1) == 1 for x in (q, k, cos, sin))
    return fits and side_by_side and cos.shape[-1] % 2 == 0 and agrees(q.dtype, q.device)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BTD, sin_BTD)
        rotated: Tensor = kernels.of_layers().rotated(x_BHTD, cos_BTD, sin_BTD)
        return rotated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BHTD: Tensor) -> Any:
        beside = slope_BHTD if slope_BHTD.stride(-1) == 1 else slope_BHTD.contiguous()
        return kernels.of_layers().rotated(beside, *ctx.saved_tensors, back=True), None, None


def in_operations(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """The same in operations of PyTorch's."""
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_BTD[:, None] + torch.cat([-second, first], dim=-1) * sin_BTD[:, None]


@cache
def agrees(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel does on a few numbers what PyTorch does there. Looked at once for each type; a kernel that fails is told of and not used."""
    return kernels.is_right("the fused rotation", partial(_furthest, dtype, device), near=kernels.NEAR[dtype], cost="attention takes more time")


def _furthest(dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference of value and gradient from PyTorch's in fp32, beside the largest number."""
    found = []
    q, _, cos, sin = (given.to(device, dtype) for given in _drawn())
    for way, (x, *angles) in (_Rotated.apply, (q, cos, sin)), (in_operations, (q.float(), cos.float(), sin.float())):
        leaf = x.detach().requires_grad_()
        rotated = way(leaf, *angles)
        found.append(torch.stack([rotated, *torch.autograd.grad(rotated, leaf, x.flip(2))]).detach().float())
    return float((found[0] - found[1]).abs().max() / found[1].abs().max())


def _is_plain(forward: Any) -> bool:
    """Whether a module's forward pass calls its file's function, and that does what the kernel does."""
    code = getattr(forward, "__code__", None)
    if code is None or NAME not in code.co_names or forward.__closure__ or NAME not in forward.__globals__:
        return False
    q, k, cos, sin = _drawn()
    try:
        found = forward.__globals__[NAME](q, k, cos, sin)
        return all(bool((one - in_operations(x, cos, sin)).abs().max() <= NEAR) for one, x in zip(found, (q, k), strict=True))
    except (TypeError, ValueError, RuntimeError):  # it wants or gives something else
        return False


def _drawn() -> list[Tensor]:
    """Queries, keys, cosines and sines; the angles of both halves differ, as they never do."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw) for shape in ((2, 4, 5, 12), (2, 3, 5, 12), (2, 5, 12), (2, 5, 12))]
