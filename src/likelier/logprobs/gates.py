"""SwiGLU by one kernel in place of two operations, three in the backward pass: it moves 8 tensors of a layer's widest where those move 14, and leaves
one less for the backward pass.

    down(silu(gate(x)) · up(x))

Reference: Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
"""

import copy
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from likelier.logprobs import kernels
from likelier.logprobs.swapping import swap, with_forward

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

NEAR = 1e-5
"""Largest difference of the fused layer from a module's own, in fp32. Another activation function costs 0.1 and more."""


def fuse_gates(model: nn.Module) -> int:
    """From here on `model`'s SwiGLU layers are fused, if they are just that, which is tried out once for each kind. Returns how many."""

    def kind(module: nn.Module) -> tuple[type, type] | None:
        has_all = all(isinstance(getattr(module, name, None), nn.Module) for name in PROJECTIONS)
        return (type(module), type(getattr(module, "act_fn", None))) if has_all else None

    return swap(model, kind=kind, is_plain=_is_plain, other=lambda its: _fused(its[0]))


@cache
def _fused(own: Any) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden: Tensor = self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))
        return hidden

    return with_forward(own, forward)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, of one shape. Rounded once where there is a kernel, twice otherwise."""
    if kernels.are_for(gate) and gate.dtype == up.dtype and agrees(gate.dtype, gate.device):
        product: Tensor = _Gated.apply(gate, up)
        return product
    return F.silu(gate) * up


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        product: Tensor = kernels.of_layers().gated(gate, up)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        return kernels.of_layers().gated_slopes(slope.contiguous(), *ctx.saved_tensors)


@cache
def agrees(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel does on a few numbers what PyTorch does there. Looked at once for each type; a kernel that fails is told of and not used."""
    return kernels.is_right("the fused SwiGLU", partial(_furthest, dtype, device), near=kernels.NEAR[dtype], cost="layers take more time and memory")


def _furthest(dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference of value and gradients from PyTorch's in fp32, beside the largest number."""
    draw = torch.Generator().manual_seed(0)
    gate, up, slope = (torch.randn(3, 700, generator=draw).to(device, dtype) for _ in range(3))
    found = []
    for way, given in (_Gated.apply, (gate, up)), (lambda gate, up: F.silu(gate) * up, (gate.float(), up.float())):
        leaves = [leaf.detach().requires_grad_() for leaf in given]
        product = way(*leaves)
        found.append(torch.stack([product, *torch.autograd.grad(product, leaves, slope.to(product.dtype))]).detach().float())
    return float((found[0] - found[1]).abs().max() / found[1].abs().max())


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    """Whether it does what `gated` does between its three projections, to numbers and under weights drawn here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = dict(zip(PROJECTIONS, (nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 5)), strict=True))
        x = 3 * torch.randn(2, 4, 5)
    own: Any = copy.copy(module)
    own._modules = {**module._modules, **drawn}
    try:
        found = own(x)
    except (TypeError, RuntimeError, AttributeError):  # it wants more, or other shapes
        return False
    wanted = drawn["down_proj"](F.silu(drawn["gate_proj"](x)) * drawn["up_proj"](x))
    return isinstance(found, Tensor) and found.shape == wanted.shape and bool((found - wanted).abs().max() <= NEAR)
