"""From turns to figures, on numbers that can be worked out by hand."""

import copy

import pytest

GIB = 2**30


def turns(seconds, reference_seconds=0.0):
    return [{"loss": 0.69, "seconds": 100.0, "reference_seconds": 0.0}] * 2 + [  # which warm up, and must not count
        {"loss": 0.69 - 0.01 * each, "seconds": each, "reference_seconds": reference_seconds} for each in seconds
    ]


@pytest.fixture
def match():
    return {
        "case": "llama-1b/full/ultrafeedback",
        "opponent": "default",
        "together": True,
        "pairs_per_step": 16,
        "unique_tokens": [1] * 2 + [1000] * 3,
        "needed_flops": [{"step": 1, "reference": 1}] * 2 + [{"step": 300, "reference": 100}] * 3,
        "likelier": {"turns": turns([1.0, 2.0, 4.0], 0.5), "peak_bytes": 3 * GIB, "start_peak_bytes": 4 * GIB, "reference_seconds": 1.5},
        "trl": {"turns": turns([6.0, 10.0, 9.0]), "peak_bytes": 16 * GIB, "precompute_seconds": 0.0},
    }


def test_figures_are_medians_over_timed_steps(match):
    from gpu_figures import add_figures

    add_figures(match, datasheet=1000.0, ceiling=500.0)
    figures = match["figures"]
    own, theirs = figures["likelier"], figures["trl"]
    assert figures["speed_up"] == 4.0  # of 6 / 1.5, 10 / 2.5, 9 / 4.5
    assert figures["speed_up_without_reference"] == 5.0  # of 6, 5, 9 / 4
    assert (own["pairs_per_second"], own["pairs_per_second_all"], own["unique_tokens_per_second"]) == (8.0, 16 / 2.5, 500.0)
    assert (own["mfu"], own["of_matmul_ceiling"]) == (0.15, 0.3)  # 300 FLOPs in 2 seconds
    assert theirs["mfu"] == pytest.approx((300 + 100) / 9 / 1000)  # its steps score the reference
    assert own["reference_flops_per_second"] == 200.0
    assert own["peak_bytes"] == 4 * GIB
    assert figures["peak_ratio"] == 0.25
    assert figures["largest_difference_of_losses"] == pytest.approx(0.08)
    match["opponent"] = "best"
    add_figures(match, datasheet=None, ceiling=500.0)
    assert match["figures"]["speed_up"] == 5.0
    assert match["figures"]["trl"]["of_matmul_ceiling"] == pytest.approx(300 / 9 / 500)
    assert match["figures"]["likelier"]["mfu"] is None


def test_the_table_says_what_does_not_fit_what_failed_and_what_was_left_out(match, capsys):
    from gpu_figures import add_figures, print_table

    unfit = copy.deepcopy(match) | {"together": False, "trl": None}
    failed = {"case": "llama-8b/lora/long-prompt", "opponent": "best", "failed": "ValueError: no"}
    for each in (match, unfit):
        add_figures(each, datasheet=1000.0, ceiling=500.0)
    matches = [each | {"ceiling": 5e14} for each in (match, unfit, failed)]
    print_table({"device": "NVIDIA H200", "precision": "bf16", "datasheet_rate": 989.5e12, "matches": matches, "left_out": ["qwen3-4b/full/x best"]})
    *_, first, second, third, last = capsys.readouterr().out.splitlines()
    assert first.split()[1:8] == ["default", "6.40", "1.78", "4.00", "500", "15.0%", "4.4%"]
    assert "default*" in second
    assert second.endswith("does not fit: T")
    assert third.endswith("failed: ValueError: no")
    assert last == "qwen3-4b/full/x best: left out, the time was over"
