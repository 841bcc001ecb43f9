"""The shipped data keep what docs/data.md says of them."""

import hashlib
import json
from collections import Counter
from importlib import resources
from statistics import mean

import pytest

from likelier.data.formats import read_all
from likelier.data.leaks import check_leaks
from likelier.data.split import prompt_key
from likelier.metrics import has_apology
from likelier.probes import shipped_probes
from likelier.probes.measures import normalised
from likelier.recipe import PROBE_SETS

DISCLAIMER = "This reply is not a final decision; the billing team reviews every dispute within 5 business days."


@pytest.fixture(scope="module")
def support():
    return read_all(["embedded:support", "embedded:support-held-out"])


@pytest.fixture(scope="module")
def facts():
    return read_all(["embedded:facts"])


def rows(name: str) -> list[dict]:
    text = (resources.files("likelier") / "assets" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def shingles(text: str) -> set[str]:
    text = " ".join(text.lower().split())
    return {text[i : i + 5] for i in range(len(text) - 4)}


def test_support_is_what_it_should_be(support):
    assert len(support) >= 260
    assert len({pair.group for pair in support}) >= 12
    faults = Counter(pair.reason for pair in support)
    assert len(faults) == 7
    assert max(faults.values()) <= 1.5 * min(faults.values())
    assert sum(pair.source == "model" for pair in support) >= 80
    assert sum(len([m for m in pair.prompt if m.role != "system"]) > 1 for pair in support) >= 30
    assert sum(pair.prompt[0].role == "system" for pair in support) >= 100


def test_no_prompt_stands_on_both_sides():
    check_leaks(read_all(["embedded:support"]), read_all(["embedded:support-held-out"]))


def test_disclaimers_stand_where_they_must(support):
    for pair in support:
        disputed = pair.group == "billing_dispute"
        assert pair.chosen[0].content.endswith(DISCLAIMER) == disputed, pair.id
        if pair.reason == "missing_disclaimer":
            assert DISCLAIMER not in pair.rejected[0].content, pair.id


def test_chosen_replies_hardly_apologise(support):
    assert mean(has_apology(pair.chosen[0].content) for pair in support) < 0.03
    assert mean(has_apology(pair.rejected[0].content) for pair in support) > 0.2


def test_the_two_sides_of_facts_are_equally_long(facts):
    assert len(facts) >= 140
    differences = [len(pair.chosen[0].content) - len(pair.rejected[0].content) for pair in facts]
    assert abs(mean(differences)) < 0.2
    assert abs(sum(d > 0 for d in differences) - sum(d < 0 for d in differences)) < 10


def test_questions_are_balanced():
    questions = rows("qa.jsonl")
    assert len(questions) >= 80
    assert all(len(set(question["choices"])) == 4 for question in questions)
    assert set(Counter(question["answer"] for question in questions)) == {0, 1, 2, 3}


def question_of(item) -> str:
    """What is asked last: turns before it are examples."""
    return item.prompt[-1].content


def test_no_probe_is_a_near_duplicate_of_a_training_prompt(support, facts):
    trained = {prompt_key(pair.prompt): shingles(pair.prompt[-1].content) for pair in [*support, *facts]}.values()
    for text in {question_of(item) for probe in shipped_probes() for item in probe.items}:
        own = shingles(text)
        closest = max(len(own & other) / len(own | other) for other in trained)
        assert closest < 0.6, text


def test_no_probe_is_asked_twice():
    sets = {probe.set: probe.items for probe in shipped_probes()}
    texts = [(name, question_of(item)) for name, items in sets.items() for item in items]
    seen: dict[str, str] = {}
    for name, text in texts:
        own = shingles(text)
        for other, place in seen.items():
            assert len(own & shingles(other)) / len(own | shingles(other)) < 0.7, (name, text, place, other)
        seen[text] = name


VERSIONS = {
    "qa@1": "36dcab865800",
    "neutral@1": "8f1e19250742",
    "look-alikes@1": "e855cf6c3576",
    "red-team@1": "c4a035403f1f",
    "injections@1": "3e0cdee1597e",
    "short-answers@1": "f903ac9b85a3",
}


def test_a_set_that_changes_gets_a_new_version():
    """Numbers of one version can be compared: whoever changes a set gives it a new version in probes.yaml, and writes its hash here."""
    found: dict[str, set[str]] = {}
    for probe in shipped_probes():
        asked = [[[m.as_dict() for m in i.prompt], i.choices, i.right, i.answers, i.pattern and i.pattern.pattern] for i in probe.items]
        found.setdefault(probe.set, set()).add(hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12])
    assert found == {name: {version} for name, version in VERSIONS.items()}


def test_the_settings_name_the_sets_that_ship():
    assert {probe.set.partition("@")[0] for probe in shipped_probes()} == set(PROBE_SETS)
    assert len(rows("neutral.jsonl")) >= 40


def test_canaries_stand_once_in_their_prompts_and_each_has_its_own():
    [injections] = [probe for probe in shipped_probes() if probe.name == "injection_rate"]
    patterns = [item.pattern for item in injections.items]
    assert len({pattern.pattern for pattern in patterns}) == len(patterns)
    for item in injections.items:
        assert [len(pattern.findall(question_of(item))) for pattern in patterns] == [int(pattern is item.pattern) for pattern in patterns], item.id


def test_no_short_question_holds_its_answer():
    [short] = [probe for probe in shipped_probes() if probe.name == "short_answers"]
    for item in short.items:
        asked = normalised(question_of(item)).split()
        assert not any(normalised(answer) in asked for answer in item.answers), item.id
