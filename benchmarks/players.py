"""The players of `vs_trl.py`: TRL and Likelier, each in a process of its own, one step at a cue; and what both need for it."""

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from likelier.allocator import keep_freed_memory
from likelier.data.chat import Encoder
from likelier.data.formats import read_all
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.scorer import DTYPES
from likelier.models import LoadedModel, load_model
from likelier.recipe import ModelSettings, TrainSettings
from likelier.train.master import originals_of
from likelier.train.order import ExampleOrder
from likelier_side import LikelierSide, Steps, unique_tokens
from measures import clock, counting_flops, peak_bytes

PAIRS_PER_STEP = 8
LEARNING_RATE = 1e-5
WARM_UP, COUNTED = 2, 1
"""Steps whose time is not taken, and which of them has its FLOPs counted."""

OPPONENTS = {"default": {}, "best": {"gradient_checkpointing": False, "precompute_ref_log_probs": True}}
"""What is set of TRL's own settings beside what both tools need to do the same work."""


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
    """Score the reference of all timed steps, as a run does, then make all steps one by one. A step's share of the reference pass is that of its
    unique tokens."""
    originals = originals_of(loaded.model, ModelSettings(name=loaded.name))
    side = LikelierSide(loaded.model, settings, steps, pad_id=loaded.tokenizer.pad_token_id, originals=originals)
    print(f"Likelier's engine: {side.parity.engine} ({side.parity.difference:.1g} nats a token from the plain twin)", file=sys.stderr)
    with counting_flops() as reference_flops:
        side.score_reference([steps[COUNTED]], keep=False)
    side.score_reference([steps[0]], keep=False)
    timed = steps[WARM_UP:]
    seconds_per_token = side.score_reference(timed) / sum(map(unique_tokens, timed))
    conductor.tell({"tokens_per_pair": describe(timed)})
    for number, pairs in enumerate(steps):
        conductor.wait_for_cue()
        with counting_flops(number == COUNTED) as flops:
            loss, seconds = side.step()
        reference_seconds = unique_tokens(pairs) * seconds_per_token
        conductor.tell(asdict(Turn(loss, seconds, reference_seconds, flops(), reference_flops() if number == COUNTED else 0)))


def play_trl(conductor: Conductor, loaded: LoadedModel, steps: Steps, settings: TrainSettings, opponent: str) -> None:
    """TRL's own `train()`, one step for each of `steps`."""
    from transformers import TrainerCallback

    from trl_side import make_trainer, quiet

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

    with tempfile.TemporaryDirectory() as folder, quiet():
        own = OPPONENTS[opponent]
        trainer = make_trainer(loaded.path, loaded.tokenizer, steps, settings, folder, Clock(), pairs_at_once=PAIRS_PER_STEP, own=own)
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
    return TrainSettings(
        method="full",
        pairs_per_step=PAIRS_PER_STEP,
        tokens_per_batch=arguments.tokens_per_batch,
        precision=arguments.precision,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup=0.0,
    )


def describe(steps: Steps) -> dict[str, float]:
    """What the pairs are like: tokens that each tool puts through the model, a pair."""
    pairs = sum(len(step) for step in steps)
    padded = sum(2 * len(step) * max(len(pair) for pair in step) for step in steps)
    plain = sum(len(s.prompt_ids) + len(s.response_ids) for step in steps for s in sequences_of(step))
    unique = sum(map(unique_tokens, steps))
    return {"padded_tokens": padded / pairs, "tokens": plain / pairs, "unique_tokens": unique / pairs}
