"""The verdict of a run: which numbers lead to which sentence, and that there are always three."""

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.report.made_up import made_up_evaluation, made_up_manifest, second_version

from likelier.metrics import Interval
from likelier.report.diagnosis import Symptom
from likelier.report.verdict import Decision, Verdict, reach_verdict
from likelier.wording import listing

WARNING = Symptom(1, "Chosen replies lose probability", "warn", 60, "It fell.", "Train less.")
NOTE = Symptom(2, "A gradient spike", "note", 80, "It rose.", "")
Change = Callable[[dict[str, Any], dict[str, Any]], Any]


@pytest.fixture(scope="module")
def healthy() -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and evaluation of a run against which nothing speaks."""
    rng = np.random.default_rng(0)
    manifest, evaluation = made_up_manifest("f" * 64, rng, 120), second_version(made_up_evaluation(rng), rng)
    evaluation["probes"] = [probe for probe in evaluation["probes"] if probe["name"] != "refusals"]
    evaluation["calibration"]["ece"] = 0.03
    return manifest, evaluation


def judged(run: tuple[dict[str, Any], dict[str, Any]], change: Change | None = None, *symptoms: Symptom) -> Verdict:
    manifest, evaluation = copy.deepcopy(run)
    if change:
        change(manifest, evaluation)
    verdict = reach_verdict(manifest, evaluation, [], symptoms)
    assert_three_sentences(verdict)
    return verdict


def assert_three_sentences(verdict: Verdict) -> None:
    for sentence in verdict.sentences:
        assert sentence[0].isupper()
        assert re.search(r"[^.]\.$", sentence)
        assert not re.search(r"[.:?!] [A-Z]|  |\(\)|None|nan", sentence)


def accuracy(value: float, low: float, high: float) -> Change:
    return lambda _, evaluation: evaluation["held_out"].update(accuracy=Interval(value, low, high).as_dict())


def test_a_healthy_run_is_to_be_shipped(healthy: Any) -> None:
    verdict = judged(healthy, accuracy(0.754, 0.669, 0.831))
    assert verdict.decision == Decision.SHIP
    assert verdict.learned == (
        "It learned the preference: on 118 held-out pairs it ranks the chosen reply first in 75.4% (95% interval 66.9 to 83.1), where chance is 50%."
    )
    assert re.match(r"It cost 3\.\d+ nats of KL \(3\.\d+ to 3\.\d+\) from the reference; replies went from [\d.]+ to [\d.]+ tokens", verdict.cost)
    assert verdict.cost.endswith("none of 3 probes got worse and no symptom warns.")
    assert verdict.advice == "Ship it: nothing that was measured speaks against it."


@pytest.mark.parametrize(
    "low, high, decision, learned, advice",
    [
        (0.51, 0.7, Decision.SHIP, "It learned the preference:", "Ship it:"),
        (0.5, 0.7, Decision.STOP, "It has not shown that it learned", "cannot be told from chance"),
        (0.45, 0.7, Decision.STOP, "It has not shown that it learned", "cannot be told from chance"),
        (0.3, 0.49, Decision.STOP, "It learned the opposite", "the wrong way round"),
        (-np.inf, np.inf, Decision.STOP, "(no interval: too few prompts)", "cannot be told from chance"),
    ],
)
def test_accuracy_must_lie_above_chance(healthy: Any, low: float, high: float, decision: Decision, learned: str, advice: str) -> None:
    verdict = judged(healthy, accuracy(0.5 if np.isinf(low) else (low + high) / 2, low, high))
    assert verdict.decision == decision
    assert learned in verdict.learned
    assert advice in verdict.advice


def test_a_moved_reference_spoils_every_number(healthy: Any) -> None:
    verdict = judged(healthy, lambda manifest, _: manifest["reference"].update(unchanged=False))
    assert verdict.decision == Decision.STOP
    assert "its reference changed" in verdict.advice


def test_without_a_reference_half_right_is_no_starting_point(healthy: Any) -> None:
    """SimPO's and ORPO's rewards rank pairs before any training, often the shorter reply first."""

    def alone(manifest: dict[str, Any], evaluation: dict[str, Any]) -> None:
        manifest["reference"] = None
        evaluation["held_out"]["accuracy"] = Interval(0.22, 0.11, 0.33).as_dict()

    verdict = judged(healthy, alone)
    assert verdict.decision == Decision.LOOK
    assert verdict.learned.startswith("On 118 held-out pairs it ranks the chosen reply first in 22.0% (95% interval 11.0 to 33.0), some of which")
    assert "its held-out accuracy, which does not lie above 50%" in verdict.advice
    assert judged(healthy, lambda manifest, _: manifest.update(reference=None)).decision == Decision.SHIP


def test_a_symptom_that_warns_is_to_be_looked_at_and_a_note_is_not(healthy: Any) -> None:
    assert judged(healthy, None, NOTE).decision == Decision.SHIP
    verdict = judged(healthy, None, WARNING, NOTE)
    assert verdict.decision == Decision.LOOK
    assert "1 symptom warns (“Chosen replies lose probability”)" in verdict.cost
    assert verdict.advice == "Before shipping it, look at the symptom “Chosen replies lose probability” of step 60."


def test_a_worse_probe_is_named_with_its_numbers(healthy: Any) -> None:
    def refuse(_: Any, evaluation: dict[str, Any]) -> None:
        sides = {"before": Interval(0.025, 0, 0.06), "after": Interval(0.1375, 0.08, 0.2), "difference": Interval(0.1125, 0.05, 0.19)}
        row = {"name": "x", "title": "Refusals", "unit": "share", "better": "lower", "items": 80}
        evaluation["probes"].append(row | {side: interval.as_dict() for side, interval in sides.items()})

    verdict = judged(healthy, refuse)
    assert verdict.decision == Decision.LOOK
    assert "1 of 4 probes got worse (“Refusals”)" in verdict.cost
    assert "the probe “Refusals”, which got worse (2.5% → 13.8%)" in verdict.advice


@pytest.mark.parametrize("pairs, decision", [(9, Decision.SHIP), (10, Decision.LOOK)])
def test_a_group_ranked_wrong_counts_from_ten_pairs_on(healthy: Any, pairs: int, decision: Decision) -> None:
    row = {"pairs": pairs, "accuracy": Interval(0.2, 0.1, 0.4).as_dict()}
    verdict = judged(healthy, lambda _, evaluation: evaluation["by"]["group"].update({"business": row}))
    assert verdict.decision == decision
    assert ("the pairs of “business”, of which only 20.0% are ranked right" in verdict.advice) == (decision == Decision.LOOK)


@pytest.mark.parametrize("prompts, decision", [(2, Decision.LOOK), (19, Decision.LOOK), (20, Decision.SHIP)])
def test_prompts_are_counted_and_not_their_pairs(healthy: Any, prompts: int, decision: Decision) -> None:
    of_each_pair = [n % prompts for n in range(118)]
    measured = judged(healthy, lambda _, evaluation: evaluation.update(margins={"value": [1.0] * 118, "prompt": of_each_pair}))
    first_version = judged(healthy, lambda manifest, _: manifest["data"]["eval"].update(prompts=prompts))
    for few in (measured, first_version):
        assert few.decision == decision
        words = f"more held-out data (118 held-out pairs on {prompts} prompts are too few to tell)"
        assert (words in few.advice) == (decision == Decision.LOOK)


def test_an_audit_overruled_is_a_doubt(healthy: Any) -> None:
    overruled = judged(healthy, lambda manifest, _: manifest.update(audit={"accepted": ["ties", "secrets"]}))
    assert "the audit, whose fatal findings were accepted (ties and secrets)" in overruled.advice


@pytest.mark.parametrize(
    "ece, temperature, told",
    [(0.12, (1.84, 1.4, 2.5), True), (0.04, (1.84, 1.4, 2.5), False), (0.12, (1.2, 0.9, 1.6), False), (0.12, None, False)],
)
def test_miscalibration_is_told_and_keeps_nobody_from_shipping(healthy: Any, ece: float, temperature: Any, told: bool) -> None:
    fitted = Interval(*temperature).as_dict() if temperature else None
    verdict = judged(healthy, lambda _, evaluation: evaluation["calibration"].update(ece=ece, temperature=fitted))
    assert verdict.decision == Decision.SHIP
    assert ("; only divide its margins by 1.84 before reading them as log-odds (calibration error 12.0%)" in verdict.advice) == told


def test_before_there_are_numbers_it_says_what_to_wait_for(healthy: Any) -> None:
    manifest, _ = healthy
    running = reach_verdict(manifest | {"outcome": None}, None, [], [WARNING])
    unasked = reach_verdict(manifest, None, [{"step": 120, "accuracy": 0.7}], [])
    nothing_held_out = reach_verdict(manifest | {"data": {"train": {}, "eval": {"prompts": 0}}}, None, [], [])
    for verdict, learned, advice in (
        (running, "nothing has been measured", "it has not ended"),
        (unasked, "step 120, held-out accuracy was 70.0%", "`likelier eval` has not been run"),
        (nothing_held_out, "nothing has been measured", "Hold pairs out"),
    ):
        assert verdict.decision == Decision.WAIT
        assert learned in verdict.learned
        assert advice in verdict.advice
        assert_three_sentences(verdict)
    assert "1 symptom warns" in running.cost


def test_an_evaluation_without_probes_is_judged_too(healthy: Any) -> None:
    manifest, evaluation = healthy
    bare = {"pairs": 50, "held_out": {"accuracy": evaluation["held_out"]["accuracy"], "kl": None}, "by": {}, "probes": []}
    verdict = reach_verdict(manifest, bare, [], [])
    assert "95% interval" in verdict.learned
    assert_three_sentences(verdict)
    assert verdict.cost == "Its KL from the reference was not measured; no probe was asked and no symptom warns."
    assert verdict.advice == "Before shipping it, look at what else it changed, since no probe was asked."


def test_replies_judged_alone_have_their_own_words(healthy: Any) -> None:
    verdict = judged(healthy, lambda _, evaluation: evaluation.update(replies=40, pairs=0))
    assert "of 40 held-out replies, good ones became likelier and bad ones less likely in" in verdict.learned
    assert verdict.decision == Decision.SHIP


def test_lists_read_well() -> None:
    assert [listing(list("abcd")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert (listing("abcd", 2), listing("abc", 3)) == ("a, b and 2 more", "a, b and c")
