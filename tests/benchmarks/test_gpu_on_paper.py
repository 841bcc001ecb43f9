"""What the benchmark on paper counts: against sums by hand, and Likelier's steps against the FLOPs that they need."""

import gc
import json
import subprocess
import sys

import pytest
import torch
from torch.utils import backend_registration

from tests.benchmarks.conftest import FOLDER


@pytest.fixture
def meter():
    from paper_meter import Meter, Rates

    return Meter("meta", Rates({torch.bfloat16: 1e12, torch.float32: 1e9}, 1e6))


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_a_product_and_a_sum(meter):
    x = empty(256, 512)
    with meter:
        product = x @ x.mT
        product += 1
    total, mm, add = meter.spent.total, meter.spent.by_kernel["mm"], meter.spent.by_kernel["add_"]
    assert (mm.flops, mm.bytes) == (2 * 256 * 512 * 256, 2 * (256 * 512 * 2 + 256 * 256))
    assert mm.seconds == max(mm.flops / 1e12, mm.bytes / 1e6)
    assert (add.flops, add.bytes) == (0, 2 * 2 * 256 * 256)
    assert (total.kernels, total.flops, total.seconds) == (2, mm.flops, mm.seconds + add.seconds)


def test_what_moves_and_what_does_not(meter):
    table, rows, wide = empty(1000, 64), torch.empty(10, dtype=torch.int64, device="meta"), empty(64, 64, dtype=torch.float32)
    with meter:
        table.view(-1)[:5].unsqueeze(0)
        torch.empty_like(table)
        assert meter.spent.total.kernels == 0
        table[rows]
        assert meter.spent.total.bytes == 2 * 10 * 64 * 2
        meter.begin()
        wide.copy_(table[:64])
        assert meter.spent.total.bytes == 64 * 64 * (4 + 2)
        meter.begin()
        wide.zero_()
        assert meter.spent.total.bytes == 64 * 64 * 4


def test_memory_is_that_of_living_tensors(meter):
    weight = empty(1024, 1024).requires_grad_()
    with meter:
        meter.hold(weight, weight)
        held = 2 * 1024**2
        assert meter.held_bytes == held
        product = (weight * 2) * weight  # keeps the first product
        assert meter.held_bytes == 3 * held
        del product
        gc.collect()
        assert meter.held_bytes == held
    assert meter.spent.peak_bytes == 3 * held


def test_reads_of_one_tensor_are_one(meter):
    values = empty(8, dtype=torch.float32)
    with meter:
        assert [value.item() for value in values] == [1.0] * 8
        values.sum().item()
    assert meter.spent.reads == 2


CALL = """
import sys
sys.path.insert(0, sys.argv[1])
import gpu_on_paper
gpu_on_paper.STEPS = 1
sys.exit(gpu_on_paper.main(["--smoke", "--json", "paper.json", "--kernels", "--cases", "*/full/ultra*", "*/lora/four*"]))
"""


@pytest.fixture(scope="module")
def on_paper(tmp_path_factory):
    """In a process of its own: the device is for good."""
    pytest.importorskip("trl", reason="TRL is not installed; `pip install -e '.[dev]'` brings it")
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices in Python")
    folder = tmp_path_factory.mktemp("paper")
    done = subprocess.run([sys.executable, "-c", CALL, FOLDER], cwd=folder, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    return {match["case"]: match for match in json.loads((folder / "paper.json").read_text())["matches"]} | {"said": done.stdout}


@pytest.mark.parametrize("name, rank", [("tiny-llama/full/ultrafeedback", None), ("tiny-qwen3/lora/four-responses", 16)])
def test_products_are_those_that_a_step_needs(on_paper, name, rank):
    from gpu_cases import make_steps, smoke_cases
    from likelier.logprobs.examples import sequences_of
    from likelier.logprobs.tree import build_tree
    from needed_flops import needed_flops

    case = next(case for case in smoke_cases() if case.name == name)
    trees = [build_tree(sequences_of(step)) for step in make_steps(case, 1)]
    without_attention = [needed_flops(case.config, tree, lora_rank=rank, seen=0) for tree in trees]
    match = on_paper[name]
    for what in ("likelier", "reference"):
        products = sum(cost["flops"] for kernel, cost in match[what]["by_kernel"].items() if kernel in ("mm", "bmm", "addmm"))
        wanted = sum(each.step if what == "likelier" else each.reference for each in without_attention)
        assert wanted <= products < 1.02 * wanted  # the head multiplies for each scored edge, of which two may leave one hidden state


def test_a_step_waits_for_the_device_twice(on_paper):
    """For the norm of its gradient, and for its row."""
    matches = [match for name, match in on_paper.items() if name != "said"]
    assert [match["likelier"]["reads"] for match in matches] == [2] * len(matches)
    assert all(match["reference"]["reads"] == 0 for match in matches)


def test_the_other_tool_is_counted_too(on_paper):
    """TRL as it comes computes layers once more and scores the reference; it has all prompts twice, and padding."""
    for name in ("tiny-llama/full/ultrafeedback", "tiny-qwen3/lora/four-responses"):
        match = on_paper[name]
        default, best = (match["trl"][opponent]["total"]["flops"] for opponent in ("default", "best"))
        assert default > 1.4 * best > 1.4 * match["likelier"]["total"]["flops"]
        assert name in on_paper["said"]
        assert "Triton softmax" in match["trl"]["best"]["by_kernel"]
