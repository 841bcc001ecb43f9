import copy

import torch
from torch import nn

from likelier.train import master
from likelier.train.master import MasterWeights


def one_weight(value: float, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(layer.weight, value)
    return layer


def test_steps_too_small_for_bf16_add_up():
    """A hundred steps of 0.0001 from 1.0: bf16 knows no number between 0.996 and 1."""
    layer = one_weight(1.0, torch.bfloat16)
    weights = MasterWeights(layer)
    optimizer = torch.optim.SGD(weights.parameters, lr=1e-4)
    for _ in range(100):
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        weights.collect_gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights.publish()
    assert abs(weights.by_name["weight"].item() - 0.99) < 1e-5
    assert layer.weight.item() == torch.tensor(0.99).bfloat16().item()


def test_batches_add_up_in_fp32(monkeypatch):
    """300 batches of gradient 1: in bf16 the sum would stop at 256."""
    monkeypatch.setattr(master, "PART", 2)
    layer = nn.Linear(3, 1, bias=False, dtype=torch.bfloat16)
    weights = MasterWeights(layer)
    for _ in range(300):
        layer(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        weights.collect_gradients()
        assert layer.weight.grad is None
    assert weights.by_name["weight"].grad.tolist() == [[300.0] * 3]


def test_fp32_weights_are_their_own_masters_and_frozen_ones_have_none():
    model = nn.Sequential(one_weight(1.0, torch.float32), one_weight(2.0, torch.bfloat16), one_weight(3.0, torch.bfloat16))
    model[2].weight.requires_grad_(False)
    weights = MasterWeights(model)
    assert list(weights.by_name) == ["0.weight", "1.weight"]
    assert weights.by_name["0.weight"] is model[0].weight
    assert weights.by_name["1.weight"].dtype == torch.float32


def test_masters_begin_as_the_files_hold_them():
    """What bf16 rounds away is there, so that an update far below the next number of bf16 moves some weights, and not none."""
    torch.manual_seed(0)
    precise = nn.Linear(100, 100, bias=False)
    coarse = copy.deepcopy(precise).bfloat16()
    weights = MasterWeights(coarse, {"weight": precise.weight})
    assert weights.by_name["weight"].equal(precise.weight)
    before = coarse.weight.detach().clone()
    weights.publish()
    assert coarse.weight.equal(before)  # policy and reference begin alike
    with torch.no_grad():
        weights.by_name["weight"] *= 1 + 2.0**-12  # a 32nd to a 16th of the way to the next number
    weights.publish()
    moved = (coarse.weight != before).float().mean().item()
    assert 0.03 < moved < 0.063


def test_a_weight_without_gradient_keeps_none():
    model = nn.ModuleList([one_weight(1.0, torch.bfloat16), one_weight(2.0, torch.bfloat16)])
    weights = MasterWeights(model)
    model[0](torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
    weights.collect_gradients()
    assert weights.by_name["0.weight"].grad.item() == 1
    assert weights.by_name["1.weight"].grad is None
