"""From hidden states to the log-probability of each next token, without ever holding all the logits.

Shape legend: E scored edges, D hidden width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

WORKING_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}
"""fp32 logits of one chunk: on a CPU what stays in its caches, on a GPU what keeps the matmul at full speed."""

KEPT_BYTES = 256 * 2**20
"""Logits kept for the backward pass, in the precision of the arithmetic. Chunks beyond are computed again: memory stays bounded, whatever E is."""


def token_logps(
    hidden_ED: Tensor,
    weight_VD: Tensor,
    targets_E: Tensor,
    *,
    bias_V: Tensor | None = None,
    working_bytes: int | None = None,
    kept_bytes: int = KEPT_BYTES,
) -> Tensor:
    """(E,) fp32 log-probabilities of `targets_E`. Equals, in chunks and with logsumexp in fp32 whatever the weights' type:

        logits_EV = hidden_ED @ weight_VD.T + bias_V
        logits_EV.float().log_softmax(-1).gather(-1, targets_E[:, None])[:, 0]

    The matmuls run in autocast's precision where that is on, else in `hidden_ED`'s. With a frozen head (LoRA) the gradient towards the
    hidden states, onehot − softmax times the weight, is formed in the forward pass and only scaled in the backward pass; nothing is recomputed.
    Gradients flow to hidden states, weight and bias. Extra memory ≤ 3 · working_bytes + kept_bytes.
    """
    device = hidden_ED.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ED, weight_VD = hidden_ED.to(dtype), weight_VD.to(dtype)
    weight_VD = weight_VD.to(hidden_ED.dtype)
    bias_V = None if bias_V is None else bias_V.to(hidden_ED.dtype)
    kept_bytes = kept_bytes if torch.is_grad_enabled() else 0
    with torch.autocast(device, enabled=False):
        rows = max(1, (working_bytes or WORKING_BYTES.get(device, WORKING_BYTES["cuda"])) // (4 * weight_VD.shape[0]))
        logps_E: Tensor = _TokenLogps.apply(hidden_ED, weight_VD, bias_V, targets_E, rows, kept_bytes)
    return logps_E


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int, kept_bytes: int) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        frozen_head = needs_hidden and not (needs_weight or needs_bias)
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden) if frozen_head else None
        kept: list[Tensor] = []
        room = kept_bytes if needs_weight or needs_bias else 0
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            logits = F.linear(hidden[chunk], weight, bias)
            room -= logits.nbytes
            if room >= 0:  # once a chunk did not fit none after it does, so `kept` holds the first chunks
                kept.append(logits)
            logps[chunk], softmax = _logps_and_softmax(logits, targets[chunk])
            if slopes is not None:
                slopes[chunk] = _onehot_minus(softmax, targets[chunk]).to(weight.dtype) @ weight
        ctx.save_for_backward(hidden, weight, bias, targets, slopes, *kept)
        ctx.rows = rows
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_E,) = grads
        hidden, weight, bias, targets, slopes, *kept = ctx.saved_tensors
        if slopes is not None:
            return (slopes * grad_E[:, None]).to(hidden.dtype), None, None, None, None, None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for index, start in enumerate(range(0, len(hidden), ctx.rows)):
            chunk = slice(start, start + ctx.rows)
            logits = kept[index] if index < len(kept) else F.linear(hidden[chunk], weight, bias)
            _, softmax = _logps_and_softmax(logits, targets[chunk])
            grad_logits = _onehot_minus(softmax, targets[chunk]).mul_(grad_E[chunk, None])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[chunk]
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _logps_and_softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax at the targets, and the softmax, both fp32; in place but for one copy, because memory traffic is what this costs."""
    shifted = logits.to(torch.float32, copy=True)
    shifted -= shifted.amax(-1, keepdim=True)
    at_target = shifted.gather(-1, targets[:, None])
    total = shifted.exp_().sum(-1, keepdim=True)
    return (at_target - total.log())[:, 0], shifted.div_(total)


def _onehot_minus(softmax: Tensor, targets: Tensor) -> Tensor:
    """∂ log p(target) / ∂ logits; takes over the softmax's memory."""
    slope = softmax.neg_()
    return slope.scatter_add_(-1, targets[:, None], torch.ones_like(targets, dtype=slope.dtype)[:, None])
