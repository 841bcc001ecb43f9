"""Diagnosis: each rule sees its symptom in a made-up history, says the numbers and the settings, and is silent on a healthy one."""

import math
from itertools import pairwise

import pytest

from likelier.recipe import TrainSettings, parse_recipe
from likelier.train.watch import Diagnosis, Setup, Symptom, diagnose
from likelier.train.watch.rules import RULES, reference_changed

STEPS, EVERY = 40, 10


def recipe(**sections):
    settings = {"data": {"train": ["pairs.jsonl"]}, "train": {"pairs_per_step": 16, "epochs": 2, "eval_every": EVERY}}
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return parse_recipe(settings, where="test")


def healthy(step: int) -> dict:
    """What a good run looks like: both sides move apart, the chosen one a little down, as DPO does it."""
    moved = step / STEPS
    return {
        "loss": math.log(2) * (1 - 0.6 * moved),
        "accuracy": 0.5 + 0.45 * min(1.0, 2 * moved),
        "chosen_log_ratio": -4 * moved,
        "rejected_log_ratio": -20 * moved,
        "chosen_logp": -100 - 4 * moved,
        "rejected_logp": -120 - 20 * moved,
        "grad_norm": 8.0 / (1 + moved) * (1.5 if step % 3 else 1.0),
    }


def history(train=lambda step: {}, held_out=lambda step: {}, *, epochs=2.0, pairs=50, steps=STEPS) -> list[dict]:
    """Rows of a run of 40 steps, with what `train` and `held_out` change."""
    rows = [{"kind": "run", "step": 0}]
    for step in range(1, steps + 1):
        row = {"kind": "train", "step": step, "epoch": epochs * step / STEPS, "pairs": 16, **healthy(step), **train(step)}
        row["margin"] = None
        rows.append({name: value for name, value in row.items() if value != "absent"})
        if step % EVERY == 0:
            row = {"kind": "eval", "step": step, **healthy(step), "pairs": pairs, "kl": step / 10, **held_out(step)}
            rows.append({name: value for name, value in row.items() if value != "absent" and name != "grad_norm"})
    return rows


def film(**after) -> list[dict]:
    """Four watched prompts, untrained and at step 20."""
    before = {"length": 20, "ended": True, "repetition": 0.05, "apology": False, "refusal": False}
    rows = [{"step": 0, "id": f"p{i}", **before} for i in range(4)]
    for i in range(4):
        changed = {name: value[i] if isinstance(value, list) else value for name, value in after.items()}
        rows.append({"step": 20, "id": f"p{i}", **before, **changed})
    return rows


def seen(rows, filmstrip=(), **sections) -> dict[str, Symptom]:
    return {symptom.name: symptom for symptom in diagnose(rows, filmstrip, recipe(**sections))}


NO_REFERENCE = dict.fromkeys(("chosen_log_ratio", "rejected_log_ratio"), "absent")
STILL = {"loss": math.log(2), "accuracy": 0.5, "chosen_log_ratio": 0.01, "rejected_log_ratio": -0.01}
NOISE = {"loss": 0.70, "accuracy": 0.52}


def level(values):
    return lambda step: values


def falling(nats):
    """Both sides lose; the chosen one `nats` by the end, of 100."""

    def row(step):
        lost = -nats * step / STEPS
        return {"chosen_log_ratio": lost, "rejected_log_ratio": 1.5 * lost, "chosen_logp": -100 + lost}

    return row


