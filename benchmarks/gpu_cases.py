"""What `gpu.py` measures: architectures with random weights, made-up pairs of three shapes, and the order of the cases."""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from likelier.examples import PreferenceExample
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.tree import Tree
from likelier_side import Steps

SEED = 42
"""Of weights, lengths and ids; TRL's own, by which it draws adapters."""

SPECIAL = ["<pad>", "<end>"]
SPREAD, LONGEST = 0.4, 3.0
"""Lengths are log-normal: σ of the logarithm, and the greatest over the mean."""


def llama(**numbers: Any) -> LlamaConfig:
    factor = numbers.pop("factor")
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    return LlamaConfig(max_position_embeddings=131072, rms_norm_eps=1e-5, rope_parameters=rope, **numbers)


def qwen3(**numbers: Any) -> Qwen3Config:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    return Qwen3Config(max_position_embeddings=40960, rms_norm_eps=1e-6, rope_parameters=rope, tie_word_embeddings=True, **numbers)


def sizes(hidden: int, inner: int, layers: int, heads: int, groups: int, head: int, vocabulary: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    return dict(zip(names, (hidden, inner, layers, heads, groups, head, vocabulary), strict=True))


MODELS = {
    "llama-1b": llama(**sizes(2048, 8192, 16, 32, 8, 64, 128256), factor=32.0, tie_word_embeddings=True),  # Llama-3.2-1B
    "qwen3-4b": qwen3(**sizes(2560, 9728, 36, 32, 8, 128, 151936)),  # Qwen3-4B
    "llama-8b": llama(**sizes(4096, 14336, 32, 32, 8, 128, 128256), factor=8.0, tie_word_embeddings=False),  # Llama-3.1-8B
    "tiny-llama": llama(**sizes(64, 96, 2, 4, 2, 16, 256), factor=8.0, tie_word_embeddings=False),
    "tiny-qwen3": qwen3(**sizes(64, 96, 2, 4, 2, 16, 256)),
}
"""By the numbers in their published configs."""


@dataclass(frozen=True)
class Shape:
    """What the data are like: tokens on average, and in how many responses to a prompt all pairs are compared."""

    name: str
    prompt: int
    response: int
    responses: int = 2
    pairs_per_step: int = 16

    @property
    def pairs_a_prompt(self) -> int:
        return math.comb(self.responses, 2)


SHAPES = {
    "ultrafeedback": Shape("ultrafeedback", 300, 300),
    "long-prompt": Shape("long-prompt", 2000, 150),
    "four-responses": Shape("four-responses", 300, 300, responses=4, pairs_per_step=24),
}
SMOKE_SHAPES = {
    "ultrafeedback": Shape("ultrafeedback", 12, 12, pairs_per_step=4),
    "long-prompt": Shape("long-prompt", 40, 6, pairs_per_step=4),
    "four-responses": Shape("four-responses", 12, 12, responses=4, pairs_per_step=12),
}


@dataclass(frozen=True)
class Case:
    """One model, trained one way, on data of one shape. `tight`, for what else is too large: bf16 weights without fp32 masters, and
    moments in 8 bits."""

    model: str
    method: str
    shape: Shape
    tight: bool = False
    axis: dict[str, float] = field(default_factory=dict)  # of a scaling measurement: what is varied, and its value here

    @property
    def name(self) -> str:
        return f"{self.model}/{self.method}/{self.shape.name}"

    @property
    def config(self) -> Any:
        return copy.deepcopy(MODELS[self.model])


def main_cases() -> list[Case]:
    """The most important first."""
    order = [("llama-1b", "full", "ultrafeedback"), ("llama-8b", "lora", "ultrafeedback")]
    order += [("llama-1b", "full", "long-prompt"), ("llama-1b", "full", "four-responses")]
    order += [("llama-8b", "lora", "long-prompt"), ("llama-8b", "lora", "four-responses")]
    order += [("qwen3-4b", method, shape) for method in ("lora", "full") for shape in SHAPES]
    order += [("llama-1b", "lora", shape) for shape in SHAPES]
    cases = [Case(model, method, SHAPES[shape]) for model, method, shape in order]
    return [*cases, Case("llama-8b", "full", SHAPES["ultrafeedback"], tight=True)]


def smoke_cases() -> list[Case]:
    return [Case(model, method, shape) for model, method in (("tiny-llama", "full"), ("tiny-qwen3", "lora")) for shape in SMOKE_SHAPES.values()]


def scaling_cases(model: str, method: str, *, lengths: list[int], responses: list[int], tokens: int) -> list[Case]:
    """Prompt and response of one length each, about `tokens` of them a step; and more and more responses to prompts of the first such length."""
    cases = []
    for length in lengths:
        shape = Shape(f"length-{length}", length, length, pairs_per_step=max(2, tokens // (4 * length)))
        cases.append(Case(model, method, shape, axis={"length": length}))
    for count in responses:
        a_prompt = math.comb(count, 2)
        most = max(2, tokens // (4 * lengths[0]))
        shape = Shape(f"responses-{count}", lengths[0], lengths[0], responses=count, pairs_per_step=a_prompt * max(1, most // a_prompt))
        cases.append(Case(model, method, shape, axis={"pairs a prompt": a_prompt}))
    return cases


def make_steps(case: Case, count: int) -> Steps:
    """So many steps of made-up pairs, the one with the longest sequence first: it asks for the most memory."""
    draw, shape, vocabulary = random.Random(SEED), case.shape, case.config.vocab_size

    def ids(mean: int) -> tuple[int, ...]:
        length = mean * min(LONGEST, draw.lognormvariate(-(SPREAD**2) / 2, SPREAD))
        return tuple(draw.randrange(len(SPECIAL), vocabulary) for _ in range(max(1, round(length))))

    def step() -> list[PreferenceExample]:
        pairs = []
        for _ in range(shape.pairs_per_step // shape.pairs_a_prompt):
            prompt, responses = ids(shape.prompt), [ids(shape.response) for _ in range(shape.responses)]
            pairs += [PreferenceExample(prompt, chosen, rejected) for chosen, rejected in combinations(responses, 2)]
        return pairs

    steps = [step() for _ in range(count)]
    heaviest = max(steps, key=lambda pairs: max(map(len, pairs)))
    return [heaviest, *(each for each in steps if each is not heaviest)]


def describe(steps: Steps, trees: Sequence[Tree], pairs_at_once: int) -> dict[str, float]:
    """Tokens a pair: those of the steps' trees, all, and with the padding of batches of `pairs_at_once`, which hold each side of a pair in a row."""
    pairs = [pair for step in steps for pair in step]
    batches = [pairs[i : i + pairs_at_once] for i in range(0, len(pairs), pairs_at_once)]
    return {
        "unique": sum(map(len, trees)) / len(pairs),
        "plain": sum(len(s.prompt_ids) + len(s.response_ids) for s in sequences_of(pairs)) / len(pairs),
        "padded": sum(2 * len(batch) * max(map(len, batch)) for batch in batches) / len(pairs),
    }


def build_model(config: Any, *, device: torch.device, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """Random weights, made on the device in bf16 and widened where they shall be fp32: the same numbers in either."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return model.float() if dtype == torch.float32 else model  # buffers are fp32 either way


def count_weights(config: Any) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())


def made_up_tokenizer() -> PreTrainedTokenizerFast:
    """TRL wants one, to ask it for the padding's id."""
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(SPECIAL)}, unk_token=SPECIAL[0]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL[0], eos_token=SPECIAL[1])
