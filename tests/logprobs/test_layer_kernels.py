"""SwiGLU and rotations without a GPU: Triton's interpreter runs the kernels, its compiler makes binaries for GPUs that are not there."""

import copy
import io
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import transformers
from tests.logprobs.conftest import BODY
from torch import nn

from likelier.logprobs import gates, kernels, rotary
from likelier.logprobs.fused import fuse
from likelier.logprobs.gates import fuse_gates, gated
from likelier.logprobs.reference import numerics
from likelier.logprobs.rotary import fuse_rotations, in_operations
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.swapping import Swapped
from likelier.models import add_adapter
from likelier.recipe import AdapterSettings
from likelier.recompute import recompute_activations

pytest.importorskip("triton", reason="comes with PyTorch for CUDA, and for Linux with the development set-up")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels, taken for tensors on the CPU; how often each was called."""
    if torch.cuda.is_available():
        pytest.skip("Triton interprets or compiles: here it compiles")
    from likelier.logprobs import layer_kernels

    calls = dict.fromkeys(("gated", "gated_slopes", "rotated"), 0)

    def counting(name, kernel):
        def called(*given, **options):
            calls[name] += 1
            return kernel(*given, **options)

        return called

    monkeypatch.setattr(kernels, "are_for", lambda tensor: tensor.dtype in kernels.NEAR)
    for module in gates, rotary:
        module.agrees.cache_clear()
        assert all(module.agrees(dtype, torch.device("cpu")) for dtype in DTYPES)
    for name in calls:
        monkeypatch.setattr(layer_kernels, name, counting(name, getattr(layer_kernels, name)))
    yield calls
    for module in gates, rotary:
        module.agrees.cache_clear()


def with_gradients(way, leaves, slope):
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    value = way(*leaves)
    return [each.detach().double() for each in (value, *torch.autograd.grad(value, leaves, slope.to(value.dtype)))]


def near(found, wanted, dtype):
    """A unit in the last place, for Triton's interpreter cuts bf16 off; in fp32 a few, of numbers about 1."""
    relative, absolute = (8 * 2**-24, 8 * 2**-24) if dtype == torch.float32 else (1.01 * torch.finfo(dtype).eps, 1e-6)
    return all(bool(((one - other).abs() <= relative * other.abs() + absolute).all()) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 341), (1, 1024), (5, 411), (0, 8)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_against_fp64(interpreted, shape, dtype):
    torch.manual_seed(0)
    gate, up, slope = (2 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    found = with_gradients(gated, (gate, up), slope)
    assert (interpreted["gated"], interpreted["gated_slopes"]) == (1, 1)
    assert near(found, with_gradients(lambda gate, up: F.silu(gate) * up, (gate.double(), up.double()), slope), dtype)


def test_swiglu_of_far_numbers_is_finite(interpreted):
    gate = torch.tensor([-1e4, -90, -1e-3, 0, 1e-3, 90, 1e4])
    found = with_gradients(gated, (gate, torch.ones(7)), torch.ones(7))
    wanted = with_gradients(lambda gate, up: F.silu(gate) * up, (gate.double(), torch.ones(7).double()), torch.ones(7))
    assert all(torch.allclose(one, other, rtol=1e-6, atol=1e-30) for one, other in zip(found, wanted, strict=True))


def test_swiglu_of_what_does_not_lie_side_by_side(interpreted):
    gate, up, slope = torch.randn(7, 5).T, torch.randn(5, 14)[:, ::2], torch.randn(7, 5).T
    assert near(
        with_gradients(gated, (gate, up), slope), with_gradients(lambda g, u: F.silu(g) * u, (gate.double(), up.double()), slope), torch.float32
    )


def logps(model, sequences):
    return Scorer(model, engine="nodes", precision="fp32").token_logps(sequences)


def by_tokens(*shape):
    """(B, H, T, D) as a model makes them: a view of (B, T, H, D)."""
    batch, heads, tokens, width = shape
    return torch.randn(batch, tokens, heads, width).transpose(1, 2)


@pytest.mark.parametrize("heads, tokens, width", [(1, 1, 2), (3, 5, 6), (4, 7, 64), (9, 2, 80)])
@pytest.mark.parametrize("batch, angles", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotations_against_fp64(interpreted, heads, tokens, width, batch, angles, dtype):
    torch.manual_seed(0)
    x, slope = by_tokens(batch, heads, tokens, width).to(dtype), torch.randn(batch, heads, tokens, width).to(dtype)
    cos, sin = torch.randn(2, angles, tokens, width).to(dtype)
    found = with_gradients(lambda x: rotary._Rotated.apply(x, cos, sin), [x], slope)
    wanted = with_gradients(lambda x: in_operations(x, cos.double(), sin.double()), [x.double()], slope)
    assert near(found, wanted, dtype)
    assert rotary._Rotated.apply(x, cos, sin).transpose(1, 2).is_contiguous(), "as attention wants it"


@pytest.mark.parametrize("architecture, rotations, swiglus", [("llama", 2, 2), ("qwen3", 2, 2), ("mistral", 2, 2), ("gemma3", 4, 0), ("phi", 2, 0)])
def test_models_have_the_same_values_and_gradients(interpreted, architecture, rotations, swiglus, tiny, sequences, values_and_gradients, furthest):
    """Gemma's gate is another function; Phi rotates a part of each head, and has no gates."""
    spelled = tiny(architecture)
    fused = copy.deepcopy(spelled)
    assert (fuse_rotations(fused), fuse_gates(fused)) == (rotations, swiglus)
    found, wanted = (values_and_gradients(model, logps(model, sequences)) for model in (fused, spelled))
    assert interpreted == {"gated": swiglus, "gated_slopes": swiglus, "rotated": 4 * rotations}
    assert (found[0] - wanted[0]).abs().max() <= 2e-5
    assert furthest(found[1], wanted[1]) <= 2e-5


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "bloom", "mamba"])
def test_models_without_them_stay_as_they_are(architecture, tiny):
    model = tiny(architecture)
    assert (fuse_rotations(model), fuse_gates(model)) == (0, 0)
    assert not any(isinstance(module, Swapped) for module in model.modules())


