"""Probes count what they say, shipped ones and a user's own."""

from dataclasses import replace

import pytest
import torch

from likelier.data.chat import Encoder
from likelier.errors import RecipeError
from likelier.evaluate import evaluate
from likelier.evaluate.answers import Answers
from likelier.evaluate.exam import make_exam
from likelier.evaluate.probes import measure_probes
from likelier.generation.requests import Request
from likelier.generation.sample import generate
from likelier.logprobs.tree import PromptResponse
from likelier.probes import Asked, Item, Probe, Question
from likelier.probes.measures import MEASURES
from likelier.records import Message
from likelier.report import write_report
from likelier.rundir import read_jsonl, write_atomic
from tests.evaluate.conftest import EVAL, PAIRS, reply


def asked(name, *, measure=None, questions=(), replies=0):
    """A probe as it is asked: `measure` of as many prompts as there are replies, or questions."""
    items = tuple(Item(f"{name}-{i}", (Message("user", f"prompt {i}"),), choices=("yes", "no")) for i in range(replies or len(questions)))
    probe = Probe(name, name.title(), f"{name}@1", "lower", items, None, measure=measure)
    return Asked(probe, tuple(questions), tuple((i,) for i in range(replies)), 8)


def test_probes_count_what_they_say(make_run, chat_tokenizer):
    _, recipe, _, held_out = make_run()
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2)
    right, wrong = PromptResponse((1,), (5,)), PromptResponse((1,), (6,))
    questions = [Question((right, wrong), 0)] * 3 + [Question((wrong, right), 0)]
    measures = [asked(name, measure=measure, replies=4) for name, measure in MEASURES.items()]
    exam = replace(exam, probes=[asked("questions", questions=questions), *measures])
    logps = {right: torch.tensor([-1.0]), wrong: torch.tensor([-2.0])}
    swapped = {right: torch.tensor([-2.0]), wrong: torch.tensor([-1.0])}
    loop = "I will check that. " * 4
    old = [reply("Sorry!", tokens=1), reply(loop, tokens=30, ended=False), reply("Yes.", tokens=2), reply("I apologize, I cannot help.", tokens=7)]
    new = [reply("Yes.", tokens=2), reply("No.", tokens=2), reply("Yes.", tokens=2), reply("Sorry.", tokens=2)]
    held_out_old = [reply("a", tokens=3), reply(loop, tokens=9), reply("b", tokens=4)]
    held_out_new = [reply("a", tokens=3), reply("c", tokens=5), reply("b", tokens=6)]
    requests = [*exam.shown_requests, *(Request((i,), 8) for i in range(4))]
    before = Answers(logps, dict(zip(requests, held_out_old + old, strict=True)), sampled=[])
    after = Answers(swapped, dict(zip(requests, held_out_new + new, strict=True)), sampled=[])
    measured, left_out = measure_probes(exam, before, after)
    assert not left_out
    rows = {probe.name: probe.summary() for probe in measured}
    values = {name: tuple(row[side]["value"] for side in ("before", "after", "difference")) for name, row in rows.items()}
    assert values == {
        "questions": (0.75, 0.25, -0.5),
        "length": (4.5, 2.0, -2.5),
        "apology": (0.5, 0.25, -0.25),
        "refusal": (0.25, 0.0, -0.25),
        "loop": (0.25, 0.0, -0.25),
        "ended": (0.75, 1.0, 0.25),
        "held_out_reply_length": (4.0, 5.0, 1.0),
        "held_out_loop_rate": (pytest.approx(1 / 3), 0.0, pytest.approx(-1 / 3)),
    }
    assert [row["items"] for row in rows.values()] == [4] * 6 + [3, 3]
    assert {name for name, row in rows.items() if row["unit"] == "tokens"} == {"length", "held_out_reply_length"}
    assert rows["held_out_loop_rate"]["set"] == f"held-out@{held_out.id[:12]}"

    listed = {probe.name: probe.rows() for probe in measured}
    prompt = [{"role": "user", "content": "prompt 3"}]
    sides = {"before": "I apologize, I cannot help.", "after": "Sorry."}
    assert listed["refusal"][3] == {"probe": "refusal", "id": "refusal-3", "prompt": prompt, **sides, "before_hit": True, "after_hit": False}
    assert listed["length"][3] == {"probe": "length", "id": "length-3", "prompt": prompt, **sides, "before_hit": None, "after_hit": None}
    assert [(row["before"], row["before_hit"], row["after"], row["after_hit"]) for row in listed["questions"][2:]] == [
        ("yes", True, "no", False),
        ("no", False, "yes", True),
    ]
    assert listed["held_out_loop_rate"][1]["prompt"] == PAIRS[2]["prompt"]


OWN = """
- name: offers_help
  title: Replies with an h
  want: higher
  prompts: ["Can you help me?", [{role: system, content: Be brief.}, {role: user, content: Help!}]]
  pattern: "(?i)h"
- name: letters
  want: none
  prompts: ["Can you help me?", "Who is there?"]
  function: own.py:letters
- name: starts_with_capital
  want: higher
  prompts: ["Can you help me?"]
  function: own.py:capital
- name: knows_may
  want: higher
  choices: [May, June]
  prompts: [{prompt: "Which month comes after April?", answer: May}]
"""
CODE = """
def letters(reply, prompt):
    assert prompt == [{"role": "user", "content": prompt[0]["content"]}]
    return len(reply) / 2
def capital(reply, prompt):
    return reply[:1].isupper()
def broken(reply, prompt):
    return reply.nowhere
calls = []
def tires(reply, prompt):
    calls.append(reply)
    return len(calls) if len(calls) < 2 else reply.nowhere
"""


