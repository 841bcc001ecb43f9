"""What makes a tree row exact: each token attends to its own node up to itself and to that node's ancestors, and to nothing else.

Shape legend: B batch (always 1: a tree is one row), H query heads, G key/value heads, T tokens, D head width, N tokens of one node.

Ways to say the same thing:

    NodeAttention    each node's queries against the keys and values of its path from the root: nothing that the mask would hide is ever
                     computed. One kernel for all nodes on CUDA in 16 bits (logprobs/varlen.py), else one `scaled_dot_product_attention` a node.
    dense_masks      one (1, 1, T, T) mask for models or devices where the first does not serve; a dict of masks where layers differ.

A third, FlexAttention, is in logprobs/flex.py. All but the masks reach a model as `tree_attention`, through transformers' AttentionInterface.

Neither is trusted: the scorer compares the one it uses with the plain twin on a real batch before a run (see `scorer.choose_engine`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from likelier.errors import ModelError
from likelier.logprobs import varlen
from likelier.logprobs.flex import FlexAttention, ends_of_subtrees
from likelier.logprobs.tree import Tree, moved

NODE_ATTENTION = "likelier_node_attention"
"""Name under which transformers models find `node_attention`."""


class NodeAttention:
    """Attention over one tree. Equals, for every pair of tokens, softmax attention under `dense_mask(tree, window)`.

    Kept for one forward and backward pass: the masks of its nodes are made once and serve every layer.
    """

    def __init__(self, tree: Tree) -> None:
        self.rows = [slice(node.start, node.stop) for node in tree.nodes]
        self.paths = [(*node.ancestors, index) for index, node in enumerate(tree.nodes)]
        self._nodes = tree.nodes
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        self._packed: varlen.Paths | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        """query (1, H, T, D), key and value (1, G, T, D) → (1, H, T, D); H is a multiple of G."""
        if varlen.takes(query, value) and varlen.agrees(query.shape[1], key.shape[1], query.shape[3], window, query.dtype, query.device):
            self._packed = self._packed or varlen.Paths(self._nodes, query.device)
            return varlen.attend(query, key, value, self._packed, scale=scale, window=window)
        if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
            attended: Tensor = _FusedOnCPU.apply(query, key, value, self, scale, window)
            return attended
        with torch.autocast(query.device.type, enabled=False):
            pieces = [
                F.scaled_dot_product_attention(
                    query[:, :, rows],
                    self.along(path, key),
                    self.along(path, value),
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=scale,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
                for rows, path, mask in zip(self.rows, self.paths, self.masks(window, query), strict=True)
            ]
        return torch.cat(pieces, dim=2)

    def along(self, path: tuple[int, ...], states: Tensor) -> Tensor:
        """The rows of the nodes of `path`, end to end: (1, G, depth + N, D)."""
        return states[:, :, self.rows[path[0]]] if len(path) == 1 else torch.cat([states[:, :, self.rows[i]] for i in path], dim=2)

    def masks(self, window: int | None, like: Tensor) -> list[Tensor | None]:
        """For each node what is added to its scores, (N, depth + N) of the type of `like`: 0 where visible, else −∞. None where plain causal
        attention within the node says the same."""
        for index, node in enumerate(self._nodes):
            if (index, window) not in self._masks:
                queries = torch.arange(node.depth, node.depth + node.stop - node.start, device=like.device)
                keys = torch.arange(node.depth + node.stop - node.start, device=like.device)
                causal_alone = node.depth == 0 and (window is None or window >= len(keys))
                hidden = ~_visible(queries[:, None], keys[None, :], window)
                zeros = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
                self._masks[index, window] = None if causal_alone else zeros.masked_fill_(hidden, -math.inf)
        return [self._masks[index, window] for index in range(len(self._nodes))]


class _FusedOnCPU(torch.autograd.Function):
    """Node by node through PyTorch's fused CPU kernel, forward and backward called by hand.

    The kernel computes in fp32 in any case and is three times as fast if it need not convert. What waits for the backward pass is query, key and
    value as they came, not fp32 copies of them along every path, and no graph of small operations.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, nodes: NodeAttention, scale: float | None, window: int | None) -> Tensor:
        q, k, v = (_widened(states) for states in (query, key, value))
        attended = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)  # as the next layer reads it
        sums = []
        for rows, path, mask in zip(nodes.rows, nodes.paths, nodes.masks(window, q), strict=True):
            attended[:, :, rows], log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows], nodes.along(path, k), nodes.along(path, v), 0.0, mask is None, attn_mask=mask, scale=scale
            )
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, attended, *sums)
        ctx.settings = nodes, scale, window
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attended, *sums = ctx.saved_tensors
        nodes, scale, window = ctx.settings
        grad, q, k, v, out = (_widened(states) for states in (*grads, query, key, value, attended))
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, path, mask, log_sum in zip(nodes.rows, nodes.paths, nodes.masks(window, q), sums, strict=True):
            grad_q[:, :, rows], *grads_along = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(grad[:, :, rows], q[:, :, rows], nodes.along(path, k), nodes.along(path, v), out[:, :, rows], log_sum),
                *(0.0, mask is None),
                attn_mask=mask,
                scale=scale,
            )
            lengths = [nodes.rows[i].stop - nodes.rows[i].start for i in path]
            for total, along in zip((grad_k, grad_v), grads_along, strict=True):
                for i, part in zip(path, along.split(lengths, dim=2), strict=True):
                    total[:, :, nodes.rows[i]] += part
        return grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype), None, None, None


