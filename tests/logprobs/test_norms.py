"""Fused RMS norms: the same function, for those models whose norms are just that."""

import copy

import pytest
import torch
from torch import nn

from likelier.logprobs.norms import fuse_norms
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.swapping import Swapped


def norms(model):
    return [module for module in model.modules() if "RMSNorm" in type(module).__name__]


def drawn(model):
    """Weights of norms are all ones in a new model, and then a wrong norm looks right."""
    for norm in norms(model):
        norm.weight.data = torch.rand_like(norm.weight) + 0.5
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_values_and_gradients_are_the_same(architecture, tiny, sequences, values_and_gradients, furthest):
    plain = drawn(tiny(architecture))
    fused = copy.deepcopy(plain)
    assert fuse_norms(fused) == len(norms(plain)) > 4
    found, wanted = (values_and_gradients(model, Scorer(model, engine="nodes", precision="fp32").token_logps(sequences)) for model in (fused, plain))
    assert (found[0] - wanted[0]).abs().max() <= 1e-5
    assert furthest(found[1], wanted[1]) <= 5e-6


def test_a_norm_of_another_kind_stays_as_it_is(tiny):
    """Gemma's multiplies by 1 + weight."""
    model = tiny("gemma3")
    assert norms(model)
    assert fuse_norms(model) == 0
    assert not any(isinstance(module, Swapped) for module in model.modules())


class GatedRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, hidden_states, gate):
        return hidden_states * gate


class BiasedRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8)), 1e-6


@pytest.mark.parametrize("norm", [GatedRMSNorm, BiasedRMSNorm])
def test_a_norm_that_has_or_wants_more_stays_as_it_is(norm):
    assert fuse_norms(nn.Sequential(norm())) == 0


def test_the_module_is_what_it_was(tiny):
    model = drawn(tiny("llama"))
    before, kinds, weights = model.state_dict(), [type(norm) for norm in norms(model)], [norm.weight for norm in norms(model)]
    fuse_norms(model)
    assert fuse_norms(model) == 0, "once is enough"
    assert list(model.state_dict()) == list(before)
    assert all(new is old for new, old in zip([norm.weight for norm in norms(model)], weights, strict=True))
    assert all(isinstance(norm, kind) and type(norm).__name__ == kind.__name__ for norm, kind in zip(norms(model), kinds, strict=True))
    copied = copy.deepcopy(model)
    norms(copied)[0].weight.data += 1
    x = torch.randn(1, 3, len(norms(model)[0].weight))
    assert not norms(copied)[0](x).equal(norms(model)[0](x)), "a copy norms with its own weight"


def test_in_16_bits_it_is_rounded_once_and_not_widened(tiny):
    model = drawn(tiny("llama")).bfloat16()
    fuse_norms(model)
    norm = norms(model)[0]
    x = torch.randn(4, 5, len(norm.weight), dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.bfloat16
    wide = x.double()
    wanted = norm.weight.double() * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    assert ((found.double() - wanted).abs() <= 2**-8 * wanted.abs()).all(), "half a unit in the last place, and a little"


def test_another_type_than_the_weight_takes_the_old_way(tiny):
    plain = drawn(tiny("llama"))
    fused = copy.deepcopy(plain)
    fuse_norms(fused)
    x = torch.randn(4, len(norms(plain)[0].weight), dtype=torch.bfloat16)
    assert norms(fused)[0](x).equal(norms(plain)[0](x))


def test_on_a_cpu_norms_stay(tiny):
    model = tiny("llama")
    Scorer(model, engine="nodes", precision="fp32")
    assert not any(isinstance(norm, Swapped) for norm in norms(model))
