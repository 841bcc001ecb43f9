"""The cases of gpu.py on paper: what a step of Likelier and of TRL costs a GPU, without one. FLOPs, bytes moved, the least seconds, peak memory.

    python benchmarks/gpu_on_paper.py --json paper.json              all main cases but the one with 8-bit moments, some minutes on any machine
    python benchmarks/gpu_on_paper.py --cases 'llama-1b/*' --kernels what takes the time, kernel by kernel
    python benchmarks/gpu_on_paper.py --smoke                        tiny models

Nothing is measured: kernels do not run. What they would be given is counted (paper_device.py), and the roofline of an H200 says the least time they
need (paper_meter.py). `default` and `best` are those of gpu.py, without FlashAttention. TRL's own code computes the loss, from its collator to its
metrics; its training loop is played: batches, backward, clipping, fused AdamW. Triton's kernels, of either tool, are counted by hand: each reads its
logits once, and where it leaves something writes them once. Likelier attends with `varlen_attn`.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_cases import SEED, Case, main_cases, make_steps, smoke_cases
from gpu_players import OPPONENTS, RECOMPUTING, Options, settings_of
from likelier.logprobs import gates, head, kernels, rotary, softmax, varlen
from likelier.logprobs.examples import cut_examples, sequences_of
from likelier.logprobs.fused import fuse
from likelier.logprobs.reference import ReferenceValues
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import Tree, build_tree
from likelier.models import add_adapter, as_reference
from likelier.objectives import make_objective
from likelier.recipe import AdapterSettings
from likelier.recompute import recompute_activations
from likelier.train.loop import Training
from likelier.train.master import MasterWeights
from likelier.train.progress import Progress
from likelier.train.step import Task
from likelier_side import BETA, Steps, StepsAsGiven
from needed_flops import needed_flops, seen_pairs
from paper_device import forget_cast_weights, moved_to_paper, on_meta, on_paper, set_up
from paper_meter import H200, Meter, Spent

STEPS = 3


def likelier_on_paper(case: Case, steps: Steps, options: Options, *, with_kernels: bool) -> tuple[Spent, Spent]:
    """All steps, and scoring their reference."""
    settings, meter = settings_of(case, options), Meter(options.device.type)
    trees: list[Tree] = [build_tree(sequences_of(batch)) for step in steps for batch in cut_examples(step, settings.tokens_per_batch)]
    config, reference = case.config, ReferenceValues()
    meter.attention_flops = 4 * config.num_attention_heads * config.head_dim * sum(map(seen_pairs, trees)) / len(trees)
    for sequence in {sequence for step in steps for sequence in sequences_of(step)}:
        reference.add(sequence, torch.zeros(len(sequence.response_ids)))
    varlen.takes, varlen.agrees = lambda query, value: True, lambda *shape: True
    head.log_softmax_at = _softmax_kernel(meter) if with_kernels else softmax.log_softmax_at
    kernels.of_layers = lambda: _LayerKernels(meter)
    kernels.are_for = lambda tensor: with_kernels
    gates.agrees = rotary.agrees = lambda dtype, device: True
    model = on_meta(case.config, torch.bfloat16)
    if case.method == "lora":
        model = add_adapter(model, AdapterSettings(), seed=SEED)
    if with_kernels:
        fuse(model, on_gpu=True)
    recompute_activations(model, how=settings.gradient_checkpointing)
    with on_paper():
        policy = Scorer(moved_to_paper(model, options.device), engine="nodes", precision="bf16")
        weights = MasterWeights(model)
        task = Task(policy, reference, make_objective("dpo", beta=BETA), settings.tokens_per_batch, Progress())
        training = Training(task, weights, StepsAsGiven(steps), settings, log=lambda row: None, begins_at_reference=False)
        with meter:
            meter.hold(*model.parameters(), *model.buffers(), *weights.parameters)
            with torch.no_grad(), as_reference(model):
                for batch in (batch for step in steps for batch in cut_examples(step, settings.tokens_per_batch)):
                    policy.token_logps(sequences_of(batch))
                    forget_cast_weights()
            scored = meter.spent
            meter.begin()
            for _ in steps:
                training.step()
                forget_cast_weights()
    return meter.spent, scored


def _softmax_kernel(meter: Meter) -> Callable[..., Tensor]:
    def kernel(targets: Tensor, logits: Tensor, *, leave_slopes: bool) -> Tensor:
        meter.account("Triton softmax", moved=logits.nbytes * (2 if leave_slopes else 1))
        return torch.empty(len(logits), dtype=torch.float32, device=logits.device)

    return kernel


class _LayerKernels:
    """Those of logprobs/layer_kernels.py."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        self._meter.account("Triton SwiGLU", moved=3 * gate.nbytes)
        return torch.empty_like(gate)

    def gated_slopes(self, slope: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        self._meter.account("Triton SwiGLU backward", moved=5 * gate.nbytes)
        return torch.empty_like(gate), torch.empty_like(up)

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
        batch, heads, tokens, width = x.shape
        self._meter.account("Triton rotation", moved=2 * x.nbytes + cos.nbytes + sin.nbytes)
        return x.new_empty(batch, tokens, heads, width).transpose(1, 2)


def on_paper_match(case: Case, opponents: list[str], options: Options, *, with_kernels: bool) -> dict[str, Any]:
    """What both tools spend in one case."""
    from paper_trl import trl_on_paper

    steps, rank = make_steps(case, STEPS), AdapterSettings().rank if case.method == "lora" else None
    needed = [needed_flops(case.config, build_tree(sequences_of(step)), lora_rank=rank) for step in steps]
    own, scored = likelier_on_paper(case, steps, options, with_kernels=with_kernels)
    with warnings.catch_warnings(action="ignore"):  # TRL's, of names that transformers will no longer have
        theirs = {opponent: asdict(trl_on_paper(case, steps, options, opponent)) for opponent in opponents}
    flops = {"step": sum(each.step for each in needed), "reference": sum(each.reference for each in needed)}
    return {"case": case.name, "needed_flops": flops, "likelier": asdict(own), "reference": asdict(scored), "trl": theirs}


def show(match: dict[str, Any], *, kernels: bool) -> None:
    """A line each for Likelier and the opponents."""
    own, reference, rate = match["likelier"], match["reference"]["total"], H200.flops[torch.bfloat16]
    total = own["total"]
    bound = match["needed_flops"]["step"] / total["seconds"] / rate
    print(f"{match['case']:30} Likelier {_line(own)}   MFU at most {bound:.0%}", flush=True)
    for opponent, theirs in match["trl"].items():
        more = reference if opponent == "default" else dict.fromkeys(reference, 0)
        flops, seconds = (theirs["total"][name] / (total[name] + more[name]) for name in ("flops", "seconds"))
        ratios = f"FLOPs {flops:.2f}, seconds {seconds:.2f} times Likelier's; its peak {own['peak_bytes'] / theirs['peak_bytes']:.2f} of this"
        print(f"{'':30} {opponent:8} {_line(theirs)}   {ratios}", flush=True)
    for name, spent in [("Likelier", own), *match["trl"].items()] if kernels else []:
        print(f"\n  {name}")
        for kernel, cost in sorted(spent["by_kernel"].items(), key=lambda item: -item[1]["seconds"])[:16]:
            sums = f"{1e3 * cost['seconds']:8.2f} ms  {cost['flops'] / 1e12:8.2f} TFLOP  {cost['bytes'] / 1e9:8.1f} GB"
            print(f"    {kernel:44} {sums}  {cost['kernels']}")


def _line(spent: dict[str, Any]) -> str:
    total = spent["total"]
    sums = f"{total['flops'] / 1e12:8.1f} TFLOP {total['bytes'] / 1e9:7.0f} GB {1e3 * total['seconds']:7.0f} ms"
    return f"{sums} {total['kernels']:6} kernels {spent['reads']:4} reads  peak {spent['peak_bytes'] / 1e9:6.1f} GB"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN", help="names, with * and ?")
    parser.add_argument("--opponents", nargs="*", choices=list(OPPONENTS), default=list(OPPONENTS), help="none: Likelier alone")
    parser.add_argument("--tokens-per-batch", type=int, default=8192, help="Likelier's, as in a recipe (default 8192)")
    parser.add_argument("--recompute", choices=[*RECOMPUTING], default="no", help="Likelier with train.gradient_checkpointing")
    parser.add_argument("--without-kernels", action="store_true", help="Likelier without its Triton kernels and fused layers, but for LoRA")
    parser.add_argument("--kernels", action="store_true", help="list what takes most of the time")
    parser.add_argument("--smoke", action="store_true", help="tiny models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    arguments = parser.parse_args(words)
    options = Options(set_up(), "bf16", arguments.tokens_per_batch, RECOMPUTING[arguments.recompute])
    cases = [case for case in (smoke_cases() if arguments.smoke else main_cases()) if not case.tight]
    print(f"{STEPS} steps; least seconds on an H200 by its data sheet; against `default` with Likelier's reference pass")
    about = {"rates": "NVIDIA H200, data sheet", "steps": STEPS, "torch": torch.__version__, "tokens_per_batch": arguments.tokens_per_batch}
    found: list[dict[str, Any]] = []
    for case in cases:
        if any(fnmatch(case.name, pattern) for pattern in arguments.cases):
            found.append(on_paper_match(case, arguments.opponents, options, with_kernels=not arguments.without_kernels))
            show(found[-1], kernels=arguments.kernels)
            if arguments.json:
                arguments.json.write_text(json.dumps({**about, "matches": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
