"""TRL as a player of `gpu.py`."""

import tempfile
from threading import Semaphore, Thread
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from gpu_cases import Case, build_model, made_up_tokenizer
from gpu_players import OPPONENTS, Options, Player, Turn, release, settings_of, weights_dtype
from likelier.recipe import AdapterSettings
from likelier_side import Steps
from measures import clock
from trl_side import flash_attention, make_trainer, quiet, without_hashes

without_hashes()


class Left(Exception):
    """Ends TRL's `train()` before its time."""


class TrlPlayer(Player):
    """TRL's own `train()` in a thread, which waits for its cue before every step, the step's batches being made. While it waits, and only then, the
    other thread works."""

    def __init__(self, case: Case, steps: Steps, options: Options, opponent: str, *, pairs_at_once: int) -> None:
        super().__init__()
        self.opponent, self.pairs_at_once = opponent, pairs_at_once
        self.cue, self.waiting = Semaphore(0), Semaphore(0)
        self.problem: BaseException | None = None
        self.leaving = False
        self.folder = tempfile.TemporaryDirectory()
        with self.working():
            self.trainer = self._build(case, steps, options)
            self.thread = Thread(target=self._train, daemon=True)
            self.thread.start()
            self._await()

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
                player.waiting.release()
                player.cue.acquire()
                if player.leaving:
                    raise Left
                self.started = clock()

            def on_step_end(self, *_: Any, **others: Any) -> None:
                self.seconds = clock() - self.started

            def on_log(self, args: Any, state: Any, control: Any, logs: Any, **others: Any) -> None:
                if "loss" in logs:
                    player.turns.append(Turn(logs["loss"], self.seconds))

        return Cued()

    def _train(self) -> None:
        try:
            with quiet():
                self.trainer.train()
        except Left:
            pass
        except BaseException as problem:  # raised again in the thread that waits
            self.problem = problem
        self.waiting.release()

    def step(self) -> None:
        """The next one."""
        with self.working():
            self.cue.release()
            self._await()

    def _await(self) -> None:
        """Until TRL waits for its next cue, or has come to an end."""
        self.waiting.acquire()
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


def adapter() -> LoraConfig:
    """What Likelier's recipe has by default."""
    default = AdapterSettings()
    return LoraConfig(r=default.rank, lora_alpha=default.alpha, target_modules=default.targets, task_type="CAUSAL_LM")