@pytest.mark.parametrize("name", ["Cohere", "Glm"])
def test_a_rotation_of_neighbours_is_another_one(name):
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**BODY, head_dim=8))
    assert fuse_rotations(model) == 0


class Biased(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.way = nn.Linear(8, 9), nn.Linear(8, 9), nn.Linear(9, 8), way

    def forward(self, x, *more):
        return self.way(self, x)


@pytest.mark.parametrize(
    "way, count",
    [
        (lambda self, x: self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)), 1),
        (lambda self, x: self.down_proj(F.silu(self.up_proj(x)) * self.gate_proj(x)), 0),
        (lambda self, x: self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x)), 0),
        (lambda self, x: self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)) + 1, 0),
        (lambda self, x: (self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)), None), 0),
        (lambda self, x: self.down_proj(x.view(2, 9)), 0),
    ],
)
def test_only_what_is_swiglu_is_fused(way, count):
    assert fuse_gates(nn.Sequential(Biased(way))) == count


def test_without_kernels_a_fused_model_computes_as_before(tiny, sequences):
    model, fused = tiny("llama"), tiny("llama")
    fuse(fused, on_gpu=True)
    assert sum(isinstance(module, Swapped) for module in fused.modules()) == 2 + 2 + 5
    for norm in [module for module in fused.modules() if "RMSNorm" in type(module).__name__]:
        norm.__class__ = type(norm).__mro__[2]
    one, other = (torch.cat(logps(each, sequences)) for each in (model, fused))
    assert one.equal(other)


def test_the_modules_are_what_they_were(tiny):
    model, fused = tiny("llama"), tiny("llama")
    fuse(fused, on_gpu=True)
    assert (fuse_rotations(fused), fuse_gates(fused)) == (0, 0), "once is enough"
    assert list(fused.state_dict()) == list(model.state_dict())
    assert repr(fused) == repr(model)
    for one, other in zip(fused.modules(), model.modules(), strict=True):
        assert isinstance(one, type(other))
        assert type(one).__module__ == type(other).__module__
    assert "apply_rotary_pos_emb" in transformers.models.llama.modeling_llama.__dict__
    ids = torch.arange(5)[None]
    assert copy.deepcopy(fused)(ids).logits.equal(fused(ids).logits)
    other_model = tiny("llama")
    assert torch.allclose(other_model.generate(ids, max_new_tokens=4, do_sample=False), fused.generate(ids, max_new_tokens=4, do_sample=False))


