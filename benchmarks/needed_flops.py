"""FLOPs that a step of preference tuning needs: what MFU counts.

Shape legend: T tokens of the prefix tree of a whole step (every token once), U positions that something is scored at, S pairs of a token and one that
it sees (itself included), Λ layers, D width, V vocabulary, H heads of d numbers, r rank of an adapter. A product of (m, k) and (k, n) is 2mkn FLOPs.

    forward   2·T·Λ·Σ in·out  +  4·Λ·H·d·S  +  2·U·D·V
              linear layers      q·k and p·v   the head, where something is scored

    full      3 · forward: backwards each product has two of its size, one for either factor (of q·k and p·v too)

    LoRA      linear layers and head 2 ·, attention 3 ·: a frozen weight has no gradient. The first layer's q, k and v read a frozen embedding, so
              that no gradient goes back through them. The adapters add 6·T·Λ·Σ r·(in + out), less what goes back through the first three.

What is not needed and does not count: padding, a prompt's second copy, the hidden half of a causal mask, logits where nothing is scored, recomputed
activations, attention scores made again by a fused backward pass. Left out on both sides: norms, rotations, softmax, the optimizer.

    MFU = FLOPs needed / (seconds · FLOP/s)     with the FLOP/s of the data sheet, or those of the largest matmul measured (rates.py)

Tested against the FLOPs that PyTorch counts (tests/benchmarks/test_needed_flops.py).
"""

from dataclasses import dataclass
from typing import Any

from likelier.logprobs.tree import Tree


@dataclass(frozen=True)
class Needed:
    """FLOPs of a step, and of scoring its reference."""

    step: int
    reference: int


def needed_flops(config: Any, tree: Tree, *, lora_rank: int | None = None, seen: int | None = None) -> Needed:
    """FLOPs for `tree`, all sequences of a step, under a model of Llama's kind; of all weights, or of LoRA on every linear layer but the head.
    `seen` stands for S where another count than the exact one is wanted."""
    layers = config.num_hidden_layers
    by_name = linear_shapes(config)
    attention = 4 * layers * config.num_attention_heads * config.head_dim * (seen_pairs(tree) if seen is None else seen)
    linear = 2 * len(tree) * layers * sum(inner * outer for inner, outer in by_name.values())
    head = 2 * len(tree.sources_E.unique()) * config.hidden_size * config.vocab_size
    forward = linear + attention + head
    if lora_rank is None:
        return Needed(3 * forward, forward)
    first = [by_name[name] for name in ("q", "k", "v")]
    adapters = 6 * len(tree) * layers * lora_rank * sum(inner + outer for inner, outer in by_name.values())
    unneeded = 2 * len(tree) * sum(inner * outer + inner * lora_rank for inner, outer in first)
    return Needed(2 * (linear + head) + 3 * attention + adapters - unneeded, forward)


def linear_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear layers of one block."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    attention = {"q": (width, queries), "k": (width, keys), "v": (width, keys), "o": (queries, width)}
    return attention | {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}


def seen_pairs(tree: Tree) -> int:
    """Pairs of a token and one that it sees: at position n a token sees n others and itself."""
    return int(tree.positions_T.sum()) + len(tree)
