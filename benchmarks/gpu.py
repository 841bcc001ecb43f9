"""Likelier and TRL on one GPU, everything in one call of at most ten minutes. The table comes last, all figures go into a JSON file.

    python benchmarks/gpu.py --json gpu.json                      the main cases, the most important first
    python benchmarks/gpu.py --cases 'llama-8b/*' --json 8b.json  some of them (`--list` names all)
    python benchmarks/gpu.py --scaling --json scaling.json        how both scale with length and with pairs a prompt
    python benchmarks/gpu.py --plot scaling.json plots/           its plots (no GPU)
    python benchmarks/gpu.py --smoke                              tiny models and pairs on any machine: whether everything still runs

Nothing is downloaded: the models have the architectures of Llama-3.2-1B, Qwen3-4B and Llama-3.1-8B and random weights, the pairs are made-up token
ids with log-normal lengths (gpu_cases.py). Speed hardly depends on either.

    default   TRL as it comes: fp32 weights under bf16 autocast, gradient checkpointing, 8 pairs at once, the reference scored in every step by a
              second model (full) or without the adapter (LoRA). Likelier's reference pass counts as part of its step.
    best      no checkpointing, reference beforehand, FlashAttention where it is installed, LoRA on bf16 weights, and as many of 8 pairs at once as
              fit. Steps are compared without either reference pass. Full fine-tuning keeps fp32 weights, because pure bf16 loses small updates.
              Only where they are too large (8B, `tight` in gpu_cases.py) TRL has bf16 weights, Likelier rounds at random, both with 8-bit moments.

Without TRL installed Likelier is measured alone, as with `--opponents alone`.

Both tools live in one process and take turns step by step, TRL's `train()` in a thread that waits for its cue: what the GPU's clock does falls on
both, and what one has freed serves the other, as it would a single one. Peak memory is what PyTorch allocated within a tool's turns, less what the
other held then. That needs half of the memory for the one at work. Where what both hold leaves less, or a step does not fit beside the other tool,
each has the device to itself, one after the other; the table marks it with `*`.

Pairs a second and seconds are medians over the timed steps; two steps before them warm up. MFU: FLOPs needed for the deduplicated tokens
(needed_flops.py) over the data sheet's dense bf16 rate; beside it over the rate of the largest matmul, measured before each case.
"""

import os

if __name__ == "__main__":  # before torch and the others look
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # two tools with unlike tensors in one pool
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import argparse
import gc
import json
import platform
import sys
import time
import traceback
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gpu_cases import Case, describe, main_cases, make_steps, scaling_cases, smoke_cases
from gpu_figures import add_figures, line, print_table
from gpu_players import OPPONENTS, RECOMPUTING, WARM_UP, DoesNotFit, LikelierPlayer, Options, Player, fit_together, release, sizes_at_once
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.tree import build_tree
from likelier.recipe import AdapterSettings
from needed_flops import needed_flops
from rates import datasheet_rate, matmul_ceiling

SCALING = {"lengths": [256, 128, 512, 1024, 2048], "responses": [2, 3, 4, 6, 8], "tokens": 16384}
SMOKE_SCALING = {"lengths": [8, 16], "responses": [2, 3], "tokens": 128}


def hold_match(case: Case, opponent: str, options: Options, *, steps: int, seconds: float, apart: bool) -> dict[str, Any]:
    """Likelier against one opponent in one case: what both measured, None for a tool that the memory is not enough for, or that is not there."""
    given = make_steps(case, WARM_UP + steps)
    sizes = sizes_at_once(case, opponent)

    def likelier() -> Player:
        return LikelierPlayer(case, given, options)

    def trl(pairs_at_once: int) -> Player:
        from gpu_trl_player import TrlPlayer

        return TrlPlayer(case, given, options, opponent, pairs_at_once=pairs_at_once)

    found = None
    if opponent != "alone" and not apart and fit_together(case, opponent, options.device):
        found = play([likelier, lambda: trl(sizes[0])], len(given), seconds)
    together = None if opponent == "alone" else found is not None
    if found is None:
        (own,) = play([likelier], len(given), seconds / 2) or [None]
        tries = (play([lambda size=size: trl(size)], len(given), seconds / 2) for size in sizes if opponent != "alone")
        (theirs,) = next((figures for figures in tries if figures), [None])
    else:
        own, theirs = found
    rank = AdapterSettings().rank if case.method == "lora" else None
    trees = [build_tree(sequences_of(step)) for step in given]
    needed = [needed_flops(case.config, tree, lora_rank=rank) for tree in trees]
    return {
        "case": case.name,
        "axis": case.axis,
        "opponent": opponent,
        "together": together,
        "pairs_per_step": case.shape.pairs_per_step,
        "tokens_per_pair": describe(given[WARM_UP:], trees[WARM_UP:], sizes[0]),
        "unique_tokens": [len(tree) for tree in trees],
        "needed_flops": [{"step": each.step, "reference": each.reference} for each in needed],
        "likelier": own,
        "trl": theirs,
    }


