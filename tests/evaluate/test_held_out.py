"""Numbers of held-out pairs, worked out by hand."""

import pytest
import torch

from likelier.evaluate.held_out import measure_held_out
from likelier.logprobs.plain import plain_token_logps
from likelier.objectives import make_objective
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
