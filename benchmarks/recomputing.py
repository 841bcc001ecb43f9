"""What `train.gradient_checkpointing` costs: a random Llama, forward and backward, all ways in turn. On the GPU if there is one.

    python benchmarks/recomputing.py [--method full|lora] [--precision bf16|fp32] [--width 576] [--rounds 7]

FLOPs are counted (torch's FlopCounterMode; on a CPU it does not know attention), times are medians. "every other" recomputes every
second layer as a whole.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from likelier.logprobs.scorer import DTYPES, Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.models import add_adapter, pick_device
from likelier.recipe import AdapterSettings
from likelier.recompute import recompute_activations

LAYERS = 4
WAYS: tuple[Any, ...] = (False, "selective", "every other", True, "offload")
SEQUENCES = [PromptResponse(tuple(range(5, 305)), tuple(range(start, start + 150))) for start in (110, 200, 300)]
"""A prompt of 300 tokens and three replies of 150."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--width", type=int, default=576, help="of the model; a multiple of 192")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    scorers = {how: made(how, given) for how in WAYS}
    seconds: dict[Any, list[float]] = {how: [] for how in WAYS}
    for _ in range(given.rounds):
        for how, scorer in scorers.items():
            started = now(scorer)
            passed(scorer)
            seconds[how].append(now(scorer) - started)
    of = f"{LAYERS} layers of width {given.width}, {scorers[False].last_tokens} tokens, {scorers[False].device.type}"
    print(f"{given.method}, {given.precision}, {of}\n")
    print("| | FLOPs | seconds | times |\n|---|---|---|---|")
    plain = None
    for how, scorer in scorers.items():
        with FlopCounterMode(display=False) as flops:
            passed(scorer)
        found = flops.get_total_flops(), statistics.median(seconds[how])
        plain = plain or found
        print(f"| {str(how).lower()} | {found[0] / plain[0]:.2f} | {found[1]:.3f} | {found[1] / plain[1]:.2f} |", flush=True)


def passed(scorer: Scorer) -> None:
    torch.cat(scorer.token_logps(SEQUENCES)).sum().backward()


def now(scorer: Scorer) -> float:
    """The time at which all that was asked of the device is done."""
    if scorer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def made(how: Any, given: argparse.Namespace) -> Scorer:
    heads = given.width // 64
    sizes = {"hidden_size": given.width, "intermediate_size": given.width * 8 // 3, "num_attention_heads": heads, "num_key_value_heads": heads // 3}
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_hidden_layers=LAYERS, **sizes)).to(pick_device(), DTYPES[given.precision])
    if given.method == "lora":
        model = add_adapter(model, AdapterSettings(), seed=0)
    recompute_activations(model, how != "every other" and how)
    if how == "every other":
        recompute_activations(model, True)
        for layer in model.get_decoder().layers[::2]:
            layer.gradient_checkpointing = False
    return Scorer(model, engine="nodes", precision=given.precision)


if __name__ == "__main__":
    main()
