"""From hidden states to the log-probability of each next token, without ever holding all the logits.

Shape legend: E scored edges, D hidden width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WORKING_BYTES = 64 * 2**20
"""fp32 logits of one chunk: large enough for a full-speed matmul, small beside a model's activations."""

KEPT_BYTES = 256 * 2**20
"""Logits kept for the backward pass, in the precision of the arithmetic. Chunks beyond are computed again: memory stays bounded, whatever E is."""


def token_logps(
    hidden_ED: Tensor,
    weight_VD: Tensor,
    targets_E: Tensor,
    *,
    bias_V: Tensor | None = None,
    working_bytes: int = WORKING_BYTES,
    kept_bytes: int = KEPT_BYTES,
) -> Tensor:
    """(E,) fp32 log-probabilities of `targets_E`. Equals, in chunks and with logsumexp in fp32 whatever the weights' type:

        logits_EV = hidden_ED @ weight_VD.T + bias_V
        logits_EV.float().log_softmax(-1).gather(-1, targets_E[:, None])[:, 0]

    The matmuls run in autocast's precision where that is on, else in `hidden_ED`'s. With a frozen head (LoRA) the gradient towards the
    hidden states, onehot − softmax times the weight, is formed in the forward pass and only scaled in the backward pass; nothing is recomputed.
    Gradients flow to hidden states, weight and bias. Extra memory ≤ working_bytes · 2 + kept_bytes.
    """
    device = hidden_ED.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ED, weight_VD = hidden_ED.to(dtype), weight_VD.to(dtype)
    weight_VD = weight_VD.to(hidden_ED.dtype)
    with torch.autocast(device, enabled=False):
        rows = max(1, working_bytes // (4 * weight_VD.shape[0]))
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
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            logits = F.linear(hidden[chunk], weight, bias)
            if (needs_weight or needs_bias) and (len(kept) + 1) * logits.nbytes <= kept_bytes:
                kept.append(logits)
            logits = logits.float()
            logsumexp = logits.logsumexp(-1, keepdim=True)
            logps[chunk] = (logits.gather(-1, targets[chunk, None]) - logsumexp)[:, 0]
            if slopes is not None:
                slopes[chunk] = _onehot_minus_softmax(logits, targets[chunk]).to(weight.dtype) @ weight
        ctx.save_for_backward(hidden, weight, bias, targets, slopes, *kept)
        ctx.rows = rows
        return logps

    @staticmethod
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
            grad_logits = _onehot_minus_softmax(logits.float(), targets[chunk]).mul_(grad_E[chunk, None])
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


def _onehot_minus_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """∂ log p(target) / ∂ logits, fp32."""
    slope = logits.softmax(-1).neg_()
    slope.scatter_add_(-1, targets[:, None], torch.ones_like(targets, dtype=slope.dtype)[:, None])
    return slope
