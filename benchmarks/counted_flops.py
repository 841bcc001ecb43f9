"""Counted FLOPs of a training step of all weights, over the least for its unique tokens. Usage: python benchmarks/counted_flops.py [DATA]

The least: 2 · weights for each token of the prefix tree, the head's for scored tokens only, attention as two products of each query with the keys
of its own context (rectangles, as torch counts them); all three times, once forwards and twice backwards. Fused attention keeps no scores and
multiplies queries and keys once more on the way back: five products there, not four. The last column takes that as given.
"""

import sys

import torch

from likelier.data.chat import Encoder
from likelier.data.formats import read_all
from likelier.logprobs.examples import cut_examples, sequences_of
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import build_tree
from likelier.models import load_model
from likelier.recipe import ModelSettings
from measures import counting_flops

PAIRS_PER_STEP, STEPS = 16, 3


def main() -> None:
    loaded = load_model(ModelSettings(), dtype=torch.bfloat16)
    config = loaded.model.config
    layers = loaded.model.model.layers
    body = sum(weight.numel() for weight in layers.parameters() if weight.dim() == 2)
    head, width = loaded.model.lm_head.weight.numel(), config.num_attention_heads * config.head_dim
    scorer = Scorer(loaded.model, engine="nodes", precision="bf16")
    records = read_all([sys.argv[1] if len(sys.argv) > 1 else "embedded:support"], on_bad=lambda _: None)
    pairs = Encoder(loaded.tokenizer, max_length=1024).encode(records[: 2 * STEPS * PAIRS_PER_STEP]).examples
    for number in range(STEPS):
        step = pairs[number * PAIRS_PER_STEP : (number + 1) * PAIRS_PER_STEP]
        tree = build_tree(sequences_of(step))
        scores = sum((node.stop - node.start) * (node.depth + node.stop - node.start) for node in tree.nodes)
        product = 2 * len(layers) * width * scores
        linear = 3 * 2 * (body * len(tree) + head * len(tree.targets_E))
        with counting_flops() as flops:
            for batch in cut_examples(step, 1024):
                torch.cat(scorer.token_logps(sequences_of(batch))).sum().backward()
        counted = flops()
        least, fused = (linear + (2 + backwards) * product for backwards in (4, 5))
        ratios = f"{counted / least:.4f} times the least, {counted / fused:.4f} times that with fused attention"
        print(f"step {number + 1}: {len(tree)} unique tokens, {counted / 1e9:,.0f} GFLOP counted, {ratios}")


if __name__ == "__main__":
    main()
