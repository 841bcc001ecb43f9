"""Prompts from whatever holds some."""

import json

import pytest

from likelier.data.prompts import read_prompts
from likelier.errors import DataError
from likelier.records import Message


def rows(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def said(found) -> list[tuple[str, list[str]]]:
    return [(prompt.id, [f"{message.role}: {message.content}" for message in prompt.messages]) for prompt in found.prompts]


def test_of_preference_data_the_prompts_alone_each_once(tmp_path):
    pair = {"chosen": "yes", "rejected": "no"}
    found = read_prompts(rows(tmp_path / "pairs.jsonl", {"id": "x", "prompt": "one", **pair}, {"prompt": "two", **pair}, {"prompt": "one", **pair}))
    assert said(found) == [("x", ["user: one"]), ("pairs:2", ["user: two"])]
    assert (found.repeated, found.unusable) == (1, [])
    hh = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: What"}
    assert said(read_prompts(rows(tmp_path / "hh.jsonl", hh))) == [("hh:1", ["user: Hi"])]
    assert len(read_prompts("embedded:support", limit=7).prompts) == 7


def test_a_row_of_records_that_cannot_be_used_is_left_out_and_named(tmp_path):
    pair = {"chosen": "yes", "rejected": "no"}
    found = read_prompts(rows(tmp_path / "pairs.jsonl", {"prompt": "one", **pair}, {"prompt": "two", "chosen": "yes", "rejected": "yes"}))
    assert said(found) == [("pairs:1", ["user: one"])]
    assert "pairs.jsonl, line 2" in str(found.unusable[0])


def test_of_rows_with_a_prompt_and_no_more(tmp_path):
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = rows(tmp_path / "asked.jsonl", {"prompt": "one"}, {"id": 7, "messages": conversation}, {"prompt": conversation[:2], "response": "Hello"})
    assert said(read_prompts(path)) == [("asked:1", ["user: one"]), ("7", ["system: Be brief.", "user: Hi"])]
    (tmp_path / "asked.csv").write_text('prompt\none\n"two, and more"\n')
    assert said(read_prompts(tmp_path / "asked.csv")) == [("asked:1", ["user: one"]), ("asked:2", ["user: two, and more"])]
    tools = [{"type": "function", "function": {"name": "clock"}}]
    assert read_prompts(rows(tmp_path / "tools.jsonl", {"prompt": "What time?", "tools": tools})).prompts[0].tools == tools


def test_of_lines_of_text(tmp_path):
    (tmp_path / "asked.txt").write_text("\ufeffWho are you?\n\n  Why?  \nWho are you?\n")
    found = read_prompts(tmp_path / "asked.txt")
    assert [(prompt.id, prompt.messages) for prompt in found.prompts] == [
        ("asked:1", (Message("user", "Who are you?"),)),
        ("asked:3", (Message("user", "Why?"),)),
    ]


@pytest.mark.parametrize(
    "name, text, fault",
    [
        ("a.jsonl", '{"prompt": "one"}\n{"question_text": "two"}\n', r"a\.jsonl, line 2: this row has no prompt"),
        ("a.jsonl", '{"prompt": " "}\n', r"a\.jsonl, line 1: its prompt is empty"),
        ("a.jsonl", '{"prompt": [{"role": "assistant", "content": "x"}]}\n', r"line 1: its prompt is empty"),
        ("a.jsonl", '"one"\n', r"line 1: this row is text, not an object with a `prompt`"),
        ("a.jsonl", '{"prompt": "one"}\n{"prompt": \n', r"line 2: column 1: this line is not valid JSON"),
        ("a.jsonl", '{"id": 1, "prompt": "one"}\n{"id": 1, "prompt": "two"}\n', "two prompts have the id '1'"),
        ("a.jsonl", '{"prompt": "one", "chosen": "x", "rejected": "x"}\n', "there is no prompt in it. The first row: .*identical"),
        ("a.txt", "\n\n", "there is no prompt in it"),
        ("b.txt", None, "this file of prompts cannot be read"),
    ],
)
def test_what_holds_no_prompts_is_said(name, text, fault, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=fault):
        read_prompts(tmp_path / name)


def test_a_limit_is_one_or_more():
    with pytest.raises(DataError, match="0 prompts are wanted of it"):
        read_prompts("embedded:support", limit=0)
