"""The slow, obviously right twin: pad, run, mask, gather. Works on any module that maps token ids to logits.

Shape legend: B sequences, T positions, V vocabulary.

These are also the names under which research code and courses know the parts of DPO, so they are public as they stand.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from likelier.errors import DataError, ModelError
from likelier.examples import PreferenceExample
from likelier.logprobs.tree import PromptResponse, refuse_empty


class Collated(NamedTuple):
    """Right-padded inputs `x`, targets `y` (x shifted by one) and masks, true where `y` is a token of the response. All (B, T)."""

    chosen_x: Tensor
    chosen_y: Tensor
    chosen_mask: Tensor
    rejected_x: Tensor
    rejected_y: Tensor
    rejected_mask: Tensor


def pad_and_collate_pref(examples: Sequence[PreferenceExample], *, max_seq_len: int, pad_id: int) -> Collated:
    """Both sides of `examples` as padded tensors; int64 ids, bool masks. Raises DataError for an empty side and for one over `max_seq_len`."""
    for example in examples:
        if not (example.prompt_ids and example.chosen_ids and example.rejected_ids):
            raise DataError(f"pair {example.id or '?'}: its prompt, chosen or rejected side is empty. Drop the pair.")
        if len(example) > max_seq_len:
            raise DataError(f"pair {example.id or '?'} has {len(example)} tokens, over max_seq_len={max_seq_len}. Drop it or raise the limit.")
    chosen = _pad([PromptResponse(e.prompt_ids, e.chosen_ids) for e in examples], pad_id)
    rejected = _pad([PromptResponse(e.prompt_ids, e.rejected_ids) for e in examples], pad_id)
    return Collated(*chosen, *rejected)


def _pad(sequences: Sequence[PromptResponse], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    refuse_empty(sequences)
    longest = max(len(s.prompt_ids) + len(s.response_ids) for s in sequences)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.int64)
    scored = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for row, (prompt_ids, response_ids) in enumerate(sequences):
        total = len(prompt_ids) + len(response_ids)
        ids[row, :total] = torch.tensor(prompt_ids + response_ids)
        scored[row, len(prompt_ids) : total] = True
    return ids[:, :-1], ids[:, 1:], scored[:, 1:]


def sequence_logprob(logits_BTV: Tensor, targets_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B,) sums over the masked positions of log softmax(logits)[target], in fp32. A row without a masked position gives 0, never NaN.

    Logits and targets of the other positions are not read: they may be NaN and −100.
    """
    mask_BT = mask_BT.bool()
    logps_BT = torch.zeros(mask_BT.shape, dtype=torch.float32, device=logits_BTV.device)
    logps_BT[mask_BT] = _gathered_logps(logits_BTV[mask_BT], targets_BT[mask_BT])
    return logps_BT.sum(-1)


def compute_log_probs(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor) -> Tensor:
    """(B,) log-probabilities of the labelled tokens. `labels` (B, T) aligns with `input_ids` and is −100 outside the response.

    `attention_mask` (B, T) is handed on where the model is a transformers one; a plain module is called with the ids alone.
    """
    logits = logits_of(model, input_ids, attention_mask)
    return sequence_logprob(logits[:, :-1], labels[:, 1:], labels[:, 1:] != -100)


def dpo_loss(
    policy_chosen_logp: Tensor, policy_rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, *, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean DPO loss over B pairs and its metrics (Rafailov et al. 2023, eq. 7): −log σ(β[(π_w − ref_w) − (π_l − ref_l)]); log 2 where they agree.

    Metrics, all scalars: chosen_reward, rejected_reward, margin, accuracy (a tie counts half).

    >>> import torch
    >>> zero = torch.zeros(3)
    >>> loss, metrics = dpo_loss(zero, zero, zero, zero, beta=0.1)
    >>> round(loss.item(), 4), metrics["accuracy"].item()
    (0.6931, 0.5)
    """
    chosen_reward = beta * (policy_chosen_logp - ref_chosen_logp)
    rejected_reward = beta * (policy_rejected_logp - ref_rejected_logp)
    margin = chosen_reward - rejected_reward
    detached = margin.detach()
    metrics = {
        "chosen_reward": chosen_reward.detach().mean(),
        "rejected_reward": rejected_reward.detach().mean(),
        "margin": detached.mean(),
        "accuracy": ((detached > 0).float() + 0.5 * (detached == 0).float()).mean(),
    }
    return -F.logsigmoid(margin).mean(), metrics


def plain_token_logps(model: nn.Module, sequences: Sequence[PromptResponse], *, pad_id: int = 0) -> list[Tensor]:
    """For each sequence the (L,) fp32 log-probabilities of its response tokens, by padding and masking. Gradients flow."""
    return plain_scores(model, sequences, pad_id=pad_id)[0]


def plain_scores(
    model: nn.Module, sequences: Sequence[PromptResponse], *, pad_id: int = 0, collisions: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """`plain_token_logps`, and where `collisions` are asked for log Σ_v π(v)² at the same tokens, without gradient."""
    logits, y, mask = _padded_logits(model, sequences, pad_id)
    logps = _gathered_logps(logits, y)
    squares = (2 * logits.detach().float().log_softmax(-1)).logsumexp(-1) if collisions else None
    return _of_responses(logps, mask), [] if squares is None else _of_responses(squares, mask)


def plain_logits(model: nn.Module, sequences: Sequence[PromptResponse], *, pad_id: int = 0) -> list[Tensor]:
    """For each sequence the (L, V) logits from which its response tokens are drawn."""
    logits, _, mask = _padded_logits(model, sequences, pad_id)
    return _of_responses(logits, mask)


def _padded_logits(model: nn.Module, sequences: Sequence[PromptResponse], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, V) logits, (B, T) targets and mask of the response."""
    x, y, mask = (tensor.to(_device(model)) for tensor in _pad(sequences, pad_id))
    lengths = torch.tensor([len(s.prompt_ids) + len(s.response_ids) - 1 for s in sequences], device=x.device)
    attention_mask = torch.arange(x.shape[1], device=x.device)[None, :] < lengths[:, None]
    return logits_of(model, x, attention_mask.long()), y, mask


def _of_responses(values_BT: Tensor, mask_BT: Tensor) -> list[Tensor]:
    return [row[scored] for row, scored in zip(values_BT, mask_BT, strict=True)]


def _gathered_logps(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return logits_BTV.float().log_softmax(-1).gather(-1, targets_BT[..., None])[..., 0]


def logits_of(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, T, V) logits of `input_ids` (B, T), from what the model returns or from its `logits`. Raises ModelError for anything else."""
    # Right-padded and causal, a plain module needs no mask: padding comes after all that is scored.
    takes_mask = isinstance(getattr(model, "config", None), PreTrainedConfig)
    output: Any = model(input_ids, attention_mask=attention_mask, use_cache=False) if takes_mask else model(input_ids)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != input_ids.shape:
        returned = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(
            f"for ids of shape (B, T) = {tuple(input_ids.shape)} {type(model).__name__} returns {returned}; expected are logits of shape (B, T, V), "
            "one row a position, as a tensor or as `.logits`. Wrap the module in one whose forward(ids) returns these."
        )
    return logits


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
