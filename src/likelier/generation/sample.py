"""Prompts in, replies out: `transformers`' generate in batches, greedy or sampled, from prompts and seed alone.

Nothing else gets in: not the settings that a model ships for generation (temperature, top-p, penalties), not the global random state, not the
training flags. In fp32 nor does the cut into batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from likelier.adapters import causal_lm_of
from likelier.errors import ModelError, lacks_memory
from likelier.examples import Ids
from likelier.logprobs.attention import standard_attention
from likelier.logprobs.scorer import Precision

TOKENS_PER_BATCH = 8192
"""Positions of one batch, prompts and replies to come: what the key/value cache holds."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote: its tokens with the end token if there is one, and its text without that."""

    ids: Ids
    text: str
    ended: bool  # by itself, before the limit

    @property
    def length(self) -> int:
        """In tokens, not counting the end token."""
        return len(self.ids) - self.ended


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Ids],
    *,
    end_token_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    precision: Precision = "fp32",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    places: Sequence[int] | None = None,
    on_batch: Callable[[dict[int, Reply]], object] = lambda batch: None,
    may_halve: bool = True,
) -> list[Reply]:
    """One reply to each prompt, in their order: the likeliest token at each place (temperature 0), or draws from softmax(logits / temperature).

    `model` is a transformers causal LM, with or without PEFT adapter; the adapter counts unless it is off (`models.as_reference`). A reply stops
    at `end_token_id` or after `max_new_tokens`. `precision` "bf16" turns on autocast, as in scoring, which
    an fp32 adapter on bf16 weights needs; the weights keep their type. A draw is made by the prompt's place in the list, or by what `places` has
    there. `on_batch` is given each batch as it is written, by index. A batch that does not fit into memory is written by halves where it `may_halve`.
    Raises ModelError where a prompt leaves no room, or does not fit into memory even alone.
    """
    if temperature < 0:
        raise ValueError(f"temperature is {temperature} and must not be negative")
    causal_lm = causal_lm_of(model)
    _check_room(causal_lm, prompts, max_new_tokens)
    settings = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end_token_id, pad_token_id=end_token_id, use_cache=True)
    replies: dict[int, Reply] = {}

    def write(batch: list[int]) -> list[Ids]:
        drawn = batch if places is None else [places[i] for i in batch]
        noise = LogitsProcessorList([GumbelNoise(temperature, seed, drawn, causal_lm.device)] if temperature else [])
        try:
            return _continue(causal_lm, [prompts[i] for i in batch], settings, noise)
        except (RuntimeError, MemoryError) as problem:
            if not (lacks_memory(problem) and may_halve):
                raise
            if len(batch) == 1:
                raise ModelError(f"not enough memory for a reply to a prompt of {len(prompts[batch[0]])} tokens. Take a smaller model.") from None
        half = len(batch) // 2
        return write(batch[:half]) + write(batch[half:])

    # Not inference mode: FSDP keeps the tensors that it gathers weights into, and training could not use them.
    with _ready(causal_lm), torch.no_grad(), torch.autocast(causal_lm.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in _batches(prompts, max_new_tokens, tokens_per_batch):
            fresh = {i: reply_of(ids, tokenizer, end_token_id) for i, ids in zip(batch, write(batch), strict=True)}
            replies |= fresh
            on_batch(fresh)
    return [replies[i] for i in range(len(prompts))]


class GumbelNoise(LogitsProcessor):
    """Turns the choice of the likeliest token into a draw: argmax(logits / τ + Gumbel noise) ~ softmax(logits / τ) (Maddison et al. 2014).

    Each prompt has its own stream of noise, by seed and place, so that a draw depends on nothing that happens to share its batch.
    """

    def __init__(self, temperature: float, seed: int, places: Sequence[int], device: torch.device) -> None:
        self.temperature = temperature
        self.streams = [torch.Generator(device).manual_seed(int(np.random.SeedSequence([seed % 2**64, i]).generate_state(1)[0])) for i in places]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(B, V) → (B, V), fp32."""
        exponential = torch.empty_like(scores, dtype=torch.float32)
        for row, stream in zip(exponential, self.streams, strict=True):
            row.exponential_(generator=stream)
        return scores.float() / self.temperature - exponential.log()


def _continue(causal_lm: Any, prompts: Sequence[Ids], settings: GenerationConfig, noise: LogitsProcessorList) -> list[Ids]:
    """New tokens of each row, padded as transformers does it. Padding stands on the left: every prompt must end where its reply begins."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), settings.pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    written: Tensor = causal_lm.generate(
        input_ids=ids.to(causal_lm.device), attention_mask=mask.to(causal_lm.device), generation_config=settings, logits_processor=noise
    )
    return [tuple(row) for row in written[:, width:].tolist()]


@contextmanager
def _ready(causal_lm: Any) -> Iterator[None]:
    """Within it the model generates plainly: layers that recompute activations would drop the cache, and a model's own generation settings
    fill in whatever the given ones leave open."""
    own_settings, training = causal_lm.generation_config, [(module, module.training) for module in causal_lm.modules()]
    causal_lm.generation_config = GenerationConfig()
    causal_lm.eval()
    try:
        with standard_attention(causal_lm):
            yield
    finally:
        causal_lm.generation_config = own_settings
        for module, flag in training:
            module.training = flag


def _batches(prompts: Sequence[Ids], max_new_tokens: int, tokens_per_batch: int) -> list[list[int]]:
    """Indices of prompts of similar length, the longest first: a batch that does not fit shows at once."""
    batches: list[list[int]] = []
    room = 0
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        if not room:
            batches.append([])
            room = max(1, tokens_per_batch // (len(prompts[i]) + max_new_tokens))
        batches[-1].append(i)
        room -= 1
    return batches


def _check_room(causal_lm: Any, prompts: Sequence[Ids], max_new_tokens: int) -> None:
    limit, longest = getattr(causal_lm.config, "max_position_embeddings", None), max(map(len, prompts), default=0)
    if limit and longest + max_new_tokens > limit:
        raise ModelError(
            f"this model has {limit} positions, and a prompt of {longest} tokens with a reply of {max_new_tokens} needs more. "
            "Lower eval.max_new_tokens or data.max_length."
        )


def reply_of(ids: Ids, tokenizer: Any, end_token_id: int) -> Reply:
    """What stands up to the end token; behind it there is only padding."""
    ended = end_token_id in ids
    words = ids[: ids.index(end_token_id)] if ended else ids
    text = tokenizer.decode(list(words), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Reply((*words, end_token_id) if ended else words, text, ended)
