"""What makes a tree row exact: each token attends to its own node up to itself and to that node's ancestors, and to nothing else.

Shape legend: B batch (always 1: a tree is one row), H query heads, G key/value heads, T tokens, D head width, N tokens of one node.

Two ways to say the same thing:

    node_attention   each node's queries against the keys and values of its path from the root, one `scaled_dot_product_attention` a node.
                     Nothing that the mask would hide is ever computed. Registered with transformers' AttentionInterface.
    dense_masks      one (1, 1, T, T) mask for models or devices where the first does not serve; a dict of masks where layers differ.

Neither is trusted: the scorer compares the one it uses with the plain twin on a real batch before a run (see `scorer.choose_engine`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from likelier.errors import ModelError
from likelier.logprobs.tree import Tree

NODE_ATTENTION = "likelier_node_attention"
"""Name under which transformers models find `node_attention`."""


class NodeAttention:
    """Attention over one tree. Equals, for every pair of tokens, softmax attention under `dense_mask(tree, window)`.

    Kept for one forward and backward pass: the masks of its nodes are made once and serve every layer.
    """

    def __init__(self, tree: Tree) -> None:
        self.nodes = tree.nodes
        self.lengths = [node.stop - node.start for node in tree.nodes]
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        """query (1, H, T, D), key and value (1, G, T, D) → (1, H, T, D); H is a multiple of G."""
        dtype = query.dtype
        if query.device.type == "cpu":  # its fused kernel computes in fp32 in any case, and is three times as fast if it need not convert
            query, key, value = query.float(), key.float(), value.float()
        keys, values = key.split(self.lengths, dim=2), value.split(self.lengths, dim=2)
        with torch.autocast(query.device.type, enabled=False):
            attended = [
                self._attend(index, node_query, keys, values, scale, window) for index, node_query in enumerate(query.split(self.lengths, dim=2))
            ]
        return torch.cat(attended, dim=2).to(dtype)

    def _attend(
        self, index: int, query: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], scale: float | None, window: int | None
    ) -> Tensor:
        """The queries of one node, (1, H, N, D), against its path from the root."""
        path = (*self.nodes[index].ancestors, index)
        mask = self._mask(index, window, query.device)
        return F.scaled_dot_product_attention(
            query,
            _along(path, keys),
            _along(path, values),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != keys[0].shape[1],
        )

    def _mask(self, index: int, window: int | None, device: torch.device) -> Tensor | None:
        """(N, depth + N) bool, or None where plain causal attention within the node says the same."""
        if (index, window) not in self._masks:
            node = self.nodes[index]
            queries = torch.arange(node.depth, node.depth + node.stop - node.start, device=device)
            keys = torch.arange(node.depth + node.stop - node.start, device=device)
            causal_alone = node.depth == 0 and (window is None or window >= len(keys))
            self._masks[index, window] = None if causal_alone else _visible(queries[:, None], keys[None, :], window)
        return self._masks[index, window]


def _along(path: tuple[int, ...], pieces: tuple[Tensor, ...]) -> Tensor:
    return pieces[path[0]] if len(path) == 1 else torch.cat([pieces[i] for i in path], dim=2)


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
    tree_attention: NodeAttention | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls. Dropout is off by design; what it cannot honour it refuses. Raises ModelError."""
    if tree_attention is None:
        raise ModelError("this attention needs a tree; the model was called outside Likelier's scorer.")
    odd = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if odd:
        raise ModelError(f"attention with {', '.join(odd)} is not supported on trees.")
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
    visible = torch.zeros(len(tree), len(tree), dtype=torch.bool)
    for node in tree.nodes:
        for start, stop in ((node.start, node.stop), *((tree.nodes[a].start, tree.nodes[a].stop) for a in node.ancestors)):
            visible[node.start : node.stop, start:stop] = True
    visible = visible.to(tree.tokens_T.device)
    return (visible & _visible(tree.positions_T[:, None], tree.positions_T[None, :], window))[None, None]


def dense_masks(tree: Tree, config: Any) -> Tensor | dict[str, Tensor]:
    """What transformers takes as `attention_mask`: one mask, or one for each type of layer where a model mixes them."""
    window = getattr(config, "sliding_window", None)
    types = set(getattr(config, "layer_types", None) or [])
    if types == {"full_attention", "sliding_attention"}:
        return {"full_attention": dense_mask(tree), "sliding_attention": dense_mask(tree, window=window)}
    return dense_mask(tree, window=None if types == {"full_attention"} else window)
