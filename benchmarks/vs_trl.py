"""TRL and Likelier on the same pairs, step by step in turn.

    python benchmarks/vs_trl.py [DATA] [--pairs 48] [--steps N] [--opponent default|best|both] [--json FILE]

Both train all weights of the same model by DPO: fp32 weights in the optimizer, bf16 arithmetic, 8 pairs a step, the same token ids, order, AdamW
and clipping. In bf16 their losses agree within its noise, with `--precision fp32` to about 1e-5: they do the same work.

Each tool has a process of its own, as it has in use, and one waits while the other makes a step: whatever else the machine does falls on both.
TRL runs its own `train()`; Likelier runs the inside of `train/loop.py` after scoring the reference, as a run does.

    default   TRL as it comes: gradient checkpointing, the reference model in memory. Likelier's reference pass counts as part of its step.
    best      TRL at its best: no checkpointing, reference log-probabilities computed beforehand. Both reference passes are reported apart.

`--kept-memory` gives TRL the allocator settings of Likelier's command line too (`likelier/allocator.py`), which a user of TRL would have to know of.

The pairs are spread evenly over DATA. Two steps warm up: the heaviest, which asks for all the memory, and the first, whose FLOPs are counted.
Both are made again when times are taken.
"""

import os

os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import argparse
import json
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from likelier.errors import LikelierError
from likelier.recipe import TrainSettings
from players import COUNTED, OPPONENTS, PAIRS_PER_STEP, WARM_UP, Turn, play, timed_steps


@dataclass
class Match:
    """Likelier against one opponent; the first WARM_UP turns of each are not timed."""

    opponent: str
    tokens_per_pair: dict[str, float]
    trl: list[Turn] = field(default_factory=list)
    likelier: list[Turn] = field(default_factory=list)
    trl_precompute_seconds: float = 0.0
    peak_bytes: dict[str, int] = field(default_factory=dict)


class Player:
    """A player as the script that keeps the turns sees it."""

    def __init__(self, tool: str) -> None:
        command = [sys.executable, *sys.argv, "--player", tool]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.tool = tool

    def hear(self) -> dict[str, Any]:
        """Its next message."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.tool} ended before its time, with exit code {self.process.wait()}.")
        return dict(json.loads(line))

    def turn(self) -> Turn:
        """Have it make a step."""
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        return Turn(**self.hear())


def hold_match(opponent: str, turns: int) -> Match:
    """All steps of both tools, each of TRL's followed by the same one of Likelier's."""
    trl = Player(f"trl-{opponent}")
    precompute_seconds = trl.hear()["precompute_seconds"]
    likelier = Player("likelier")
    match = Match(opponent, likelier.hear()["tokens_per_pair"], trl_precompute_seconds=precompute_seconds)
    print(f"\nTRL {version('trl')}, {opponent}: times in seconds a step of {PAIRS_PER_STEP} pairs\n")
    print("step      TRL   Likelier  + reference   ratio   TRL's loss   Likelier's")
    for number in range(turns):
        match.trl.append(theirs := trl.turn())
        match.likelier.append(own := likelier.turn())
        name = "warm" if number < WARM_UP else f"{number - WARM_UP + 1:4}"
        times = f"{theirs.seconds:8.2f}   {own.seconds:8.2f}   {own.reference_seconds:8.2f}   {speed_up(opponent, theirs, own):7.1f}"
        print(f"{name} {times}   {theirs.loss:10.4f}   {own.loss:10.4f}", flush=True)
    match.peak_bytes = {player.tool: player.hear()["peak_bytes"] for player in (likelier, trl)}
    return match


def speed_up(opponent: str, theirs: Turn, own: Turn) -> float:
    """How many times as many pairs a second. Against `default`, whose step scores the reference too, Likelier's reference pass counts."""
    return theirs.seconds / (own.seconds + (own.reference_seconds if opponent == "default" else 0.0))


