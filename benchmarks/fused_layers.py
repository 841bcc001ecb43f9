"""Layers as transformers and PEFT spell them beside fused ones (likelier/logprobs/fused.py): a random Llama, all ways in turn. On the
GPU if there is one; on a CPU LoRA alone is fused.

    python benchmarks/fused_layers.py [--method lora|full] [--width 576] [--precision fp32|bf16] [--rounds 15]

Each line has one more kind of layer fused than the line before. Times are medians of the ratios to the first line, round by round; a CPU without bf16
instructions says nothing in bf16.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from likelier.logprobs import scorer as scoring
from likelier.logprobs.gates import fuse_gates
from likelier.logprobs.lora import fuse_lora
from likelier.logprobs.norms import fuse_norms
from likelier.logprobs.rotary import fuse_rotations
from likelier.logprobs.scorer import Scorer
from likelier.models import trainable
from recomputing import SEQUENCES, made, now

KINDS: dict[str, Callable[[nn.Module], int]] = {"LoRA": fuse_lora, "norms": fuse_norms, "SwiGLU": fuse_gates, "rotations": fuse_rotations}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--width", type=int, default=576, help="of the model; a multiple of 192")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args(words)
    kinds = [name for name in KINDS if (name != "LoRA" or given.method == "lora") and (name == "LoRA" or torch.cuda.is_available())]
    scorers = {"nothing": fused(given, [])}
    for count, name in enumerate(kinds, start=1):
        scorers[f"and {name}" if count > 1 else name] = fused(given, kinds[:count])
    wanted, *_ = [passed(scorer) for scorer in scorers.values()]  # the first of each warms up
    forward_ratios, ratios = (in_turn(scorers, way, given.rounds) for way in (forward, passed))
    print(f"{given.method}, width {given.width}, {scorers['nothing'].last_tokens} tokens, {given.precision}, {scorers['nothing'].device.type}\n")
    print("| fused | forward | forward and backward | values apart | gradients apart |\n|---|---|---|---|---|")
    for name, scorer in scorers.items():
        distances = " | ".join(f"{float((one - other).norm() / other.norm()):.1e}" for one, other in zip(passed(scorer), wanted, strict=True))
        print(f"| {name} | {forward_ratios[name]:.3f} | {ratios[name]:.3f} | {distances} |")


def fused(given: argparse.Namespace, kinds: list[str]) -> Scorer:
    """Of the same model each time, with these kinds of layers fused and no others."""
    scoring.fuse = lambda model, *, on_gpu: None
    scorer = made(False, given)
    torch.manual_seed(1)
    for parameter in trainable(scorer.model).values():
        parameter.data += 0.01 * torch.randn_like(parameter)  # B is zero in a new adapter
    for kind in kinds:
        KINDS[kind](scorer.model)
    return scorer


def forward(scorer: Scorer) -> Tensor:
    with torch.no_grad():
        return torch.cat(scorer.token_logps(SEQUENCES))


def passed(scorer: Scorer) -> tuple[Tensor, Tensor]:
    """All values, and all gradients of their sum end to end."""
    values = torch.cat(scorer.token_logps(SEQUENCES))
    gradients = torch.autograd.grad(values.sum(), [*trainable(scorer.model).values()])
    return values.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def in_turn(scorers: dict[str, Scorer], way: Callable[[Scorer], Any], rounds: int) -> dict[str, float]:
    """How many times the first one's seconds each takes."""
    ratios: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(rounds):
        seconds = {name: timed(scorer, way) for name, scorer in scorers.items()}
        for name, each in seconds.items():
            ratios[name].append(each / seconds["nothing"])
    return {name: statistics.median(each) for name, each in ratios.items()}


def timed(scorer: Scorer, way: Callable[[Scorer], Any]) -> float:
    started = now(scorer)
    way(scorer)
    return now(scorer) - started


if __name__ == "__main__":
    main()
