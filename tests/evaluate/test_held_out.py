"""Numbers of held-out pairs, worked out by hand."""

import math

import pytest
import torch

from likelier.data.chat import Encoded
from likelier.data.load import Side
from likelier.evaluate.held_out import measure_held_out
from likelier.examples import PreferenceExample
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.plain import plain_token_logps
from likelier.objectives import TABLE, make_objective
from likelier.records import Message, Pair
from tests.evaluate.conftest import PAIRS, sides, value_of


def test_pairs_alone_can_be_measured_without_a_reference(make_run):
    _, _, model, held_out = make_run()
    chosen, rejected = sides(held_out)
    with torch.no_grad():
        logps = dict(zip([*chosen, *rejected], plain_token_logps(model, [*chosen, *rejected]), strict=True))
    result = measure_held_out(held_out, make_objective("simpo", beta=1.0), policy=logps, reference=None)
    assert "chosen_logp_change" not in result["held_out"]
    assert value_of(result, "rejected_reward") == pytest.approx(float(torch.stack([logps[s].mean() for s in rejected]).mean()))
    with pytest.raises(ValueError, match="needs the reference"):
        measure_held_out(held_out, make_objective("dpo"), policy=logps, reference=None)


def test_pairs_of_one_prompt_are_one_cluster(make_run):
    _, _, _, held_out = make_run(pairs=PAIRS[:2])
    chosen, rejected = sides(held_out)
    logps = {sequence: torch.full((len(sequence.response_ids),), -1.0 - i) for i, sequence in enumerate([*chosen, *rejected])}
    result = measure_held_out(held_out, make_objective("simpo"), policy=logps, reference=None)
    assert result["held_out"]["accuracy"] == {"value": 1.0, "low": None, "high": None}


@pytest.mark.parametrize("name", TABLE)
def test_margins_of_every_objective_are_measured_and_calibrated(make_run, name):
    _, _, _, held_out = make_run()
    noise = torch.Generator().manual_seed(1)
    logps = [{s: -torch.rand(len(s.response_ids), generator=noise) for s in sequences_of(held_out.examples)} for _ in range(2)]
    result = measure_held_out(held_out, make_objective(name), policy=logps[0], reference=logps[1])
    margin, calibration = result["held_out"]["margin"], result["calibration"]
    assert margin["low"] < margin["value"] < margin["high"]
    assert (0 <= calibration["ece"] <= 1, 0 < calibration["brier"] < 1, calibration["nll"] > 0) == (True, True, True)
    assert "fewer than ten prompts" in calibration["note"]


def test_parts_by_which_reply_is_longer_and_by_group():
    """Differences of lengths at both ends of the middle bins; rewards that make the longer reply win."""
    lengths = [(1, 33), (2, 33), (1, 9), (2, 9), (9, 2), (9, 1), (33, 2), (33, 1)]
    examples = [PreferenceExample((100 + i,), (5,) * chosen, (6,) * rejected) for i, (chosen, rejected) in enumerate(lengths)]
    said = Message("user", "?"), Message("assistant", "!")
    records = [Pair(said[:1], said[1:], said[1:], group="a" if i < 6 else "b") for i in range(len(lengths))]
    side = Side(("made up",), records, Encoded(examples, [], []), "id")
    logps = {sequence: torch.full((len(sequence.response_ids),), 0.1) for sequence in sequences_of(examples)}
    result = measure_held_out(side, make_objective("cpo", beta=1.0), policy=logps, reference=None)
    assert list(result["by"]) == ["group", "length"], "without reasons there is no such part"
    found = {name: (part["pairs"], part["accuracy"]["value"], round(part["margin"]["value"], 3)) for name, part in result["by"]["length"].items()}
    assert found == {
        "chosen shorter by 32 or more": (1, 0.0, -3.2),
        "chosen shorter by 8 to 31": (2, 0.0, -1.95),
        "within 7 tokens": (2, 0.5, 0.0),
        "chosen longer by 8 to 31": (2, 1.0, 1.95),
        "chosen longer by 32 or more": (1, 1.0, 3.2),
    }
    assert {name: part["pairs"] for name, part in result["by"]["group"].items()} == {"a": 6, "b": 2}


def test_a_temperature_is_fitted_on_enough_prompts():
    examples = [PreferenceExample((100 + i,), (5,), (6,)) for i in range(40)]
    said = Message("user", "?"), Message("assistant", "!")
    side = Side(("made up",), [Pair(said[:1], said[1:], said[1:])] * 40, Encoded(examples, [], []), "id")
    right, wrong = torch.tensor([-1.0]), torch.tensor([-3.0])
    logps = {}
    for i, example in enumerate(examples):
        chosen, rejected = sequences_of([example])
        logps |= {chosen: right, rejected: wrong} if i % 4 else {chosen: wrong, rejected: right}
    calibration = measure_held_out(side, make_objective("cpo", beta=1.0), policy=logps, reference=None)["calibration"]
    assert calibration["temperature"]["value"] == pytest.approx(2 / math.log(3)), "margins of 2, of which three in four are right"
    assert calibration["after"]["nll"] < calibration["nll"]
    assert calibration["after"]["brier"] == pytest.approx(0.75 * 0.25**2 + 0.25 * 0.75**2, abs=0.01)
    assert "fitted on the other prompts" in calibration["note"]
