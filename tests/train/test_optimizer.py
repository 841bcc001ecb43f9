"""Optimizers: right on average where bf16 rounds, their state as plain tensors bit for bit, and what they take of memory."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from likelier.recipe import TrainSettings
from likelier.train.master import MasterWeights
from likelier.train.optimizer import expected_state_bytes, make_optimizer, restore_state, round_at_random, state_bytes, state_tensors, stream

CPU = torch.device("cpu")
SIZES = (96, 64)  # 6,144 weights: from 4,096 on, moments are held in 8 bits
BITS = {"adamw": {}, "adamw-8bit": {"optimizer": "adamw-8bit"}}
AT_RANDOM = {"method": "full", "precision": "bf16", "bf16_weights": "stochastic-rounding"}


def layer(dtype: torch.dtype, value: float | None = None) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(*SIZES, bias=True)
    if value is not None:
        nn.init.constant_(made.weight, value)
    return made.to(dtype)


def built(model, **settings):
    settings = TrainSettings(learning_rate=1e-3, **settings)
    weights = MasterWeights(model, rounded_at_random=settings.bf16_weights == "stochastic-rounding")
    return weights, make_optimizer(weights.parameters, settings)


def steps(model, weights, optimizer, numbers):
    for number in numbers:
        x = torch.randn(4, SIZES[0], generator=stream(CPU, number)).to(model.weight.dtype)
        model(x).square().sum().backward()
        weights.collect_gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights.publish()


def test_rounding_at_random_is_right_on_average_and_goes_to_neighbours_only():
    """1 + 2⁻¹⁰ lies an eighth of the way from 1 to the next number of bf16."""
    for value, low, high in ((1 + 2.0**-10, 1.0, 1 + 2.0**-7), (-(1 + 2.0**-10), -(1 + 2.0**-7), -1.0), (1e-30, 0.0, 1e-29)):
        rounded = round_at_random(torch.full((200_000,), value), stream(CPU, 1)).double()
        assert bool(((rounded >= low) & (rounded <= high)).all())
        assert len(rounded.unique()) == 2
        assert rounded.mean().item() == pytest.approx(value, rel=1e-4)  # five standard errors
    exact = torch.tensor([0.0, 1.0, -0.5, 3.0e38, float("inf")])
    exact = exact.bfloat16().float()
    assert round_at_random(exact, stream(CPU, 2)).float().equal(exact)


def test_updates_too_small_for_bf16_arrive_on_average():
    """AdamW moves each weight by the rate, whatever its gradient's size: 0.0001 of 1.0, of which bf16 sees nothing."""
    model = layer(torch.bfloat16, value=1.0)
    nearest = copy.deepcopy(model)
    weights, optimizer = built(model, **AT_RANDOM)
    optimizer.param_groups[0]["lr"] = 1e-4
    plain = torch.optim.AdamW(nearest.parameters(), lr=1e-4, weight_decay=0.0)
    for _ in range(40):
        for one in (model, nearest):
            one.weight.grad = torch.full(SIZES[::-1], 0.25, dtype=torch.float32 if one is model else torch.bfloat16)
        optimizer.step()
        plain.step()
    assert nearest.weight.eq(1).all()
    assert model.weight.dtype == torch.bfloat16
    assert model.weight.double().mean().item() == pytest.approx(1 - 40 * 1e-4, abs=2e-4)  # a standard error is 6e-5
    assert weights.by_name["weight"] is model.weight


@pytest.mark.parametrize("bits", BITS)
def test_rounding_at_random_follows_the_fp32_masters(bits):
    """Means over the layer: single weights differ by their rounding."""
    moved = {}
    for name, settings in {"masters": {"method": "full"}, "at random": AT_RANDOM}.items():
        model = layer(torch.bfloat16)
        before = model.weight.detach().double()
        steps(model, *built(model, **settings, **BITS[bits]), range(60))
        moved[name] = model.weight.detach().double() - before
    a, b = moved.values()
    assert (a - b).norm() < 0.1 * a.norm()
    assert abs((a - b).mean()) < 0.02 * a.abs().mean()


@pytest.mark.parametrize("bits", BITS)
def test_weights_that_a_bf16_model_holds_in_fp32_are_not_rounded(bits):
    model, alone = layer(torch.float32), layer(torch.float32)
    steps(model, *built(model, **AT_RANDOM, **BITS[bits]), range(3))
    steps(alone, *built(alone, **BITS[bits]), range(3))
    assert torch.allclose(model.weight, alone.weight, rtol=0, atol=1e-7)
    assert not model.weight.equal(model.weight.bfloat16().float())