def play(makers: list[Any], steps: int, seconds: float) -> list[dict[str, Any]] | None:
    """All steps by all players in turn, as far as the seconds allow, two timed ones at least; what each measured. None if one does not fit."""
    players: list[Player] = []
    try:
        for make in makers:
            players.append(make())  # noqa: PERF401 (those made before one fails are closed)
        started = time.perf_counter()
        for number in range(steps):
            if number >= WARM_UP + 2 and time.perf_counter() - started > seconds:
                break
            for player in players:
                player.step()
        return [player.figures() for player in players]
    except DoesNotFit as problem:
        print(f"  does not fit{' together' if len(makers) > 1 else ''}: {str(problem)[:150]}", file=sys.stderr)
    finally:
        for player in players:
            player.close()
        players.clear()
        release()
    return None


def about(options: Options, words: list[str]) -> dict[str, Any]:
    """Date, machine, versions and command."""
    cuda = options.device.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else "cpu"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/gpu.py", *(Path(word).name if word.endswith(".json") else word for word in words)]),
        "device": name,
        "device_bytes": torch.cuda.mem_get_info()[1] if cuda else None,
        "datasheet_rate": datasheet_rate(name),
        "precision": options.precision,
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("likelier", "trl", "torch", "transformers", "peft")},
        "matches": [],
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measure(cases: list[Case], opponents: list[str], options: Options, arguments: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """All matches, until the time is over; the file is written anew after each. A match that fails is noted, and the others are held."""
    found = about(options, words)
    gc.freeze()  # what is imported stays; to look through it whenever a player goes takes half a second
    size, dtype = (8192, torch.bfloat16) if options.device.type == "cuda" else (256, torch.float32)
    for case in cases:
        for opponent in opponents:
            if time.perf_counter() - arguments.started > 60 * arguments.minutes:
                found["left_out"] = [*found.get("left_out", []), f"{case.name} {opponent}"]
                continue
            print(f"{time.perf_counter() - arguments.started:5.0f} s  {case.name}, {opponent}", file=sys.stderr, flush=True)
            ceiling = matmul_ceiling(options.device, dtype, size=size)
            try:
                match = hold_match(case, opponent, options, steps=arguments.steps, seconds=arguments.seconds, apart=arguments.apart)
                add_figures(match, datasheet=found["datasheet_rate"], ceiling=ceiling)
            except Exception as problem:  # time on a GPU is short: the other cases shall have theirs
                traceback.print_exc()
                match = {"case": case.name, "opponent": opponent, "failed": f"{type(problem).__name__}: {problem}"}
            release()
            print(f"         {line(match)}", file=sys.stderr, flush=True)
            found["matches"].append(match | {"ceiling": ceiling})
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN", help="names, with * and ?")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    parser.add_argument("--opponents", nargs="+", choices=[*OPPONENTS, "alone"], help="`alone`: Likelier by itself")
    parser.add_argument("--minutes", type=float, default=8.0, help="no match begins after so many (default 8)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a match at most (default 6)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of a match after which no further step begins, beyond two timed ones (default 20)"
    )
    parser.add_argument("--tokens-per-batch", type=int, default=8192, help="Likelier's, as in a recipe; halved where it does not fit (default 8192)")
    parser.add_argument(
        "--recompute", choices=[*RECOMPUTING], default="no", help="Likelier with train.gradient_checkpointing: less memory, more time"
    )
    parser.add_argument("--apart", action="store_true", help="each tool has the device to itself, one after the other")
    parser.add_argument("--scaling", action="store_true", help="vary length and pairs a prompt of one model instead")
    parser.add_argument("--model", default="llama-1b/full", help="of --scaling: MODEL/METHOD (default llama-1b/full)")
    parser.add_argument("--smoke", action="store_true", help="tiny models and pairs, fp32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, written after each match")
    parser.add_argument("--plot", type=Path, nargs=2, metavar=("FILE", "FOLDER"), help="draw the figures of a --scaling file, and end")
    arguments = parser.parse_args(words)
    arguments.opponents = arguments.opponents or (list(OPPONENTS) if find_spec("trl") else ["alone"])
    arguments.started = time.perf_counter()
    return arguments


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    if arguments.scaling:
        model, _, method = ("tiny-llama/full" if arguments.smoke else arguments.model).partition("/")
        cases = scaling_cases(model, method, **(SMOKE_SCALING if arguments.smoke else SCALING))
    else:
        cases = smoke_cases() if arguments.smoke else main_cases()
    return [case for case in cases if any(fnmatch(case.name, pattern) for pattern in arguments.cases)]


def main(words: list[str]) -> int:
    """The exit code: 1 where a match failed."""
    arguments = parse(words)
    if arguments.plot:
        from gpu_plots import draw

        draw(json.loads(arguments.plot[0].read_text()), arguments.plot[1])
        return 0
    cases = chosen_cases(arguments)
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.smoke:
        sys.exit("No GPU here. `--smoke` runs everything in small on a CPU.")
    precision = "fp32" if arguments.smoke else "bf16"
    options = Options(device, precision, arguments.tokens_per_batch, RECOMPUTING[arguments.recompute])
    found = measure(cases, arguments.opponents, options, arguments, words)
    print_table(found)
    return 1 if any("failed" in match for match in found["matches"]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
