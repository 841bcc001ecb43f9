"""TRL and Likelier on the same pairs, step by step in turn, in one process.

    python benchmarks/vs_trl.py [DATA] [--pairs 48] [--steps N] [--opponent default|best|both] [--json FILE]

Both train all weights of the same model by DPO: fp32 weights in the optimizer, bf16 arithmetic, 8 pairs a step, the same token ids, order, AdamW
and clipping.
In bf16 their losses agree within its noise, with `--precision fp32` to about 1e-5: they do the same work.
TRL runs its own `train()`; after each of its steps Likelier makes the same one, so that whatever else the machine does falls on both alike.

    default   TRL as it comes: gradient checkpointing, the reference model in memory. Likelier's reference pass counts as part of its step.
    best      TRL at its best: no checkpointing, reference log-probabilities computed beforehand. Both passes are reported apart.

The first step warms up: its FLOPs are counted and its time is not. Peak memory is measured in a process of its own for each tool, on the pairs
of the heaviest step.
"""

import os

os.environ |= {"THP_MEM_ALLOC_ENABLE": "1", "TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import argparse
import copy
import gc
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
from likelier.logprobs.pairs import cut_pairs, score_pairs, sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import DTYPES, Scorer, choose_engine
from likelier.logprobs.tree import count_unique_tokens
from likelier.models import LoadedModel, load_model
from likelier.objectives import make_objective
from likelier.recipe import ModelSettings, TrainSettings
from likelier.train.master import MasterWeights
from likelier.train.order import PairOrder
from likelier.train.tally import Tally

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
    trl: list[Turn] = field(default_factory=list)
    likelier: list[Turn] = field(default_factory=list)
    trl_precompute_seconds: float = 0.0


def likelier_turns(loaded: LoadedModel, steps: Steps, settings: TrainSettings, *, alone: bool) -> Iterator[Turn]:
    """Each `next` is one step of `train/loop.py`.

    Alone, as in a run, the reference is scored before the first step. In turn it is scored step by step, by a copy of the first weights,
    so that its time is taken under the same load as the opponent's.
    """
    pad_id = loaded.tokenizer.pad_token_id
    shortest = sorted((example for step in steps for example in step), key=len)[:3]
    parity = choose_engine(loaded.model, sequences_of(shortest), pad_id=pad_id)
    print(f"Likelier's engine: {parity.engine} ({parity.difference:.1g} nats a token from the plain twin)", file=sys.stderr)
    policy = Scorer(loaded.model, engine=parity.engine, precision=settings.precision, pad_id=pad_id)
    reference = policy if alone else Scorer(copy.deepcopy(loaded.model), engine=parity.engine, precision=settings.precision, pad_id=pad_id)
    weights = MasterWeights(loaded.model)
    optimizer = torch.optim.AdamW(weights.parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    objective = make_objective("dpo", beta=0.1)

    with tempfile.TemporaryDirectory() as folder:
        store = ReferenceStore(Path(folder), "benchmark")
        if alone:
            fill(store, policy, sequences_of([pair for step in steps for pair in step]), tokens_per_batch=settings.tokens_per_batch)
        for number, pairs in enumerate(steps):
            with counting_flops(number == 0 and not alone) as reference_flops:
                started = clock()
                fill(store, reference, sequences_of(pairs), tokens_per_batch=settings.tokens_per_batch)
                scored = clock()
            with counting_flops(number == 0 and not alone) as flops:
                stepping = clock()
                tally = Tally(objective)
                with policy.unchanged_weights():
                    for batch in cut_pairs(pairs, settings.tokens_per_batch):
                        logps = score_pairs(policy, store, batch)
                        losses_B = objective.losses(logps)
                        (losses_B.sum() / len(pairs)).backward()
                        weights.collect_gradients()
                        tally.add(losses_B, logps)
                loss = tally.row()["loss"]
                torch.nn.utils.clip_grad_norm_(weights.parameters, settings.max_grad_norm).item()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                weights.publish()
                done = clock()
            yield Turn(loss, done - stepping, scored - started, flops(), reference_flops())


def train_with_trl(loaded: LoadedModel, steps: Steps, settings: TrainSettings, opponent: str, after_step: Callable[[Turn], None] | None) -> float:
    """TRL's own `train()`, one step for each of `steps`. Returns the seconds that it computed reference log-probabilities beforehand."""
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
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.step = ExitStack()
            self.flops = self.step.enter_context(counting_flops(state.global_step == 0 and after_step is not None))
            self.started = clock()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.seconds = clock() - self.started
            self.step.close()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **others: Any) -> None:
            if "loss" in logs and after_step is not None:
                after_step(Turn(logs["loss"], self.seconds, flops=self.flops()))

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
    return trainer.precompute_seconds


def play(loaded: LoadedModel, steps: Steps, settings: TrainSettings, opponent: str) -> Match:
    """All steps of both tools, each of TRL's followed by the same one of Likelier's."""
    match = Match(opponent)
    ours = likelier_turns(copy.deepcopy(loaded), steps, settings, alone=False)
    print(f"\nTRL {version('trl')}, {opponent}: times in seconds a step of {PAIRS_PER_STEP} pairs\n")
    print("step      TRL   Likelier  + reference   ratio   TRL's loss   Likelier's")

    def after_step(theirs: Turn) -> None:
        match.trl.append(theirs)
        match.likelier.append(own := next(ours))
        name = f"{len(match.trl) - 1:4}" if len(match.trl) > 1 else "warm"
        times = f"{theirs.seconds:8.2f}   {own.seconds:8.2f}   {own.reference_seconds:8.2f}   {speed_up(opponent, theirs, own):7.1f}"
        print(f"{name} {times}   {theirs.loss:10.4f}   {own.loss:10.4f}", flush=True)

    match.trl_precompute_seconds = train_with_trl(loaded, steps, settings, opponent, after_step)
    return match


def speed_up(opponent: str, theirs: Turn, own: Turn) -> float:
    """How many times as many pairs a second. Against `default`, whose step scores the reference too, Likelier's reference pass counts."""
    return theirs.seconds / (own.seconds + (own.reference_seconds if opponent == "default" else 0.0))


def sum_up(match: Match) -> dict[str, Any]:
    """The figures of one match, and a printed account of them."""
    (theirs_first, *theirs), (own_first, *own) = match.trl, match.likelier
    precompute = match.trl_precompute_seconds * len(theirs) / len(match.trl)  # without the warm-up's share
    figures = {
        "median_speed_up": statistics.median(speed_up(match.opponent, a, b) for a, b in zip(theirs, own, strict=True)),
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
        "largest_difference_of_losses": max(abs(a.loss - b.loss) for a, b in zip(match.trl, match.likelier, strict=True)),
        "steps": {"trl": [asdict(turn) for turn in match.trl], "likelier": [asdict(turn) for turn in match.likelier]},
    }
    included = " (its reference pass included)" if match.opponent == "default" else ""
    print(f"\nLikelier{included} trains {figures['median_speed_up']:.1f} times as many pairs a second: median of {len(own)} steps.")
    print(f"All steps and both tools' reference passes together: {figures['total_speed_up_with_both_references']:.1f} times.")
    print(f"Largest difference of losses: {figures['largest_difference_of_losses']:.4f}")
    print("GFLOP a pair, counted: " + ", ".join(f"{name} {flops / 1e9:,.0f}" for name, flops in figures["flops_per_pair"].items()))
    return figures


def peak_bytes() -> int:
    """The most memory that this process held: on a GPU its tensors, else all of it, with Python and libraries."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_alone(tool: str, loaded: LoadedModel, steps: Steps, settings: TrainSettings) -> None:
    """One tool by itself on the heaviest step, twice: the second time the optimizer's state is there as well."""
    heaviest = max(steps, key=lambda step: max(len(pair) for pair in step))
    if tool == "likelier":
        for _ in likelier_turns(loaded, [heaviest] * 2, settings, alone=True):
            pass
    else:
        loaded.model = None
        gc.collect()
        train_with_trl(loaded, [heaviest] * 2, settings, tool.removeprefix("trl-"), None)
    print(json.dumps({"peak_bytes": peak_bytes()}))


def measure_memory(tool: str) -> int:
    """Peak memory of `tool` in a fresh process with this one's arguments."""
    command = [sys.executable, *sys.argv, "--memory-of", tool]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


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
    count = 1 + (arguments.steps or arguments.pairs // PAIRS_PER_STEP)
    examples = examples[:wanted]
    order = PairOrder(examples, settings.model_copy(update={"epochs": count * PAIRS_PER_STEP / len(examples)}))
    return [order.step(number) for number in range(count)]


def describe(steps: Steps) -> dict[str, float]:
    """What the pairs are like: tokens that each tool puts through the model, a pair."""
    pairs = sum(len(step) for step in steps)
    padded = sum(2 * len(step) * max(len(pair) for pair in step) for step in steps)
    plain = sum(len(s.prompt_ids) + len(s.response_ids) for step in steps for s in sequences_of(step))
    unique = sum(count_unique_tokens(sequences_of(step)) for step in steps)
    return {"padded_tokens": padded / pairs, "tokens": plain / pairs, "unique_tokens": unique / pairs}


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--memory-of", choices=["likelier", *(f"trl-{name}" for name in OPPONENTS)], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pairs < PAIRS_PER_STEP:
        parser.error(f"--pairs must be at least {PAIRS_PER_STEP}, one step.")
    return arguments


def main() -> None:
    arguments = parse()
    keep_freed_memory()  # for both
    opponents = list(OPPONENTS) if arguments.opponent == "both" else [arguments.opponent]
    tools = ["likelier", *(f"trl-{name}" for name in opponents)]
    # Before this process grows: a child's peak is never below what its parent held when it started it.
    memory = {} if arguments.memory_of else {tool: measure_memory(tool) for tool in tools}

    settings = TrainSettings(method="full", pairs_per_step=PAIRS_PER_STEP, tokens_per_batch=arguments.tokens_per_batch, precision=arguments.precision)
    loaded = load_model(ModelSettings(name=arguments.model), dtype=DTYPES[settings.precision])
    steps = read_steps(arguments, loaded, settings)
    if arguments.memory_of:
        run_alone(arguments.memory_of, loaded, steps, settings)
        return

    tokens = describe(steps[1:])
    print(
        f"{arguments.data}: {len(steps) - 1} steps of {PAIRS_PER_STEP} pairs. Tokens a pair: " + ", ".join(f"{n} {v:.0f}" for n, v in tokens.items())
    )
    matches = {}
    for opponent in opponents:
        matches[opponent] = sum_up(play(loaded, steps, settings, opponent))
        gc.collect()
    print("\nPeak memory, each in its own process: " + ", ".join(f"{tool} {peak / 2**30:.2f} GiB" for tool, peak in memory.items()))
    for opponent in opponents:
        print(f"Likelier's is {memory['likelier'] / memory[f'trl-{opponent}']:.2f} of that of TRL, {opponent}.")
    if arguments.json:
        figures = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(sys.argv),
            "machine": {"processor": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()},
            "versions": {name: version(name) for name in ("likelier", "trl", "torch", "transformers")},
            "tokens_per_pair": tokens,
            "peak_bytes": memory,
            "matches": matches,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    try:
        main()
    except LikelierError as problem:
        sys.exit(str(problem))
