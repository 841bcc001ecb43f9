"""Advice: each rule speaks where it should, names the setting that mends it, and is silent beside it."""

from dataclasses import replace
from importlib.resources import files

import pytest
import yaml

from likelier.objectives import TABLE
from likelier.train.advice import RULES, Facts, Weight, advise, gigabytes

SOUND = Facts(
    objective="dpo",
    terms=("dpo",),
    settings={"beta": 0.1, "label_smoothing": 0.0},
    usual_beta=0.1,
    paired=True,
    needs_reference=True,
    method="lora",
    learning_rate=1e-4,
    epochs=1.0,
    steps=60,
    tokens_per_batch=1024,
    pairs=1000,
    longest=700,
    max_length=1024,
    chosen_length=100,
    rejected_length=90,
    parameters=7_000_000_000,
    end_logp=-0.5,
    memory_needed=10,
    memory_free=100,
    fits=True,
    reference_bytes=10,
    disk_bytes=10,
    cache_free=100,
    disk_free=100,
)
FULL = replace(SOUND, method="full", learning_rate=1e-6)
KTO = replace(SOUND, objective="kto", terms=("kto",), settings={**TABLE["kto"].hyperparameters}, paired=False)
LESS = {"selective": 60, True: 20, "offload": 10}

CASES = [
    ("memory", Weight.PROBLEM, "tokens_per_batch smaller", replace(SOUND, fits=False)),
    ("memory", Weight.PROBLEM, "train.method: qlora", replace(SOUND, fits=False)),
    ("memory", Weight.PROBLEM, "train.optimizer: adamw-8bit, train.method: lora", replace(FULL, fits=False)),
    ("memory", Weight.PROBLEM, "8bit, train.bf16_weights: stochastic-rounding, ", replace(FULL, fits=False, precision="bf16")),
    ("memory", Weight.WARNING, "gradient_checkpointing: selective,", replace(SOUND, fits=None, memory_needed=101, memory_recomputing=LESS)),
    (
        "memory",
        Weight.WARNING,
        "gradient_checkpointing: true,",
        replace(SOUND, fits=None, memory_needed=101, memory_free=59, memory_recomputing=LESS),
    ),
    ("memory", Weight.WARNING, "_checkpointing: offload,", replace(SOUND, fits=None, memory_needed=101, memory_free=9, memory_recomputing=LESS)),
    ("reference-room", Weight.PROBLEM, "orpo or simpo", replace(SOUND, reference_bytes=101)),
    ("disk", Weight.PROBLEM, "out: a folder on another disk", replace(SOUND, disk_bytes=101)),
    ("unpaired", Weight.PROBLEM, "objective.name: kto", replace(SOUND, pairs=900, good=60, bad=40)),
    ("paired", Weight.REMARK, "objective.name: dpo", KTO),
    ("one-kind", Weight.WARNING, "bad replies as well", replace(KTO, pairs=0, good=300)),
    ("one-kind", Weight.WARNING, "good replies as well", replace(KTO, pairs=0, bad=300)),
    ("base-model", Weight.WARNING, "orpo", replace(SOUND, has_template=False)),
    ("base-model", Weight.WARNING, "orpo", replace(SOUND, end_logp=-9.0)),
    ("label-noise", Weight.WARNING, "label_smoothing: 0.1", replace(SOUND, findings={"label-noise": "warn"})),
    ("label-noise", Weight.WARNING, "robust-dpo or ipo", replace(SOUND, findings={"contradictions": "fatal"})),
    ("length-bias", Weight.WARNING, "balance-length`; or objective.name: r-dpo", replace(SOUND, findings={"length-bias": "warn"})),
    ("length-bias", Weight.REMARK, "balance-length", replace(SOUND, findings={"length-bias": "warn"}, chosen_length=10)),
    ("learning-rate", Weight.REMARK, "train.learning_rate: 0.0005", replace(SOUND, learning_rate=2e-3)),
    ("learning-rate", Weight.REMARK, "train.learning_rate: 0.0005", replace(SOUND, learning_rate=2e-3, method="qlora")),
    ("learning-rate", Weight.WARNING, "train.learning_rate: 5e-06", replace(SOUND, learning_rate=1e-4, method="full")),
    ("learning-rate", Weight.REMARK, "train.learning_rate: 5e-07", replace(SOUND, learning_rate=1e-7, method="full")),
    ("learning-rate", Weight.WARNING, "train.learning_rate: 5e-06", replace(SOUND, learning_rate=1e-7, method="qlora")),
    ("beta", Weight.REMARK, "objective.beta: 0.1", replace(SOUND, settings={"beta": 0.6})),
    ("beta", Weight.REMARK, "objective.beta: 0.1", replace(SOUND, settings={"beta": 0.005})),
    ("beta", Weight.WARNING, "objective.beta: 0.1", replace(SOUND, settings={"beta": 0.001})),
    ("beta", Weight.WARNING, "objective.beta: 0.1", replace(SOUND, settings={"beta": 3.0})),
    ("beta", Weight.REMARK, "objective.beta: 2", replace(SOUND, terms=("simpo",), settings={"beta": 0.1}, usual_beta=2.0, needs_reference=False)),
    ("epochs", Weight.REMARK, "1 to 3", replace(SOUND, epochs=4)),
    ("epochs", Weight.WARNING, "1 to 3", replace(SOUND, epochs=7)),
    ("epochs", Weight.REMARK, "max_steps", replace(SOUND, epochs=0.4)),
    ("small-set", Weight.REMARK, "train.method: lora", replace(SOUND, pairs=150, method="full", learning_rate=1e-6)),
    ("small-set", Weight.REMARK, "learning_rate below 0.0001", replace(SOUND, pairs=150, learning_rate=2e-4)),
    ("few-steps", Weight.REMARK, "pairs_per_step smaller", replace(SOUND, steps=9)),
    ("margins", Weight.REMARK, "margin_scale above 0", replace(SOUND, margins=12)),
    ("batch", Weight.REMARK, "tokens_per_batch: 2048", replace(SOUND, longest=1025)),
    ("max-length", Weight.WARNING, "data.max_length above 1024", replace(SOUND, too_long=60)),
]


