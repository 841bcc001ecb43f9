"""Attention on CUDA, as far as a CPU can tell: FlexAttention without compiling, and flash attention played by what its documentation says of it.
Where there is a GPU, the kernels themselves."""

import math
import random
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from likelier.logprobs import varlen
from likelier.logprobs.attention import NodeAttention, dense_mask, node_attention
from likelier.logprobs.flex import BLOCK, FlexAttention, blocks_seen
from likelier.logprobs.scorer import Scorer, choose_engine
from likelier.logprobs.tree import PromptResponse, build_tree
from likelier.recompute import recompute_activations

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

some_ids = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)
forests = st.lists(st.builds(PromptResponse, some_ids, some_ids), min_size=1, max_size=8)
windows = st.sampled_from([None, 1, 2, 3, 50])


def states(tree, heads=4, groups=2, width=8, dtype=torch.float32):
    draw = torch.Generator().manual_seed(len(tree))
    return [torch.randn(1, h, len(tree), width, generator=draw).to(dtype) for h in (heads, groups, groups)]


def by_definition(tree, query, key, value, window):
    """Softmax attention under the dense mask, in fp64."""
    q, k, v = (each.double() for each in (query, key, value))
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~dense_mask(tree, window=window), -math.inf).softmax(-1) @ v


def long_tree(seed):
    """A few hundred rows: prompts of several blocks with replies of up to one."""
    draw = random.Random(seed)

    def ids(most):
        return tuple(draw.randrange(9) for _ in range(draw.randint(1, most)))

    prompts = [ids(300) for _ in range(3)]
    return build_tree([PromptResponse(draw.choice(prompts) + ids(3), ids(130)) for _ in range(8)])


# FlexAttention


@given(forests, windows)
@settings(max_examples=20, deadline=None)
def test_flex_attention_is_softmax_under_the_mask(sequences, window):
    tree = build_tree(sequences)
    given = states(tree)
    with torch.no_grad():
        found = FlexAttention(tree)(*given, scale=None, window=window)
    assert (found - by_definition(tree, *given, window)).abs().max() <= 2e-6


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("window", [None, 40])
def test_flex_attention_over_many_blocks(seed, window):
    tree = long_tree(seed)
    assert len(tree) > 2 * BLOCK
    given = states(tree, heads=2, groups=1)
    with torch.no_grad():
        found = FlexAttention(tree)(*given, scale=None, window=window)
    assert (found - by_definition(tree, *given, window)).abs().max() <= 2e-6


