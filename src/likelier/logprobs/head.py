"""From hidden states to the log-probability of each next token, without ever holding all the logits.

Shape legend: E scored edges, D hidden width, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from likelier.logprobs.softmax import allowed, blocks, log_softmax_at

WORKING_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
"""Logits of one block, in the precision of the matmul: enough rows to keep it at full speed."""

KEPT_BYTES = {"cpu": 256 * 2**20, "cuda": 1024 * 2**20}
"""Slopes kept for the backward pass, in the precision of the matmul. Blocks beyond are computed again: memory stays bounded, whatever E is."""


def token_logps(
    hidden_ED: Tensor,
    weight_VD: Tensor,
    targets_E: Tensor,
    *,
    bias_V: Tensor | None = None,
    working_bytes: int | None = None,
    kept_bytes: int | None = None,
) -> Tensor:
    """(E,) fp32 log-probabilities of `targets_E`. Equals, in blocks and with logsumexp in fp32 whatever the weights' type:

        logits_EV = hidden_ED @ weight_VD.T + bias_V
        logits_EV.float().log_softmax(-1).gather(-1, targets_E[:, None])[:, 0]

    The matmuls run in autocast's precision where that is on, else in `hidden_ED`'s. What the gradient needs is the slope of each value,
    ∂logp/∂logits = onehot(target) − softmax, which the forward pass has at hand: it keeps the slopes (as `kept_bytes` allow), and the backward
    pass is one matmul for the hidden states and one for the weight. With a frozen head (LoRA) even the first is made in the forward pass, and
    nothing of size V is kept. Gradients flow to hidden states, weight and bias. Extra memory ≤ 2 · working_bytes + SOFTMAX_BYTES + kept_bytes.
    """
    hidden_ED, weight_VD, bias_V = in_one_type(hidden_ED, weight_VD, bias_V)
    if not torch.is_grad_enabled():
        kept_bytes = 0
    elif kept_bytes is None:
        kept_bytes = allowed(KEPT_BYTES, hidden_ED.device)
    with torch.autocast(hidden_ED.device.type, enabled=False):
        row_bytes = weight_VD.element_size() * weight_VD.shape[0]
        rows = _rows_at_once(weight_VD, working_bytes)
        logps_E: Tensor = _TokenLogps.apply(hidden_ED, weight_VD, bias_V, targets_E, rows, kept_bytes // row_bytes)
    return logps_E


@torch.no_grad()
def collision_logps(hidden_ED: Tensor, weight_VD: Tensor, *, bias_V: Tensor | None = None, working_bytes: int | None = None) -> Tensor:
    """(E,) fp32 log Σ_v π(v)²: how likely two tokens drawn at one place are the same. No gradient. Equals, in blocks:

    (2 * (hidden_ED @ weight_VD.T + bias_V).float().log_softmax(-1)).logsumexp(-1)
    """
    hidden_ED, weight_VD, bias_V = in_one_type(hidden_ED, weight_VD, bias_V)
    found = torch.empty(len(hidden_ED), dtype=torch.float32, device=hidden_ED.device)
    with torch.autocast(hidden_ED.device.type, enabled=False):
        for block in blocks(len(hidden_ED), _rows_at_once(weight_VD, working_bytes)):
            logits = F.linear(hidden_ED[block], weight_VD, bias_V).float()
            found[block] = (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)
    return found


class Logits(NamedTuple):
    """Logits of E tokens, as the factors of a product; `weight_VD` None says that the hidden states are the logits themselves."""

    hidden_ED: Tensor
    weight_VD: Tensor | None
    bias_V: Tensor | None = None

    def rows(self, block: slice, device: torch.device) -> Tensor:
        """(rows, V) log-probabilities in fp32."""
        hidden = self.hidden_ED[block].to(device)
        logits = hidden if self.weight_VD is None else F.linear(hidden, self.weight_VD, self.bias_V)
        return logits.float().log_softmax(-1)


@torch.no_grad()
def divergences(one: Logits, other: Logits, *, device: torch.device, working_bytes: int | None = None) -> Tensor:
    """(E,) fp32 KL(one ‖ other) of the next token at each of E places, exact over the whole vocabulary, in nats. No gradient. Equals, in blocks:

        p_EV, q_EV = ((hidden_ED @ weight_VD.T + bias_V).float().log_softmax(-1) for hidden_ED, weight_VD, bias_V in (one, other))
        (p_EV.exp() * (p_EV - q_EV)).sum(-1)

    Hidden states may be on another device than `device`, where the weights are. Extra memory ≤ 2 · working_bytes.
    """
    vocabulary = next(len(part) for part in (one.weight_VD, other.weight_VD, one.hidden_ED.mT) if part is not None)
    most = working_bytes or allowed(WORKING_BYTES, device)
    found = torch.empty(len(one.hidden_ED), dtype=torch.float32, device=device)
    with torch.autocast(device.type, enabled=False):
        for block in blocks(len(found), max(1, most // (16 * vocabulary))):
            p, q = one.rows(block, device), other.rows(block, device)
            found[block] = (p.exp() * (p - q).masked_fill_(p == -torch.inf, 0)).sum(-1)  # a token that never comes counts nothing
    return found


def in_one_type(hidden_ED: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The factors of the matmul in autocast's type where that is on, else in that of the hidden states."""
    device = hidden_ED.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ED.dtype
    return hidden_ED.to(dtype), weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)


def _rows_at_once(weight_VD: Tensor, working_bytes: int | None) -> int:
    """Rows of a block of logits."""
    most = working_bytes or allowed(WORKING_BYTES, weight_VD.device)
    return max(1, most // (weight_VD.element_size() * weight_VD.shape[0]))


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int, kept_rows: int) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        frozen_head = needs_hidden and not (needs_weight or needs_bias)
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        hidden_slopes = torch.empty_like(hidden) if frozen_head else None
        kept: list[Tensor] = []
        for block in blocks(len(hidden), rows):
            logits = F.linear(hidden[block], weight, bias)
            keep = (needs_weight or needs_bias) and block.stop <= kept_rows
            logps[block] = log_softmax_at(targets[block], logits, leave_slopes=frozen_head or keep)
            if hidden_slopes is not None:
                torch.mm(logits, weight, out=hidden_slopes[block])
            if keep:
                kept.append(logits)
        ctx.save_for_backward(hidden, weight, bias, targets, hidden_slopes, *kept)
        ctx.rows = rows
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_E,) = grads
        hidden, weight, bias, targets, hidden_slopes, *kept = ctx.saved_tensors
        if hidden_slopes is not None:
            return (hidden_slopes * grad_E[:, None]).to(hidden.dtype), None, None, None, None, None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = grad_bias = None
        scaled = (hidden * grad_E[:, None]).to(hidden.dtype)
        for index, block in enumerate(blocks(len(hidden), ctx.rows)):
            if index < len(kept):
                slopes = kept[index]
            else:
                slopes = F.linear(hidden[block], weight, bias)
                log_softmax_at(targets[block], slopes, leave_slopes=True)
            if grad_hidden is not None:
                grad_hidden[block] = (slopes @ weight) * grad_E[block, None]
            if needs_weight:
                grad_weight = _plus(grad_weight, slopes.T @ scaled[block])
            if needs_bias:
                grad_bias = _plus(grad_bias, grad_E[block].to(slopes.dtype) @ slopes)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _plus(total: Tensor | None, block: Tensor) -> Tensor:
    """Sum over blocks, in fp32 as soon as there is more than one."""
    return block if total is None else total.float().add_(block)
