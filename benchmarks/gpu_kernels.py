"""Which attention, and which blocks of the head: each way on the same numbers in turn, forward and backward.

    python benchmarks/gpu_kernels.py --json kernels.json      on a GPU, bf16, about two minutes
    python benchmarks/gpu_kernels.py --smoke                  small, on any machine

Attention over the tree of a step, of three shapes of data: one flash kernel for all nodes, FlexAttention, node by node, a dense mask; beside them
plain causal attention over as many rows, which is wrong and shows what a kernel costs that knows no tree. FLOP/s count pairs of a token and one that
it sees.

The head: `token_logps` with blocks of several sizes and once without its kernel, beside the matmuls alone that it cannot do without (three; two where
the head is frozen), the plain way that holds all logits in fp32, and Liger's and Apple's fused kernels where they are installed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_cases import SHAPES, SMOKE_SHAPES, Case, make_steps
from likelier.logprobs import softmax, varlen
from likelier.logprobs.attention import NodeAttention, dense_mask
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.flex import FlexAttention
from likelier.logprobs.head import token_logps
from likelier.logprobs.tree import Tree, build_tree
from measures import clock
from needed_flops import seen_pairs

HEADS = {"llama-1b": (32, 8, 64), "llama-8b": (32, 8, 128)}
"""Query heads, key/value heads, width of each."""

HEAD_SIZES = {"llama-1b": (8192, 2048, 128256), "llama-8b": (8192, 4096, 128256)}
"""Scored positions, width, vocabulary."""

Way = Callable[[], Any]


def timed(ways: dict[str, Way], *, tries: int) -> dict[str, dict[str, Any]]:
    """Each way in turn, `tries` times after one that does not count: median milliseconds, and on CUDA the bytes that it needed beside its inputs. A
    way that fails says why."""
    found: dict[str, dict[str, Any]] = {name: {"times": []} for name in ways}
    for number in range(tries + 1):
        for name, way in ways.items():
            if "failed" in found[name]:
                continue
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            try:
                started = clock()
                way()
                seconds = clock() - started
            except (RuntimeError, MemoryError) as problem:  # that a kernel is not there, too
                found[name] = {"failed": " ".join(str(problem).split())[:200]}
                continue
            found[name]["times"] += [1e3 * seconds] if number else []
            if torch.cuda.is_available():
                found[name]["bytes"] = torch.cuda.max_memory_allocated() - held
    for each in found.values():
        if times := each.pop("times", None):
            each["milliseconds"] = statistics.median(times)
    return found


def attention_ways(tree: Tree, states: list[Tensor], slope: Tensor) -> dict[str, Way]:
    """By name: attention over `tree` of (query, key, value), and the gradients of all three. What is made once for all layers of a model is made
    here."""

    def with_gradients(attend: Callable[..., Tensor]) -> Way:
        return lambda: torch.autograd.grad(attend(*states), states, slope)

    def row_by_row(*given: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(*given, attn_mask=mask, is_causal=mask is None, enable_gqa=True)

    def by_nodes(*given: Tensor) -> Tensor:
        """As where there is no flash attention."""
        takes, varlen.takes = varlen.takes, lambda query, value: False
        try:
            return NodeAttention(tree)(*given, scale=None, window=None)
        finally:
            varlen.takes = takes

    paths = varlen.Paths(tree.nodes, tree.positions_T.device)
    return {
        "flash, all nodes": with_gradients(lambda *given: varlen.attend(*given, paths, scale=None, window=None)),
        "FlexAttention": with_gradients(partial(FlexAttention(tree), scale=None, window=None)),
        "node by node": with_gradients(by_nodes),
        "dense mask": with_gradients(partial(row_by_row, mask=dense_mask(tree))),
        "causal, no tree (wrong)": with_gradients(row_by_row),
    }


def without_kernel(way: Way) -> Way:
    """The same as where there is no Triton."""

    def done() -> None:
        takes, softmax.takes = softmax.takes, lambda logits: False
        try:
            way()
        finally:
            softmax.takes = takes

    return done


def head_ways(hidden: Tensor, weight: Tensor, targets: Tensor, blocks: list[int]) -> dict[str, Way]:
    """By name: log-probabilities of `targets`, and gradients."""
    slope = torch.randn(len(targets), device=hidden.device)

    def with_gradients(logps: Callable[[], Tensor]) -> Way:
        leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
        return lambda: torch.autograd.grad(logps(), leaves, slope)

    def matmuls() -> None:
        with torch.no_grad():
            logits = hidden @ weight.T
            logits @ weight
            if weight.requires_grad:
                logits.T @ hidden

    ways: dict[str, Way] = {"matmuls alone": matmuls}
    for mib in blocks:
        ways[f"blocks of {mib} MiB"] = with_gradients(partial(token_logps, hidden, weight, targets, working_bytes=mib * 2**20))
    ways["softmax without kernel"] = without_kernel(with_gradients(lambda: token_logps(hidden, weight, targets)))
    ways["all logits"] = with_gradients(lambda: (hidden @ weight.T).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0])
    if find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        ways["Liger"] = with_gradients(lambda: -Liger.apply(hidden, weight, targets, None, None, -100, 0.0, 0.0, "none")[0])
    if find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        ways["cut-cross-entropy, exact"] = with_gradients(lambda: -linear_cross_entropy(hidden, weight, targets, reduction="none", impl="cce_exact"))
    return ways


def measure_attention(device: torch.device, dtype: torch.dtype, *, smoke: bool, tries: int) -> list[dict[str, Any]]:
    found = []
    for name, (heads, groups, width) in ({"tiny": (4, 2, 16)} if smoke else HEADS).items():
        for shape in (SMOKE_SHAPES if smoke else SHAPES).values():
            (step,) = make_steps(Case("tiny-llama", "full", shape), 1)
            tree = build_tree(sequences_of(step)).to(device)
            states = [torch.randn(1, h, len(tree), width, device=device, dtype=dtype, requires_grad=True) for h in (heads, groups, groups)]
            flops = 3 * 4 * heads * width * seen_pairs(tree)  # forward, and twice as much backward
            ways = timed(attention_ways(tree, states, torch.randn_like(states[0])), tries=tries)
            for each in ways.values():
                if "milliseconds" in each:
                    each["tflops"] = flops / each["milliseconds"] / 1e9
            found.append({"what": "attention", "heads of": name, "data": shape.name, "rows": len(tree), "nodes": len(tree.nodes), "ways": ways})
    return found


def measure_head(device: torch.device, dtype: torch.dtype, *, smoke: bool, tries: int) -> list[dict[str, Any]]:
    found = []
    for name, (edges, width, vocabulary) in ({"tiny": (256, 64, 2000)} if smoke else HEAD_SIZES).items():
        for frozen in (False, True):
            hidden = torch.randn(edges, width, device=device, dtype=dtype, requires_grad=True)
            weight = (torch.randn(vocabulary, width, device=device, dtype=dtype) / width**0.5).requires_grad_(not frozen)
            targets = torch.randint(vocabulary, (edges,), device=device)
            ways = timed(head_ways(hidden, weight, targets, [1] if smoke else [64, 256, 512, 1024, 2048]), tries=tries)
            found.append({"what": "head", "of": name, "frozen": frozen, "positions": edges, "ways": ways})
    return found


def show(measured: dict[str, Any]) -> None:
    """One table for everything."""
    about = ", ".join(f"{key} {value}" for key, value in measured.items() if key not in ("what", "ways"))
    print(f"\n{measured['what']}: {about}")
    for name, each in measured["ways"].items():
        if "failed" in each:
            print(f"  {name:28}{each['failed']}")
            continue
        rate = f"{each['tflops']:10.1f} TFLOP/s" if "tflops" in each else ""
        memory = f"{each['bytes'] / 2**20:10.0f} MiB" if "bytes" in each else ""
        print(f"  {name:28}{each['milliseconds']:10.2f} ms{rate}{memory}")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small numbers, two tries")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.smoke:
        print("There is no GPU here; --smoke shows whether everything runs.", file=sys.stderr)
        return 2
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    settings: dict[str, Any] = {"smoke": arguments.smoke, "tries": 2 if arguments.smoke else 10}
    found = [*measure_attention(device, dtype, **settings), *measure_head(device, dtype, **settings)]
    for measured in found:
        show(measured)
    if arguments.json:
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        arguments.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "measured": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
