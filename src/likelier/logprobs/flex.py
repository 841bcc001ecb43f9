"""Attention over a tree by FlexAttention: one compiled kernel that passes over blocks of the mask in which nothing is seen (Dong et al. 2024).

A tree's rows are in depth-first order, so that the rows below a token are those that follow it up to some row, `until`. That one number a token is
the whole mask: query q sees key k where k ≤ q < until[k].

Shape legend: T tokens of the tree, R rows with padding, B rows of a block, H query heads, G key/value heads, D head width.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from likelier.logprobs.tree import Node, Tree, moved

BLOCK = 128
"""Rows of a block of the mask: PyTorch's own default."""


class FlexAttention:
    """Attention over one tree, with the signature of `attention.NodeAttention`. Equals softmax attention under `attention.dense_mask(tree, window)`.

    Rows are padded to a power of two, so that a run compiles for few lengths (each once a window, with and without gradient); blocks of padding cost
    next to nothing. On a CPU it is not compiled, and has no backward pass.
    """

    def __init__(self, tree: Tree) -> None:
        self._nodes = tree.nodes
        self.rows = max(BLOCK, 1 << (len(tree) - 1).bit_length())
        padding = torch.arange(len(tree), self.rows)
        until, device = torch.from_numpy(ends_of_subtrees(tree.nodes)), tree.positions_T.device
        self._until_R, more = moved([torch.cat([until, padding + 1]), torch.zeros_like(padding)], device)
        self._positions_R = torch.cat([tree.positions_T, more])
        self._masks: dict[int | None, BlockMask] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        """query (1, H, T, D), key and value (1, G, T, D) → (1, H, T, D); H is a multiple of G."""
        tokens = query.shape[2]
        padded = [F.pad(states, (0, 0, 0, self.rows - tokens)) for states in (query, key, value)]
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        with torch.autocast(query.device.type, enabled=False), torch._dynamo.config.patch(recompile_limit=64):
            attended: Tensor = _kernel(query.device.type)(
                *padded, block_mask=self._masks[window], scale=scale, enable_gqa=query.shape[1] != key.shape[1]
            )
        return attended[:, :, :tokens]

    def _mask(self, window: int | None) -> BlockMask:
        until_R, positions_R = self._until_R, self._positions_R

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            below = (key <= query) & (query < until_R[key])
            return below if window is None else below & (positions_R[query] - positions_R[key] < window)

        some, all_ = blocks_seen(self._nodes, self.rows)
        if window is not None:  # which of the full blocks reach beyond the window is not worth finding out
            all_[:] = False
        lists = [_listed(chosen, until_R.device) for chosen in (some & ~all_, all_)]
        return BlockMask.from_kv_blocks(*lists[0], *lists[1], BLOCK_SIZE=BLOCK, mask_mod=sees)


def ends_of_subtrees(nodes: tuple[Node, ...]) -> np.ndarray:
    """For each row of the tree, int64: the row after the last one below it."""
    stops = [node.stop for node in nodes]
    for index in reversed(range(len(nodes))):  # children before their parents
        for parent in nodes[index].ancestors[-1:]:
            stops[parent] = max(stops[parent], stops[index])
    return np.repeat(np.array(stops, np.int64), [node.stop - node.start for node in nodes])


def blocks_seen(nodes: tuple[Node, ...], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Two (R / B, R / B) bool arrays, blocks of queries by blocks of keys: where any query may see any key, and where all surely see all."""
    blocks = rows // BLOCK
    some, all_ = np.eye(blocks, dtype=bool), np.zeros((blocks, blocks), bool)
    ends = ends_of_subtrees(nodes)
    for node in nodes:
        end = int(ends[node.start])
        for block in range(node.start // BLOCK, (node.stop - 1) // BLOCK + 1):
            some[block : (end - 1) // BLOCK + 1, block] = True
            if node.start <= block * BLOCK and (block + 1) * BLOCK <= node.stop:
                all_[block + 1 : end // BLOCK, block] = True
    return some, all_


def _listed(chosen: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which: (1, 1, R / B) and (1, 1, R / B, R / B) int32, the chosen ones first."""
    order = np.argsort(~chosen, axis=1, kind="stable")
    counts, indices = moved([torch.from_numpy(chosen.sum(1)), torch.from_numpy(order.ravel())], device)
    return counts.int()[None, None], indices.int().view(1, 1, *chosen.shape)


@cache
def _kernel(device: str) -> Any:
    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=False)