@pytest.mark.parametrize("seed", range(20))
def test_no_block_is_left_out_and_none_is_taken_for_full(seed):
    tree = long_tree(seed)
    rows = FlexAttention(tree).rows
    some, every = blocks_seen(tree.nodes, rows)
    mask = F.pad(dense_mask(tree)[0, 0], (0, rows - len(tree), 0, rows - len(tree)))
    of_blocks = mask.view(rows // BLOCK, BLOCK, rows // BLOCK, BLOCK)
    assert not (of_blocks.any(3).any(1).numpy() & ~some).any()
    assert not (every & ~of_blocks.all(3).all(1).numpy()).any()
    assert not (every & ~some).any()
    assert some.sum() < some.size / 2, "blocks that nobody sees are passed over"


def test_lengths_are_few():
    lengths = {FlexAttention(build_tree([PromptResponse((1,), (2,) * n)])).rows for n in range(2, 1000, 7)}
    assert lengths == {128, 256, 512, 1024}


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_models_run_on_flex_attention(architecture, tiny, sequences, truth):
    with torch.no_grad():
        found = Scorer(tiny(architecture), engine="flex", precision="fp32").token_logps(sequences)
    assert (torch.cat(found) - truth(architecture)[0]).abs().max() <= 1e-4


# Flash attention over sequences of many lengths


def flash(query, key, value, query_ends, key_ends, longest_queries, longest_keys, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """What `varlen_attn` promises: each sequence alone, the last query beside the last key, `window_size` to the left and right of a query."""
    pieces = []
    for (start, stop), (first, last) in zip(pairwise(query_ends), pairwise(key_ends), strict=True):
        q, k, v = (each.transpose(0, 1)[None] for each in (query[start:stop], key[first:last], value[first:last]))
        assert q.shape[1] == k.shape[1] or enable_gqa
        assert (q.shape[2] <= longest_queries) & (k.shape[2] <= longest_keys)
        ahead = torch.arange(k.shape[2]) - (torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2])
        left, right = (math.inf if side < 0 else side for side in window_size)
        pieces.append(F.scaled_dot_product_attention(q, k, v, attn_mask=(ahead <= right) & (-ahead <= left), scale=scale, enable_gqa=enable_gqa))
    return torch.cat(pieces, dim=2)[0].transpose(0, 1)


@pytest.fixture
def played(monkeypatch):
    """Nodes go to the kernel, which `flash` plays; it looks no shape up."""
    monkeypatch.setattr(varlen, "varlen_attn", flash)
    monkeypatch.setattr(varlen, "takes", lambda query, value: True)
    varlen.agrees.cache_clear()
    yield monkeypatch
    varlen.agrees.cache_clear()


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 1, 3, 40])
@pytest.mark.parametrize("knows_groups", [True, False])
def test_nodes_as_sequences_are_softmax_under_the_mask(played, groups, window, knows_groups):
    played.setattr(varlen, "KNOWS_GROUPS", knows_groups)
    tree = long_tree(5)
    given = [each.double().requires_grad_() for each in states(tree, groups=groups)]
    slope = torch.randn(1, 4, len(tree), 8, dtype=torch.float64)
    paths = varlen.Paths(tree.nodes, torch.device("cpu"))
    found, wanted = varlen.attend(*given, paths, scale=None, window=window), by_definition(tree, *given, window)
    assert (found - wanted).abs().max() <= 1e-12
    for gradient, true in zip(torch.autograd.grad(found, given, slope), torch.autograd.grad(wanted, given, slope), strict=True):
        assert (gradient - true).abs().max() <= 1e-11


def test_gradients_of_a_shared_prompt_are_summed_in_fp32(played):
    tree = build_tree([PromptResponse((1,), (n, n)) for n in range(600)])
    key = torch.ones(1, 1, len(tree), 8, dtype=torch.bfloat16, requires_grad=True)
    paths = varlen.Paths(tree.nodes, torch.device("cpu"))
    along = varlen._Along.apply(key[0].transpose(0, 1), paths.keys_K)
    along.sum().backward()
    assert float(key.grad[0, 0, 0, 0]) == pytest.approx(601, rel=0.005), "in bf16 the sum would stop growing at 256"


def test_models_run_on_the_kernel(played, tiny, sequences, truth, values_and_gradients, furthest):
    calls = []
    played.setattr(varlen, "varlen_attn", lambda *a, **o: (calls.append(1), flash(*a, **o))[1])
    model = tiny("llama")
    values, gradients = values_and_gradients(model, Scorer(model, engine="nodes", precision="fp32").token_logps(sequences))
    true_values, true_gradients = truth("llama")
    assert calls
    assert (values - true_values).abs().max() <= 1e-5
    assert furthest(gradients, true_gradients) <= 5e-6


@pytest.mark.parametrize("how", [True, "selective"])
def test_the_kernel_may_be_looked_at_within_a_layer_that_is_computed_again(played, tiny, sequences, how):
    """What is done there once must not count among what the layer keeps: it is not done again."""

    def gradient(model):
        torch.cat(Scorer(model, engine="nodes", precision="fp32").token_logps(sequences)).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    wanted = gradient(tiny("llama"))
    model = tiny("llama")
    recompute_activations(model, how)
    varlen.agrees.cache_clear()
    assert gradient(model).equal(wanted)
    assert varlen.agrees.cache_info().misses == 1


