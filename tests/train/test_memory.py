"""Memory: what is estimated is near what is counted and measured, in every way to train."""

import subprocess
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from likelier.logprobs.attention import NODE_ATTENTION
from likelier.models import add_adapter, trainable
from likelier.recipe import AdapterSettings, TrainSettings
from likelier.recompute import recompute_activations
from likelier.train import checkpoint
from likelier.train.master import MasterWeights
from likelier.train.memory import BatchSize, Peak, estimate, free, no_more_than, resident
from likelier.train.optimizer import make_optimizer, state_bytes, step_bytes
from likelier.train.outlook import batch_tokens, outlook
from likelier.train.progress import Progress
from likelier.train.session import prepare, train_recipe
from likelier.train.step import Task, add_gradients
from tests.train.conftest import changed
from tests.train.test_ways import WAYS, Way, recipe_of, starts  # noqa: F401

EVERY_WAY = {
    "lora": Way({"precision": "fp32"}),
    "lora-bf16": Way({"precision": "bf16"}),
    "full": Way({"method": "full", "precision": "fp32"}),
    "masters": Way({"method": "full", "precision": "bf16"}),
    **WAYS,
}


@pytest.mark.parametrize("name", EVERY_WAY)
def test_what_a_run_holds_is_what_the_arithmetic_says(name, recipe, starts):  # noqa: F811
    """Tensors counted after one step, to a hundredth: tables of 8-bit values and step counts are left out."""
    recipe = changed(recipe_of(EVERY_WAY[name], recipe, starts), objective={"name": "orpo"})
    prepared = prepare(recipe, Progress())
    seen, batches = outlook(prepared, None)
    model = prepared.policy.model
    weights = MasterWeights.of(model, recipe.model, recipe.train.bf16_weights)
    optimizer = make_optimizer(weights.parameters, recipe.train)
    passed(prepared, weights, batches[0])
    held_narrow = [p for p in trainable(model).values() if all(p is not master for master in weights.parameters)]
    held = {
        "weights": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "masters": 4 * sum(p.numel() for p in held_narrow),
        "gradients": sum(master.grad.nbytes for master in weights.parameters) + sum(p.nbytes for p in held_narrow),
    }
    optimizer.step()
    held["optimizer"] = state_bytes(optimizer)
    parts = {part.name: part.bytes for part in seen.memory}
    for what, size in held.items():
        tables = 4096 if what == "optimizer" or (what == "weights" and "qlora" in name) else 0
        assert parts.get(what, 0) == pytest.approx(size, rel=0.01, abs=tables), what
    assert seen.facts.parameters == parameters_of_base(recipe)


def parameters_of_base(recipe) -> int:
    """Of the base alone, by its files."""
    [file] = Path(recipe.model.name).glob("*.safetensors")
    return sum(tensor.numel() for tensor in load_file(file).values())


