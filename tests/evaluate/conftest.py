"""Runs on a tiny model as training leaves them, and the plain twin to compare with."""

import copy
import json

import pytest
import torch

from likelier.data.chat import Encoder
from likelier.data.load import load_sides
from likelier.generation.sample import Reply
from likelier.logprobs.attention import standard_attention
from likelier.logprobs.plain import plain_token_logps
from likelier.logprobs.tree import PromptResponse
from likelier.models import add_adapter, fingerprint, save_trained
from likelier.recipe import AdapterSettings, parse_recipe
from likelier.rundir import RunDir, write_atomic, write_json

CHOSEN = ("is in the panel", "comes on the 3rd; we send it by mail.")
REJECTED = ("Sorry!", "Look for it yourself.", "WHO ARE YOU", "We never wrote one, I am afraid, and never will", "**July**: n/a")
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"Where is my invoice for {month}?"}],
        "chosen": [{"role": "assistant", "content": f"Your {month} invoice {CHOSEN[copy]}"}],
        "rejected": [{"role": "assistant", "content": REJECTED[number]}],
        "id": f"{month}-{copy}",
        **({"reason": "rude"} if month in ("March", "May") else {}),
    }
    for number, month in enumerate(("January", "March", "May", "June", "July"))
    for copy in range(2)
]
TRAIN = [{**PAIRS[0], "prompt": [{"role": "user", "content": "Who are you?"}]}]
EVAL = {"max_new_tokens": 8, "samples": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_run(tmp_path, chat_model, chat_tokenizer):
    """make_run(…): a finished run on the tiny model as training leaves it, and its recipe. `moved` is how far the policy went."""

    def made(*, method="lora", moved=0.5, pairs=PAIRS, **sections):
        base = tmp_path / "base"
        save_trained(copy.deepcopy(chat_model), chat_tokenizer, base, card="")
        for name, rows in (("train", TRAIN), ("eval", pairs)):
            write_atomic(tmp_path / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": [str(tmp_path / "train.jsonl")], "eval": [str(tmp_path / "eval.jsonl")] if pairs else [], "eval_fraction": 0.0}
        settings = {"model": {"name": str(base)}, "data": data, "train": {"method": method}, "eval": EVAL, "out": str(tmp_path / "run"), **sections}
        recipe = parse_recipe(settings, where="test")
        run = RunDir(recipe.out)
        write_atomic(run.recipe, recipe.to_yaml())
        encoder = Encoder(chat_tokenizer, max_length=recipe.data.max_length)
        sides = dict(zip(("train", "eval"), load_sides(recipe.data, encoder), strict=True))
        write_json(
            run.manifest,
            {
                "data": {name: side.summary() for name, side in sides.items()},
                "model": {"weights": fingerprint(chat_model)},
                "numerics": {"precision": "fp32", "weights_dtype": "float32", "engine": "nodes", "parity": {}},
                "outcome": {"steps": 1, "stopped": "all steps done"},
                "reference": {"computed": 22, "reused": 0},
            },
        )
        trained = copy.deepcopy(chat_model)
        model = add_adapter(trained, AdapterSettings(rank=4), seed=0) if method == "lora" else trained
        noise = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if method == "full" or "lora_B" in name:
                parameter.data += moved * (0.05 if method == "full" else 0.2) * torch.randn(parameter.shape, generator=noise)
        save_trained(model, chat_tokenizer, run.model, card="")
        return run, recipe, model, sides["eval"]

    return made


def sums(model, sequences):
    with torch.no_grad(), standard_attention(model):
        return torch.tensor([float(values.sum()) for values in plain_token_logps(model, sequences)], dtype=torch.float64)


def sides(held_out):
    chosen = [PromptResponse(e.prompt_ids, e.chosen_ids) for e in held_out.examples]
    return chosen, [PromptResponse(e.prompt_ids, e.rejected_ids) for e in held_out.examples]


def value_of(result, name):
    return result["held_out"][name]["value"]


def reply(text, *, tokens, ended=True):
    return Reply((9,) * tokens + ((2,) if ended else ()), text, ended)