def misplaced(*arguments, window_size, **options):
    """The causal diagonal at the beginning, as flash attention had it before 2.1: sees fewer keys."""
    query, key, value, query_ends, key_ends, *longest = arguments
    keys = [torch.arange(first, first + stop - start) for (start, stop), first in zip(pairwise(query_ends), key_ends, strict=False)]
    rows = torch.cat(keys)
    return flash(query, key[rows], value[rows], query_ends, query_ends, *longest, window_size=window_size, **options)


def no_such_kernel():
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def without_gradient(attended):
    if attended.requires_grad:
        attended.register_hook(lambda slope: slope * math.nan)
    return attended


@pytest.mark.parametrize(
    "kernel, window, right",
    [
        (flash, None, True),
        (flash, 4096, True),
        (misplaced, None, False),
        (lambda *a, window_size, **o: flash(*a, window_size=(-1, 0), **o), 4096, False),
        (lambda *a, window_size, **o: flash(*a, window_size=(window_size[0] + 1 if window_size[0] > 0 else -1, 0), **o), 4096, False),
        (lambda *a, **o: flash(*a, **o) * math.nan, None, False),
        (lambda *a, **o: without_gradient(flash(*a, **o)), None, False),
        (lambda *a, **o: no_such_kernel(), None, False),
    ],
    ids=["right", "right in a window", "misplaced", "no window", "window too wide", "no numbers", "no gradient", "no kernel"],
)
def test_a_kernel_is_used_only_where_it_agrees(played, kernel, window, right):
    played.setattr(varlen, "varlen_attn", kernel)
    shape = (4, 2, 64, window, torch.bfloat16, torch.device("cpu"))
    if right:
        assert varlen.agrees(*shape)
        return
    with pytest.warns(UserWarning, match=r"(away from plain attention|does not run) here.*; attention runs node by node"):
        assert not varlen.agrees(*shape)
    tree = long_tree(1)
    given = states(tree, width=64, dtype=torch.bfloat16)
    found = NodeAttention(tree)(*given, scale=None, window=window)
    assert (found - by_definition(tree, *given, window)).abs().max() <= 0.05


# On a GPU


@on_cuda
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 40])
def test_flash_attention_agrees(groups, window):
    assert varlen.agrees(4, groups, 64, window, torch.bfloat16, torch.device("cuda"))


@on_cuda
@pytest.mark.parametrize("window", [None, 40])
def test_all_kernels_have_the_same_gradients(window):
    tree = long_tree(3).to(torch.device("cuda"))
    given = [each.cuda().requires_grad_() for each in states(tree, width=64, dtype=torch.bfloat16)]
    wanted = torch.autograd.grad(by_definition(tree, *given, window).sum(), given)
    for attention in (NodeAttention(tree), FlexAttention(tree)):
        found = torch.autograd.grad(attention(*given, scale=None, window=window).float().sum(), given)
        for gradient, true in zip(found, wanted, strict=True):
            assert (gradient - true).norm() / true.norm() <= 0.02


@on_cuda
def test_wider_queries_and_keys_are_narrowed_where_autocast_is_on(monkeypatch):
    tree = long_tree(3).to(torch.device("cuda"))
    query, key, value = (each.cuda() for each in states(tree, width=64))
    used = []
    monkeypatch.setattr(varlen, "attend", lambda *given, attend=varlen.attend, **options: (used.append(given[0].dtype), attend(*given, **options))[1])
    with torch.autocast("cuda", torch.bfloat16):
        attended, _ = node_attention(None, query, key, value.bfloat16(), None, tree_attention=NodeAttention(tree))
    assert used == [torch.bfloat16]
    assert attended.dtype == torch.bfloat16


@on_cuda
def test_the_probe_takes_nodes(tiny, sequences):
    assert choose_engine(tiny("llama").cuda(), sequences).engine == "nodes"
