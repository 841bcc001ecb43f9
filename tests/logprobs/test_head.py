import gc
import itertools
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from likelier.logprobs import softmax
from likelier.logprobs.head import collision_logps, token_logps

E, D, V = 53, 17, 101
ROW = 4 * V
"""Bytes of one edge's fp32 logits."""


def made(edges=E, width=D, vocabulary=V, *, dtype=torch.float32, scale=1.0, seed=0):
    """Random hidden states, weight, bias and targets, the first three wanting gradients."""
    torch.manual_seed(seed)
    hidden = (torch.randn(edges, width) * scale).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width).to(dtype).requires_grad_()
    bias = torch.randn(vocabulary).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(vocabulary, (edges,))


def truth(hidden, weight, bias, targets, wanted):
    """Values and gradients in fp64, straight from the definition."""
    inputs = [None if t is None else t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    logits = inputs[0] @ inputs[1].T + (0 if bias is None else inputs[2])
    values = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    gradients = torch.autograd.grad(values @ wanted, [t for t in inputs if t is not None])
    return values.detach(), gradients


def distance(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("edges, width, vocabulary", [(E, D, V), (1, 1, 2), (1, 5, 7), (7, 3, 1), (2, 31, 1009)])
@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
@pytest.mark.parametrize("softmax_rows", [2, 1000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_against_fp64(edges, width, vocabulary, rows, softmax_rows, with_bias, monkeypatch):
    monkeypatch.setitem(softmax.SOFTMAX_BYTES, "cpu", softmax_rows * 4 * vocabulary)
    hidden, weight, bias, targets = made(edges, width, vocabulary)
    bias = bias if with_bias else None
    wanted = torch.randn(edges, dtype=torch.float64)
    values, gradients = truth(hidden, weight, bias, targets, wanted)
    found = token_logps(hidden, weight, targets, bias_V=bias, working_bytes=rows * 4 * vocabulary, kept_bytes=0)
    assert found.dtype == torch.float32
    assert (found - values).abs().max() <= 2e-6 * max(1.0, float(values.abs().max()))
    (found * wanted.float()).sum().backward()
    for tensor, gradient in zip((t for t in (hidden, weight, bias) if t is not None), gradients, strict=True):
        assert (tensor.grad.double() - gradient).norm() <= 1e-6 * max(1.0, float(gradient.norm()))


@pytest.mark.parametrize("rows", [1, 4, 5, 26, 52, 53, 54])
def test_logits_kept_or_computed_again_give_identical_gradients(rows):
    """Every number of kept chunks, so also those where only the ragged last one would still fit."""
    results = []
    for kept in range(E + 2):
        hidden, weight, bias, targets = made()
        token_logps(hidden, weight, targets, bias_V=bias, working_bytes=rows * ROW, kept_bytes=kept * ROW).sum().backward()
        results.append((hidden.grad, weight.grad, bias.grad))
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("rows", [2, 1000])
@pytest.mark.parametrize("dtype, budget", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_frozen_head_takes_a_shorter_way_to_the_same_gradient(rows, dtype, budget):
    general, weight, bias, targets = made(dtype=dtype)
    frozen = general.detach().clone().requires_grad_()
    wanted = torch.randn(E)
    values = token_logps(general, weight, targets, bias_V=bias, working_bytes=rows * ROW)
    shorter = token_logps(frozen, weight.detach(), targets, bias_V=bias.detach(), working_bytes=rows * ROW)
    assert shorter.equal(values)
    (values * wanted).sum().backward()
    (shorter * wanted).sum().backward()
    assert frozen.grad.dtype == dtype
    assert distance(frozen.grad, general.grad.double()) <= budget


@pytest.mark.parametrize("wants", list(itertools.product([True, False], repeat=3)))
def test_gradients_reach_exactly_what_wants_them(wants):
    tensors = made()
    everything = token_logps(*tensors[:2], tensors[3], bias_V=tensors[2], working_bytes=5 * ROW)
    everything.sum().backward()
    some = [t.detach().clone().requires_grad_(want) for t, want in zip(tensors, wants, strict=False)]
    values = token_logps(*some[:2], tensors[3], bias_V=some[2], working_bytes=5 * ROW)
    assert values.requires_grad == any(wants)
    if any(wants):
        values.sum().backward()
    for tensor, whole, want in zip(some, tensors, wants, strict=False):
        assert (tensor.grad is not None) == want
        if want:
            assert distance(tensor.grad, whole.grad.double()) <= 1e-6


@pytest.mark.parametrize("rows", [3, 1000])
def test_bf16_costs_only_the_rounding_of_its_logits(rows):
    """Logits of this size are rounded by up to 2⁻⁵ each; a logsumexp in bf16 would lose as much again on every value, here 0.03 and more."""
    hidden, weight, bias, targets = made(dtype=torch.bfloat16)
    wanted = torch.randn(E, dtype=torch.float64)
    _, gradients = truth(hidden, weight, bias, targets, wanted)
    values = token_logps(hidden, weight, targets, bias_V=bias, working_bytes=rows * ROW, kept_bytes=0)
    assert values.dtype == torch.float32
    rounded = torch.nn.functional.linear(hidden, weight, bias).detach().double()
    exact = rounded.gather(-1, targets[:, None])[:, 0] - rounded.logsumexp(-1)
    assert (values - exact).abs().max() <= 1e-5
    (values * wanted.float()).sum().backward()
    for tensor, gradient in zip((hidden, weight, bias), gradients, strict=True):
        assert tensor.grad.dtype == torch.bfloat16
        assert distance(tensor.grad, gradient) <= 1e-2


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_matmul_is_bf16_and_gradients_have_their_tensors_type(bias_dtype):
    hidden, weight, bias, targets = made()
    bias = bias.detach().to(bias_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        values = token_logps(hidden, weight, targets, bias_V=bias, working_bytes=5 * ROW)
    halves = [t.detach().bfloat16() for t in (hidden, weight, bias)]
    assert values.equal(token_logps(*halves[:2], targets, bias_V=halves[2], working_bytes=5 * ROW))
    values.sum().backward()
    assert [t.grad.dtype for t in (hidden, weight, bias)] == [torch.float32, torch.float32, bias_dtype]


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[300.0], [-300.0], [0.0], [3e4]], requires_grad=True)
    weight = torch.tensor([[100.0], [0.0], [-100.0]], requires_grad=True)
    values = token_logps(hidden, weight, torch.tensor([0, 0, 1, 2]), working_bytes=24)
    assert values.tolist() == pytest.approx([0.0, -60000.0, -1.0986123, -6e6])
    values.sum().backward()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_no_edges():
    hidden, weight, bias, targets = made(edges=0)
    values = token_logps(hidden, weight, targets, bias_V=bias)
    assert values.shape == (0,)
    values.sum().backward()
    assert not weight.grad.any()


def test_a_second_derivative_is_refused_and_not_wrong():
    hidden, weight, _, targets = made()
    (gradient,) = torch.autograd.grad(token_logps(hidden, weight, targets).square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


class Live(TorchDispatchMode):
    """Watches bytes of live tensors with a vocabulary's width: the highest that they ever came to."""

    def __init__(self, vocabulary, *given):
        super().__init__()
        self.vocabulary, self.now, self.peak = vocabulary, 0, 0
        self.seen = weakref.WeakKeyDictionary({tensor.untyped_storage(): True for tensor in given})

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocabulary,) and tensor.dim() == 2:
                storage = tensor.untyped_storage()
                if storage not in self.seen:
                    self.seen[storage] = True
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def gone(self, size):
        self.now -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kept_chunks", [0, 2])
def test_logits_never_take_more_than_is_said(dtype, frozen, kept_chunks, monkeypatch):
    monkeypatch.setitem(softmax.SOFTMAX_BYTES, "cpu", wide := 3 * 4 * 1009)
    hidden, weight, bias, targets = made(edges=61, vocabulary=1009, dtype=dtype)
    weight, bias = (weight.detach(), bias.detach()) if frozen else (weight, bias)
    working = 7 * 1009 * hidden.element_size()
    kept = kept_chunks * 7 * 1009 * hidden.element_size()
    gc.collect()
    with Live(1009, weight) as live:
        token_logps(hidden, weight, targets, bias_V=bias, working_bytes=working, kept_bytes=kept).sum().backward()
    assert live.peak <= 2 * working + wide + kept
    assert live.peak >= working


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_with_a_row_of_logits_waits_for_the_backward_pass(frozen):
    hidden, weight, bias, targets = made(edges=61, vocabulary=1009)
    weight, bias = (weight.detach(), bias.detach()) if frozen else (weight, bias)
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logps(hidden, weight, targets, bias_V=bias, working_bytes=7 * 4 * 1009, kept_bytes=0)
    slopes = hidden.nbytes if frozen else 0
    assert sum(saved.values()) <= hidden.nbytes + weight.nbytes + bias.nbytes + targets.nbytes + slopes


def test_without_gradient_no_logits_are_kept_though_the_head_is_trainable():
    hidden, weight, bias, targets = made(edges=61, vocabulary=1009)
    with torch.no_grad(), Live(1009, weight) as live:
        token_logps(hidden, weight, targets, bias_V=bias, working_bytes=7 * 4 * 1009)
    assert live.peak <= 3 * 7 * 4 * 1009


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("edges, working_bytes", [(1, None), (7, 4 * 97), (13, 4 * 97 * 5), (0, None)])
def test_collisions_are_the_chance_that_two_draws_agree(edges, working_bytes, bias):
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(edges, 11, generator=generator), 2 * torch.randn(97, 11, generator=generator)
    bias_V = torch.randn(97, generator=generator) if bias else None
    found = collision_logps(hidden.requires_grad_(), weight, bias_V=bias_V, working_bytes=working_bytes)
    probabilities = torch.nn.functional.linear(hidden, weight, bias_V).double().softmax(-1)
    assert found.shape == (edges,)
    assert not found.requires_grad
    assert found.double().allclose(probabilities.square().sum(-1).log(), atol=1e-5)