CASES = {
    "learning-rate": (history(), [], {"train": {"learning_rate": 2e-2}}, 1, ["0.02", "0.0005"]),
    "beta": (history(), [], {"objective": {"beta": 0.001}}, 1, ["0.001", "objective.beta: 0.1"]),
    "epochs": (history(epochs=8.0), [], {"train": {"epochs": 8.0}}, 1, ["8 passes", "train.epochs"]),
    "not-finite": (
        [*history(), {"kind": "skipped", "step": 41, "loss": "nan", "grad_norm": "inf", "ids": ["a"]}],
        [],
        {},
        41,
        ["Step 41", "nan", "inf", "train.learning_rate"],
    ),
    "not-moving": (history(level(STILL), level(STILL)), [], {}, 20, ["20 steps", "0.2 nats", "train.learning_rate higher (now at most 0.0001)"]),
    "not-moving, nothing to tell apart": (history(level({**STILL, "grad_norm": 0.0}), level(STILL)), [], {}, 20, ["gradient was 0", "the data"]),
    "not-moving, without reference": (
        history(level(NO_REFERENCE), level({**NO_REFERENCE, "chosen_logp": -100.0, "rejected_logp": -90.0})),
        [],
        {"objective": {"name": "simpo"}},
        20,
        ["20 steps"],
    ),
    "flat-loss": (history(level(NOISE), level({"accuracy": 0.7})), [], {}, 20, ["0.700", "52.0%", "train.learning_rate higher"]),
    "flat-loss, for want of β": (history(level({"loss": 0.69})), [], {}, 20, ["0.690", "ranked right", "objective.beta higher"]),
    "at-chance": (
        history(level({"accuracy": 0.52}), level({"accuracy": 0.54})),
        [],
        {},
        20,
        ["54.0% and 54.0% of 50 held-out pairs", "labels"],
    ),
    "at-chance, nothing held out": (
        [row for row in history(level({"accuracy": 0.52})) if row["kind"] != "eval"],
        [],
        {},
        20,
        ["52.0% of 128 training pairs"],
    ),
    "both-falling": (history(falling(50)), [], {}, 22, ["nats less likely", "25.", "dpop or rpo"]),
    "chosen-collapse": (history(falling(120)), [], {}, 19, ["52.5 nats", "52.5% of the log-probability", "train.learning_rate lower"]),
    "chosen-collapse, without reference": (
        history(level(NO_REFERENCE), lambda step: {**NO_REFERENCE, "chosen_logp": -100.0 - 2 * step, "rejected_logp": -100.0}),
        [],
        {"objective": {"name": "orpo"}},
        40,
        ["60 nats", "50.0%"],
    ),
    "overfitting": (history(level({"accuracy": 0.98}), level({"accuracy": 0.66})), [], {}, 30, ["98.0%", "66.0%", "1.50 passes", "train.epochs"]),
    "overfitting, by the loss": (
        history(level({"loss": 0.2}), lambda step: {"loss": 0.3 if step == 10 else 0.4}),
        [],
        {},
        30,
        ["rose from 0.300 to 0.400", "fell to 0.200"],
    ),
    "gradient-spike": (
        history(lambda step: {"grad_norm": 130.0} if step == 25 else {}),
        [],
        {},
        25,
        ["130", "times the median", "cut to 1"],
    ),
    "kl-budget": (history(held_out=lambda step: {"kl": 2.0 * step}), [], {}, 20, ["40 nats", "30", "eval.kl_budget"]),
    "kl-budget, a given one": (history(), [], {"eval": {"kl_budget": 2.5}}, 30, ["3 nats", "2.50"]),
    "length-drift": (history(), film(length=31), {}, 20, ["31 tokens", "20 before", "r-dpo"]),
    "length-drift, without end": (history(), film(length=24, ended=[False, False, True, True]), {}, 20, ["2 of 4 reach the limit, 0 did"]),
    "length-drift, to nothing": (history(), film(length=3), {}, 20, ["3 tokens", "shorter reply"]),
    "apology-drift": (history(), film(apology=[True, False, True, False]), {}, 20, ["2 of 4", "0 did"]),
    "refusal-drift": (history(), film(refusal=[True, True, True, False]), {}, 20, ["3 of 4", "helps"]),
    "repetition": (history(), film(repetition=0.4), {}, 20, ["40.0%", "5.0% before", "although held-out accuracy is 95.0%", "0.2 sft"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_symptom_is_seen_where_it_begins_with_its_numbers_and_its_mend(case):
    rows, filmstrip, sections, step, says = CASES[case]
    found = seen(rows, filmstrip, **sections)
    symptom = found[case.split(",")[0]]
    assert symptom.step == step
    assert symptom.verdict in ("warn", "note")
    for words in says:
        assert words in f"{symptom.evidence} {symptom.mend}"
    assert not symptom.mend.endswith(".")
    assert symptom.evidence.endswith(".")


def test_every_rule_has_its_case():
    names = {name for rows, filmstrip, sections, *_ in CASES.values() for name in seen(rows, filmstrip, **sections)}
    assert {case.split(",")[0] for case in CASES} == names
    assert len(RULES) == len(names) - 2  # one rule speaks of learning rate, β and epochs


HEALTHY = {
    "plain": (history(), film(), {}),
    "a step up on the way": (history(lambda step: {"grad_norm": 20.0} if step == 25 else {}), [], {}),
    "learnt, with one pair that is not": (history(lambda step: {"grad_norm": 0.9 if step == 39 else 0.01}), [], {}),
    "a sixth of the chosen side's likelihood lost": (history(falling(17)), [], {}),
    "half of it lost, of a reply of ten nats": (
        history(lambda step: {"chosen_log_ratio": -step / 8, "chosen_logp": -10 - step / 8}),
        [],
        {},
    ),
    "the chosen side lost and came back": (
        history(lambda step: {"chosen_log_ratio": -20.0 + step / 4, "chosen_logp": -120.0 + step / 4}),
        [],
        {},
    ),
    "first half without effect, then learning": (history(lambda step: STILL if step < 18 else {}), [], {}),
    "few held-out pairs at chance": (history(level({"accuracy": 0.6}), level({"accuracy": 0.5}), pairs=6), [], {}),
    "many held-out pairs of few prompts at chance": (history(level({"accuracy": 0.6}), level({"accuracy": 0.5, "prompts": 6})), [], {}),
    "at chance at first": (history(held_out=lambda step: {"accuracy": 0.5 if step == 10 else 0.8}), [], {}),
    "without reference, below chance": (
        history(level({**NO_REFERENCE, "accuracy": 0.2}), lambda step: {**NO_REFERENCE, "accuracy": 0.2, "chosen_logp": -100 + step / 4}),
        [],
        {"objective": {"name": "sft"}},
    ),
    "a supervised term's loss, which differs from batch to batch": (
        history(level({"loss": 3.8, "accuracy": 0.7})),
        [],
        {"objective": {"name": "dpo + sft"}},
    ),
    "a gap within the first pass": (history(level({"accuracy": 0.98}), level({"accuracy": 0.66}), epochs=1.0), [], {"train": {"epochs": 1}}),
    "a gap that few pairs explain": (history(level({"accuracy": 0.98}), level({"accuracy": 0.75}), pairs=8), [], {}),
    "a gap that few prompts explain": (history(level({"accuracy": 0.98}), level({"accuracy": 0.75, "prompts": 8})), [], {}),
    "half a pass": (history(epochs=0.5), [], {"train": {"epochs": 0.5}}),
    "no KL measured": (history(held_out=level({"kl": None})), [], {"eval": {"kl_budget": 0.1}}),
    "replies a third shorter, one with an apology": (history(), film(length=13, apology=[True, False, False, False]), {}),
    "loops that were there before": (history(), [{**row, "repetition": 0.5} for row in film()], {}),
    "a side that a step lacks": (
        history(lambda step: {"rejected_log_ratio": None, "rejected_logp": None} if step % 5 == 0 else {}),
        [],
        {"objective": {"name": "kto"}},
    ),
    "the rejected side, which fell at first, comes back": (
        history(lambda step: {**falling(50)(step), "rejected_log_ratio": -30.0 + step / 4, "rejected_logp": -150.0 + step / 4}),
        [],
        {},
    ),
    "replies that never had a token": (history(), [{**row, "length": 0} for row in film()], {}),
    "a rate somewhat above the usual": (history(), [], {"train": {"method": "full", "learning_rate": 2e-5}}),
    "nothing logged yet": ([{"kind": "run", "step": 0}], [], {}),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_run_shows_nothing(case):
    rows, filmstrip, sections = HEALTHY[case]
    assert seen(rows, filmstrip, **sections) == {}


def test_each_is_told_once_and_what_was_told_is_not_told_again():
    rows = history(falling(120), held_out=lambda step: {"kl": 3.0 * step})
    live = Diagnosis(Setup.of(recipe()))
    told = [(row, live.after(row)) for row in rows]
    names = [symptom.name for _, found in told for symptom in found]
    assert sorted(names) == ["both-falling", "chosen-collapse", "kl-budget"]
    written = [each for row, found in told for each in (row, *(symptom.row() for symptom in found))]
    assert Diagnosis(Setup.of(recipe())).catch_up(written, []) == []
    assert diagnose(written, [], recipe()) == [symptom for _, found in told for symptom in found] == diagnose(rows, [], recipe())
    steps = [symptom.step for symptom in diagnose(rows, [], recipe())]
    assert all(a <= b for a, b in pairwise(steps))


def test_what_no_curve_shows_stays_in_the_rows():
    symptom = reference_changed(40)
    assert diagnose([*history(), symptom.row()], [], recipe()) == [symptom]
    assert symptom.row() == {
        "kind": "symptom",
        "step": 40,
        "verdict": "warn",
        **{n: getattr(symptom, n) for n in ("name", "title", "evidence", "mend")},
    }


def test_without_a_recipe_curves_are_judged_and_settings_are_not():
    setup = Setup(TrainSettings(method="full", learning_rate=1e-2, epochs=2), Setup.of(recipe()).objective)
    assert Diagnosis(setup).catch_up(history(), []) == []
    assert [s.name for s in Diagnosis(setup).catch_up(history(level(STILL), level(STILL)), [])] == ["not-moving"]
