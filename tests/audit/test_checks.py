import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from likelier.audit.checks import CHECKS
from likelier.audit.faults import KINDS
from likelier.audit.findings import Verdict
from likelier.audit.fix import MENDS
from likelier.audit.privacy import mask
from likelier.audit.run import tabulate
from likelier.audit.surface import marks_of
from likelier.metrics import has_apology, has_refusal
from likelier.records import Message, Pair
from likelier.thresholds import AuditSettings
from tests.audit.corpus import PLANTERS, asked, clean, pair, reply

LIMITS = AuditSettings()


@pytest.fixture(scope="module")
def clean_table():
    return tabulate(clean(), LIMITS)


@pytest.mark.parametrize("check", CHECKS)
def test_a_clean_set_is_left_alone(clean_table, check):
    finding = CHECKS[check](clean_table, LIMITS)
    assert finding.verdict <= Verdict.NOTE, finding.summary


@pytest.mark.parametrize("check, verdict, plant", PLANTERS, ids=lambda value: getattr(value, "__name__", value))
def test_every_planted_fault_is_found(check, verdict, plant, clean_table):
    pairs, planted = plant(clean())
    table = tabulate(pairs, LIMITS)
    finding = CHECKS[check](table, LIMITS)
    assert finding.verdict >= Verdict[verdict.upper()], finding.summary
    found = {table.ids[row] for row in finding.rows}
    assert planted <= found
    if planted and check != "label-noise":  # and nothing else, but for what is found in the clean set too; noise names suspects
        assert found - planted <= {clean_table.ids[row] for row in CHECKS[check](clean_table, LIMITS).rows}
    assert finding.mend
    assert all(math.isfinite(number.value.value) for number in finding.numbers)
    assert all(number.value.low <= number.value.value <= number.value.high for number in finding.numbers)


def test_every_check_has_a_fault_planted():
    assert {check for check, _, _ in PLANTERS} == set(CHECKS) - {"over-long"}


def test_the_docs_name_every_check_and_every_limit():
    told = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    names = [*CHECKS, *(kind.check for kind in KINDS.values()), "leakage", *MENDS, *(AuditSettings.model_fields.keys() - {"accept"})]
    assert [name for name in names if f"`{name}`" not in told] == []


def findings(pairs):
    table = tabulate(pairs, LIMITS)
    return {name: check(table, LIMITS) for name, check in CHECKS.items()}


def numbers_asked(question, count=12):
    return [pair(f"{a}-{b}", question.format(a, b), str((a + b) % 7), str((a + b) % 7 + 1)) for a in range(count) for b in range(count)]


@pytest.mark.parametrize("question", ["What is {} plus {}?", "{}加{}等于多少？", "{}{}"])
def test_one_letter_answers_to_templated_prompts(question):
    found = findings(numbers_asked(question))
    assert found["label-noise"].verdict == Verdict.OK
    assert found["surface-features"].verdict <= Verdict.NOTE


@pytest.mark.parametrize("pairs", [[], clean(1), [pair("same", "Why?", "Yes.", "No.")] * 300], ids=["none", "one", "all equal"])
def test_sets_without_any_variety(pairs):
    for finding in findings(pairs).values() if pairs else ():
        assert all(math.isfinite(number.value.value) for number in finding.numbers)


def test_prompts_that_have_nothing_in_common_are_no_cluster():
    prompts = [f"{word}{i} {i * 7919:x} {word[::-1]}{i}" for i, word in enumerate(["alpha", "beta", "gamma", "delta"] * 30)]
    assert findings([pair(str(i), p, "Yes, it is so.", "No, it is not.") for i, p in enumerate(prompts)])["prompt-coverage"].verdict == Verdict.OK


def test_half_of_the_pairs_on_one_prompt_is_seen():
    pairs = [p if i % 2 else replace(p, prompt=asked("Tell me about the weather in Paris today please")) for i, p in enumerate(clean(200))]
    found = findings(pairs)["prompt-coverage"]
    assert found.verdict == Verdict.WARN
    assert len(found.rows) == 100


def calling(arguments):
    return (Message("assistant", "", {"tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]}),)


def test_calls_of_tools_are_read():
    pairs = [Pair(asked(f"Weather in city {i}?"), calling({"city": f"C{i}"}), calling({"town": f"wrong {i}"}), id=str(i)) for i in range(40)]
    turned = [replace(p, id=f"no-{p.id}", chosen=p.rejected, rejected=p.chosen) for p in pairs[:4]]
    leaking = Pair(asked("Log in"), calling({"token": "ghp_" + "a1B2" * 9}), calling({"token": "none"}), id="leak")
    found = findings([*pairs, *turned, leaking])
    assert found["near-identical-sides"].count == len(found["near-identical-sides"].rows) == 0
    assert len(found["duplicates"].rows) == 0
    assert len(found["contradictions"].rows) == 8
    assert found["secrets"].verdict == Verdict.FATAL


def test_annotators_may_agree_and_differ():
    """Agreement is no repetition and a difference of opinion no contradiction; of one annotator both are."""
    pairs = clean(200)
    second = [replace(p, id=f"2-{p.id}", annotator="cleo") for p in pairs]
    second = [replace(p, chosen=p.rejected, rejected=p.chosen) if i % 5 == 0 else p for i, p in enumerate(second)]
    found = findings([*pairs, *second])
    assert found["duplicates"].verdict == Verdict.OK
    assert found["contradictions"].verdict == Verdict.NOTE
    assert found["annotators"].verdict <= Verdict.NOTE
    alone = findings([replace(p, annotator="ada") for p in [*pairs, *second]])
    assert alone["contradictions"].verdict == Verdict.FATAL
    assert alone["duplicates"].verdict == Verdict.WARN


def test_a_thousand_fair_annotators_are_not_accused():
    pairs = clean(4000, seed=9)
    found = findings([replace(p, annotator=f"a{i % 200}") for i, p in enumerate(pairs)])["annotators"]
    assert found.verdict <= Verdict.OK, found.summary


def test_a_long_word_costs_no_more_than_a_short_one():
    """Columns of fixed width would take the longest text for every row."""
    pairs = clean(2000)
    pairs[7] = replace(pairs[7], chosen=reply("x" * 50_000), reason="y" * 50_000, annotator="z" * 50_000)
    tracemalloc.start()
    findings(pairs)
    assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["\n" * 100_000, "{{" * 50_000, "[insert " * 12_000, "A" * 100_000, "<b " * 30_000, "- \n" * 30_000, "a@b.co " * 14_000]
)
def test_texts_made_to_be_slow(text):
    """Of 100 kB: quadratic patterns would take minutes."""
    assert isinstance(marks_of(text), int)
    assert isinstance(mask(text), str)
    assert has_refusal(text) is has_apology(text) is False


def test_bias_hidden_in_a_bin_is_noted():
    """Half of the pairs differ little and go one way, the others much and the other way: overall the lengths cancel."""
    pairs = [replace(p, chosen=reply("x " * (5 if i % 2 else 10)), rejected=reply("x " * (6 if i % 2 else 200))) for i, p in enumerate(clean(400))]
    pairs = [replace(p, chosen=p.rejected, rejected=p.chosen) if i % 2 else p for i, p in enumerate(pairs)]
    found = findings(pairs)["length-bias"]
    assert found.verdict == Verdict.NOTE
    assert "longer side wins 0%" in found.summary
