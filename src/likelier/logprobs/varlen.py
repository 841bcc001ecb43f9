"""Attention node by node as one kernel: flash attention over sequences of many lengths, on CUDA in 16 bits.

To the kernel each node is a sequence: its queries are the node's tokens, its keys and values those of its path from the root, end to end. Where a
sequence has more keys than queries flash attention lets the last query see the last key (Dao 2023, from version 2.1 on), so that query i of a node
sees what is before it on the path and the node up to i. That, too, is only believed after it has been looked at: see `agrees`.

Shape legend: H query heads, G key/value heads, T tokens of the tree, D head width, K keys of all paths, N nodes.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from likelier.logprobs import kernels
from likelier.logprobs.tree import Node, moved

KNOWS_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether PyTorch's function takes fewer key/value heads than query heads."""

NEAR = 0.05
"""Largest difference of attention in bf16 from that in fp32, for values of unit variance. Rounding stays near 0.01; a key too many or too few costs
0.2 and more."""


class Paths:
    """What the kernel must know of a tree's nodes, on `device`."""

    def __init__(self, nodes: tuple[Node, ...], device: torch.device) -> None:
        rows = [np.arange(node.start, node.stop) for node in nodes]
        paths = [np.concatenate([rows[i] for i in (*node.ancestors, index)]) for index, node in enumerate(nodes)]
        queries, keys = ([len(each) for each in lists] for lists in (rows, paths))
        self.longest_queries, self.longest_keys = max(queries), max(keys)
        ends = [torch.from_numpy(np.cumsum([0, *lengths])) for lengths in (queries, keys)]
        self.keys_K, query_ends, key_ends = moved([torch.from_numpy(np.concatenate(paths)), *ends], device)
        self.query_ends_N, self.key_ends_N = query_ends.int(), key_ends.int()


def takes(query: Tensor, value: Tensor) -> bool:
    """Whether there is a kernel for these."""
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and width == value.shape[-1] <= 256
        and width % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def attend(query: Tensor, key: Tensor, value: Tensor, paths: Paths, *, scale: float | None, window: int | None) -> Tensor:
    """query (1, H, T, D), key and value (1, G, T, D), rows in the order of the nodes → (1, H, T, D)."""
    q_THD, k_TGD, v_TGD = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    k_KGD, v_KGD = (_Along.apply(states, paths.keys_K) for states in (k_TGD, v_TGD))
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    if query.shape[1] != key.shape[1]:
        if KNOWS_GROUPS:
            options["enable_gqa"] = True
        else:
            k_KGD, v_KGD = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (k_KGD, v_KGD))
    ends, longest = (paths.query_ends_N, paths.key_ends_N), (paths.longest_queries, paths.longest_keys)
    attended_THD = varlen_attn(q_THD.contiguous(), k_KGD, v_KGD, *ends, *longest, **options)
    assert isinstance(attended_THD, Tensor)  # alone, as no auxiliary values were asked for
    return attended_THD.transpose(0, 1)[None]


class _Along(torch.autograd.Function):
    """`states[rows]`, with the gradient summed in fp32: the keys of a prompt have one from each of its replies."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = states.shape
        return states.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (rows,) = grads, ctx.saved_tensors
        wide = torch.promote_types(grad.dtype, torch.float32)
        return torch.zeros(ctx.shape, dtype=wide, device=grad.device).index_add_(0, rows, grad.to(wide)).to(grad.dtype), None


@cache
def agrees(heads: int, groups: int, width: int, window: int | None, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel does on a small tree what plain attention in fp32 does there, forward and backward. Looked at once for each shape of head; a
    kernel that fails is told of and not used."""
    look = partial(_furthest, heads, groups, width, window, dtype, device)
    cost = "attention runs node by node, which is slower"
    return kernels.is_right("flash attention", look, near=NEAR, than="plain attention", cost=cost)


def _furthest(heads: int, groups: int, width: int, window: int | None, dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference of the kernel from plain attention, relative to the largest value where that is above 1."""
    nodes = (Node(0, 37, 0, ()), Node(37, 53, 37, (0,)), Node(53, 120, 53, (0, 1)), Node(120, 121, 53, (0, 1)), Node(121, 160, 37, (0,)))
    paths = Paths(nodes, device)
    draw = torch.Generator().manual_seed(0)
    shapes = ((heads, 160, width), (groups, 160, width), (groups, 160, width), (heads, 160, width))
    query, key, value, slope = (torch.randn(1, *shape, generator=draw).to(device, dtype) for shape in shapes)
    window = None if window is None else min(window, 20)
    found = _with_gradients(lambda q, k, v: attend(q, k, v, paths, scale=None, window=window), (query, key, value), slope)

    def plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pieces = []
        for index, node in enumerate(nodes):
            rows = torch.cat([torch.arange(nodes[i].start, nodes[i].stop) for i in (*node.ancestors, index)]).to(device)
            distance = (torch.arange(node.start, node.stop)[:, None] - node.start + node.depth - torch.arange(len(rows))).to(device)
            seen = (distance >= 0) & (distance < (window or len(rows)))
            own = q[:, :, node.start : node.stop]
            pieces.append(F.scaled_dot_product_attention(own, k[:, :, rows], v[:, :, rows], attn_mask=seen, enable_gqa=True))
        return torch.cat(pieces, dim=2)

    wanted = _with_gradients(plainly, tuple(each.float() for each in (query, key, value)), slope.float())
    return float(torch.stack([(a.float() - b).abs().max() / b.abs().max().clamp(min=1) for a, b in zip(found, wanted, strict=True)]).max())


def _with_gradients(attention: Callable[..., Tensor], states: tuple[Tensor, ...], slope: Tensor) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in states]
    attended = attention(*leaves)
    return [attended.detach(), *torch.autograd.grad(attended, leaves, slope)]