def test_pickled_and_copied_they_are_what_they_were(tiny):
    """Who reads the file need not have Likelier, and who scores the copy fuses it anew."""
    model = add_adapter(tiny("llama"), AdapterSettings(rank=3), seed=0)
    kinds = [type(module) for module in model.modules()]
    fuse(model, on_gpu=True)
    assert sum(isinstance(module, Swapped) for module in model.modules()) == 14 + 2 + 2 + 5
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in torch.load(file, weights_only=False), copy.deepcopy(model):
        assert [type(module) for module in other.modules()] == kinds
        assert all(value.equal(other.state_dict()[name]) for name, value in model.state_dict().items())
        assert torch.allclose(other(torch.arange(5)[None]).logits, model(torch.arange(5)[None]).logits, atol=1e-5)


def test_values_of_the_reference_by_other_layers_are_others():
    settings = {"precision": "bf16", "weights_dtype": "bfloat16", "engine": "nodes"}
    assert "layers" in numerics(**settings, device=torch.device("cuda"))
    assert "layers" not in numerics(**settings, device=torch.device("cpu"))


def test_the_first_look_may_come_in_inference_mode(interpreted):
    gates.agrees.cache_clear()
    with torch.inference_mode():
        gate = torch.randn(3)
        assert torch.allclose(gated(gate, gate), F.silu(gate) * gate)
    assert interpreted["gated"] == 2, "the look, and the product"


@pytest.mark.parametrize("name, module, said", [("gated", gates, "SwiGLU"), ("gated_slopes", gates, "SwiGLU"), ("rotated", rotary, "rotation")])
def test_a_kernel_that_fails_is_told_of_and_not_used(interpreted, monkeypatch, name, module, said, tiny, sequences):
    from likelier.logprobs import layer_kernels

    right = getattr(layer_kernels, name)

    def wrong(*given, **options):
        made = right(*given, **options)
        return tuple(1.1 * each for each in made) if isinstance(made, tuple) else 1.1 * made

    monkeypatch.setattr(layer_kernels, name, wrong)
    module.agrees.cache_clear()
    model = tiny("llama")
    wanted = torch.cat(logps(copy.deepcopy(model), sequences))
    fuse(model, on_gpu=True)
    with pytest.warns(UserWarning, match=f"the fused {said} is .* away from PyTorch's"):
        found = torch.cat(logps(model, sequences))
    assert (found - wanted).abs().max() <= 2e-5


@pytest.mark.parametrize("how", ["selective", True])
def test_layers_that_are_computed_again_have_the_same_gradient(interpreted, how, tiny, sequences, values_and_gradients):
    """The kernels are looked at within a layer that records what it makes."""
    found = []
    for way in how, False:
        gates.agrees.cache_clear()
        rotary.agrees.cache_clear()
        model = tiny("llama")
        fuse(model, on_gpu=True)
        recompute_activations(model, way)
        found.append(values_and_gradients(model, logps(model, sequences)))
    assert found[0][0].equal(found[1][0])
    assert all(gradient.equal(found[1][1][name]) for name, gradient in found[0][1].items())
    assert interpreted["gated"] == 2 * 3 + 2, "once, and twice where layers are computed again; two looks"


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from likelier.logprobs.layer_kernels import BLOCK, _gated, _gated_slopes, _rotated

TENSORS = {"gate", "up", "out", "dout", "dgate", "dup", "x", "cos", "sin"}
CASES = [(_gated, {"BLOCK": BLOCK}, 1), (_gated_slopes, {"BLOCK": BLOCK}, 2)]
CASES += [(_rotated, {"BACK": back, "HEADS": 32, "HALF": 64}, 2) for back in (False, True)]

for capability, dtype in (80, "bf16"), (90, "bf16"), (90, "fp32"):
    for kernel, constants, stores in CASES:
        given = [name for name in kernel.arg_names if name not in constants]
        types = {name: "*" + dtype if name in TENSORS else "i32" for name in given} | dict.fromkeys(constants, "constexpr")
        made = compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32))
        assert made.asm["cubin"] and made.asm["ptx"].count("st.global") >= stores
"""


def test_they_compile_for_gpus(tmp_path):
    there = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    made = subprocess.run([sys.executable, "-c", COMPILE], env=there, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@on_cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_they_are_used(dtype):
    for module in gates, rotary:
        module.agrees.cache_clear()
        assert module.agrees(dtype, torch.device("cuda"))
    q, k = (by_tokens(1, heads, 5, 64).to("cuda", dtype) for heads in (4, 2))
    cos, sin = torch.randn(2, 1, 5, 64, device="cuda", dtype=dtype)
    assert rotary.takes(q, k, cos, sin)
    assert kernels.are_for(q)
