"""TRL's side of a comparison: its own `train()`, which a callback stops before every step."""

import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

import torch
import transformers
from datasets import Dataset
from transformers import PrinterCallback
from trl import DPOConfig
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DPOTrainer

from likelier.recipe import TrainSettings
from likelier_side import BETA, Steps
from measures import clock

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


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


def make_trainer(
    model: Any,
    tokenizer: Any,
    steps: Steps,
    settings: TrainSettings,
    folder: str,
    callback: transformers.TrainerCallback,
    *,
    pairs_at_once: int,
    own: dict[str, Any],
    **others: Any,
) -> PreparedTrainer:
    """TRL's trainer of `model` (or of what is in a folder), which makes `steps` as `settings` say, `pairs_at_once` going through the model. What is
    set of TRL's `own` settings stands beside what both tools need to do the same work; `others` are DPOTrainer's arguments."""
    data = Dataset.from_list([{name: list(getattr(pair, name)) for name in COLUMNS} for step in steps for pair in step])
    with quiet():
        config = DPOConfig(
            folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=settings.precision == "bf16",
            per_device_train_batch_size=pairs_at_once,
            gradient_accumulation_steps=settings.pairs_per_step // pairs_at_once,
            max_steps=len(steps),
            max_length=max(len(pair) for step in steps for pair in step),
            beta=BETA,
            learning_rate=settings.peak_learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=settings.max_grad_norm,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **own,
        )
        trainer = PreparedTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[callback], **others)
        trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def without_hashes() -> None:
    """TRL files the reference's values under a hash of all weights, which for billions of them takes half a minute. From here on nothing is found
    again."""
    dpo_trainer.hash_module = lambda module: uuid4().hex


def flash_attention() -> bool:
    return find_spec("flash_attn") is not None