def passed(prepared, weights: MasterWeights, batch) -> None:
    """One forward and backward pass, without a reference."""
    task = Task(prepared.policy, None, prepared.objective, 1024, Progress())
    add_gradients(task, weights, batch, point=0.0)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that come and go, `besides` those; `peak` is the most that there were."""

    def __init__(self, besides: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.besides = [tensor.untyped_storage() for tensor in besides]
        self.sizes: dict[int, int] = {storage._cdata: 0 for storage in self.besides}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key)
        return results

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


PASSES = {
    "lora": {},
    "lora-fp32": {"train": {"precision": "fp32"}},
    "dora": {"adapter": {"dora": True}},
    "qlora": {"train": {"method": "qlora"}},
    "lora-selective": {"train": {"gradient_checkpointing": "selective"}},
    "lora-recomputed": {"train": {"gradient_checkpointing": True}},
    "full": {"train": {"method": "full", "bf16_weights": "stochastic-rounding"}},
    "full-selective": {"train": {"method": "full", "bf16_weights": "stochastic-rounding", "gradient_checkpointing": "selective"}},
    "qlora-selective": {"train": {"method": "qlora", "gradient_checkpointing": "selective"}},
    "qlora-dora-recomputed": {"train": {"method": "qlora", "gradient_checkpointing": True}, "adapter": {"dora": True}},
    "head": {"adapter": {"targets": "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head"}},
}


@pytest.mark.parametrize("name", PASSES)
def test_what_a_pass_takes_is_near_what_the_arithmetic_says(name, recipe, middling_folder):
    """Tensors counted at their most: a fifth less to half as much again; with recomputed activations to three quarters more: the one layer
    that is whole again is one of four."""
    sections = {"model": {"name": str(middling_folder)}, "objective": {"name": "orpo"}, **PASSES[name]}
    recipe = changed(recipe, **{**sections, "train": {"pairs_per_step": 12, "max_steps": 1, "precision": "bf16", **sections.get("train", {})}})
    prepared = prepare(recipe, Progress())
    seen, batches = outlook(prepared, None)
    weights = MasterWeights.of(prepared.policy.model, recipe.model)
    worst = max(batches, key=lambda batch: batch_tokens(batch, pads=False))
    with Live(besides=prepared.policy.model.parameters()) as live:
        passed(prepared, weights, worst)
    estimated = sum(part.bytes for part in seen.memory if part.name in ("gradients", "activations", "one weight", "head"))
    assert live.peak > 5e6
    assert 0.8 < estimated / live.peak < (1.75 if recipe.train.gradient_checkpointing else 1.5)


@pytest.mark.parametrize("name", ["qlora", "masters", "rounded-8bit"])
def test_what_is_written_is_what_the_plan_says(name, recipe, starts, monkeypatch):  # noqa: F811
    recipe = changed(recipe_of(EVERY_WAY[name], recipe, starts), train={"eval_every": 2, "checkpoint_every": 4})
    disk = outlook(prepare(recipe, Progress()), None)[0].disk
    save, written = checkpoint.save, {}

    def watched(folder, *arguments):
        save(folder, *arguments)
        written["checkpoint"], written["best"] = (sum(map(tensors_in, folder.glob(f"{kind}-*/*.safetensors"))) for kind in ("step", "best"))

    monkeypatch.setattr(checkpoint, "save", watched)
    written["model"] = sum(map(tensors_in, train_recipe(recipe).model.glob("*.safetensors")))
    for what, size in written.items():
        assert disk[what] == pytest.approx(size, abs=16_000 if what == "checkpoint" else 0), what


def tensors_in(file) -> int:
    return sum(tensor.nbytes for tensor in load_file(file).values())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere allocations are not held back")
def test_an_allocation_beyond_what_is_free_fails():
    with no_more_than(50 * 2**20):
        torch.ones(2**20)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.ones(2**30)
    torch.ones(2**26)


def test_a_peak_is_seen():
    with Peak(torch.device("cpu")) as peak:
        before = resident(torch.device("cpu"))
        torch.ones(2**25)
    assert before + 2**26 < peak.bytes < before + 2**29
    assert free(torch.device("cpu")) > 2**27


MEASURE = """
import sys, torch
from likelier.recipe import load_recipe
from likelier.train.plan import plan_recipe
torch.set_num_threads(1)
plan = plan_recipe(load_recipe(sys.argv[1]))
peak, before = plan.trial.memory_peak, plan.trial.memory_before
print(plan.outlook.memory_total, peak, plan.outlook.facts.memory_needed, peak - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "qlora", "dora", "full", "masters", "8bit-masters", "rounded", "rounded-8bit"])
def test_the_estimate_is_near_what_is_measured(name, recipe, starts, tmp_path):  # noqa: F811
    """In a process of its own, within a factor of 1.4 in all; of what a step adds to all weights, within 2."""
    folder = random_model(tmp_path / "middling", vocab_size=4096, hidden_size=512, intermediate_size=1024)
    recipe = changed(recipe_of(EVERY_WAY[name], recipe, starts), model={"name": str(folder)}, train={"pairs_per_step": 8, "max_steps": 3})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    estimated, measured, adds, added = map(int, done.stdout.split())
    assert 1 / 1.4 < estimated / measured < 1.4
    assert recipe.train.method != "full" or 0.5 < adds / added < 2


@pytest.fixture(scope="session")
def middling_folder(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("middling"), vocab_size=512, hidden_size=128, intermediate_size=256)


