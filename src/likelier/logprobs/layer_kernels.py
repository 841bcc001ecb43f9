"""What a layer does between its matmuls and attention, as Triton kernels: each reads its inputs and writes its outputs once, and rounds once.

Imported where Triton is installed, as it is with PyTorch for CUDA. What is computed: logprobs/gates.py, logprobs/rotary.py.

Shape legend: N numbers of a tensor, B batch, H heads, T tokens, D width of a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Numbers that a program of the gates has at hand."""


def gated(gate_N: Tensor, up_N: Tensor) -> Tensor:
    """silu(gate) · up, of two contiguous tensors of one shape."""
    out_N = torch.empty_like(gate_N)
    with torch.cuda.device_of(gate_N):
        _gated[_programs(gate_N)](gate_N, up_N, out_N, gate_N.numel(), BLOCK)
    return out_N


def gated_slopes(dout_N: Tensor, gate_N: Tensor, up_N: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    dgate_N, dup_N = torch.empty_like(gate_N), torch.empty_like(up_N)
    with torch.cuda.device_of(gate_N):
        _gated_slopes[_programs(gate_N)](dout_N, gate_N, up_N, dgate_N, dup_N, gate_N.numel(), BLOCK)
    return dgate_N, dup_N


def rotated(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, *, back: bool = False) -> Tensor:
    """x rotated, or the gradient rotated `back`, (B, H, T, D) as a view of (B, T, H, D). The last dimension of each lies side by side."""
    batch, heads, tokens, width = x_BHTD.shape
    out_BTHD = x_BHTD.new_empty(batch, tokens, heads, width)
    if out_BTHD.numel():
        tiles = triton.next_power_of_2(heads), triton.next_power_of_2(width // 2)
        warps = min(16, max(4, tiles[0] * tiles[1] // 512))
        angles = cos_BTD.expand(batch, -1, -1).stride()[:2], sin_BTD.expand(batch, -1, -1).stride()[:2]
        given = (x_BHTD, *x_BHTD.stride()[:3], cos_BTD, *angles[0], sin_BTD, *angles[1], out_BTHD, tokens, heads, width // 2, back, *tiles)
        with torch.cuda.device_of(x_BHTD):
            _rotated[(batch * tokens,)](*given, num_warps=warps)
    return out_BTHD.transpose(1, 2)


def _programs(numbers: Tensor) -> tuple[int]:
    return (max(1, triton.cdiv(numbers.numel(), BLOCK)),)


@triton.jit
def _gated(gate, up, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_slopes(dout, gate, up, dgate, dup, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    d = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(dgate + at, (d * u * s * (1.0 + g * (1.0 - s))).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dup + at, (d * g * s).to(dup.dtype.element_ty), mask=inside)


@triton.jit
def _rotated(
    x, x_batch, x_head, x_token, cos, cos_batch, cos_token, sin, sin_batch, sin_token, out, tokens, heads, half,
    BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    batch, token = program // tokens, program % tokens
    column = tl.arange(0, HALF)
    there = column < half
    cosines, sines = cos + batch * cos_batch + token * cos_token + column, sin + batch * sin_batch + token * sin_token + column
    c1, c2 = tl.load(cosines, mask=there, other=0.0).to(tl.float32), tl.load(cosines + half, mask=there, other=0.0).to(tl.float32)
    s1, s2 = tl.load(sines, mask=there, other=0.0).to(tl.float32), tl.load(sines + half, mask=there, other=0.0).to(tl.float32)
    if BACK:
        s1, s2 = -s2, -s1

    head = tl.arange(0, HEADS).to(tl.int64)
    inside = (head < heads)[:, None] & there[None, :]
    first = x + batch * x_batch + token * x_token + head[:, None] * x_head + column[None, :]
    x1 = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(first + half, mask=inside, other=0.0).to(tl.float32)
    to = out + (program * heads + head[:, None]) * (2 * half) + column[None, :]
    tl.store(to, (x1 * c1 - x2 * s1).to(out.dtype.element_ty), mask=inside)
    tl.store(to + half, (x2 * c2 + x1 * s2).to(out.dtype.element_ty), mask=inside)
