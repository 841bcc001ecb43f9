"""TRL and Likelier on the same pairs, step by step in turn.

    python benchmarks/vs_trl.py [DATA] [--pairs 48] [--steps N] [--opponent default|best|both] [--json FILE]

Both train all weights of the same model by DPO: fp32 weights in the optimizer, bf16 arithmetic, 8 pairs a step, the same token ids, order, AdamW
and clipping. In bf16 their losses agree within its noise, with `--precision fp32` to about 1e-5: they do the same work.

Each tool has a process of its own, as it has in use, and one waits while the other makes a step: whatever else the machine does falls on both.
TRL runs its own `train()`; Likelier runs the inside of `train/loop.py` after scoring the reference, as a run does.

    default   TRL as it comes: gradient checkpointing, the reference model in memory. Likelier's reference pass counts as part of its step.
    best      TRL at its best: no checkpointing, reference log-probabilities computed beforehand. Both reference passes are reported apart.

`--kept-memory` gives TRL the allocator settings of Likelier's command line too (`likelier/allocator.py`), which a user of TRL would have to know of.

The first step warms up: its FLOPs are counted and its time is not.
"""

import os

os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from likelier.allocator import keep_freed_memory
from likelier.data.chat import Encoder
from likelier.data.formats import read_all
from likelier.errors import LikelierError
from likelier.examples import PreferenceExample
from likelier.logprobs.pairs import sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import DTYPES, Scorer, choose_engine
from likelier.logprobs.tree import count_unique_tokens
from likelier.models import LoadedModel, load_model
from likelier.objectives import make_objective
from likelier.recipe import ModelSettings, TrainSettings
from likelier.train.loop import add_gradients
from likelier.train.master import MasterWeights
from likelier.train.order import PairOrder

PAIRS_PER_STEP = 8
LEARNING_RATE = 1e-5
OPPONENTS = {"default": {}, "best": {"gradient_checkpointing": False, "precompute_ref_log_probs": True}}
"""What is set of TRL's own settings beside what both tools need to do the same work."""

Steps = list[list[PreferenceExample]]


@dataclass
class Turn:
    """One step of one tool. Times in seconds; FLOPs (counted in the warm-up step only) in floating-point operations."""

    loss: float
    seconds: float
    reference_seconds: float = 0.0
    flops: int = 0
    reference_flops: int = 0


@dataclass
class Match:
    """Likelier against one opponent; the first turn of each is the warm-up."""

    opponent: str
    tokens_per_pair: dict[str, float]
    trl: list[Turn] = field(default_factory=list)
    likelier: list[Turn] = field(default_factory=list)
    trl_precompute_seconds: float = 0.0
    peak_bytes: dict[str, int] = field(default_factory=dict)


# The players: each in a process of its own


class Conductor:
    """A player's end of the line to the script that keeps the turns: it waits for its cue, and tells what it did."""

    def __init__(self) -> None:
        self.line = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever the tool prints goes elsewhere

    def tell(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self.line, flush=True)

    def wait_for_cue(self) -> None:
        if not sys.stdin.readline():
            sys.exit("the other side has gone")


