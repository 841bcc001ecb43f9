"""Token sequences that begin alike, as one tree: every shared token stands, and is computed, once.

Shape legend: T tokens of the tree, E scored edges, S sequences, L tokens of one response.

A batch of preference pairs is full of repetition: both responses follow the same prompt, several pairs may share a prompt or a response, and
every prompt may open with the same system message. Written as a prefix tree, each token that a causal model would compute to the same hidden
state appears once:

    system ── prompt 1 ──┬── chosen            a token sees its own node up to itself, and all of that node's ancestors
           │             └── rejected
           └─ prompt 2 ──┬── chosen
                         └── rejected

What is scored is an *edge*: a hidden state (the source) and the token that follows it (the target). The first tokens of two responses are
two edges that leave the same hidden state, that of the last prompt token. A token that nothing follows is only ever a target, so the model is
not run on it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from likelier.examples import Ids


class PromptResponse(NamedTuple):
    """One sequence to score: the response's tokens given the prompt's. Both non-empty."""

    prompt_ids: Ids
    response_ids: Ids


class Node(NamedTuple):
    """A run of tokens without a fork: rows `start` to `stop` of the tree."""

    start: int
    stop: int
    depth: int  # tokens before it in its sequences, which is the position of its first token
    ancestors: tuple[int, ...]  # which nodes those tokens belong to, from the root down


@dataclass(frozen=True)
class Tree:
    """A prefix tree laid out as one row without padding. Made by `build_tree`.

    Every index that the engine needs is decided here, once: attention reads `nodes`, the head reads `sources_E` and
    `targets_E`, and the scorer reads `edges_N` to put each response's per-token values back in order (N: response tokens of all sequences).
    """

    tokens_T: Tensor  # int64 ids
    positions_T: Tensor  # int64, distance from the root: the position each token has in its own sequence
    nodes: tuple[Node, ...]  # in the order of their rows; parents before children
    sources_E: Tensor  # int64 rows of the tree whose hidden state predicts …
    targets_E: Tensor  # … this int64 token id
    edges_N: Tensor = field(repr=False)  # int64: the edge that scores each response token, sequence after sequence
    lengths: tuple[int, ...] = field(repr=False)  # L of each sequence

    def __len__(self) -> int:
        return self.tokens_T.numel()

    def to(self, device: torch.device) -> "Tree":
        """The same tree with its tensors on `device`."""
        if self.tokens_T.device == device:
            return self
        names = ("tokens_T", "positions_T", "sources_E", "targets_E", "edges_N")
        tensors: dict[str, Any] = dict(zip(names, moved([getattr(self, name) for name in names], device), strict=True))
        return replace(self, **tensors)

    def by_sequence(self, values_E: Tensor) -> list[Tensor]:
        """Per-edge values as per-token values of each sequence: (L,) each, or (L, …)."""
        return list(values_E.index_select(0, self.edges_N).split(self.lengths))


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors of one type and one dimension on `device`: of CUDA parts of one copy from pinned memory, for which nobody waits."""
    if device.type == "cpu":
        return list(tensors)
    together = torch.cat(list(tensors))
    together = together.pin_memory() if device.type == "cuda" else together
    return list(together.to(device, non_blocking=True).split([len(tensor) for tensor in tensors]))


def build_tree(sequences: Sequence[PromptResponse]) -> Tree:
    """The prefix tree of `sequences`; equal ones are scored once. Raises ValueError for an empty prompt or response."""
    refuse_empty(sequences)
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].prompt_ids + sequences[i].response_ids)
    tokens: list[int] = []
    parents: list[int] = []
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    previous_ids: Ids = ()
    previous_path = np.empty(0, np.int64)
    for i in order:  # sorted, a sequence shares with the tree exactly what it shares with its predecessor
        ids = sequences[i].prompt_ids + sequences[i].response_ids
        shared = common_prefix(previous_ids, ids)
        fresh = np.arange(len(tokens), len(tokens) + len(ids) - shared)
        path = np.concatenate([previous_path[:shared], fresh])
        if len(fresh):
            parents.append(int(path[shared - 1]) if shared else -1)
            parents.extend(fresh[:-1].tolist())
            tokens.extend(ids[shared:])
        paths[i], previous_ids, previous_path = path, ids, path
    return _lay_out(sequences, np.array(tokens), np.array(parents), paths)


def _lay_out(sequences: Sequence[PromptResponse], tokens: np.ndarray, parents: np.ndarray, paths: list[np.ndarray]) -> Tree:
    """Drop the leaves that are only targets, cut the rest into nodes, and number the scored edges."""
    children = np.bincount(parents[parents >= 0], minlength=len(tokens))
    inner = children > 0
    row_of = np.cumsum(inner) - 1

    position = np.zeros(len(tokens), np.int64)
    scored = np.zeros(len(tokens), bool)
    for sequence, path in zip(sequences, paths, strict=True):
        position[path] = np.arange(len(path))
        scored[path[len(sequence.prompt_ids) :]] = True
    edge_of = np.cumsum(scored) - 1

    return Tree(
        tokens_T=torch.from_numpy(tokens[inner]),
        positions_T=torch.from_numpy(position[inner]),
        nodes=_cut_into_nodes(np.where(parents[inner] >= 0, row_of[parents[inner]], -1)),
        sources_E=torch.from_numpy(row_of[parents[scored]]),
        targets_E=torch.from_numpy(tokens[scored]),
        edges_N=torch.from_numpy(
            np.concatenate([edge_of[path[len(sequence.prompt_ids) :]] for sequence, path in zip(sequences, paths, strict=True)])
        ),
        lengths=tuple(len(sequence.response_ids) for sequence in sequences),
    )


def _cut_into_nodes(parents: np.ndarray) -> tuple[Node, ...]:
    """Maximal runs of rows in which each token is the only child of the one before it."""
    rows = np.arange(len(parents))
    forks = np.bincount(parents[parents >= 0], minlength=len(parents)) > 1
    begins = (parents != rows - 1) | (parents < 0) | forks[np.maximum(parents, 0)]
    starts = np.flatnonzero(begins)
    node_of_row = np.cumsum(begins) - 1
    nodes: list[Node] = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(parents)], strict=True):
        depth = 0
        ancestors: tuple[int, ...] = ()
        if parents[start] >= 0:
            parent = int(node_of_row[parents[start]])
            depth = nodes[parent].depth + nodes[parent].stop - nodes[parent].start
            ancestors = (*nodes[parent].ancestors, parent)
        nodes.append(Node(start, stop, depth, ancestors))
    return tuple(nodes)


def refuse_empty(sequences: Iterable[PromptResponse]) -> None:
    """Raises ValueError for a sequence in which nothing is scored, or in which nothing predicts the first token."""
    if not all(prompt_ids and response_ids for prompt_ids, response_ids in sequences):
        raise ValueError("a sequence to score needs at least one prompt token and one response token")


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next(i for i in range(shorter) if a[i] != b[i])


def count_unique_tokens(sequences: Iterable[PromptResponse]) -> int:
    """Tokens in the prefix tree of `sequences`, leaves included, without building it."""
    total = 0
    previous: Ids = ()
    for ids in sorted(s.prompt_ids + s.response_ids for s in sequences):
        total += len(ids) - common_prefix(previous, ids)
        previous = ids
    return total
