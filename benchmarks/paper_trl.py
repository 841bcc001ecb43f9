"""TRL's steps on paper, for gpu_on_paper.py: its trainer's own loss, from collator to metrics, in a training loop that is played."""

import sys
import tempfile
from typing import Any

import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

from gpu_cases import Case, made_up_tokenizer, make_steps, smoke_cases
from gpu_players import PAIRS_AT_ONCE, Options, settings_of
from gpu_trl_player import adapter
from likelier.examples import PreferenceExample
from likelier.models import trainable
from likelier_side import Steps
from paper_device import forget_cast_weights, moved_to_paper, on_meta, on_paper
from paper_meter import Meter, Spent
from trl_side import COLUMNS, make_trainer, quiet

MEASURED = ("log_probs", "entropy", "mean_logits", "is_top1")
"""What TRL has its head work out for a policy (DPOTrainer.__init__); for a reference the first."""


def trl_on_paper(case: Case, steps: Steps, options: Options, opponent: str) -> Spent:
    """All steps."""
    device, best = options.device, opponent == "best"
    meter = Meter(device.type)
    _play_triton(meter)
    trainer = _trainer(options, lora=case.method == "lora", best=best)
    collated = [[(pairs, _collated(trainer, pairs, scored=best)) for pairs in _in_batches(step)] for step in steps]
    model, reference = _models(case, best=best)
    with on_paper():
        trainer.model = _prepared(moved_to_paper(model, device))
        trainer.ref_model = _prepared(moved_to_paper(reference, device)) if reference else None
        changed = list(trainable(model).values())
        optimizer = torch.optim.AdamW(changed, lr=1e-5, fused=True)
        with meter:
            meter.hold(*model.parameters(), *model.buffers(), *(reference.parameters() if reference else ()))
            meter.begin()
            for batches in collated:
                for pairs, batch in batches:
                    meter.chosen = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
                    inputs = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for name, tensor in batch.items()}
                    loss = trainer.compute_loss(trainer.model, inputs)
                    forget_cast_weights()
                    (loss / len(batches)).backward()
                    del loss, inputs
                torch.nn.utils.clip_grad_norm_(changed, 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return meter.spent


def _trainer(options: Options, *, lora: bool, best: bool) -> Any:
    """TRL's trainer of a tiny model, whose place the one on paper takes."""
    tiny = smoke_cases()[0]
    model, *reference = (AutoModelForCausalLM.from_config(tiny.config) for _ in range(1 if lora else 2))
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = make_trainer(
            *(model, made_up_tokenizer(), make_steps(tiny, 1), settings_of(tiny, options), folder, TrainerCallback()),
            pairs_at_once=1,
            own={"gradient_checkpointing": not best},
            ref_model=reference[0] if reference else None,
            peft_config=adapter() if lora else None,
        )
    trainer.precompute_ref_logps, trainer.data_collator.max_length = best, None
    return trainer


def _models(case: Case, *, best: bool) -> tuple[Any, Any]:
    """The policy and, where one is kept, the reference, as DPOTrainer makes them ready; without numbers."""
    lora = case.method == "lora"
    dtype = torch.bfloat16 if best and lora else torch.float32
    model = on_meta(case.config, dtype)
    add_fused_lm_head(model, outputs=MEASURED)
    model = get_peft_model(model, adapter()) if lora else model
    if not best:
        model.gradient_checkpointing_enable()
        if lora:
            model.enable_input_require_grads()
    if lora or best:
        return model.train(), None
    reference = on_meta(case.config, dtype)
    add_fused_lm_head(reference)
    return model.train(), reference.eval()


def _prepared(model: Any) -> Any:
    """As accelerate prepares a model for bf16."""
    device = next(model.parameters()).device.type
    model.forward = convert_outputs_to_fp32(torch.autocast(device, torch.bfloat16)(model.forward))
    return model


def _in_batches(step: list[PreferenceExample]) -> list[list[PreferenceExample]]:
    return [step[start : start + PAIRS_AT_ONCE] for start in range(0, len(step), PAIRS_AT_ONCE)]


def _collated(trainer: Any, pairs: list[PreferenceExample], *, scored: bool) -> dict[str, Tensor]:
    """As the trainer's own collator does it; with the reference's values, if they are there."""
    batch = trainer.data_collator([{name: list(getattr(pair, name)) for name in COLUMNS} for pair in pairs])
    return batch | ({f"ref_{side}_logps": torch.zeros(len(pairs)) for side in ("chosen", "rejected")} if scored else {})


def _play_triton(meter: Meter) -> None:
    """TRL's kernels, by what they read and write, and its product that adds to fp32."""

    def product(total: Tensor, left: Tensor, right: Tensor) -> None:
        flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
        meter.account("mm", moved=left.nbytes + right.nbytes + 2 * total.nbytes, flops=flops, dtype=left.dtype)

    chunked_logprob._forward_tile = lambda tile, *others, **options: meter.account("Triton softmax", moved=tile.nbytes)
    chunked_logprob._backward_tile = lambda tile, *others, **options: meter.account("Triton softmax", moved=2 * tile.nbytes)
    chunked_logprob._addmm_fp32 = product
    sys.modules["trl.trainer.utils"]._use_triton = lambda device: True
