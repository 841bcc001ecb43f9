"""Fused LoRA beside PEFT's own forward pass: a random Llama under an adapter, both in turn. On the GPU if there is one.

    python benchmarks/fused_lora.py [--width 576] [--precision fp32|bf16] [--rounds 15]

Medians of the ratios round by round. A CPU without bf16 instructions says nothing in bf16.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor

from likelier.logprobs.scorer import Scorer
from likelier.models import trainable
from recomputing import SEQUENCES, made, now


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=576, help="of the model; a multiple of 192")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args(words, argparse.Namespace(method="lora"))
    scorers = {"fused": made(False, given), "PEFT": made(False, given)}
    for module in scorers["PEFT"].model.modules():
        if isinstance(module, Linear):
            module.__class__ = Linear
    for scorer in scorers.values():
        torch.manual_seed(1)
        for parameter in trainable(scorer.model).values():
            parameter.data += 0.01 * torch.randn_like(parameter)
    values, gradients = zip(*(passed(scorer) for scorer in scorers.values()), strict=True)
    print(f"width {given.width}, {scorers['PEFT'].last_tokens} tokens, {given.precision}, {scorers['PEFT'].device.type}")
    print(f"values {apart(*values):.1e} apart, gradients {apart(*gradients):.1e}, as norms")
    for name, way in {"forward": forward, "forward and backward": passed}.items():
        ratios = [timed(scorers["fused"], way) / timed(scorers["PEFT"], way) for _ in range(given.rounds)]
        print(f"{name:22}{statistics.median(ratios):.3f} times PEFT's seconds", flush=True)


def forward(scorer: Scorer) -> Tensor:
    with torch.no_grad():
        return torch.cat(scorer.token_logps(SEQUENCES))


def passed(scorer: Scorer) -> tuple[Tensor, Tensor]:
    """All values, and all gradients of their sum end to end."""
    values = torch.cat(scorer.token_logps(SEQUENCES))
    return values.detach(), torch.cat([gradient.flatten() for gradient in torch.autograd.grad(values.sum(), [*trainable(scorer.model).values()])])


def timed(scorer: Scorer, way: Callable[[Scorer], Any]) -> float:
    started = now(scorer)
    way(scorer)
    return now(scorer) - started


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


if __name__ == "__main__":
    main()
