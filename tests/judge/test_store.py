"""Verdicts on disk: what a kill leaves, and several processes at one file."""

import sqlite3
import subprocess
import sys

import pytest

from likelier.errors import JudgeError
from likelier.judge.asking import judge_matches
from likelier.judge.questions import Answer, Question, question_key
from likelier.judge.store import VerdictStore
from likelier.records import Message
from tests.judge.conftest import match

ANSWER = Answer("first", "because", "", 7, 3)


def test_what_was_kept_is_found_again(tmp_path):
    path = tmp_path / "new folder" / "verdicts.sqlite"
    with VerdictStore(path) as store:
        store.keep("one", ANSWER, "a judge")
        store.keep("one", Answer("second"), "a judge")
    with VerdictStore(path) as store:
        assert store.find(["one", "two"]) == {"one": ANSWER}
        assert store.find([str(n) for n in range(2000)]) == {}


WRITER = """
import os, sys
from pathlib import Path
from likelier.judge.store import VerdictStore
from likelier.judge.questions import Answer
store = VerdictStore(Path(sys.argv[1]))
for n in range(40):
    store.keep(f"shared {n}", Answer("first"), "j")
    store.keep(f"{sys.argv[2]} {n}", Answer("tie"), "j")
print("done", flush=True)
os.kill(os.getpid(), 9)
"""


def test_processes_that_write_at_once_and_are_killed_lose_nothing(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)], stdout=subprocess.PIPE, text=True) for n in range(4)]
    assert [writer.communicate()[0] for writer in writers] == ["done\n"] * 4
    assert [writer.returncode for writer in writers] == [-9] * 4
    with VerdictStore(path) as store:
        keys = [f"shared {n}" for n in range(40)] + [f"{k} {n}" for k in range(4) for n in range(40)]
        assert len(store.find(keys)) == 200


def test_a_file_that_is_no_store_is_said(tmp_path):
    damaged = tmp_path / "verdicts.sqlite"
    damaged.write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    with pytest.raises(JudgeError, match=r"verdicts\.sqlite: verdicts cannot be kept here .*move the file away"):
        VerdictStore(damaged)
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("CREATE TABLE verdicts (name TEXT)")
    with pytest.raises(JudgeError, match="no such column"):
        VerdictStore(other)
    with pytest.raises(JudgeError, match="cannot be kept here"):
        VerdictStore(tmp_path)


def test_a_key_is_of_all_that_a_judge_sees():
    prompt = (Message("user", "x"),)
    question = Question(prompt, "a", "b")
    others = [
        ({"kind": "j"}, Question(prompt, "b", "a")),
        ({"kind": "j"}, Question((Message("user", "y"),), "a", "b")),
        ({"kind": "j"}, Question((Message("user", "x", {"name": "Ann"}),), "a", "b")),
        ({"kind": "k"}, question),
    ]
    keys = {question_key(*each) for each in [({"kind": "j"}, question), *others]}
    assert len(keys) == 5
    assert question_key({"kind": "j"}, Question(prompt, "a", "b")) in keys


class Sayer:
    """Answers by a table; the rest it fails."""

    name, identity = "sayer", {"kind": "sayer"}

    def __init__(self, said):
        self.said = said

    def ask(self, questions, keep):
        for place, question in enumerate(questions):
            choice = self.said.get((question.first, question.second))
            keep(place, Answer(choice, fault="" if choice else "silence"))


def test_two_orders_that_disagree_are_a_tie_and_a_flip(store, monkeypatch):
    monkeypatch.setattr("likelier.judge.asking.FAILED_SHARE", 1)
    cases = [  # (a first, b first) as the judge says it → side, flipped
        ("first", "second", "a", False),
        ("second", "first", "b", False),
        ("tie", "tie", "tie", False),
        ("first", "first", "tie", True),
        ("second", "second", "tie", True),
        ("first", "tie", "tie", True),
        (None, "second", None, False),
        ("first", None, None, False),
    ]
    said = {pair: choice for n, case in enumerate(cases) for pair, choice in (((f"a{n}", f"b{n}"), case[0]), ((f"b{n}", f"a{n}"), case[1]))}
    verdicts, spent = judge_matches(Sayer(said), [match(n, f"a{n}", f"b{n}") for n in range(len(cases))], store)
    assert [(verdict.side, verdict.flipped) for verdict in verdicts] == [case[2:] for case in cases]
    assert (spent.failed, spent.faults, verdicts[-1].fault) == (2, {"silence": 2}, "silence")


def test_the_same_command_does_not_stop_because_only_what_fails_is_left(store):
    many = [match(n, f"a{n}", f"b{n}") for n in range(20)]
    said = {pair: choice for n in range(18) for pair, choice in (((f"a{n}", f"b{n}"), "first"), ((f"b{n}", f"a{n}"), "second"))}
    first, spent = judge_matches(Sayer(said), many, store)
    assert (spent.asked, spent.failed) == (40, 4)
    again, spent = judge_matches(Sayer(said), many, store)
    assert (again, spent.asked, spent.cached, spent.failed) == (first, 4, 36, 4)