def random_model(folder, **sizes):
    import transformers

    from tests.conftest import built_tokenizer

    config = transformers.LlamaConfig(**sizes, num_hidden_layers=4, num_attention_heads=8, bos_token_id=None, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    built_tokenizer().save_pretrained(folder)
    return folder


def test_the_arithmetic_of_the_estimate(chat_model):
    """2 layers of width 32, 4 heads of 8 and 2 of keys, inner width 48; head of 320 × 32, untied."""

    def estimated(**settings):
        precision = settings.get("precision", "fp32")
        sums = {"precision": precision, "engine": "nodes", "batch": BatchSize(100, 50)}
        return {part.name: part.bytes for part in estimate(chat_model, TrainSettings(**settings), **sums)}

    parts = estimated()
    parameters = sum(parameter.numel() for parameter in chat_model.parameters())
    a_layer = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 48) + (48 + 32)
    logits = 4 * 50 * 320
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert parts["activations"] == 100 * 4 * (2 * a_layer + a_layer)
    assert parts["head"] == logits + 4 * logits + 4 * 320 * 32
    frugal = estimated(gradient_checkpointing=True)
    assert frugal["activations"] == 100 * 4 * (32 + 2 * a_layer)
    outputs = 32 + 16 + 16 + 32 + 48 + 48 + 32
    assert estimated(gradient_checkpointing="selective")["activations"] == 100 * 4 * (32 + outputs + 32 + 2 * a_layer)
    assert estimated(gradient_checkpointing="offload")["activations"] == frugal["activations"], "where main memory is all there is"
    chat_model.to("meta")
    assert estimated(gradient_checkpointing="offload")["activations"] == 100 * 4 * 2 * a_layer
    chat_model.to_empty(device="cpu")
    chat_model.bfloat16()
    half = estimated(precision="bf16")
    assert (half["weights"], half["masters"], half["gradients"]) == (2 * parameters, 4 * parameters, 6 * parameters)
    assert half["activations"] == 100 * 3 * a_layer * 2 + 100 * (2 * 5 * 32 + 5 * 32)
    rounded = estimated(precision="bf16", method="full", bf16_weights="stochastic-rounding")
    assert ("masters" in rounded, rounded["gradients"]) == (False, 4 * parameters)


class FusedAttention:
    """One fused kernel over all tokens, as on a GPU: it keeps what goes in, what comes out, and a sum a head and token."""

    def __call__(self, query, key, value, *, scale, window):
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scale)[0]


def kept_of_8b(layers: int, how, method: str, tokens: int = 512) -> tuple[float, float]:
    """Bytes a token that the forward pass of so many layers of Llama-3.1-8B leaves behind, counted on tensors without values, and by arithmetic."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": layers}
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes)).bfloat16()
    if method == "lora":  # in bf16: the meta device has no autocast that would round it
        model = add_adapter(model, AdapterSettings(), seed=0).bfloat16()
    model.config._attn_implementation = NODE_ATTENTION
    recompute_activations(model, how)
    body = model.train().get_decoder()
    ids, positions = torch.zeros(1, tokens, dtype=torch.long, device="meta"), torch.arange(tokens, device="meta")[None]
    with Live(besides=model.parameters()) as live:
        hidden = body(input_ids=ids, position_ids=positions, use_cache=False, tree_attention=FusedAttention())
        held = live.now
    del hidden
    settings = TrainSettings(method=method, gradient_checkpointing=how)
    parts = estimate(model, settings, engine="nodes", precision="bf16", batch=BatchSize(tokens, 1))
    return held / tokens, next(part.bytes for part in parts if part.name == "activations") / tokens


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("how, by", [(False, 0.12), ("selective", 0.01), (True, 0.01)])
def test_at_true_size_a_layer_keeps_what_the_arithmetic_says(how, by, method):
    """What one layer more keeps: of Llama's 200 kB a token in bf16 (185 with LoRA) 11% are not in the sum, of what waits where layers are computed
    again all are."""
    few, many = (kept_of_8b(layers, how, method) for layers in (20, 24))
    assert many[1] - few[1] == pytest.approx(many[0] - few[0], rel=by)


def test_a_step_that_needs_more_than_a_pass_is_in_the_sum(chat_model):
    """The largest weight has 320 × 32 numbers; one token is a small pass."""
    settings = TrainSettings(method="full", bf16_weights="stochastic-rounding")
    small = {"precision": "bf16", "engine": "nodes", "batch": BatchSize(1, 1)}
    parts = {part.name: part.bytes for part in estimate(chat_model.bfloat16(), settings, **small)}
    assert sum(parts[name] for name in ("activations", "head", "step")) == 16 * 320 * 32


def test_a_step_rounded_at_random_takes_what_is_said():
    weight = torch.nn.Parameter(torch.ones(256, 64, dtype=torch.bfloat16))
    weight.grad_dtype = torch.float32
    weight.grad = torch.ones(256, 64)
    settings = TrainSettings(method="full", bf16_weights="stochastic-rounding")
    optimizer = make_optimizer([weight], settings)
    optimizer.step()
    with Live() as live:
        optimizer.step()
    assert live.peak == pytest.approx(step_bytes(weight, settings) * 256 * 64, rel=0.01)
