"""The players of `gpu.py`: each makes one step of a case when it is asked to, and knows what of the device's memory is its own."""

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Semaphore, Thread
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from gpu_cases import SEED, Case, build_model, count_weights, made_up_tokenizer
from likelier.errors import lacks_memory
from likelier.models import add_adapter, recompute_activations
from likelier.recipe import AdapterSettings, TrainSettings
from likelier_side import LikelierSide, Steps, unique_tokens
from measures import clock
from trl_side import flash_attention, keep_nothing_under, make_trainer, quiet

WARM_UP = 2
"""Steps whose time is not taken: the heaviest, and one more."""

PAIRS_AT_ONCE = 8
"""That TRL puts through the model as it comes (`per_device_train_batch_size`)."""

OPPONENTS = {"default": {}, "best": {"gradient_checkpointing": False, "precompute_ref_log_probs": True}}


class DoesNotFit(Exception):
    """The device's memory was not enough for a player."""


@dataclass
class Turn:
    """One step of one tool; seconds of scoring the reference apart from it where that is done beforehand."""

    loss: float
    seconds: float
    reference_seconds: float = 0.0


@dataclass
class Options:
    """What is the same in all cases."""

    device: torch.device
    precision: str
    tokens_per_batch: int
    recompute: bool  # Likelier with activation checkpointing


class Player:
    """What both tools have in common. `peak`: bytes of the device's memory that were its own at most, None on a CPU."""

    def __init__(self) -> None:
        self.held, self.peak = 0, None
        self.turns: list[Turn] = []

    @contextmanager
    def own_memory(self) -> Iterator[None]:
        """Around all that a player does: the other one's tensors do not change within it, and are subtracted."""
        if not torch.cuda.is_available():
            yield
            return
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - self.held
        try:
            yield
        finally:
            self.peak = max(self.peak or 0, torch.cuda.max_memory_allocated() - others)
            self.held = torch.cuda.memory_allocated() - others

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within it a lack of memory is DoesNotFit, which holds on to no tensor."""
        problem = None
        with self.own_memory():
            try:
                yield
            except (RuntimeError, MemoryError) as raised:
                if not lacks_memory(raised):
                    raise
                problem = str(raised)
        if problem is not None:
            raise DoesNotFit(problem)

    def figures(self) -> dict[str, Any]:
        return {"turns": [asdict(turn) for turn in self.turns], "peak_bytes": self.peak}


class LikelierPlayer(Player):
    """Likelier as `likelier train` puts it together."""

    def __init__(self, case: Case, steps: Steps, options: Options) -> None:
        super().__init__()
        self.steps = steps
        settings = settings_of(case, options)
        with self.working():
            model = build_model(case.config, device=options.device, dtype=weights_dtype(options))
            if case.method == "lora":
                model = add_adapter(model, AdapterSettings(), seed=SEED)
            if options.recompute:
                recompute_activations(model)
            self.side = LikelierSide(model, settings, steps, pad_id=0)
        self.start_peak, self.peak = self.peak, None
        with self.working():
            self.side.score_reference(steps[:WARM_UP])
            self.reference_seconds = self.side.score_reference(steps[WARM_UP:])
        self.reference_tokens = sum(map(unique_tokens, steps[WARM_UP:]))

    def step(self) -> None:
        """The next one; its share of the reference pass is that of its unique tokens."""
        with self.working():
            loss, seconds = self.side.step()
        share = unique_tokens(self.steps[len(self.turns)]) / self.reference_tokens
        self.turns.append(Turn(loss, seconds, share * self.reference_seconds))

    def close(self) -> None:
        self.side.folder.cleanup()
        del self.side
        release()

    def figures(self) -> dict[str, Any]:
        parity = self.side.parity
        return super().figures() | {
            "start_peak_bytes": self.start_peak,  # of loading and of the parity probe, which computes in fp32
            "engine": parity.engine,
            "passed_over": parity.passed_over,
            "tokens_per_batch": self.side.task.tokens_per_batch,
            "reference_seconds": self.reference_seconds,
        }


class Left(Exception):
    """Ends TRL's `train()` before its time."""