def test_a_users_probes_are_asked_too(make_run, tmp_path, chat_model, chat_tokenizer):
    write_atomic(tmp_path / "own.yaml", OWN)
    write_atomic(tmp_path / "own.py", CODE)
    run, *_ = make_run(eval={**EVAL, "probes": False})
    recipe = run.recipe.read_text()
    rows = {row["name"]: row for row in evaluate(run, probe_files=[str(tmp_path / "own.yaml")])["probes"]}
    assert {name: (row["unit"], row["better"], row["items"], row["title"]) for name, row in rows.items()} == {
        "offers_help": ("share", "higher", 2, "Replies with an h"),
        "letters": ("", "none", 2, "letters"),
        "starts_with_capital": ("share", "higher", 1, "starts_with_capital"),
        "knows_may": ("share", "higher", 1, "knows_may"),
    }
    prompt = Encoder(chat_tokenizer, max_length=100).encode_prompt((Message("user", "Can you help me?"),))
    [before] = generate(chat_model, chat_tokenizer, [prompt], end_token_id=2, max_new_tokens=8)
    listed = list(read_jsonl(run.probes))
    assert [row["probe"] for row in listed] == ["offers_help"] * 2 + ["letters"] * 2 + ["starts_with_capital", "knows_may"]
    assert listed[0]["before"] == listed[2]["before"] == before.text != listed[0]["after"]
    assert listed[0]["before_hit"] is ("h" in before.text.lower())
    assert rows["letters"]["before"]["value"] == pytest.approx((len(listed[2]["before"]) + len(listed[3]["before"])) / 4)
    assert listed[5]["before"] in ("May", "June")
    assert run.recipe.read_text() == recipe, "what is asked later is no part of the run"


def test_a_users_function_that_fails_is_named(make_run, tmp_path):
    write_atomic(tmp_path / "own.py", CODE)
    write_atomic(tmp_path / "own.yaml", "- {name: mine, want: none, prompts: [Hello], function: 'own.py:broken'}")
    run, *_ = make_run(eval={**EVAL, "probes": False, "probe_files": [str(tmp_path / "own.yaml")]})
    with pytest.raises(RecipeError, match=r"probe 1 \(`mine`\), tried on a made-up reply: its function raised AttributeError: .*nowhere"):
        evaluate(run)
    write_atomic(tmp_path / "own.yaml", "- {name: mine, want: none, prompts: [Hello], function: 'own.py:brocken'}")
    with pytest.raises(RecipeError, match=r"own.py has no function `brocken`. Did you mean `broken`"):
        evaluate(run)
    assert not run.eval.exists()


def test_a_function_that_fails_late_costs_its_probe_alone(make_run, tmp_path):
    write_atomic(tmp_path / "own.py", CODE)
    probes = "".join(f"- {{name: {name}, want: none, prompts: [Hello], function: 'own.py:{name}'}}\n" for name in ("tires", "letters"))
    write_atomic(tmp_path / "own.yaml", probes)
    run, *_ = make_run(eval={**EVAL, "probes": False, "probe_files": [str(tmp_path / "own.yaml")]})
    said = []
    assert [row["name"] for row in evaluate(run, said.append)["probes"]] == ["letters"]
    assert run.eval.exists()
    assert said[0] == f"Running {tmp_path / 'own.py'}, which {tmp_path / 'own.yaml'} names."
    [left_out] = [text for text in said if "left out" in text]
    assert "probe `tires`, prompt tires-1: its function raised AttributeError" in left_out
    assert run.read_eval()["probes_left_out"]["tires"] in left_out
    assert "its function raised AttributeError" in write_report(run).read_text()


def test_results_that_another_evaluation_drops_are_named(make_run, tmp_path):
    write_atomic(tmp_path / "own.yaml", OWN)
    write_atomic(tmp_path / "own.py", CODE)
    run, *_ = make_run(eval={**EVAL, "probes": False})
    evaluate(run, probe_files=[str(tmp_path / "own.yaml")])
    said = []
    evaluate(run, said.append)
    [dropped] = [text for text in said if "No longer in" in text]
    assert "Replies with an h, knows_may, letters" in dropped
    said.clear()
    evaluate(run, said.append)
    assert not [text for text in said if "No longer in" in text]


def test_a_probe_that_is_too_long_for_the_model_is_left_out_and_named(make_run, tmp_path):
    prompts = {"long": "Hello! " * 3000, "short": "Hi"}
    entries = [f"- {{name: {name}, want: none, prompts: ['{prompt}'], pattern: x}}\n" for name, prompt in prompts.items()]
    write_atomic(tmp_path / "own.yaml", "".join(entries))
    run, *_ = make_run(eval={**EVAL, "probes": False, "probe_files": [str(tmp_path / "own.yaml")]})
    said = []
    assert [row["name"] for row in evaluate(run, said.append)["probes"]] == ["short"]
    assert any("left out" in text and "(long): probe `long`: this model has" in text for text in said)


def test_sets_are_asked_by_name(make_run):
    run, *_ = make_run(eval={**EVAL, "probes": ["injections"]})
    assert [row["name"] for row in evaluate(run)["probes"]] == ["injection_rate", "held_out_reply_length", "held_out_loop_rate"]
