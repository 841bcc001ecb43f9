"""Tiny random models of several architectures, sequences that share as real batches do, and the fp64 truth about both."""

import copy
import functools
import random

import pytest
import torch
import transformers
from torch import nn

from likelier.logprobs.tree import PromptResponse

VOCABULARY = 97
BODY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_BODY = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

ARCHITECTURES = {
    "llama": ("Llama", BODY),
    "qwen3": ("Qwen3", {**BODY, "head_dim": 16}),
    "gemma3": ("Gemma3Text", {**BODY, "num_hidden_layers": 4, "head_dim": 16, "sliding_window": 5, "layer_types": MIXED}),
    "mistral": ("Mistral", {**BODY, "sliding_window": 7}),
    "gpt2": ("GPT2", GPT2_BODY),
    # Fully able, and with what the five above lack: a biased head, dropout inside the layer itself.
    "phi": ("Phi", {**BODY, "num_key_value_heads": 4}),
    "opt": ("OPT", {**BODY, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.5}),
    # Not able: recurrent, recurrent in part, alibi, softcap, scaled logits.
    "mamba": ("Mamba", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "lfm2": ("Lfm2", {**BODY, "num_hidden_layers": 3, "full_attn_idxs": [1]}),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gemma2": ("Gemma2", {**BODY, "head_dim": 16}),
    "granite": ("Granite", {**BODY, "logits_scaling": 8.0}),
}

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


@functools.cache
def built(architecture: str) -> nn.Module:
    """Weights several times larger than usual, so that no part of the model is without effect on the log-probabilities."""
    name, settings = ARCHITECTURES[architecture]
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="session")
def tiny():
    """tiny("llama"): a fresh copy of a tiny random model, fp32, in evaluation mode."""
    return lambda architecture: copy.deepcopy(built(architecture))


def sequences_that_share() -> list[PromptResponse]:
    """A system message before two prompts, responses that begin alike, repeat or contain one another, and every length down to one token."""
    draw = random.Random(7)

    def ids(count):
        return tuple(draw.randrange(VOCABULARY) for _ in range(count))

    system = ids(11)
    first, second, short = system + ids(7), system + ids(3), ids(1)
    response = ids(13)
    return [
        PromptResponse(first, response),
        PromptResponse(first, response[:4] + ids(5)),
        PromptResponse(second, ids(17)),
        PromptResponse(second, ids(1)),
        PromptResponse(short, ids(1)),
        PromptResponse(first, response),
        PromptResponse(first, response[:6]),
        PromptResponse(short, ids(19)),
        PromptResponse(system, ids(2)),
        PromptResponse(first + response[:2], response[2:] + ids(2)),
    ]


@pytest.fixture
def sequences():
    return sequences_that_share()


def values_and_gradients(model, token_logps):
    """All values end to end, and each parameter's gradient of their sum under fixed random weights."""
    values = torch.cat(token_logps)
    weights = torch.randn(len(values), generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(values.dtype)
    model.zero_grad(set_to_none=True)
    (values * weights).sum().backward()
    return values.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="session", name="values_and_gradients")
def values_and_gradients_fixture():
    return values_and_gradients


@functools.cache
def truth_of(architecture: str):
    """In fp64, each sequence by itself: no padding, no sharing, no mask but the model's own."""
    model = copy.deepcopy(built(architecture)).double()
    values = []
    for prompt_ids, response_ids in sequences_that_share():
        ids = torch.tensor([prompt_ids + response_ids])
        logps = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        values.append(logps[len(prompt_ids) - 1 :])
    return values_and_gradients(model, values)


@pytest.fixture(scope="session")
def truth():
    """truth("llama"): (values, gradients) of `sequences` in fp64."""
    return truth_of


def furthest(found, wanted):
    """Largest relative distance (in norm) between two sets of gradients, parameter by parameter."""
    assert found.keys() == wanted.keys()
    distances = [(found[name] - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-12) for name in wanted]
    return float(torch.stack(distances).max())


@pytest.fixture(scope="session", name="furthest")
def furthest_fixture():
    return furthest