@pytest.mark.parametrize("rule, weight, change, facts", CASES)
def test_a_rule_speaks_and_names_the_mend(rule, weight, change, facts):
    [given] = [advice for advice in advise(facts) if advice.rule == rule]
    assert given.weight == weight
    assert change in given.change
    assert given.reason.endswith((".", "?"))


SILENT = [
    SOUND,
    replace(SOUND, epochs=3.0, steps=10, longest=1024, too_long=52, margins=3, margin_scale=0.1, pairs=1000),
    replace(SOUND, findings={"label-noise": "warn"}, settings={"beta": 0.1, "label_smoothing": 0.1}),
    replace(SOUND, findings={"label-noise": "warn", "length-bias": "warn"}, terms=("ipo", "r-dpo")),
    replace(SOUND, findings={"label-noise": "note", "length-bias": "note"}),
    replace(SOUND, has_template=False, terms=("orpo",), objective="orpo", learning_rate=8e-6, method="full"),
    replace(SOUND, terms=("simpo",), settings={"beta": 2.5}, usual_beta=2.0),
    replace(SOUND, settings={"beta": 0.5}, learning_rate=5e-6, method="full"),
    replace(SOUND, end_logp=None, fits=None, memory_free=None, chosen_length=None, cache_free=None, disk_free=None),
    replace(KTO, pairs=0, good=120, bad=100),
    replace(SOUND, pairs=150, learning_rate=1e-4),
    replace(SOUND, pairs=150, learning_rate=1e-4, method="qlora"),
]


@pytest.mark.parametrize("facts", SILENT)
def test_nothing_is_said_of_what_is_sound(facts):
    assert advise(facts) == []


@pytest.mark.parametrize("good, bad", [(10, 300), (300, 10), (5, 7), (1000, 1)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)])
def test_the_weights_that_kto_is_advised_to_take_need_no_further_advice(good, bad, weights):
    settings = {"beta": 0.1, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    facts = replace(KTO, pairs=0, good=good, bad=bad, settings=settings)
    [given] = [advice for advice in advise(facts) if advice.rule == "kto-balance"]
    name, value = given.change.removeprefix("objective.").split(": ")
    mended = replace(facts, settings={**settings, name: float(value)})
    assert float(value) >= settings[name]
    assert not [advice for advice in advise(mended) if advice.rule == "kto-balance"]


def test_what_is_done_already_is_no_way_to_take_less():
    frugal = {"optimizer": "adamw-8bit", "fits": False, "disk_bytes": 101}
    for facts in (replace(SOUND, method="qlora", **frugal), replace(FULL, bf16_weights="stochastic-rounding", precision="bf16", **frugal)):
        told = " ".join(advice.change for advice in advise(facts))
        for done in ("gradient_checkpointing", "adamw-8bit", "stochastic-rounding", "qlora"):
            assert done not in told
        assert ("train.method: lora" in told) == (facts.method == "full")
    assert "stochastic-rounding" not in advise(replace(FULL, fits=False))[0].change  # in fp32


def test_a_mixture_is_not_sent_to_objectives_of_pairs():
    """Those refuse its single replies."""
    facts = replace(KTO, good=50, bad=50, findings={"length-bias": "warn"})
    for chosen_length in (100, 10):
        [given] = [advice for advice in advise(replace(facts, chosen_length=chosen_length)) if advice.rule == "length-bias"]
        assert given.change == "`likelier fix --do balance-length`"


def test_the_weightiest_stands_first():
    facts = replace(SOUND, fits=False, margins=3, findings={"label-noise": "warn"}, steps=3)
    assert [str(advice.weight) for advice in advise(facts)] == ["problem", "warning", "remark", "remark"]


def test_a_model_of_few_parameters_may_take_the_demos_rate():
    """What the demo's recipe explains in its own comment is a remark that says the same."""
    recipe = yaml.safe_load((files("likelier") / "assets" / "demo.yaml").read_text())
    rate = recipe["train"]["learning_rate"]
    beta, epochs = recipe["objective"]["beta"], recipe["train"]["epochs"]
    facts = replace(SOUND, method="full", learning_rate=rate, settings={"beta": beta}, epochs=epochs, pairs=490, parameters=135_000_000)
    [given] = advise(facts)
    assert (given.rule, given.weight) == ("learning-rate", Weight.REMARK)
    assert "135 million parameters often takes more" in given.reason


def test_every_rule_has_a_case():
    for rule in RULES:
        assert any(list(rule(facts)) for *_, facts in CASES) or rule.__name__ == "kto_balance"


def test_sizes_are_said_in_words():
    assert [gigabytes(size) for size in (2_140_000_000, 310_400_000, 4_200)] == ["2.1 GB", "310 MB", "4 kB"]
