"""The softmax of logprobs/softmax.py as one kernel, in Triton. Imported where Triton is installed, as it is with PyTorch for CUDA.

Each row of logits is read twice and written once, the second time from the cache: by far less traffic than a dozen operations of PyTorch's. The
sum of exponentials is taken block by block beside the largest logit so far (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax",
algorithm 3).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8192, 16
"""Logits that a program has at hand at once, and what computes on them."""


def log_softmax_at(targets_R: Tensor, logits_RV: Tensor, logps_R: Tensor, *, leave_slopes: bool) -> None:
    """What `softmax.log_softmax_at` says, into `logps_R`."""
    rows, vocabulary = logits_RV.shape
    if rows:
        block = min(BLOCK, triton.next_power_of_2(vocabulary))
        with torch.cuda.device_of(logits_RV):
            _row[(rows,)](targets_R, logits_RV, logits_RV.stride(0), logps_R, vocabulary, leave_slopes, block, num_warps=WARPS)


@triton.jit
def _row(targets, logits, stride, logps, vocabulary, LEAVE_SLOPES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    at_target = tl.load(logits + target).to(tl.float32)

    largest = tl.full((), -3.4e38, tl.float32)  # finite: a block may be all −∞
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        block = tl.load(logits + columns, mask=columns < vocabulary, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(block, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(block - larger), 0)
        largest = larger
    tl.store(logps + row, at_target - largest - tl.log(total))

    if LEAVE_SLOPES:
        for start in range(0, vocabulary, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocabulary
            block = tl.load(logits + columns, mask=inside, other=-float("inf")).to(tl.float32)
            slopes = tl.where(columns == target, 1.0, 0.0) - tl.exp(block - largest) / total
            tl.store(logits + columns, slopes.to(logits.dtype.element_ty), mask=inside)
