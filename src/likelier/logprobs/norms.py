"""RMS norms by PyTorch's one kernel in place of the eight operations that models spell them in: on a GPU each of those reads and writes all of the
hidden states in fp32, and two such tensors a norm would wait for the backward pass.

    transformers    weight · narrow(x · rsqrt(mean(x²) + ε))        computed in fp32, rounded, multiplied
    fused           narrow(weight · x · rsqrt(mean(x²) + ε))        rounded once

Reference: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
"""

import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from likelier.logprobs.swapping import swap, with_forward

NEAR = 1e-5
"""Largest difference of the fused norm from a module's own, in fp32. A weight that is meant as 1 + weight (Gemma's) costs 1."""


def fuse_norms(model: nn.Module) -> int:
    """From here on `model`'s RMS norms are fused, if they are what `F.rms_norm` is; that is tried out once for each kind. Returns how many."""

    def kind(module: nn.Module) -> tuple[type, float] | None:
        eps = _eps(module)
        return None if eps is None else (type(module), eps)

    return swap(model, kind=kind, is_plain=_is_plain, other=lambda its: _fused(*its))


@cache
def _fused(own: Any, eps: float) -> Any:
    """The class `own` with its forward pass fused."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != self.weight.dtype:  # the kernel takes one type
            hidden: Tensor = own.forward(self, hidden_states)
            return hidden
        with torch.autocast(hidden_states.device.type, enabled=False):  # which from 2.12 on would widen everything first
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, eps)

    return with_forward(own, forward)


def _eps(module: nn.Module) -> float | None:
    """The ε of what calls itself an RMS norm and has a weight for each number, and nothing else."""
    if not type(module).__name__.endswith("RMSNorm") or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    weight: Any = module.weight
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return eps if weight.dim() == 1 and isinstance(eps, float) else None


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    """Whether it does what `F.rms_norm` does, to numbers and under a weight drawn here."""
    draw = torch.Generator().manual_seed(0)
    own: Any = copy.copy(module)  # of its own attributes; the weight is another
    own._parameters = {"weight": nn.Parameter(torch.randn(len(module.weight), generator=draw))}
    given = 3 * torch.randn(2, 5, len(own.weight), generator=draw)
    try:
        found = own(given)
    except (TypeError, RuntimeError):  # it wants more than hidden states
        return False
    return isinstance(found, Tensor) and bool((found - F.rms_norm(given, own.weight.shape, own.weight, _eps(module))).abs().max() <= NEAR)
