"""What a run takes on one GPU, on paper: models of true size without their weights (on torch's meta device), and the arithmetic of `likelier plan`.

    python benchmarks/memory_on_paper.py [--tokens 4096] [--gib 139]

Nothing is measured and nothing is downloaded. GB are 10⁹ bytes; `--gib` is what the GPU has, in GiB, as its driver says it. Two thirds of a batch's
tokens are taken to be scored: replies as long as their prompt, two to a prompt.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from likelier.models import add_adapter
from likelier.recipe import AdapterSettings, TrainSettings
from likelier.train.memory import BatchSize, Part, estimate

LLAMA_8B = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_70B = {"vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
"""Llama-3.1-8B and Llama-3.3-70B by their config.json; both have 8 key/value heads, and a head that is not tied to the embeddings."""

FULL = {"method": "full", "precision": "bf16"}
RUNS: list[tuple[str, dict[str, int], dict[str, Any]]] = [
    ("8B full, fp32 masters", LLAMA_8B, FULL),
    ("8B full, fp32 masters, adamw-8bit", LLAMA_8B, {**FULL, "optimizer": "adamw-8bit"}),
    ("8B full, stochastic-rounding", LLAMA_8B, {**FULL, "bf16_weights": "stochastic-rounding"}),
    ("8B full, stochastic-rounding, adamw-8bit", LLAMA_8B, {**FULL, "bf16_weights": "stochastic-rounding", "optimizer": "adamw-8bit"}),
    ("8B lora, rank 16", LLAMA_8B, {"method": "lora", "precision": "bf16"}),
    ("70B qlora, rank 16", LLAMA_70B, {"method": "qlora", "precision": "bf16"}),
]

RECOMPUTING = (False, "selective", True, "offload")
HELD = ("weights", "masters", "gradients", "optimizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="unique tokens of a batch")
    parser.add_argument("--gib", type=float, default=139, help="memory of the GPU (an H200: 139)")
    given = parser.parse_args()
    print(f"GB for {given.tokens:,} tokens a batch; (…) is more than {given.gib:g} GiB = {given.gib * 2**30 / 1e9:.0f} GB\n")
    print("| | held |", *(f"`{str(how).lower()}` |" for how in RECOMPUTING))
    print("|---|---|" + "---|" * len(RECOMPUTING))
    for name, held, totals in rows(given.tokens):
        fits = [f"{size / 1e9:.1f}" if size <= given.gib * 2**30 else f"({size / 1e9:.1f})" for size in totals]
        print(f"| {name} | {held / 1e9:.1f} | {' | '.join(fits)} |", flush=True)


def rows(tokens: int) -> Iterator[tuple[str, int, list[int]]]:
    """Of each run its name, the bytes that it holds from step to step, and with each kind of recomputing the most that it takes."""
    for name, sizes, settings in RUNS:
        model = on_paper(sizes, settings["method"])
        estimates = [parts_of(model, TrainSettings(**settings, gradient_checkpointing=how), tokens) for how in RECOMPUTING]
        yield name, total(part for part in estimates[0] if part.name in HELD), [total(parts) for parts in estimates]


def parts_of(model: Any, settings: TrainSettings, tokens: int) -> list[Part]:
    return estimate(model, settings, engine="nodes", precision="bf16", batch=BatchSize(tokens, tokens * 2 // 3))


def total(parts: Iterable[Part]) -> int:
    return sum(part.bytes for part in parts)


def on_paper(sizes: dict[str, int], method: str) -> Any:
    """A Llama in bf16 of these sizes, as a run by `method` holds it, of weights without values."""
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=8)).bfloat16()
    if method == "full":
        return model
    packed = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    model = add_adapter(model, AdapterSettings(), seed=0)
    for module in packed if method == "qlora" else ():
        module.weight = pack(module.weight)
    return model


@dataclass
class Packing:
    """What bitsandbytes keeps beside a weight in 4 bits, as far as memory goes (`quant_state`)."""

    shape: torch.Size

    def as_dict(self, *, packed: bool) -> dict[str, Tensor]:
        """A scale in 8 bits for each block of 64, one in fp32 for each 256 of those, and the tables of both kinds of number."""
        assert not packed
        blocks = -(-self.shape.numel() // 64)
        scales = torch.empty(blocks, dtype=torch.uint8, device="meta")
        scales_of_scales, table, table_of_scales = (torch.empty(count, device="meta") for count in (-(-blocks // 256), 16, 256))
        return {"absmax": scales, "nested_absmax": scales_of_scales, "quant_map": table, "nested_quant_map": table_of_scales}


def pack(weight: Tensor) -> nn.Parameter:
    """Two numbers to a byte."""
    packed: Any = nn.Parameter(torch.empty(weight.numel() // 2, 1, dtype=torch.uint8, device="meta"), requires_grad=False)
    packed.quant_state = Packing(weight.shape)
    return packed


if __name__ == "__main__":
    main()
