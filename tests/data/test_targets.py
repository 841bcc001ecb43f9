"""Other tools' formats: exact rows, and round trips that lose nothing but what they say they lose."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from likelier.data.formats import read_records, write_pairs, write_records
from likelier.data.targets import TARGETS, dataset_info
from likelier.errors import DataError, RequestError
from likelier.records import EXTRAS, Labelled, Message, Pair

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}

PLAIN = Pair((Message("user", "q"),), (Message("assistant", "a"),), (Message("assistant", "b"),))
RICH = Pair(
    (Message("system", "Be brief."), Message("user", "Cold?"), Message("assistant", "", {"tool_calls": [CALL]}), Message("tool", "2 °C")),
    (Message("assistant", "Yes, 2 °C."),),
    (Message("assistant", "No."),),
    id="x",
    weight=2.0,
    margin=0.5,
    group="eu",
    reason="invented_fact",
    meta={"tools": [WEATHER], "lang": "de", "score_chosen": 4, "nested": {"a": 1}},
)
JUDGED = Labelled((Message("user", "q"),), (Message("assistant", "a"),), False, id="y", source="log", meta={"nested": [1]})


def written(folder, records, to):
    path = Path(folder, "out.jsonl")
    done = write_records(path, records, to=to)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], done


# Rows


def test_trl_rows(tmp_path):
    [row], done = written(tmp_path, [RICH], "trl")
    assert row["prompt"][2] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert {name: row[name] for name in row if name != "prompt"} == {
        "chosen": [{"role": "assistant", "content": "Yes, 2 °C."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "id": "x",
        "weight": 2.0,
        "margin": 0.5,
        "group": "eu",
        "reason": "invented_fact",
        "lang": "de",
        "score_chosen": 4,
        "tools": [WEATHER],
    }
    assert done == ({"pair": 1}, {"meta.nested": 1})
    [row], done = written(tmp_path, [JUDGED], "trl")
    sides = {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}
    assert row == {**sides, "label": False, "id": "y", "source": "log"}
    assert done == ({"unpaired record": 1}, {"meta.nested": 1})


def test_openai_rows(tmp_path):
    [row], done = written(tmp_path, [RICH], "openai")
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    assert row == {
        "input": {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Cold?"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "2 °C"},
            ],
            "tools": [WEATHER],
        },
        "preferred_output": [{"role": "assistant", "content": "Yes, 2 °C."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
    assert done.lost == dict.fromkeys(["id", "weight", "margin", "group", "reason", "meta.lang", "meta.score_chosen", "meta.nested"], 1)


def test_llamafactory_rows(tmp_path):
    [row], done = written(tmp_path, [RICH], "llamafactory")
    assert row == {
        "conversations": [
            {"from": "human", "value": "Cold?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
            {"from": "observation", "value": "2 °C"},
        ],
        "chosen": {"from": "gpt", "value": "Yes, 2 °C."},
        "rejected": {"from": "gpt", "value": "No."},
        "system": "Be brief.",
        "tools": json.dumps([WEATHER["function"]]),
        "id": "x",
        "weight": 2.0,
        "margin": 0.5,
        "group": "eu",
        "reason": "invented_fact",
        "lang": "de",
        "score_chosen": 4,
    }
    assert done.lost == {"meta.nested": 1}
    [row], _ = written(tmp_path, [JUDGED], "llamafactory")
    assert row["conversations"] == [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert (row["kto_tag"], row["system"], row["tools"]) == (False, "", "")


def test_llamafactorys_dataset_info_names_columns_that_every_row_has(tmp_path):
    for record in (PLAIN, RICH, JUDGED):
        [row], _ = written(tmp_path, [record], "llamafactory")
        entry = dataset_info("out.jsonl", paired=isinstance(record, Pair))
        assert set(entry["columns"].values()) <= row.keys()
        assert entry.get("ranking", False) is isinstance(record, Pair)


# What cannot be held

ASSISTANT, OTHER, USER = Message("assistant", "a"), Message("assistant", "b"), Message("user", "u")
THINKING = Message("assistant", "a", {"thinking": "hm"})

MEANINGS = [
    ("openai", JUDGED, "unpaired", "holds pairs only. Write it for trl or llamafactory"),
    ("openai", Pair((USER,), (ASSISTANT, USER, ASSISTANT), (OTHER,)), "malformed", "a reply holds a message of the user"),
    ("openai", Pair((USER,), (ASSISTANT,), (THINKING,)), "identical", "its sides differ only in what this format cannot hold"),
    ("llamafactory", Pair((USER,), (ASSISTANT,), (THINKING,)), "identical", "its sides differ only in what this format cannot hold"),
    ("llamafactory", Pair((USER,), (ASSISTANT, ASSISTANT), (OTHER,)), "malformed", "a reply has 2 messages"),
    ("llamafactory", Pair((USER, USER), (ASSISTANT,), (OTHER,)), "malformed", "its turns do not alternate"),
    ("llamafactory", Pair((USER, ASSISTANT), (ASSISTANT,), (OTHER,)), "malformed", "its turns do not alternate"),
    ("llamafactory", Pair((USER, Message("system", "s")), (ASSISTANT,), (OTHER,)), "malformed", "message of the system after the first"),
    ("llamafactory", Pair((USER,), (Message("assistant", "", {"tool_calls": [5]}),), (OTHER,)), "malformed", "`tool_calls` that are not"),
]


@pytest.mark.parametrize("to, record, kind, fault", MEANINGS, ids=[f"{to}: {fault}" for to, _, _, fault in MEANINGS])
def test_a_record_whose_meaning_does_not_fit_is_refused(tmp_path, to, record, kind, fault):
    with pytest.raises(DataError, match=fault) as caught:
        write_records(tmp_path / "out.jsonl", [PLAIN, record], to=to)
    assert caught.value.kind == kind
    assert caught.value.where == f"record {record.id or '(without id)'}"
    assert not list(tmp_path.iterdir()), "the whole file or nothing"
    problems = []
    assert write_records(tmp_path / "out.jsonl", [PLAIN, record], to=to, on_bad=problems.append).records == {"pair": 1}
    assert [problem.kind for problem in problems] == [kind]


@pytest.mark.parametrize("to, name", [("trl", "a.jsonl"), ("llamafactory", "a.jsonl.gz"), (None, "a.parquet")])
def test_columns_hold_one_kind_of_record(tmp_path, to, name):
    with pytest.raises(DataError, match="either pairs or unpaired records"):
        write_records(tmp_path / name, [PLAIN, JUDGED], to=to)
    write_records(tmp_path / name, [JUDGED], to=to)
    [back] = read_records(tmp_path / name)
    assert type(back) is Labelled
    assert back == JUDGED or to, "canonical files hold everything"


def test_canonical_json_lines_hold_both(tmp_path):
    assert write_records(tmp_path / "a.jsonl", [RICH, JUDGED]) == ({"pair": 1, "unpaired record": 1}, {})
    assert list(read_records(tmp_path / "a.jsonl")) == [RICH, JUDGED]


def test_unknown_targets_and_endings(tmp_path):
    with pytest.raises(RequestError, match=r"no target `tlr`\. Did you mean `trl`"):
        write_records(tmp_path / "a.jsonl", [PLAIN], to="tlr")
    with pytest.raises(DataError, match=r"`trl` is written as \.jsonl or \.jsonl\.gz"):
        write_records(tmp_path / "a.parquet", [PLAIN], to="trl")
    write_pairs(tmp_path / "a.parquet", [PLAIN])


def test_equal_scores_in_meta_do_not_make_a_tie_of_the_row(tmp_path):
    record = Pair(PLAIN.prompt, PLAIN.chosen, PLAIN.rejected, id="x", meta={"score_chosen": 3, "score_rejected": 3, "n": 1})
    _, done = written(tmp_path, [record], "trl")
    assert done.lost == {"meta.score_chosen": 1, "meta.score_rejected": 1}
    assert next(read_records(tmp_path / "out.jsonl")).meta == {"n": 1}


# Round trips

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
WORDS = TEXT.filter(lambda text: text.strip())
NAMES = st.sampled_from(["lang", "score_chosen", "score_rejected", "label", "winner", "system", "kto_tag", "annotation_id", "a b"])
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT | st.just("tie") | st.just([1])
CALLS = st.just([CALL]) | st.just([CALL, {**CALL, "id": "c1"}])
MESSAGE_EXTRA = st.just({}) | st.fixed_dictionaries({}, optional={"name": TEXT, "thinking": TEXT, "tool_call_id": TEXT})


@st.composite
def assistants(draw):
    if draw(st.integers(0, 3)):
        return Message("assistant", draw(WORDS), draw(MESSAGE_EXTRA))
    return Message("assistant", draw(st.just("") | WORDS), {"tool_calls": draw(CALLS), **draw(MESSAGE_EXTRA)})


ASKING = st.builds(Message, st.sampled_from(["user", "tool"]), WORDS, MESSAGE_EXTRA)
SYSTEM = st.builds(Message, st.sampled_from(["system", "developer"]), TEXT, MESSAGE_EXTRA)
ROUNDS = st.lists(st.tuples(ASKING, assistants()), max_size=2).map(lambda rounds: tuple(message for each in rounds for message in each))
ALTERNATING = st.tuples(st.lists(SYSTEM, max_size=1).map(tuple), ROUNDS, ASKING).map(lambda parts: (*parts[0], *parts[1], parts[2]))
PROMPTS = ALTERNATING | st.lists(ASKING | SYSTEM | assistants(), max_size=3).map(lambda prompt: (*prompt, Message("user", "And?")))
REPLIES = st.tuples(assistants()) | st.tuples(assistants(), ASKING, assistants())
NUMBER = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
SHARED = {
    "id": TEXT,
    "weight": NUMBER,
    "group": st.none() | TEXT,
    "source": st.none() | TEXT,
    "annotator": st.none() | TEXT,
    "reason": st.none() | TEXT,
    "meta": st.dictionaries(NAMES, VALUES, max_size=3) | st.just({"tools": [WEATHER], "parallel_tool_calls": False}),
}
PAIRS = st.builds(Pair, PROMPTS, REPLIES, REPLIES, margin=st.none() | NUMBER, **SHARED).filter(lambda pair: pair.chosen != pair.rejected)
LABELLED = st.builds(Labelled, PROMPTS, REPLIES, st.booleans(), **SHARED)


def without(record, lost):
    """The record's canonical JSON without what a target has said it cannot hold."""
    row = record.as_dict()
    meta = {name: value for name, value in row.pop("meta", {}).items() if f"meta.{name}" not in lost}
    row = {name: value for name, value in row.items() if name not in EXTRAS or name not in lost}
    for side in row.keys() & {"prompt", "chosen", "rejected", "completion"}:
        row[side] = [kept for message in row[side] if (kept := without_lost(message, lost))]
    return {**row, "meta": meta}


def without_lost(message, lost):
    message = {name: value for name, value in message.items() if f"message.{name}" not in lost or name in ("role", "content")}
    if "message.role" in lost:
        message["role"] = message["role"].replace("developer", "system")
    if "message.content" in lost and "tool_calls" in message:
        message["content"] = ""
    if "message.content" in lost and message["role"] == "system" and not message["content"].strip():
        return None
    if "message.tool_calls.id" in lost and "tool_calls" in message:
        message["tool_calls"] = [{name: call[name] for name in ("type", "function")} for call in message["tool_calls"]]
    return message


@pytest.mark.parametrize("to", TARGETS)
@settings(max_examples=150, deadline=None)
@given(record=PAIRS | LABELLED)
def test_a_round_trip_loses_what_it_says_and_nothing_else(to, record):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out.jsonl.gz")
        refused = []
        done = write_records(path, [record], to=to, on_bad=refused.append)
        event("refused" if refused else "lost" if done.lost else "whole")
        assert done.records.total() + len(refused) == 1
        if refused:
            return
        shapes = Counter()
        [back] = read_records(path, seen=shapes)
        assert type(back) is type(record)
        expected = without(record, done.lost)
        assert without(back, done.lost) == expected, shapes