def play_likelier(conductor: Conductor, loaded: LoadedModel, steps: Steps, settings: TrainSettings) -> None:
    """Score the reference of all steps, as a run does, then make them one by one as `train/loop.py` does. A step's share of the reference pass
    is that of its unique tokens."""
    pad_id = loaded.tokenizer.pad_token_id
    shortest = sorted((example for step in steps for example in step), key=len)[:3]
    parity = choose_engine(loaded.model, sequences_of(shortest), pad_id=pad_id)
    print(f"Likelier's engine: {parity.engine} ({parity.difference:.1g} nats a token from the plain twin)", file=sys.stderr)
    policy = Scorer(loaded.model, engine=parity.engine, precision=settings.precision, pad_id=pad_id)
    weights = MasterWeights(loaded.model)
    optimizer = torch.optim.AdamW(weights.parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    objective = make_objective("dpo", beta=0.1)

    with tempfile.TemporaryDirectory() as folder:
        store = ReferenceStore(Path(folder), "benchmark")
        with counting_flops(True) as reference_flops:
            fill(store, policy, sequences_of(steps[0]), tokens_per_batch=settings.tokens_per_batch)
        started = clock()
        fill(store, policy, sequences_of([pair for step in steps[1:] for pair in step]), tokens_per_batch=settings.tokens_per_batch)
        seconds_per_token = (clock() - started) / sum(map(unique_tokens, steps[1:]))
        conductor.tell({"tokens_per_pair": describe(steps[1:])})
        for number, pairs in enumerate(steps):
            conductor.wait_for_cue()
            with counting_flops(number == 0) as flops:
                started = clock()
                tally, _ = add_gradients(policy, weights, store, pairs, objective, tokens_per_batch=settings.tokens_per_batch)
                loss = tally.row()["loss"]
                torch.nn.utils.clip_grad_norm_(weights.parameters, settings.max_grad_norm).item()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                weights.publish()
                seconds = clock() - started
            reference_seconds = unique_tokens(pairs) * seconds_per_token
            conductor.tell(asdict(Turn(loss, seconds, reference_seconds, flops(), 0 if number else reference_flops())))


def play_trl(conductor: Conductor, loaded: LoadedModel, steps: Steps, settings: TrainSettings, opponent: str) -> None:
    """TRL's own `train()`, one step for each of `steps`."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class PreparedTrainer(DPOTrainer):
        """Takes token ids as they are, so that both tools score the same tokens, and times the reference pass."""

        precompute_seconds = 0.0

        def _prepare_dataset(self, dataset: Any, *others: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any) -> Any:
            started = clock()
            try:
                return super()._precompute_ref_logps(*args)
            finally:
                self.precompute_seconds = clock() - started

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            conductor.tell({"precompute_seconds": trainer.precompute_seconds})

        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            conductor.wait_for_cue()
            self.step = ExitStack()
            self.flops = self.step.enter_context(counting_flops(state.global_step == 0))
            self.started = clock()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.seconds = clock() - self.started
            self.step.close()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **others: Any) -> None:
            if "loss" in logs:
                conductor.tell(asdict(Turn(logs["loss"], self.seconds, flops=self.flops())))

    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    data = Dataset.from_list([{name: list(getattr(pair, name)) for name in columns} for step in steps for pair in step])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = DPOConfig(
            folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=settings.precision == "bf16",
            per_device_train_batch_size=PAIRS_PER_STEP,
            max_steps=len(steps),
            max_length=max(len(pair) for step in steps for pair in step),
            beta=0.1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=settings.max_grad_norm,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **OPPONENTS[opponent],
        )
        trainer = PreparedTrainer(loaded.path, args=config, train_dataset=data, processing_class=loaded.tokenizer, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def play(tool: str, arguments: argparse.Namespace) -> None:
    """Be one of the players."""
    conductor = Conductor()
    if tool == "likelier" or arguments.kept_memory:
        keep_freed_memory()
    settings = train_settings(arguments)
    loaded = load_model(ModelSettings(name=arguments.model), dtype=DTYPES[settings.precision])
    steps = read_steps(arguments, loaded, settings)
    if tool == "likelier":
        play_likelier(conductor, loaded, steps, settings)
    else:
        loaded.model = None  # TRL loads its own
        play_trl(conductor, loaded, steps, settings, tool.removeprefix("trl-"))
    conductor.tell({"peak_bytes": peak_bytes()})


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


# The match


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
        name = f"{number:4}" if number else "warm"
        times = f"{theirs.seconds:8.2f}   {own.seconds:8.2f}   {own.reference_seconds:8.2f}   {speed_up(opponent, theirs, own):7.1f}"
        print(f"{name} {times}   {theirs.loss:10.4f}   {own.loss:10.4f}", flush=True)
    match.peak_bytes = {player.tool: player.hear()["peak_bytes"] for player in (likelier, trl)}
    return match


def speed_up(opponent: str, theirs: Turn, own: Turn) -> float:
    """How many times as many pairs a second. Against `default`, whose step scores the reference too, Likelier's reference pass counts."""
    return theirs.seconds / (own.seconds + (own.reference_seconds if opponent == "default" else 0.0))


def sum_up(match: Match) -> dict[str, Any]:
    """The figures of one match, and a printed account of them."""
    (theirs_first, *theirs), (own_first, *own) = match.trl, match.likelier
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
            "trl": theirs_first.flops / PAIRS_PER_STEP,
            "likelier": own_first.flops / PAIRS_PER_STEP,
            "likelier_reference": own_first.reference_flops / PAIRS_PER_STEP,
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


# What both need


def read_steps(arguments: argparse.Namespace, loaded: LoadedModel, settings: TrainSettings) -> Steps:
    """The warm-up step and the timed ones, in the order in which a run takes the pairs; rows that cannot be read are left out."""
    wanted = arguments.pairs + PAIRS_PER_STEP
    pairs = read_all([arguments.data], on_bad=lambda problem: None)
    encoder = Encoder(loaded.tokenizer, max_length=arguments.max_length)
    examples: list[PreferenceExample] = []
    for start in range(0, len(pairs), wanted):
        examples += encoder.encode_pairs(pairs[start : start + wanted]).examples
        if len(examples) >= wanted:
            break
    else:
        raise SystemExit(f"{arguments.data}: {len(examples)} usable pairs, and {wanted} are needed ({PAIRS_PER_STEP} warm up). Lower --pairs.")
    examples = examples[:wanted]
    order = PairOrder(examples, settings.model_copy(update={"epochs": turns(arguments) * PAIRS_PER_STEP / len(examples)}))
    return [order.step(number) for number in range(turns(arguments))]


def turns(arguments: argparse.Namespace) -> int:
    """Steps to make, the one that warms up included."""
    return 1 + int(arguments.steps or arguments.pairs // PAIRS_PER_STEP)


def train_settings(arguments: argparse.Namespace) -> TrainSettings:
    return TrainSettings(method="full", pairs_per_step=PAIRS_PER_STEP, tokens_per_batch=arguments.tokens_per_batch, precision=arguments.precision)


def describe(steps: Steps) -> dict[str, float]:
    """What the pairs are like: tokens that each tool puts through the model, a pair."""
    pairs = sum(len(step) for step in steps)
    padded = sum(2 * len(step) * max(len(pair) for pair in step) for step in steps)
    plain = sum(len(s.prompt_ids) + len(s.response_ids) for step in steps for s in sequences_of(step))
    unique = sum(map(unique_tokens, steps))
    return {"padded_tokens": padded / pairs, "tokens": plain / pairs, "unique_tokens": unique / pairs}


def unique_tokens(step: list[PreferenceExample]) -> int:
    return count_unique_tokens(sequences_of(step))


@contextmanager
def counting_flops(on: bool) -> Iterator[Callable[[], int]]:
    """If `on`, counts matmuls and attention within; what it gives returns the count."""
    if not on:
        yield lambda: 0
        return
    aten: Any = torch.ops.aten
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop.__wrapped__,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop.__wrapped__,
    }
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        yield lambda: int(counter.get_total_flops())


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """The most memory that this process held: on a GPU its tensors, else all of it, with Python and libraries."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
    matches = {opponent: sum_up(hold_match(opponent, turns(arguments))) for opponent in opponents}
    if arguments.json:
        figures = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", "benchmarks/vs_trl.py", *(Path(word).name if Path(word).exists() else word for word in sys.argv[1:])]),
            "machine": {"processor": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()},
            "versions": {name: version(name) for name in ("likelier", "trl", "torch", "transformers")},
            "matches": matches,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except LikelierError as problem:
        sys.exit(str(problem))
