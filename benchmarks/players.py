"""The players of `vs_trl.py`: TRL and Likelier, each in a process of its own, one step at a cue; and what both need for it."""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from likelier.allocator import keep_freed_memory
from likelier.data.chat import Encoder
from likelier.data.formats import read_all
from likelier.examples import PreferenceExample
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import DTYPES, Scorer, choose_engine
from likelier.logprobs.tree import count_unique_tokens
from likelier.models import LoadedModel, load_model
from likelier.objectives import make_objective
from likelier.recipe import ModelSettings, TrainSettings
from likelier.train.loop import add_gradients
from likelier.train.master import MasterWeights
from likelier.train.order import ExampleOrder

PAIRS_PER_STEP = 8
LEARNING_RATE = 1e-5
WARM_UP, COUNTED = 2, 1
"""Steps whose time is not taken, and which of them has its FLOPs counted."""

OPPONENTS = {"default": {}, "best": {"gradient_checkpointing": False, "precompute_ref_log_probs": True}}
"""What is set of TRL's own settings beside what both tools need to do the same work."""

Steps = list[list[PreferenceExample]]


@dataclass
class Turn:
    """One step of one tool. Times in seconds; FLOPs (of the counted step only) in floating-point operations."""

    loss: float
    seconds: float
    reference_seconds: float = 0.0
    flops: int = 0
    reference_flops: int = 0


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
    weights = MasterWeights.of(loaded.model, ModelSettings(name=loaded.name))
    optimizer = torch.optim.AdamW(weights.parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    objective = make_objective("dpo", beta=0.1)

    with tempfile.TemporaryDirectory() as folder:
        warm, store = (ReferenceStore(Path(folder), name) for name in ("warm-up", "benchmark"))
        with counting_flops(True) as reference_flops:
            fill(warm, policy, sequences_of(steps[COUNTED]), tokens_per_batch=settings.tokens_per_batch)
        fill(warm, policy, sequences_of(steps[0]), tokens_per_batch=settings.tokens_per_batch)
        timed = steps[WARM_UP:]
        started = clock()
        fill(store, policy, sequences_of([pair for step in timed for pair in step]), tokens_per_batch=settings.tokens_per_batch)
        seconds_per_token = (clock() - started) / sum(map(unique_tokens, timed))
        conductor.tell({"tokens_per_pair": describe(timed)})
        for number, pairs in enumerate(steps):
            conductor.wait_for_cue()
            with counting_flops(number == COUNTED) as flops:
                started = clock()
                tally, _ = add_gradients(policy, weights, store, pairs, objective, tokens_per_batch=settings.tokens_per_batch)
                loss = tally.row()["loss"]
                torch.nn.utils.clip_grad_norm_(weights.parameters, settings.max_grad_norm).item()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                weights.publish()
                seconds = clock() - started
            reference_seconds = unique_tokens(pairs) * seconds_per_token
            conductor.tell(asdict(Turn(loss, seconds, reference_seconds, flops(), reference_flops() if number == COUNTED else 0)))


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
            self.flops = self.step.enter_context(counting_flops(state.global_step == COUNTED))
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


# What both need


def read_steps(arguments: argparse.Namespace, loaded: LoadedModel, settings: TrainSettings) -> Steps:
    """The steps that warm up and the timed ones, these in the order in which a run takes the pairs; rows that cannot be read are left out."""
    examples = Encoder(loaded.tokenizer, max_length=arguments.max_length).encode(read_all([arguments.data], on_bad=lambda _: None)).examples
    if len(examples) < arguments.pairs:
        raise SystemExit(f"{arguments.data}: {len(examples)} usable pairs, and {arguments.pairs} are wanted. Lower --pairs.")
    spread = [examples[i * len(examples) // arguments.pairs] for i in range(arguments.pairs)]
    count = timed_steps(arguments)
    order = ExampleOrder(spread, settings.model_copy(update={"epochs": count * PAIRS_PER_STEP / len(spread)}))
    timed = [order.step(number) for number in range(count)]
    return [max(timed, key=lambda step: max(map(len, step))), timed[0], *timed]


def timed_steps(arguments: argparse.Namespace) -> int:
    return int(arguments.steps or arguments.pairs // PAIRS_PER_STEP)


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
