"""What chooses attention and head on a GPU, in small on a CPU: every way is tried, and those that run here are measured."""

import json

import torch


def test_every_way_is_measured_or_says_why_not(tmp_path, capsys):
    from gpu_kernels import main

    assert main(["--smoke", "--json", str(tmp_path / "kernels.json")]) == 0
    found = json.loads((tmp_path / "kernels.json").read_text())["measured"]
    attention, head = ([each for each in found if each["what"] == what] for what in ("attention", "head"))
    assert [each["data"] for each in attention] == ["ultrafeedback", "long-prompt", "four-responses"]
    for each in attention:
        run = {name for name, way in each["ways"].items() if way.get("tflops", 0) > 0}
        assert {"node by node", "dense mask", "causal, no tree (wrong)"} <= run
        assert run == each["ways"].keys() or not torch.cuda.is_available()
    assert [each["frozen"] for each in head] == [False, True]
    assert all(way["milliseconds"] > 0 for each in head for way in each["ways"].values())
    assert "node by node" in capsys.readouterr().out


def test_the_ways_say_the_same():
    from gpu_cases import SMOKE_SHAPES, Case, make_steps
    from gpu_kernels import attention_ways, head_ways
    from likelier.logprobs.examples import sequences_of
    from likelier.logprobs.tree import build_tree

    (step,) = make_steps(Case("tiny-llama", "full", SMOKE_SHAPES["four-responses"]), 1)
    tree = build_tree(sequences_of(step))
    states = [torch.randn(1, heads, len(tree), 16, requires_grad=True) for heads in (4, 2, 2)]
    ways = attention_ways(tree, states, torch.randn_like(states[0]))
    for one, other in zip(ways["node by node"](), ways["dense mask"](), strict=True):
        assert (one - other).abs().max() < 1e-4

    hidden, weight = torch.randn(40, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    ways = head_ways(hidden, weight, torch.randint(50, (40,)), [1])
    for one, other in zip(ways["blocks of 1 MiB"](), ways["all logits"](), strict=True):
        assert (one - other).abs().max() < 1e-4
