"""The fused softmax without a GPU: Triton's interpreter runs the kernel, its compiler makes a binary for GPUs that are not there."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from likelier.logprobs import kernels, softmax
from likelier.logprobs.head import token_logps
from likelier.logprobs.softmax import in_operations, log_softmax_at

pytest.importorskip("triton", reason="comes with PyTorch for CUDA, and for Linux with the development set-up")

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel, small blocks, taken for tensors on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("Triton interprets or compiles: here it compiles")
    from likelier.logprobs import softmax_kernel

    monkeypatch.setattr(softmax_kernel, "BLOCK", 64)
    monkeypatch.setattr(softmax, "takes", lambda logits: True)
    softmax.agrees.cache_clear()
    yield softmax_kernel
    softmax.agrees.cache_clear()


def by_definition(targets, logits):
    wide = logits.double()
    logps = wide.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return logps, torch.zeros_like(wide).scatter_(1, targets[:, None], 1) - wide.softmax(-1)


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 65, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.1, 5, 80])
def test_the_kernel_against_fp64(interpreted, vocabulary, dtype, scale):
    torch.manual_seed(vocabulary)
    logits = (scale * torch.randn(7, vocabulary)).to(dtype)
    targets = torch.randint(vocabulary, (7,))
    wanted, slopes = by_definition(targets, logits)
    untouched, logps = logits.clone(), torch.empty(7)
    interpreted.log_softmax_at(targets, untouched, logps, leave_slopes=False)
    assert untouched.equal(logits)
    assert (logps - wanted).abs().max() <= 2e-6 * max(1, float(wanted.abs().max()))
    interpreted.log_softmax_at(targets, logits, logps, leave_slopes=True)
    assert (logits - slopes).abs().max() <= kernels.NEAR[dtype]


def test_the_kernel_reads_rows_where_they_are(interpreted):
    """Of a narrower view each row begins a stride after the one before; what is beside it stays."""
    wide = torch.randn(4, 100)
    before, targets, logps = wide.clone(), torch.tensor([0, 89, 3, 40]), torch.empty(4)
    wanted, slopes = by_definition(targets, wide[:, :90])
    interpreted.log_softmax_at(targets, wide[:, :90], logps, leave_slopes=True)
    assert (logps - wanted).abs().max() <= 2e-6
    assert (wide[:, :90] - slopes).abs().max() <= 1e-6
    assert wide[:, 90:].equal(before[:, 90:])


def test_tokens_that_never_come(interpreted):
    """Whole blocks of −∞, as where a vocabulary is padded; and no rows at all."""
    logits, targets, logps = torch.randn(2, 200), torch.tensor([150, 70]), torch.empty(2)
    logits[0, :128] = logits[1, 128:] = -torch.inf
    wanted, slopes = by_definition(targets, logits)
    interpreted.log_softmax_at(targets, logits, logps, leave_slopes=True)
    assert (logps - wanted).abs().max() <= 2e-6
    assert (logits - slopes).abs().max() <= 1e-6
    interpreted.log_softmax_at(targets[:0], logits[:0], logps[:0], leave_slopes=True)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_the_head_has_the_same_values_and_gradients(interpreted, monkeypatch, frozen, kept_bytes):
    torch.manual_seed(5)
    hidden, weight = torch.randn(23, 8, requires_grad=True), torch.randn(150, 8, requires_grad=not frozen)
    targets, slope = torch.randint(150, (23,)), torch.randn(23)
    leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]

    def found():
        logps = token_logps(hidden, weight, targets, working_bytes=5 * 4 * 150, kept_bytes=kept_bytes)
        return [logps.detach(), *torch.autograd.grad(logps, leaves, slope)]

    calls, real = [], interpreted.log_softmax_at
    monkeypatch.setattr(interpreted, "log_softmax_at", lambda *a, **o: (calls.append(1), real(*a, **o))[1])
    by_kernel = found()
    assert len(calls) > 5
    monkeypatch.setattr(softmax, "takes", lambda logits: False)
    for ours, wanted in zip(by_kernel, found(), strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def shifted_by_one(kernel):
    real = kernel.log_softmax_at
    return lambda targets, logits, *others, **options: real((targets + 1) % logits.shape[1], logits, *others, **options)


def no_compiler(kernel):
    def fails(*others, **options):
        raise FileNotFoundError("no C compiler")

    return fails


@pytest.mark.parametrize("fault, said", [(shifted_by_one, "away from PyTorch's"), (no_compiler, "does not run here .no C compiler.")])
def test_a_kernel_that_fails_is_told_of_once_and_not_used(interpreted, monkeypatch, fault, said):
    monkeypatch.setattr(interpreted, "log_softmax_at", fault(interpreted))
    logits, targets = torch.randn(3, 50), torch.tensor([1, 2, 3])
    wanted = by_definition(targets, logits)[0]
    with pytest.warns(UserWarning, match=f"the fused softmax.*{said}"):
        found = log_softmax_at(targets, logits, leave_slopes=False)
    assert (found - wanted).abs().max() <= 2e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_softmax_at(targets, logits, leave_slopes=True)


def test_a_lack_of_memory_is_no_fault_of_the_kernel(interpreted, monkeypatch):
    def scarce(*others, **options):
        raise MemoryError

    monkeypatch.setattr(interpreted, "log_softmax_at", scarce)
    with pytest.raises(MemoryError):
        log_softmax_at(torch.tensor([0]), torch.randn(1, 5), leave_slopes=False)


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from likelier.logprobs.softmax_kernel import BLOCK, WARPS, _row

for capability, dtype in (80, "bf16"), (90, "bf16"), (90, "fp32"):
    for leave_slopes in True, False:
        types = {"targets": "*i64", "logits": "*" + dtype, "stride": "i64", "logps": "*fp32", "vocabulary": "i32"}
        constants = {"LEAVE_SLOPES": leave_slopes, "BLOCK": BLOCK}
        source = ASTSource(_row, types | dict.fromkeys(constants, "constexpr"), constants)
        made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
        stored = [line for line in made.asm["ptx"].splitlines() if "st.global" in line]
        assert made.asm["cubin"] and (len(stored) > 1) == leave_slopes
"""


def test_it_compiles_for_gpus(tmp_path):
    """Triton brings its own assembler, which needs no GPU."""
    there = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    made = subprocess.run([sys.executable, "-c", COMPILE], env=there, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_the_kernel_is_used(dtype):
    softmax.agrees.cache_clear()
    logits, targets = torch.randn(9, 128256, device="cuda", dtype=dtype), torch.randint(128256, (9,), device="cuda")
    assert softmax.takes(logits)
    assert softmax.agrees(dtype, logits.device)
    others, logps = logits.clone(), torch.empty(9, device="cuda")
    in_operations(targets, others, logps, leave_slopes=True)
    assert torch.allclose(log_softmax_at(targets, logits, leave_slopes=True), logps, rtol=1e-5, atol=1e-5)
    assert (logits - others).abs().max() <= kernels.NEAR[dtype]
