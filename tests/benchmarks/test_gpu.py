"""The GPU's benchmark, in small on a CPU: every case, both tools for real, file, table and plots."""

import json
import math
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch

from tests.benchmarks.conftest import FOLDER

CALLS = """
import sys
sys.path.insert(0, sys.argv[1])
from gpu import main
SHORT = ["--smoke", "--seconds", "0"]
codes = [
    main([*SHORT, "--json", "main.json", "--cases", *sys.argv[2:]]),
    main([*SHORT, "--apart", "--recompute", "selective", "--cases", "*/lora/four*", "--opponents", "best", "--json", "apart.json"]),
    main([*SHORT, "--scaling", "--cases", "*-1?", "--json", "scaling.json"]),
    main(["--smoke", "--minutes", "0", "--cases", "*/full/*"]),
    main(["--plot", "scaling.json", "plots"]),
]
assert codes == [0] * 5, codes
"""
"""Of the scaling cases `*-1?` is the one of length 16."""


@pytest.mark.parametrize("cases", [["*/full/long*", "*/lora/ultra*"], pytest.param(["*"], marks=pytest.mark.slow)], ids=["two cases", "all cases"])
def test_both_tools_do_the_same_work_and_are_measured(tmp_path, cases):
    pytest.importorskip("trl", reason="TRL is not installed; `pip install -e '.[dev]'` brings it")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny models lose more by handing work over than they win
    command = [sys.executable, "-c", CALLS, FOLDER, *cases]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=one_thread)
    assert not done.returncode, done.stderr
    found, apart, scaling = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("main", "apart", "scaling"))

    assert len(found["matches"]) == (4 if len(cases) == 2 else 12)
    for match in [*found["matches"], *apart["matches"], *scaling["matches"]]:
        figures = match["figures"]
        moved = max(abs(turn["loss"] - math.log(2)) for turn in match["trl"]["turns"])
        assert figures["largest_difference_of_losses"] < 0.02 * moved, match["case"]  # in fp32: the same work
        assert len(match["likelier"]["turns"]) == len(match["trl"]["turns"]) == 4  # two that warm up, two that are timed
        assert match["likelier"]["engine"] == "nodes"
        assert figures["likelier"]["pairs_per_second"] > figures["likelier"]["pairs_per_second_all"] > 0
        assert (match["trl"]["precompute_seconds"] > 0) == (match["opponent"] == "best")
        tokens = match["tokens_per_pair"]
        assert tokens["unique"] < tokens["plain"] < tokens["padded"]
        assert match["case"] in done.stdout
    assert all(match["together"] for match in found["matches"])
    assert not any(match["together"] for match in apart["matches"])
    assert done.stdout.count("left out, the time was over") == 6  # with no minutes at all
    assert [match["axis"] for match in scaling["matches"]] == [{"length": 16}] * 2
    drawn = ElementTree.parse(tmp_path / "plots" / "length.svg").iter()
    assert sum(each.get("id", "").startswith("line2d") for each in drawn) > 3  # of two tools above, of their ratio below, and the axes' ticks


def test_scaling_varies_one_thing_at_a_time():
    from gpu_cases import make_steps, scaling_cases

    cases = scaling_cases("llama-1b", "full", lengths=[64, 32, 128], responses=[2, 4], tokens=2048)
    assert [case.axis for case in cases] == [{"length": 64}, {"length": 32}, {"length": 128}, {"pairs a prompt": 1}, {"pairs a prompt": 6}]
    assert [case.shape.pairs_per_step for case in cases] == [8, 16, 4, 8, 6]
    for case in cases:
        (step,) = make_steps(case, 1)
        assert len(step) == case.shape.pairs_per_step
        assert len({pair.prompt_ids for pair in step}) * case.axis.get("pairs a prompt", 1) == len(step)


def test_a_tool_that_does_not_fit_leaves_the_device_to_the_other(capsys):
    import gpu
    from gpu_cases import make_steps, smoke_cases
    from gpu_players import LikelierPlayer, Options, Player

    class TooLarge(Player):
        closed = False

        def step(self):
            with self.working():
                torch.empty(1 << 60)

        def close(self):
            TooLarge.closed = True

    case, options = smoke_cases()[0], Options(torch.device("cpu"), "fp32", 1024, recompute=False)
    steps = make_steps(case, 3)
    assert gpu.play([lambda: LikelierPlayer(case, steps, options), TooLarge], 3, 0.0) is None
    assert TooLarge.closed
    assert "does not fit together" in capsys.readouterr().err
    (figures,) = gpu.play([lambda: LikelierPlayer(case, steps, options)], 3, 0.0)
    assert len(figures["turns"]) == 3


@pytest.mark.parametrize("name", ["ultrafeedback", "long-prompt", "four-responses"])
def test_made_up_pairs_are_as_long_as_their_shape_says(name):
    from gpu_cases import LONGEST, SHAPES, Case, make_steps

    shape = SHAPES[name]
    steps = make_steps(Case("llama-1b", "full", shape), 40)
    assert steps == make_steps(Case("llama-1b", "full", shape), 40)  # whoever makes them
    assert {len(step) for step in steps} == {shape.pairs_per_step}
    prompts = {pair.prompt_ids for step in steps for pair in step}
    replies = {pair.prompt_ids + reply: len(reply) for step in steps for pair in step for reply in pair.replies}
    assert len(prompts) == 40 * shape.pairs_per_step / shape.pairs_a_prompt
    assert len(replies) == shape.responses * len(prompts)
    assert sum(map(len, prompts)) / len(prompts) == pytest.approx(shape.prompt, rel=0.1)
    assert sum(replies.values()) / len(replies) == pytest.approx(shape.response, rel=0.05)
    assert max(replies.values()) <= LONGEST * shape.response
    longest = [max(map(len, step)) for step in steps]
    assert longest[0] == max(longest)


def test_bytes_of_one_tool_leave_half_of_the_memory_or_each_is_alone():
    """The arithmetic that decides, for the cases that are measured on a card of 139 GiB."""
    from gpu_cases import SHAPES, Case
    from gpu_players import held_by_both

    half = 139 * 2**30 / 2
    cases = [Case(model, method, SHAPES["ultrafeedback"]) for model in ("llama-1b", "qwen3-4b", "llama-8b") for method in ("full", "lora")]
    apart = {(each.model, each.method, opponent) for each in cases for opponent in ("default", "best") if held_by_both(each, opponent) >= half}
    assert apart == {(model, "full", opponent) for model in ("qwen3-4b", "llama-8b") for opponent in ("default", "best")}
