"""Fused LoRA: the same function and the same gradients as PEFT's, for those layers whose adapter is just LoRA."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from likelier.logprobs.lora import _Linear, fuse_lora
from likelier.logprobs.scorer import Scorer
from likelier.models import add_adapter, as_reference, trainable
from likelier.recipe import AdapterSettings

INPUTS, OUTPUTS = 32, 48


@pytest.fixture
def fused_calls(monkeypatch):
    """A list that grows by one with each fused product."""
    calls = []
    inner = _Linear.apply
    monkeypatch.setattr(_Linear, "apply", lambda *given: (calls.append(1), inner(*given))[1])
    return calls


@torch.no_grad()
def stirred(model):
    """B is zero in a new adapter, and then any factor of it looks right."""
    for parameter in trainable(model).values():
        parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def adapted(base, **settings):
    return stirred(add_adapter(base, AdapterSettings(rank=3, **settings), seed=0))


def one_layer(*, bias=False, **settings):
    """A linear layer by itself under an adapter."""
    torch.manual_seed(0)
    return stirred(get_peft_model(nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=bias)), LoraConfig(r=3, target_modules=["0"], **settings)))


def lora_layers(model):
    return [module for module in model.modules() if isinstance(module, Linear)]


def with_and_without(model, sequences, values_and_gradients):
    """Values and gradients by the plain twin, which fuses nothing itself: of the model with its layers fused, and as it is."""
    fused = copy.deepcopy(model)
    fuse_lora(fused)
    return [values_and_gradients(side, Scorer(side, engine="plain", precision="fp32").token_logps(sequences)) for side in (fused, model)]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "phi", "opt"])  # the last two have biases
def test_values_and_gradients_are_those_of_peft(architecture, rslora, tiny, sequences, values_and_gradients, furthest, fused_calls):
    model = adapted(tiny(architecture), rslora=rslora, alpha=7.0).double()
    found, wanted = with_and_without(model, sequences, values_and_gradients)
    assert len(fused_calls) == len(lora_layers(model)) >= 12
    assert (found[0] - wanted[0]).abs().max() <= 1e-12
    assert furthest(found[1], wanted[1]) <= 1e-12
    assert set(found[1]) == set(trainable(model))


def test_the_scorer_fuses_and_the_plain_twin_does_not(tiny, sequences, fused_calls):
    model = adapted(tiny("llama"))
    Scorer(model, engine="plain", precision="fp32").token_logps(sequences)
    assert not fused_calls
    Scorer(model, engine="nodes", precision="fp32").token_logps(sequences)
    assert len(fused_calls) == len(lora_layers(model)) == 14


def test_a_new_adapter_changes_nothing_and_as_the_reference_it_is_off(tiny, sequences, fused_calls):
    def logps(model):
        return torch.cat(Scorer(model, engine="nodes", precision="fp32").token_logps(sequences))

    wanted = logps(tiny("llama"))
    model = add_adapter(tiny("llama"), AdapterSettings(rank=3), seed=0)
    assert logps(model).equal(wanted)
    assert fused_calls
    fused_calls.clear()
    with torch.no_grad(), as_reference(stirred(model)):
        assert logps(model).equal(wanted)
    assert not fused_calls


def test_a_frozen_adapter_has_no_gradient_and_its_input_has(fused_calls):
    model = one_layer()
    fuse_lora(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    x = torch.randn(4, INPUTS, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    assert fused_calls
    assert torch.allclose(grad, torch.autograd.grad(one_layer()(x).sum(), x)[0], atol=1e-6)
    assert not model(x.detach()).requires_grad


class Written(TorchDispatchMode):
    """Counts tensors of a width that operations write: views and sums in place make none."""

    def __init__(self, width):
        super().__init__()
        self.width, self.count = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        is_new = isinstance(made, torch.Tensor) and not any(given.alias_info for given in func._schema.returns)
        self.count += is_new and made.dim() == 2 and made.shape[-1] == self.width
        return made


@pytest.mark.parametrize(("fuses", "outputs", "gradients"), [(False, 4, 3), (True, 1, 1)])
def test_outputs_and_gradients_are_written_fewer_times(fuses, outputs, gradients):
    model = one_layer()
    if fuses:
        fuse_lora(model)
    for parameter in model.parameters():
        parameter.requires_grad = False  # A's gradient would be as wide
    x = torch.randn(7, INPUTS, requires_grad=True)
    with Written(OUTPUTS) as forward:
        y = model(x)
    with Written(INPUTS) as backward:
        torch.autograd.grad(y, x, torch.ones_like(y))
    assert (forward.count, backward.count) == (outputs, gradients)


def dora():
    return one_layer(use_dora=True)


def biased_adapter():
    return one_layer(bias=True, lora_bias=True)


def dropping():
    return one_layer(lora_dropout=0.5).train()


def two_at_once():
    model = one_layer()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0"]))
    model.base_model.set_adapter(["default", "second"])
    return stirred(model)


def merged():
    model = one_layer()
    model.merge_adapter()
    return model


def trained_base():
    model = one_layer()
    lora_layers(model)[0].base_layer.weight.requires_grad = True
    return model


def of_two_types():
    """A base in bf16 and an adapter in fp32: without autocast PEFT computes the update in fp32."""
    model = one_layer()
    lora_layers(model)[0].base_layer.bfloat16()
    return model


@pytest.mark.parametrize("make", [dora, biased_adapter, dropping, two_at_once, merged, trained_base, of_two_types])
def test_what_is_more_than_lora_goes_pefts_way(make, fused_calls):
    model = make()
    dtype = lora_layers(model)[0].base_layer.weight.dtype
    x = torch.randn(2, 5, INPUTS, dtype=dtype)
    torch.manual_seed(3)
    wanted = model(x)
    assert fuse_lora(model) == 1
    torch.manual_seed(3)
    assert model(x).equal(wanted)
    assert not fused_calls


def test_under_autocast_only_what_is_short_already_is_fused(fused_calls):
    """Else the input's gradient would be the product of two types."""
    model = one_layer()
    fuse_lora(model)
    x = torch.randn(2, 5, INPUTS, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        model(x).sum().backward()
    assert not fused_calls
    lora_layers(model)[0].base_layer.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        model(x.bfloat16()).sum().backward()
    assert len(fused_calls) == 1


def test_in_16_bits_it_is_no_further_from_the_truth_than_peft():
    model = one_layer(bias=True)
    lora_layers(model)[0].base_layer.bfloat16()
    x, slopes = torch.randn(500, INPUTS).bfloat16(), torch.randn(500, OUTPUTS).bfloat16()

    def found(model, x, slopes, short):
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=short):
            y = model(x)
        return [value.double() for value in (y, *torch.autograd.grad(y, [x, *trainable(model).values()], slopes))]

    truth = found(copy.deepcopy(model).double(), x.double(), slopes.double(), False)
    by_peft = found(model, x, slopes, True)
    fuse_lora(model)
    for value, other, true in zip(found(model, x, slopes, True), by_peft, truth, strict=True):
        assert (value - true).norm() <= 1.05 * (other - true).norm() <= 0.01 * true.norm()


