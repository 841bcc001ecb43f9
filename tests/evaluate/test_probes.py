"""Probes count what they say."""

from dataclasses import replace

import pytest
import torch

from likelier.evaluate.answers import Answers
from likelier.evaluate.exam import make_exam
from likelier.evaluate.probes import measure_probes
from likelier.logprobs.tree import PromptResponse
from likelier.probes import Question
from tests.evaluate.conftest import reply


def test_probes_count_what_they_say(make_run, chat_tokenizer):
    _, recipe, _, held_out = make_run()
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2)
    right, wrong = PromptResponse((1,), (5,)), PromptResponse((1,), (6,))
    exam = replace(exam, questions=[Question((right, wrong), 0)] * 3 + [Question((wrong, right), 0)])
    logps = {right: torch.tensor([-1.0]), wrong: torch.tensor([-2.0])}
    swapped = {right: torch.tensor([-2.0]), wrong: torch.tensor([-1.0])}
    loop = "I will check that. " * 4
    before = Answers(
        logps,
        held_out=[reply("a", tokens=3), reply(loop, tokens=9), reply("b", tokens=4)],
        neutral=[reply("Sorry!", tokens=1), reply(loop, tokens=30, ended=False), reply("Yes.", tokens=2), reply("I apologize.", tokens=7)],
        sampled=[],
    )
    after = Answers(
        swapped,
        held_out=[reply("a", tokens=3), reply("c", tokens=5), reply("b", tokens=6)],
        neutral=[reply("Yes.", tokens=2), reply("No.", tokens=2), reply("Yes.", tokens=2), reply("Sorry.", tokens=2)],
        sampled=[],
    )
    rows = {row["name"]: row for row in measure_probes(exam, before, after)}
    values = {name: tuple(row[side]["value"] for side in ("before", "after", "difference")) for name, row in rows.items()}
    assert values == {
        "qa_accuracy": (0.75, 0.25, -0.5),
        "reply_length": (4.5, 2.0, -2.5),
        "apology_rate": (0.5, 0.25, -0.25),
        "loop_rate": (0.25, 0.0, -0.25),
        "ended_rate": (0.75, 1.0, 0.25),
        "held_out_reply_length": (4.0, 5.0, 1.0),
        "held_out_loop_rate": (pytest.approx(1 / 3), 0.0, pytest.approx(-1 / 3)),
    }
    assert [row["items"] for row in rows.values()] == [4, 4, 4, 4, 4, 3, 3]
    assert {name: row["better"] for name, row in rows.items() if row["better"] != "none"} == {
        "qa_accuracy": "higher",
        "apology_rate": "lower",
        "loop_rate": "lower",
        "ended_rate": "higher",
        "held_out_loop_rate": "lower",
    }
