"""The log softmax of logits at their targets, and the slope of it in the logits' place: all that the head does beside matmuls.

A dozen operations of PyTorch's in place, or with Triton on a GPU one kernel (logprobs/softmax_kernel.py): what this costs is memory traffic.

Shape legend: R rows, V vocabulary.
"""

from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor

from likelier.logprobs import kernels

SOFTMAX_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
"""fp32 copy of the rows whose softmax is taken at once: on a CPU what stays in its caches. The kernel needs none."""


def log_softmax_at(targets_R: Tensor, logits_RV: Tensor, *, leave_slopes: bool) -> Tensor:
    """(R,) fp32 log softmax of each row at its target, computed in fp32. Overwrites the logits with onehot(target) − softmax if asked to."""
    logps_R = torch.empty(len(logits_RV), dtype=torch.float32, device=logits_RV.device)
    if takes(logits_RV) and agrees(logits_RV.dtype, logits_RV.device):
        from likelier.logprobs import softmax_kernel

        softmax_kernel.log_softmax_at(targets_R, logits_RV, logps_R, leave_slopes=leave_slopes)
    else:
        in_operations(targets_R, logits_RV, logps_R, leave_slopes=leave_slopes)
    return logps_R


def in_operations(targets_R: Tensor, logits_RV: Tensor, logps_R: Tensor, *, leave_slopes: bool) -> None:
    """The same into `logps_R`, in operations of PyTorch's: in place, by a few rows at a time."""
    rows = max(1, allowed(SOFTMAX_BYTES, logits_RV.device) // (4 * logits_RV.shape[1]))
    for chunk in blocks(len(logits_RV), rows):
        at = targets_R[chunk, None]
        shifted = logits_RV[chunk].to(torch.float32, copy=True)
        shifted -= shifted.amax(-1, keepdim=True)
        at_target = shifted.gather(-1, at)
        total = shifted.exp_().sum(-1, keepdim=True)
        logps_R[chunk] = (at_target - total.log())[:, 0]
        if leave_slopes:
            slopes = shifted.div_(total).neg_()
            logits_RV[chunk] = slopes.scatter_add_(-1, at, torch.ones_like(at, dtype=slopes.dtype))


def blocks(total: int, rows: int) -> Iterator[slice]:
    """Slices that cover `total` rows; of none, one empty slice, so that sums over blocks have their shape."""
    for start in range(0, max(1, total), rows):
        yield slice(start, min(start + rows, total))


def allowed(bytes_by_device: dict[str, int], device: torch.device) -> int:
    """How many of these bytes are for `device`: what is no CPU is taken for a GPU."""
    return bytes_by_device["cpu" if device.type == "cpu" else "cuda"]


def takes(logits_RV: Tensor) -> bool:
    """Whether there is a kernel for these."""
    return kernels.are_for(logits_RV) and logits_RV.stride(1) == 1


@cache
def agrees(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel does on a few rows what PyTorch does there. Looked at once for each type; a kernel that fails is told of and not used."""
    return kernels.is_right("the fused softmax", partial(_furthest, dtype, device), near=kernels.NEAR[dtype], cost="the head takes more time")


def _furthest(dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference of the kernel from PyTorch, over several blocks of logits, some of them −∞."""
    from likelier.logprobs import softmax_kernel

    draw = torch.Generator().manual_seed(0)
    rows, vocabulary = 5, 2 * softmax_kernel.BLOCK + 77
    logits = 4 * torch.randn(rows, vocabulary, generator=draw)
    logits[3, : softmax_kernel.BLOCK] = -torch.inf
    given, targets = logits.to(device, dtype), torch.tensor([0, softmax_kernel.BLOCK, 5, vocabulary - 1, 7], device=device)
    found = []
    for way in (softmax_kernel.log_softmax_at, in_operations):
        slopes, logps = given.clone(), torch.empty(rows, device=device)
        way(targets, slopes, logps, leave_slopes=True)
        found.append(torch.cat([logps / logps.abs().max(), slopes.float().flatten()]))
    return float((found[0] - found[1]).abs().max())