def _widened(states: Tensor) -> Tensor:
    return states if states.dtype == torch.float64 else states.float()


def _visible(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Causal, and within the sliding window, measured on positions and not on rows."""
    distance = query_positions - key_positions
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def node_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    tree_attention: NodeAttention | FlexAttention | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls. Dropout is off by design; what it cannot honour it refuses. Raises ModelError."""
    if tree_attention is None:
        raise ModelError("this attention needs a tree; the model was called outside Likelier's scorer.")
    odd = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if odd:
        raise ModelError(f"attention with {', '.join(odd)} is not supported on trees.")
    device = query.device.type
    if device == "cuda" and torch.is_autocast_enabled(device):  # as sdpa does it; a rotation in fp32 leaves queries and keys wider than values
        query, key, value = (states.to(torch.get_autocast_dtype(device)) for states in (query, key, value))
    attended = tree_attention(query, key, value, scale=scaling, window=sliding_window)
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(NODE_ATTENTION, node_attention)


@contextmanager
def standard_attention(model: nn.Module) -> Iterator[None]:
    """Within it, a model that was set to `node_attention` attends as transformers does: for generation and for the plain twin."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != NODE_ATTENTION:
        yield
        return
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = NODE_ATTENTION


def dense_mask(tree: Tree, *, window: int | None = None) -> Tensor:
    """(1, 1, T, T) bool, true where row attends to column: the definition that every other attention here must equal."""
    (until_T,) = moved([torch.from_numpy(ends_of_subtrees(tree.nodes))], tree.tokens_T.device)
    rows_T = torch.arange(len(tree), device=until_T.device)
    below = (rows_T[None, :] <= rows_T[:, None]) & (rows_T[:, None] < until_T[None, :])
    return (below & _visible(tree.positions_T[:, None], tree.positions_T[None, :], window))[None, None]


def dense_masks(tree: Tree, config: Any) -> Tensor | dict[str, Tensor]:
    """What transformers takes as `attention_mask`: one mask, or one for each type of layer where a model mixes them."""
    window = getattr(config, "sliding_window", None)
    types = set(getattr(config, "layer_types", None) or [])
    if types == {"full_attention", "sliding_attention"}:
        return {"full_attention": dense_mask(tree), "sliding_attention": dense_mask(tree, window=window)}
    return dense_mask(tree, window=None if types == {"full_attention"} else window)
