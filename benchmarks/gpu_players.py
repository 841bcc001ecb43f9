"""The players of `gpu.py`: each makes one step of a case when it is asked to, and knows what of the device's memory is its own."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gpu_cases import SEED, Case, build_model, count_weights
from likelier.errors import lacks_memory
from likelier.models import add_adapter
from likelier.recipe import AdapterSettings, TrainSettings
from likelier.recompute import recompute_activations
from likelier.section import Recomputing
from likelier_side import LikelierSide, Steps, unique_tokens

WARM_UP = 2
"""Steps whose time is not taken: the heaviest, and one more."""

RATES = {"full": 1e-5, "lora": 1e-3}
"""Learning rates: ten times Likelier's own, so that losses move within a few steps."""

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


RECOMPUTING: dict[str, Recomputing] = {"no": False, "selective": "selective", "layers": True}
"""Likelier's `train.gradient_checkpointing` by a word of the command line."""


@dataclass
class Options:
    """What is the same in all cases."""

    device: torch.device
    precision: str
    tokens_per_batch: int
    recompute: Recomputing  # Likelier's `train.gradient_checkpointing`


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
            recompute_activations(model, options.recompute)
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


def settings_of(case: Case, options: Options) -> TrainSettings:
    """Likelier's settings of a run. TRL is given those that it has too."""
    tight = {"bf16_weights": "stochastic-rounding", "optimizer": "adamw-8bit"} if case.tight else {}
    return TrainSettings(
        method=case.method,
        pairs_per_step=case.shape.pairs_per_step,
        tokens_per_batch=options.tokens_per_batch,
        learning_rate=RATES[case.method],
        schedule="constant",
        warmup=0.0,
        precision=options.precision,
        gradient_checkpointing=options.recompute,
        seed=SEED,
        **tight,
    )


def weights_dtype(options: Options) -> torch.dtype:
    return torch.bfloat16 if options.precision == "bf16" else torch.float32


def sizes_at_once(case: Case, opponent: str) -> list[int]:
    """Pairs that TRL may put through the model at once: as it comes 8, at its best fewer where 8 do not fit. They must divide the step."""
    possible = [size for size in range(min(PAIRS_AT_ONCE, case.shape.pairs_per_step), 0, -1) if case.shape.pairs_per_step % size == 0]
    return possible if opponent == "best" else possible[:1]


def fit_together(case: Case, opponent: str, device: torch.device) -> bool:
    """Whether what both tools hold between steps leaves half of the device's memory to the one whose turn it is."""
    return device.type == "cpu" or held_by_both(case, opponent) < torch.cuda.mem_get_info(device)[1] / 2


def held_by_both(case: Case, opponent: str) -> int:
    """Bytes. Likelier has each weight in bf16 and, where all are trained, as fp32 master, with a gradient and two moments; TRL in fp32 with the
    latter three, and once more for the reference where that is kept, or at its best in bf16 where it is frozen. Adapters are small."""
    likelier = 2 if case.method == "lora" else 8 if case.tight else 18
    trl = {"default": {"full": 20, "lora": 4}, "best": {"full": 6 if case.tight else 16, "lora": 2}}[opponent][case.method]
    return (likelier + trl) * count_weights(case.config)


def release() -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