def test_the_module_is_what_it_was(tiny):
    model = adapted(tiny("llama"))
    before, weights = list(model.state_dict()), trainable(model)
    assert fuse_lora(model) == 14
    assert fuse_lora(model) == 0, "once is enough"
    assert list(model.state_dict()) == before
    assert all(new is weights[name] for name, new in trainable(model).items())
    assert {(type(layer).__name__, type(layer).__module__) for layer in lora_layers(model)} == {("Linear", Linear.__module__)}
    x = torch.randn(3, INPUTS)
    copied, layer = copy.deepcopy(model), lora_layers(model)[0]
    lora_layers(copied)[0].lora_B["default"].weight.data += 1
    assert not lora_layers(copied)[0](x).equal(layer(x)), "a copy computes with its own weights"


def test_merged_and_parted_again_it_is_what_peft_makes_of_it(tiny):
    model = adapted(tiny("llama"))
    twin = copy.deepcopy(model)
    fuse_lora(model)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        for change in ("merge_adapter", "unmerge_adapter"):
            getattr(model, change)()
            getattr(twin, change)()
            assert torch.allclose(model(ids).logits, twin(ids).logits, atol=1e-4)
    assert not any(isinstance(module, Linear) for module in model.merge_and_unload().modules())


def test_a_model_without_adapter_stays_as_it_is(tiny):
    assert fuse_lora(tiny("llama")) == 0