def test_batches_add_up_in_fp32_without_masters():
    """300 batches of gradient 1: in bf16 the sum would stop at 256."""
    model = nn.Linear(3, 1, bias=False, dtype=torch.bfloat16)
    weights = MasterWeights(model, rounded_at_random=True)
    for _ in range(300):
        model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        weights.collect_gradients()
    assert weights.by_name["weight"].grad.dtype == torch.float32
    assert weights.by_name["weight"].grad.tolist() == [[300.0] * 3]


WAYS = {
    "adamw": ({}, torch.float32),
    "adamw-8bit": (BITS["adamw-8bit"], torch.float32),
    "masters-8bit": ({"method": "full", **BITS["adamw-8bit"]}, torch.bfloat16),
    "at-random": (AT_RANDOM, torch.bfloat16),
    "at-random-8bit": ({**AT_RANDOM, **BITS["adamw-8bit"]}, torch.bfloat16),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_state_goes_through_safetensors_and_continues_bit_for_bit(name, tmp_path):
    settings, dtype = WAYS[name]
    whole = layer(dtype)
    weights, optimizer = built(whole, **settings)
    steps(whole, weights, optimizer, range(3))
    tensors = state_tensors(weights, optimizer)
    assert ("weight/state1" in tensors and tensors["weight/state1"].dtype == torch.uint8) == ("8bit" in name)
    save_file(tensors, tmp_path / "optimizer.safetensors")
    save_file({key: value.detach() for key, value in weights.by_name.items()}, tmp_path / "weights.safetensors")
    steps(whole, weights, optimizer, range(3, 6))

    resumed = layer(dtype, value=0.3)
    again, other = built(resumed, **settings)
    with torch.no_grad():
        for key, value in load_file(tmp_path / "weights.safetensors").items():
            again.by_name[key].copy_(value)
    again.publish()
    restore_state(again, other, load_file(tmp_path / "optimizer.safetensors"))
    torch.rand(3)
    steps(resumed, again, other, range(3, 6))
    assert resumed.weight.equal(whole.weight)
    assert resumed.bias.equal(whole.bias)
    then, now = state_tensors(weights, optimizer), state_tensors(again, other)
    assert then.keys() == now.keys()
    assert all(torch.equal(then[key], now[key]) for key in then)


def test_a_step_of_eight_bits_is_near_one_of_fp32():
    exact, coarse = layer(torch.float32), layer(torch.float32)
    before = exact.weight.detach().clone()
    steps(exact, *built(exact), range(20))
    steps(coarse, *built(coarse, **BITS["adamw-8bit"]), range(20))
    assert 0 < (exact.weight - coarse.weight).norm() < 0.05 * (exact.weight - before).norm()


def test_bytes_of_the_state_are_those_of_the_docs():
    """docs/ways-to-train.md: 8 bytes a weight; 2 and two fp32 scales for each 256; the tables once for all."""
    found = {}
    for bits, settings in BITS.items():
        model = nn.Linear(512, 512, bias=False)
        _, optimizer = built(model, **settings)
        model(torch.randn(2, 512)).sum().backward()
        optimizer.step()
        found[bits] = state_bytes(optimizer) / 512**2
        tables = 2 * 256 * 4 if bits == "adamw-8bit" else 4
        assert expected_state_bytes([512**2], TrainSettings(**settings)) == state_bytes(optimizer) - tables
    assert found["adamw"] == pytest.approx(8, abs=1e-3)
    assert found["adamw-8bit"] == pytest.approx(2 + 8 / 256 + 2 * 256 * 4 / 512**2, abs=1e-6)


@pytest.mark.parametrize(
    "settings, dtype, bytes_a_weight",
    [
        ({"method": "full"}, torch.float32, 16),
        ({"method": "full"}, torch.bfloat16, 18),
        (AT_RANDOM, torch.bfloat16, 14),
        ({"method": "full", **BITS["adamw-8bit"]}, torch.float32, 10),
        ({"method": "full", **BITS["adamw-8bit"]}, torch.bfloat16, 12),
        ({**AT_RANDOM, **BITS["adamw-8bit"]}, torch.bfloat16, 8),
    ],
)
def test_bytes_of_a_run_are_those_of_the_docs(settings, dtype, bytes_a_weight):
    """Weights, masters, gradients and moments between the last backward pass and the step; docs/ways-to-train.md has the table."""
    model = nn.Linear(512, 512, bias=False, dtype=dtype)
    weights, optimizer = built(model, **settings)
    for _ in range(2):
        optimizer.step()
        model(torch.randn(2, 512, dtype=dtype)).sum().backward()
        weights.collect_gradients()
    held = {tensor.data_ptr(): tensor.nbytes for own in (model.weight, *weights.parameters) for tensor in (own, own.grad) if tensor is not None}
    optimizer.step()
    found = (sum(held.values()) + state_bytes(optimizer)) / 512**2
    assert found == pytest.approx(bytes_a_weight, abs=0.04)