def sum_up(match: Match) -> dict[str, Any]:
    """The figures of one match, and a printed account of them."""
    theirs, own = match.trl[WARM_UP:], match.likelier[WARM_UP:]
    precompute = match.trl_precompute_seconds * len(theirs) / len(match.trl)  # without the warm-up's share
    own_peak, their_peak = match.peak_bytes["likelier"], match.peak_bytes[f"trl-{match.opponent}"]
    figures = {
        "median_speed_up": statistics.median(speed_up(match.opponent, a, b) for a, b in zip(theirs, own, strict=True)),
        "median_speed_up_without_reference": statistics.median(a.seconds / b.seconds for a, b in zip(theirs, own, strict=True)),
        "total_speed_up_with_both_references": (sum(a.seconds for a in theirs) + precompute) / sum(b.seconds + b.reference_seconds for b in own),
        "pairs_per_second": {
            "trl": PAIRS_PER_STEP / statistics.median(a.seconds for a in theirs),
            "likelier": PAIRS_PER_STEP / statistics.median(b.seconds for b in own),
            "likelier_with_reference": PAIRS_PER_STEP / statistics.median(b.seconds + b.reference_seconds for b in own),
        },
        "reference_seconds": {"trl_beforehand": precompute, "likelier": sum(b.reference_seconds for b in own)},
        "flops_per_pair": {
            "trl": match.trl[COUNTED].flops / PAIRS_PER_STEP,
            "likelier": match.likelier[COUNTED].flops / PAIRS_PER_STEP,
            "likelier_reference": match.likelier[COUNTED].reference_flops / PAIRS_PER_STEP,
        },
        "peak_bytes": match.peak_bytes,
        "peak_ratio": own_peak / their_peak,
        "tokens_per_pair": match.tokens_per_pair,
        "largest_difference_of_losses": max(abs(a.loss - b.loss) for a, b in zip(match.trl, match.likelier, strict=True)),
        "steps": {"trl": [asdict(turn) for turn in match.trl], "likelier": [asdict(turn) for turn in match.likelier]},
    }
    included = " (its reference pass included)" if match.opponent == "default" else ""
    print(f"\nLikelier{included} trains {figures['median_speed_up']:.1f} times as many pairs a second: median of {len(own)} steps.")
    print(f"Without any reference pass of Likelier's, {figures['median_speed_up_without_reference']:.1f} times.")
    print(f"All steps and both tools' reference passes together: {figures['total_speed_up_with_both_references']:.1f} times.")
    print("Tokens a pair: " + ", ".join(f"{name} {value:.0f}" for name, value in match.tokens_per_pair.items()))
    print("GFLOP a pair, counted: " + ", ".join(f"{name} {flops / 1e9:,.0f}" for name, flops in figures["flops_per_pair"].items()))
    print(f"Peak memory: {own_peak / 2**30:.2f} GiB, TRL {their_peak / 2**30:.2f} GiB: {own_peak / their_peak:.2f} times.")
    print(f"Largest difference of losses: {figures['largest_difference_of_losses']:.4f}")
    return figures


def processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0] if names else platform.processor()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="embedded:support", metavar="DATA", help="preference pairs, in any shape that Likelier reads")
    parser.add_argument("--pairs", type=int, default=48, help="pairs that are timed (default 48)")
    parser.add_argument("--steps", type=int, help="steps that are timed (default: each pair once)")
    parser.add_argument("--model", default="embedded", help="as in a recipe's model.name")
    parser.add_argument("--opponent", choices=[*OPPONENTS, "both"], default="both")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--tokens-per-batch", type=int, default=TrainSettings().tokens_per_batch, help="Likelier's, as in a recipe")
    parser.add_argument("--kept-memory", action="store_true", help="TRL with Likelier's allocator settings too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--player", choices=["likelier", *(f"trl-{name}" for name in OPPONENTS)], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pairs < PAIRS_PER_STEP:
        parser.error(f"--pairs must be at least {PAIRS_PER_STEP}, one step.")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.player:
        play(arguments.player, arguments)
        return
    opponents = list(OPPONENTS) if arguments.opponent == "both" else [arguments.opponent]
    figures: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/vs_trl.py", *(Path(word).name for word in sys.argv[1:])]),
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("likelier", "trl", "torch", "transformers")},
        "matches": {},
    }
    for opponent in opponents:
        figures["matches"][opponent] = sum_up(hold_match(opponent, WARM_UP + timed_steps(arguments)))
        if arguments.json:  # after each match: the next one may find too little memory
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except LikelierError as problem:
        sys.exit(str(problem))
