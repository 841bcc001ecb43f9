"""Recomputed activations: the gradient to the last bit, fewer bytes, and only the arithmetic that was asked for."""

import copy
import importlib
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from likelier import recompute
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.models import add_adapter, load_model, trainable
from likelier.recipe import AdapterSettings, ModelSettings
from likelier.recompute import recompute_activations
from tests.logprobs.conftest import built, sequences_that_share, values_and_gradients
from tests.train.test_memory import Live, middling_folder  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
WAYS = ["selective", True, "offload"]
SHARING = [PromptResponse(tuple(range(5, 65)), tuple(range(start, start + 40))) for start in (70, 150, 300)]


def adapted(model):
    """With LoRA, not at zero."""
    model = add_adapter(model, AdapterSettings(rank=4), seed=0)
    draw = torch.Generator().manual_seed(1)
    for parameter in trainable(model).values():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw)
    return model


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("engine", ["nodes", "mask", "plain"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "opt"])
def test_the_gradient_is_that_without(architecture, engine, how):
    """OPT's layers drop by the very flag that turns recomputing on."""
    found = []
    for way in (False, how):
        model = copy.deepcopy(built(architecture))
        recompute_activations(model, way)
        scorer = Scorer(model, engine=engine, precision="fp32")
        assert {module.training for module in model.modules() if getattr(module, "gradient_checkpointing", False)} == ({True} if way else set())
        found.append(values_and_gradients(model, scorer.token_logps(sequences_that_share())))
    (values, gradients), (again, regained) = found
    assert again.equal(values)
    assert regained.keys() == gradients.keys()
    assert all(regained[name].equal(gradients[name]) for name in gradients)


@pytest.mark.parametrize("how", WAYS)
def test_the_gradient_of_a_mixture_of_experts_is_that_without(how):
    """Whose router chooses again."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    base = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=400, **sizes, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48))
    found = []
    for way in (False, how):
        model = copy.deepcopy(base)
        recompute_activations(model, way)
        found.append(values_and_gradients(model, Scorer(model, engine="nodes", precision="fp32").token_logps(SHARING)))
    assert all(gradient.equal(found[1][1][name]) for name, gradient in found[0][1].items())
    assert found[0][1].keys() == found[1][1].keys()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("method", ["lora", "qlora", "dora"])
def test_the_gradient_of_an_adapter_in_bf16_is_that_without(method, how, middling_folder):  # noqa: F811
    found = []
    for way in (False, how):
        settings, bits = ModelSettings(name=str(middling_folder)), method == "qlora"
        model = load_model(settings, dtype=torch.bfloat16, device=torch.device("cpu"), in_four_bits=bits).model
        model = add_adapter(model, AdapterSettings(rank=4, dora=method == "dora"), seed=0)
        for parameter in trainable(model).values():
            parameter.data += 0.01
        recompute_activations(model, way)
        found.append(gradients_of_two_batches(Scorer(model, engine="nodes", precision="bf16")))
    assert all(a.equal(b) and a.abs().max() > 0 for a, b in zip(*found, strict=True))


def gradients_of_two_batches(scorer):
    """As a step adds them up. Autocast has the adapter's weights in bf16 when the second batch begins, and none any more when a backward pass that
    ends later needs them."""
    with scorer.unchanged_weights():
        torch.cat(scorer.token_logps(SHARING[:2])).sum().backward()
        loss = torch.cat(scorer.token_logps(SHARING[1:])).sum()
    loss.backward()
    return [parameter.grad for parameter in trainable(scorer.model).values()]


def wide(method):
    """Wide enough for products to be what costs."""
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, **sizes))
    return adapted(model) if method == "lora" else model


def measured(method, how):
    """Counted FLOPs of a pass, and the bytes of tensors a token that the forward pass leaves behind."""
    model = wide(method)
    recompute_activations(model, how)
    scorer = Scorer(model, engine="nodes", precision="fp32")
    with FlopCounterMode(display=False) as flops:
        torch.cat(scorer.token_logps(SHARING)).sum().backward()
    with Live(besides=model.parameters()) as live:
        kept = torch.cat(scorer.token_logps(SHARING)).sum()
        held = live.now
    del kept
    return flops.get_total_flops(), held / scorer.last_tokens


@pytest.mark.parametrize("method, selective, whole", [("full", 1.0, 1.2), ("lora", 1.05, 1.45)])
def test_what_is_computed_again_and_what_is_kept(method, selective, whole):
    """All weights: a selective pass multiplies nothing twice. An adapter: its own narrow products, and PEFT asks
    for a gradient of the embeddings, which the first layer's inputs cost. Whole layers: a forward pass more."""
    flops, held = zip(*(measured(method, how) for how in (False, "selective", True)), strict=True)
    assert flops[0] <= flops[1] <= selective * flops[0]
    assert whole * flops[0] < flops[2] < 1.55 * flops[0]
    assert held[1] < 0.7 * held[0]
    assert held[2] < 0.4 * held[1]


def test_what_selective_keeps_is_products_and_what_was_attended():
    """Beside the inputs that whole layers keep: outputs of linear layers, attention's, and one sum a head."""
    (_, selective), (_, whole) = (measured("full", how) for how in ("selective", True))
    assert selective - whole == pytest.approx(3 * 4 * ((128 + 2 * 64 + 128 + 2 * 384 + 128) + 128 + 4), rel=0.001)


def test_offloading_moves_the_inputs_of_layers_and_nothing_else(monkeypatch):
    moved = []

    class Watched(recompute.save_on_cpu):
        def __init__(self, **options):
            super().__init__(**options)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: (tensor.numel() and moved.append(tensor.shape), pack(tensor))[1]  # older PyTorch packs an empty one, too

    monkeypatch.setattr(recompute, "save_on_cpu", Watched)
    model = wide("full")
    recompute_activations(model, "offload")
    scorer = Scorer(model, engine="nodes", precision="fp32")
    torch.cat(scorer.token_logps(SHARING)).sum().backward()
    assert moved == [(1, scorer.last_tokens, 128)] * 3


def test_the_benchmark_counts_and_times_every_way(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    monkeypatch.setattr("sys.argv", ["recomputing.py", "--width", "192", "--rounds", "1"])
    importlib.import_module("recomputing").main()
    said, _, _, _, *table = capsys.readouterr().out.splitlines()
    assert said.startswith("full, bf16, 4 layers of width 192, 747 tokens")
    flops = {line.split(" | ")[0].removeprefix("| "): float(line.split(" | ")[1]) for line in table}
    assert flops["false"] == flops["selective"] == 1 < flops["every other"] < flops["true"] == flops["offload"] < 1.5


def test_without_gradient_nothing_is_kept():
    model = wide("full")
    recompute_activations(model, "selective")
    scorer = Scorer(model, engine="nodes", precision="fp32")
    with torch.no_grad(), Live(besides=model.parameters()) as live:
        values = torch.cat(scorer.token_logps(SHARING))
        assert live.now < 3 * 4 * scorer.last_tokens * 128
    assert len(values) == 120