class TrlPlayer(Player):
    """TRL's own `train()` in a thread, which waits before every step for its cue. Only one of the two threads ever works."""

    def __init__(self, case: Case, steps: Steps, options: Options, opponent: str, *, pairs_at_once: int) -> None:
        super().__init__()
        self.opponent, self.pairs_at_once = opponent, pairs_at_once
        self.cue, self.made = Semaphore(0), Semaphore(0)
        self.problem: BaseException | None = None
        self.leaving = False
        self.folder = tempfile.TemporaryDirectory()
        with self.working():
            self.trainer = self._build(case, steps, options)
        self.thread = Thread(target=self._train, daemon=True)
        self.thread.start()

    def _build(self, case: Case, steps: Steps, options: Options) -> Any:
        best = self.opponent == "best"
        narrow = best and (case.method == "lora" or case.tight)  # where fp32 weights do not alter what is learnt, or do not fit
        dtype = weights_dtype(options) if narrow else torch.float32
        self.attention = "flash_attention_2" if best and options.device.type == "cuda" and flash_attention() else "sdpa"
        model, *reference = (
            build_model(case.config, device=options.device, dtype=dtype, attention=self.attention)
            for _ in range(2 if case.method == "full" and not best else 1)
        )
        own = OPPONENTS[self.opponent] | ({"optim": "adamw_8bit"} if case.tight and best else {})
        keep_nothing_under(f"{case.name}/{self.pairs_at_once}")
        return make_trainer(
            *(model, made_up_tokenizer(), steps, settings_of(case, options), self.folder.name, self._callback()),
            pairs_at_once=self.pairs_at_once,
            own=own,
            ref_model=reference[0] if reference else None,
            peft_config=adapter() if case.method == "lora" else None,
        )

    def _callback(self) -> TrainerCallback:
        player = self

        class Cued(TrainerCallback):
            def on_step_begin(self, *_: Any, **others: Any) -> None:
                player.cue.acquire()
                if player.leaving:
                    raise Left
                self.started = clock()

            def on_step_end(self, *_: Any, **others: Any) -> None:
                self.seconds = clock() - self.started

            def on_log(self, args: Any, state: Any, control: Any, logs: Any, **others: Any) -> None:
                if "loss" in logs:
                    player.turns.append(Turn(logs["loss"], self.seconds))
                    player.made.release()

        return Cued()

    def _train(self) -> None:
        try:
            with quiet():
                self.trainer.train()
        except Left:
            pass
        except BaseException as problem:  # raised again by `step`, in the thread that asked
            self.problem = problem
        self.made.release()

    def step(self) -> None:
        """The next one."""
        with self.working():
            self.cue.release()
            self.made.acquire()
            if self.problem is not None:
                raise self.problem

    def close(self) -> None:
        self.leaving = True
        self.cue.release()
        self.thread.join()
        self.problem = None
        self.folder.cleanup()
        del self.trainer
        release()

    def figures(self) -> dict[str, Any]:
        about = {"pairs_at_once": self.pairs_at_once, "attention": self.attention, "precompute_seconds": self.trainer.precompute_seconds}
        return super().figures() | about


def settings_of(case: Case, options: Options) -> TrainSettings:
    """Likelier's settings of a run. TRL is given those that it has too."""
    tight = {"bf16_weights": "stochastic-rounding", "optimizer": "adamw-8bit"} if case.tight else {}
    return TrainSettings(
        method=case.method,
        pairs_per_step=case.shape.pairs_per_step,
        tokens_per_batch=options.tokens_per_batch,
        learning_rate={"full": 1e-6, "lora": 1e-4}[case.method],
        schedule="constant",
        warmup=0.0,
        precision=options.precision,
        gradient_checkpointing=options.recompute,
        seed=SEED,
        **tight,
    )


def adapter() -> LoraConfig:
    """What Likelier's recipe has by default."""
    default = AdapterSettings()
    return LoraConfig(r=default.rank, lora_alpha=default.alpha, target_modules=default.targets, task_type="CAUSAL_LM")


def weights_dtype(options: Options) -> torch.dtype:
    return torch.bfloat16 if options.precision == "bf16" else torch.float32


def sizes_at_once(case: Case, opponent: str) -> list[int]:
    """Pairs that TRL may put through the model at once: as it comes 8, at its best fewer where 8 do not fit. They must divide the step."""
    possible = [size for size in range(min(PAIRS_AT_ONCE, case.shape.pairs_per_step), 0, -1) if case.shape.pairs_per_step % size == 0]
    return possible if opponent == "best" else possible[:1]


def fit_together(case: Case, opponent: str, device: torch.device) -> bool:
    """Whether what both tools hold between steps leaves half of the device's memory to the one whose turn it is. Bytes a weight: Likelier in bf16,
    with fp32 master, gradient and two moments; TRL in fp32 with the latter three, and the reference's where it is kept."""
    if device.type == "cpu":
        return True
    likelier = 2 if case.method == "lora" else 8 if case.tight else 18
    trl = {"default": {"full": 20, "lora": 4}, "best": {"full": 6 if case.tight else 16, "lora": 2}}[opponent][case.method]
    return (likelier + trl) * count_weights(case.config) < torch.cuda.mem_get_info(device)[1] / 2


def release() -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
