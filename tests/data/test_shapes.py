"""Every shape: an example as its own tool's documentation has it, the exact records, and what is refused."""

import copy
import csv
import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from likelier.cli import convert
from likelier.data.formats import read_all, read_pairs, read_records
from likelier.data.shapes import ASKED_FOR, BY_NAME, SHAPES
from likelier.data.shapes.lists import Pairing
from likelier.errors import DataError, RequestError
from likelier.records import Labelled, Message, Pair


def user(content):
    return Message("user", content)


def assistant(content, **extra):
    return Message("assistant", content, extra)


def system(content):
    return Message("system", content)


def said(role, content, **extra):
    return {"role": role, "content": content, **extra}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(tmp_path, row, **options):
    """The records of one row (without the ids that were made up for them), and the shapes seen."""
    seen = Counter()
    records = list(read_records(write(tmp_path / "one.jsonl", row), seen=seen, **options))
    for record in records:
        if record.id.startswith("one:"):
            object.__setattr__(record, "id", "")
    return records, list(seen)


def faults(tmp_path, row, **options):
    """(kind, fault) of everything that is wrong with one row."""
    problems = []
    path = write(tmp_path / "one.jsonl", row)
    list(read_records(path, on_bad=problems.append, **options))
    assert all(problem.where == f"{path}, line 1" for problem in problems)
    assert all(str(problem) == f"{problem.where}: {problem.fault}" for problem in problems)
    return [(problem.kind, problem.fault) for problem in problems]


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
SKY, BLUE, GREEN = user("What color is the sky?"), assistant("It is blue."), assistant("It is green.")

UNPAIRED_TEXT = {"prompt": "The sky is", "completion": " blue.", "label": True}
UNPAIRED_TALK = {"prompt": [SKY.as_dict()], "completion": [GREEN.as_dict()], "label": False}

OPENAI = {
    "input": {
        "messages": [said("user", "Hello, can you tell me how cold San Francisco is today?")],
        "tools": [],
        "parallel_tool_calls": True,
    },
    "preferred_output": [said("assistant", "Today in San Francisco, it is not quite cold as expected.")],
    "non_preferred_output": [said("assistant", "It is not particularly cold in San Francisco today.")],
}

ALPACA = {
    "instruction": "Translate to French.",
    "input": "I am hungry.",
    "chosen": "J'ai faim.",
    "rejected": "Je suis faim.",
    "system": "Be exact.",
    "history": [["Translate to German.", "Ich habe Hunger."]],
}
ALPACA_PROMPT = (
    system("Be exact."),
    user("Translate to German."),
    assistant("Ich habe Hunger."),
    user("Translate to French.\nI am hungry."),
)

SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "human instruction"},
        {"from": "gpt", "value": "model response"},
        {"from": "human", "value": "human instruction"},
    ],
    "chosen": {"from": "gpt", "value": "chosen answer"},
    "rejected": {"from": "gpt", "value": "rejected answer"},
}
SHAREGPT_PROMPT = (user("human instruction"), assistant("model response"), user("human instruction"))

KTO = {"instruction": "Write a haiku.", "output": "Leaves fall.", "kto_tag": True}

ULTRAFEEDBACK = {
    "source": "sharegpt",
    "instruction": "What is there to do in Cairo?",
    "models": ["falcon-40b-instruct", "gpt-4", "starchat"],
    "completions": [
        {"model": "falcon-40b-instruct", "principle": "helpfulness", "response": "Pyramids.", "overall_score": 6.0},
        {"model": "gpt-4", "principle": "honesty", "response": "The museum, the bazaar, a boat on the Nile.", "overall_score": 8.5},
        {"model": "starchat", "principle": "helpfulness", "response": "Ski.", "overall_score": 1.0},
    ],
}

RATED = {
    "instruction": "q",
    "completions": [
        {"response": "a", "annotations": {"honesty": {"Rating": "3"}, "helpfulness": {"Rating": "2", "Rationale": "thin"}}},
        {"response": "b", "annotations": {"honesty": {"Rating": "5"}, "helpfulness": {"Rating": "N/A"}}},
    ],
}

RANKED = {"prompt": "q", "responses": ["fine", "good", "bad"]}

LABEL_STUDIO = {
    "id": 7,
    "data": {"prompt": "The quick brown fox...", "answer1": "jumps over the lazy dog.", "answer2": "bags few lynx.", "lang": "en"},
    "annotations": [
        {
            "id": 1001,
            "completed_by": 10,
            "was_cancelled": False,
            "result": [{"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "left"}}],
        },
        {
            "id": 1002,
            "completed_by": {"id": 11, "email": "bo@example.org"},
            "was_cancelled": False,
            "result": [{"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "right"}}],
        },
        {"id": 1003, "completed_by": 12, "was_cancelled": True, "result": []},
    ],
}
FOX, DOG, LYNX = user("The quick brown fox..."), assistant("jumps over the lazy dog."), assistant("bags few lynx.")

LABEL_STUDIO_MIN = {
    "prompt": "The quick brown fox...",
    "answer1": "jumps over the lazy dog.",
    "answer2": "bags few lynx.",
    "id": 7,
    "comparison": [{"selected": "right"}],
    "annotator": 10,
    "annotation_id": 1001,
    "lead_time": 4.2,
}

ARGILLA = {
    "id": "r1",
    "fields": {"instruction": "q", "response1": "a", "response2": "b"},
    "metadata": {"lang": "en"},
    "suggestions": {"ranking": {"value": ["response1", "response2"], "score": None, "agent": "judge"}},
    "responses": {
        "ranking": [{"value": ["response2", "response1"], "user_id": "u1"}, {"value": ["response1", "response2"], "user_id": "u2"}],
        "comment": [{"value": "b is shorter", "user_id": "u1"}],
    },
    "vectors": {},
    "_server_id": "s1",
}

FEEDBACK_DATASET = {
    "fields": {"prompt": "q", "reply_1": "a", "reply_2": "b", "reply_3": "c"},
    "responses": [
        {
            "user_id": "u1",
            "status": "submitted",
            "values": {"preference": {"value": [{"rank": 1, "value": "reply-2"}, {"rank": 2, "value": "reply-1"}, {"rank": 3, "value": "reply-3"}]}},
        },
        {"user_id": "u2", "status": "discarded", "values": {"preference": {"value": [{"rank": 1, "value": "reply-1"}]}}},
    ],
    "suggestions": [],
    "external_id": "e1",
}

ARGILLA_FLAT = {
    "id": "r1",
    "status": "completed",
    "_server_id": "s1",
    "instruction": "q",
    "generations-0": "a",
    "generations-1": "b",
    "generations-0-rating.responses": [2, 4],
    "generations-0-rating.responses.users": ["u1", "u2"],
    "generations-0-rating.responses.status": ["submitted", "submitted"],
    "generations-1-rating.responses": [5, 3],
    "generations-1-rating.responses.users": ["u1", "u2"],
    "generations-1-rating.responses.status": ["submitted", "submitted"],
    "generations-1-rating.suggestion": 3,
}

FEEDBACK_HUB = {
    "prompt": "q",
    "reply_1": "a",
    "reply_2": "b",
    "reply-ranking": [{"user_id": "u1", "value": {"rank": [2, 1], "value": ["reply-1", "reply-2"]}, "status": "submitted"}],
    "reply-ranking-suggestion": {"rank": [], "value": []},
    "reply-ranking-suggestion-metadata": {"type": None, "score": None, "agent": None},
    "external_id": "e1",
    "metadata": "{}",
}

EDIT = {"messages": [said("user", "Where is my parcel?")], "draft": "No idea.", "sent": "In Ulm.", "annotator": "ann"}
THUMB = {"messages": [said("user", "Hi")], "response": "Hello!", "feedback": "up", "chat": "c1"}

THREE_AND_ONE = {"meta": {"chosen_score": 3.0, "rejected_score": 1.0}, "margin": 2.0}

EXAMPLES = {
    "TRL unpaired text": (UNPAIRED_TEXT, "unpaired", [Labelled((user("The sky is"),), (assistant(" blue."),), True)]),
    "TRL unpaired messages": (UNPAIRED_TALK, "unpaired", [Labelled((SKY,), (GREEN,), False)]),
    "OpenAI": (
        OPENAI,
        "openai",
        [
            Pair(
                (user("Hello, can you tell me how cold San Francisco is today?"),),
                (assistant("Today in San Francisco, it is not quite cold as expected."),),
                (assistant("It is not particularly cold in San Francisco today."),),
            )
        ],
    ),
    "LLaMA-Factory alpaca": (ALPACA, "alpaca", [Pair(ALPACA_PROMPT, (assistant("J'ai faim."),), (assistant("Je suis faim."),))]),
    "LLaMA-Factory sharegpt": (
        SHAREGPT,
        "sharegpt",
        [Pair(SHAREGPT_PROMPT, (assistant("chosen answer"),), (assistant("rejected answer"),))],
    ),
    "LLaMA-Factory alpaca KTO": (KTO, "kto", [Labelled((user("Write a haiku."),), (assistant("Leaves fall."),), True)]),
    "LLaMA-Factory sharegpt KTO": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "kto_tag": False},
        "kto",
        [Labelled((user("Hi"),), (assistant("Ho"),), False)],
    ),
    "messages with a label": (
        {"messages": [said("user", "Hi"), said("assistant", "Ho")], "label": True},
        "labelled-messages",
        [Labelled((user("Hi"),), (assistant("Ho"),), True)],
    ),
    "UltraFeedback": (
        ULTRAFEEDBACK,
        "ultrafeedback",
        [
            Pair(
                (user("What is there to do in Cairo?"),),
                (assistant("The museum, the bazaar, a boat on the Nile."),),
                (assistant("Ski."),),
                margin=7.5,
                source="sharegpt",
                meta={
                    "models": ULTRAFEEDBACK["models"],
                    "chosen_model": "gpt-4",
                    "chosen_principle": "honesty",
                    "chosen_score": 8.5,
                    "rejected_model": "starchat",
                    "rejected_principle": "helpfulness",
                    "rejected_score": 1.0,
                },
            )
        ],
    ),
    "scores beside the responses": (
        {"prompt": [SKY.as_dict()], "responses": ["It is green.", [BLUE.as_dict()]], "scores": [1, "3"]},
        "scored-list",
        [Pair((SKY,), (BLUE,), (GREEN,), **THREE_AND_ONE)],
    ),
    "distilabel": (
        {"instruction": "q", "generations": ["a", "b", "c"], "ratings": [1, None, 3], "generation_models": ["m", "n", "o"]},
        "scored-list",
        [
            Pair(
                (user("q"),),
                (assistant("c"),),
                (assistant("a"),),
                margin=2.0,
                meta={"chosen_score": 3.0, "rejected_score": 1.0, "generation_models": ["m", "n", "o"]},
            )
        ],
    ),
    "PairRM's ranks": (
        {"input": "Hello, how are you?", "candidates": ["fine", "good", "bad"], "ranks": [2, 1, 3]},
        "ranked-list",
        [Pair((user("Hello, how are you?"),), (assistant("good"),), (assistant("bad"),))],
    ),
    "Nectar's ranks": (
        {"prompt": "q", "answers": [{"answer": "b", "model": "m", "rank": 2.0}, {"answer": "a", "model": "n", "rank": 1.0}]},
        "ranked-list",
        [Pair((user("q"),), (assistant("a"),), (assistant("b"),), meta={"chosen_model": "n", "rejected_model": "m"})],
    ),
    "an order": ({**RANKED, "order": [1, 2, 0]}, "ranked-list", [Pair((user("q"),), (assistant("good"),), (assistant("fine"),))]),
    "a ranking that is its own inverse": (
        {**RANKED, "ranking": [2, 1, 3]},
        "ranked-list",
        [Pair((user("q"),), (assistant("good"),), (assistant("bad"),))],
    ),
    "a ranking by text": (
        {**RANKED, "ranking": ["bad", "fine", "good"]},
        "ranked-list",
        [Pair((user("q"),), (assistant("bad"),), (assistant("good"),))],
    ),
    "Label Studio": (
        LABEL_STUDIO,
        "label-studio",
        [
            Pair((FOX,), (DOG,), (LYNX,), id="7", annotator="10", meta={"lang": "en", "annotation_id": 1001}),
            Pair((FOX,), (LYNX,), (DOG,), id="7#2", annotator="bo@example.org", meta={"lang": "en", "annotation_id": 1002}),
        ],
    ),
    "Label Studio, tags with other names": (
        {
            "data": {"prompt": "q", "text1": "a", "text2": "b"},
            "annotations": [{"result": [{"to_name": "txt-1,txt-2", "type": "pairwise", "value": {"selected": "right"}}]}],
        },
        "label-studio",
        [Pair((user("q"),), (assistant("b"),), (assistant("a"),))],
    ),
    "Label Studio, a choice": (
        {
            "data": {"prompt": "q", "response_a": "a", "response_b": "b"},
            "annotations": [{"result": [{"to_name": "prompt", "type": "choices", "value": {"choices": ["Response B"]}}]}],
        },
        "label-studio",
        [Pair((user("q"),), (assistant("b"),), (assistant("a"),))],
    ),
    "Label Studio JSON-MIN": (
        LABEL_STUDIO_MIN,
        "label-studio-min",
        [Pair((FOX,), (LYNX,), (DOG,), id="7", annotator="10", meta={"annotation_id": 1001, "lead_time": 4.2})],
    ),
    "Label Studio JSON-MIN, a choice": (
        {"prompt": "q", "answer1": "a", "answer2": "b", "better": "answer1", "annotation_id": 3},
        "label-studio-min",
        [Pair((user("q"),), (assistant("a"),), (assistant("b"),), meta={"annotation_id": 3})],
    ),
    "Argilla 2": (
        ARGILLA,
        "argilla",
        [
            Pair(
                (user("q"),),
                (assistant("b"),),
                (assistant("a"),),
                id="r1",
                annotator="u1",
                meta={"lang": "en", "_server_id": "s1", "comment": "b is shorter"},
            ),
            Pair((user("q"),), (assistant("a"),), (assistant("b"),), id="r1#2", annotator="u2", meta={"lang": "en", "_server_id": "s1"}),
        ],
    ),
    "Argilla 2, only suggested": (
        {**ARGILLA, "responses": {}},
        "argilla",
        [Pair((user("q"),), (assistant("a"),), (assistant("b"),), id="r1", annotator="judge", meta={"lang": "en", "_server_id": "s1"})],
    ),
    "Argilla 2, a label": (
        {"fields": {"prompt": "q", "Chat 1": "a", "Chat 2": "b"}, "responses": {"which": [{"value": "chat-2", "user_id": "u1"}]}},
        "argilla",
        [Pair((user("q"),), (assistant("b"),), (assistant("a"),), annotator="u1")],
    ),
    "Argilla's FeedbackDataset": (
        FEEDBACK_DATASET,
        "argilla",
        [Pair((user("q"),), (assistant("b"),), (assistant("c"),), id="e1", annotator="u1")],
    ),
    "Argilla 2 flat, ratings": (
        ARGILLA_FLAT,
        "argilla-flat",
        [
            Pair(
                (user("q"),),
                (assistant("b"),),
                (assistant("a"),),
                id="r1",
                annotator="u1",
                margin=3.0,
                meta={"status": "completed", "_server_id": "s1", "chosen_score": 5.0, "rejected_score": 2.0},
            ),
            Pair(
                (user("q"),),
                (assistant("a"),),
                (assistant("b"),),
                id="r1#2",
                annotator="u2",
                margin=1.0,
                meta={"status": "completed", "_server_id": "s1", "chosen_score": 4.0, "rejected_score": 3.0},
            ),
        ],
    ),
    "Argilla's FeedbackDataset on the Hub": (
        FEEDBACK_HUB,
        "argilla-flat",
        [Pair((user("q"),), (assistant("b"),), (assistant("a"),), id="e1", annotator="u1")],
    ),
    "an edit": (EDIT, "edits", [Pair((user("Where is my parcel?"),), (assistant("In Ulm."),), (assistant("No idea."),), annotator="ann")]),
    "a thumb": (THUMB, "thumbs", [Labelled((user("Hi"),), (assistant("Hello!"),), True, meta={"chat": "c1"})]),
    "a thumb after the messages": (
        {"messages": [said("user", "Hi"), said("assistant", "Hello!")], "rating": -1},
        "thumbs",
        [Labelled((user("Hi"),), (assistant("Hello!"),), False)],
    ),
    "a thumb called label": (
        {"prompt": "Hi", "response": "Ho", "label": False},
        "thumbs",
        [Labelled((user("Hi"),), (assistant("Ho"),), False)],
    ),
    "a thumb with a comment": (
        {"prompt": "Hi", "response": "Ho", "feedback": {"rating": "thumbs_down", "comment": "rude"}},
        "thumbs",
        [Labelled((user("Hi"),), (assistant("Ho"),), False, meta={"feedback": {"comment": "rude"}})],
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_gives_its_records(tmp_path, example):
    row, shape, records = EXAMPLES[example]
    assert read(tmp_path, row) == (records, [shape])
    assert read(tmp_path, row, shape=shape) == (records, [shape]), "the shape can be named"


def test_every_shape_has_an_example_here_or_in_test_formats():
    elsewhere = {"explicit-prompt", "ultrafeedback-binarized", "hh-rlhf", "implicit-prompt", "implicit-text"}
    assert {shape for _, shape, _ in EXAMPLES.values()} | elsewhere == set(BY_NAME)
    assert not {shape.name for shape in ASKED_FOR} & {shape.name for shape in SHAPES}


# Which shape


def test_shapes_are_counted_and_may_be_mixed(tmp_path):
    seen = Counter()
    path = write(tmp_path / "mixed.jsonl", SHAREGPT, {}, THUMB, THUMB, {"instruction": "q", "chosen": "a", "rejected": ""})
    problems = []
    records = list(read_records(path, on_bad=problems.append, seen=seen))
    assert [type(record) for record in records] == [Pair, Labelled, Labelled]
    assert seen == {"sharegpt": 1, "thumbs": 2, "alpaca": 1}
    assert [problem.kind for problem in problems] == ["malformed", "empty"]


def test_a_shape_that_was_asked_for_must_fit(tmp_path):
    [(kind, fault)] = faults(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}, shape="openai")
    assert kind == "malformed"
    assert "not in the format `openai`: that has `input`, `preferred_output` and `non_preferred_output`; the row has `prompt`" in fault


def test_unknown_shape_is_refused_before_anything_is_read():
    with pytest.raises(RequestError, match=r"no format `open-ai`\. Did you mean `openai`"):
        read_records("no such file", shape="open-ai")


def test_implicit_prompt_in_text_is_read_when_asked_for_and_never_guessed(tmp_path):
    """TRL's example of a preference with an implicit prompt, in the standard format."""
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    [(kind, fault)] = faults(tmp_path, row)
    assert kind == "malformed"
    assert "give the format `implicit-text`" in fault
    records, seen = read(tmp_path, row, shape="implicit-text")
    assert (records, seen) == ([Pair((user("The sky is"),), (assistant(" blue."),), (assistant(" green."),))], ["implicit-text"])
    assert faults(tmp_path, {"chosen": "Yes.", "rejected": "No."}, shape="implicit-text")[0][0] == "empty"


# Tools


def test_openai_tools_and_calls(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    given = {"messages": [said("system", "Be brief."), said("user", "Cold?")], "tools": [WEATHER], "parallel_tool_calls": False}
    row = {
        "input": given,
        "preferred_output": [{"role": "assistant", "content": None, "tool_calls": [call]}],
        "non_preferred_output": [said("assistant", "No idea.")],
    }
    [pair], _ = read(tmp_path, row)
    assert pair.meta == {"tools": [WEATHER], "parallel_tool_calls": False}
    assert pair.prompt == (system("Be brief."), user("Cold?"))
    assert pair.chosen[0].extra["tool_calls"][0]["function"]["arguments"] == {"city": "Ulm"}
    for arguments in ("{", "[1]", 5):
        call["function"]["arguments"] = arguments
        [pair], _ = read(tmp_path, row)
        assert pair.chosen[0].extra["tool_calls"][0]["function"]["arguments"] == arguments, "a model's malformed call stays as it was"


def test_llama_factory_tools_and_calls(tmp_path):
    row = {
        **SHAREGPT,
        "conversations": [
            {"from": "human", "value": "Cold?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
            {"from": "observation", "value": "2 °C"},
        ],
        "system": "Be brief.",
        "tools": json.dumps([WEATHER["function"]]),
    }
    [pair], _ = read(tmp_path, row)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    assert pair.prompt == (system("Be brief."), user("Cold?"), assistant("", tool_calls=[call]), Message("tool", "2 °C"))
    assert pair.meta == {"tools": [WEATHER]}


def test_tools_as_text_are_read_in_any_shape(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "tools": json.dumps([WEATHER])}
    assert read(tmp_path, row)[0][0].meta == {"tools": [WEATHER]}
    assert faults(tmp_path, {**row, "tools": "["})[0][1].startswith("`tools` is text that is not JSON")


# Lists


def sides(records):
    return [(record.chosen[0].content, record.rejected[0].content, record.margin) for record in records]


def test_pairing(tmp_path):
    row = {"prompt": "q", "responses": ["a", "b", "c", "d"], "scores": [1, 4, 4, 2.5]}
    assert sides(read(tmp_path, row)[0]) == [("b", "a", 3.0)]
    everything = [("b", "a", 3.0), ("c", "a", 3.0), ("d", "a", 1.5), ("b", "d", 1.5), ("c", "d", 1.5)]
    assert sides(read(tmp_path, row, pairing=Pairing("all"))[0]) == everything
    assert sides(read(tmp_path, row, pairing=Pairing("all", min_gap=2))[0]) == everything[:2]
    assert sides(read(tmp_path, row, pairing=Pairing("best-worst", min_gap=3))[0]) == [("b", "a", 3.0)]
    [(kind, fault)] = faults(tmp_path, row, pairing=Pairing(min_gap=3.5))
    assert (kind, fault.partition(",")[0]) == ("tie", "no two replies lie 3.5 or more apart")


def test_ultrafeedback_without_an_overall_score_has_the_mean_of_its_ratings(tmp_path):
    [pair], _ = read(tmp_path, RATED)
    assert (pair.chosen, pair.rejected, pair.margin) == ((assistant("b"),), (assistant("a"),), 2.5)


def test_one_bad_pair_of_a_list_leaves_the_others(tmp_path):
    row = {"prompt": "q", "responses": ["a", "b", "a"], "scores": [3, 2, 1]}
    assert [kind for kind, _ in faults(tmp_path, row, pairing=Pairing("all"))] == ["identical"]
    path = write(tmp_path / "one.jsonl", row)
    assert sides(read_records(path, pairing=Pairing("all"), on_bad=lambda problem: None)) == [("a", "b", 1.0), ("b", "a", 1.0)]


LIST_FAULTS = [
    ({"scores": [1, 1, 1]}, "tie", "all replies are judged alike"),
    ({"scores": [1, None, "N/A"]}, "unlabelled", "1 of 3 replies are judged"),
    ({"scores": [1, 2]}, "malformed", "`scores` has 2 values for 3 replies"),
    ({"scores": {"a": 1}}, "malformed", "`scores` has an object for 3 replies"),
    ({"scores": [1, 2, "high"]}, "malformed", "`scores` holds 'high', which is no finite number"),
    ({"scores": [1, 2, True]}, "malformed", "`scores` holds True"),
    ({"ranks": [1, 1, 1]}, "tie", "all replies are judged alike"),
    ({"ranking": [3, 1, 2]}, "malformed", "`ranking` can be read in two ways that disagree. Name it `ranks`"),
    ({"ranking": [1, 2, 2]}, "malformed", "`ranking` does not list every reply once"),
    ({"order": [1, 2, 3]}, "malformed", "`order` does not list every reply once"),
    ({"ranking": ["good", "bad", "ugly"]}, "malformed", "`ranking` does not name every reply once"),
    ({"ranks": [1, 2, 3], "prompt": None}, "malformed", "this row has no prompt"),
    ({"ranks": [1, 2, 3], "responses": ["a", "b", 5]}, "malformed", "`responses`, reply 3 is a number without text"),
    ({"ranks": [1, 2, 3], "responses": ["a", "b", " "]}, "empty", "`rejected` is an empty response"),
    ({}, "malformed", "this row has no `chosen`; it has `prompt`, `responses`"),
]


@pytest.mark.parametrize("changes, kind, fault", LIST_FAULTS, ids=[json.dumps(changes) for changes, _, _ in LIST_FAULTS])
def test_list_faults(tmp_path, changes, kind, fault):
    [(found, message)] = faults(tmp_path, {**RANKED, **changes})
    assert (found, fault in message) == (kind, True), message


# Labelling tools


def test_one_annotators_fault_leaves_the_others(tmp_path):
    row = json.loads(json.dumps(LABEL_STUDIO))
    row["annotations"][0]["result"][0]["value"] = {"choices": ["tie"]}
    [(kind, fault)] = faults(tmp_path, row)
    assert (kind, fault.partition(":")[0]) == ("tie", "the annotation says 'tie'")
    path = write(tmp_path / "one.jsonl", row)
    assert [pair.annotator for pair in read_records(path, on_bad=lambda problem: None)] == ["bo@example.org"]


def changed(row, **changes):
    return {**row, **changes}


FAULTS = {
    "Label Studio, not annotated": (changed(LABEL_STUDIO, annotations=[]), "unlabelled", "this task has no annotation"),
    "Label Studio, no result": (changed(LABEL_STUDIO, annotations=[{"result": []}]), "unlabelled", "no pairwise comparison and no choice"),
    "Label Studio, replies with other names": (
        changed(LABEL_STUDIO, data={"prompt": "q", "good": "a", "evil": "b"}),
        "malformed",
        "which two fields hold the replies is not clear",
    ),
    "Label Studio, another word": (
        changed(LABEL_STUDIO, annotations=[{"result": [{"value": {"selected": "middle"}}]}]),
        "malformed",
        "says 'middle', which names neither `answer1` nor `answer2`",
    ),
    "JSON-MIN, nothing selected": (changed(LABEL_STUDIO_MIN, comparison=[]), "unlabelled", "no comparison and no choice"),
    "JSON-MIN, two comparisons": (changed(LABEL_STUDIO_MIN, again=[{"selected": "left"}]), "malformed", "2 results of comparisons"),
    "Argilla, nobody answered": (changed(ARGILLA, responses={}, suggestions={}), "unlabelled", "nobody judged it"),
    "Argilla, a tie": (
        changed(ARGILLA, responses={"ranking": [{"value": [{"rank": 1, "value": "response1"}, {"rank": 1, "value": "response2"}]}]}),
        "tie",
        "all replies are judged alike",
    ),
    "Argilla, no answer about a field": (
        changed(ARGILLA, responses={"language": [{"value": "en"}]}, suggestions={}),
        "unlabelled",
        "The questions are `language`, the fields `instruction`, `response1`, `response2`",
    ),
    "draft as it was": (changed(EDIT, sent="No  idea.\n"), "identical", "a draft that was not changed prefers nothing"),
    "edit without a prompt": ({"draft": "a", "sent": "b"}, "malformed", "this row has no prompt"),
    "thumb not given": (changed(THUMB, feedback=None), "unlabelled", "a reply and no judgement of it"),
    "thumb empty": (changed(THUMB, feedback=""), "unlabelled", "nobody judged this reply"),
    "zero": (changed(THUMB, feedback=0), "malformed", "`feedback` is 0, which is neither up nor down"),
    "stars": (changed(THUMB, feedback=4), "malformed", "`feedback` is 4, which is neither up nor down"),
    "label of another kind": (changed(UNPAIRED_TEXT, label="good"), "malformed", "`label` is 'good'; it must be true"),
    "completion empty": (changed(UNPAIRED_TEXT, completion=" "), "empty", "`completion` is an empty response"),
    "kto without output": ({"instruction": "q", "kto_tag": True}, "malformed", "no `output` that it judges"),
    "OpenAI, input without messages": (changed(OPENAI, input={}), "malformed", "`input` is an object without `messages`"),
    "OpenAI, equal": (changed(OPENAI, non_preferred_output=OPENAI["preferred_output"]), "identical", "identical"),
    "history": (changed(ALPACA, history=[["one"]]), "malformed", "`history` is not a list of"),
    "sharegpt, unknown speaker": (
        changed(SHAREGPT, chosen={"from": "human1", "value": "a"}),
        "malformed",
        "`chosen`, message 1 comes `from` 'human1'. Did you mean `human`?",
    ),
    "sharegpt, call that is not JSON": (
        changed(SHAREGPT, chosen={"from": "function_call", "value": "weather()"}),
        "malformed",
        "is a function_call whose `value` is not JSON",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(tmp_path, name):
    row, kind, fault = FAULTS[name]
    found = faults(tmp_path, row)
    assert {each for each, _ in found} == {kind}
    assert all(fault in message for _, message in found), found


KINDS = [
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical"),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "empty"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "winner": "tie"}, "tie"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 0}, "tie"),
    ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"}, "prompts-differ"),
    ({"chosen": [said("user", "q"), said("assistant", "a")], "rejected": [said("user", "p"), said("assistant", "b")]}, "prompts-differ"),
    (
        {"prompt": "p", "chosen": [said("user", "q"), said("assistant", "a")], "rejected": [said("user", "q"), said("assistant", "b")]},
        "prompts-differ",
    ),
    ({"prompt": "q", "chosen": "a", "rejected": 5}, "malformed"),
    (["no object"], "malformed"),
]


@pytest.mark.parametrize("row, kind", KINDS, ids=[f"{kind} {at}" for at, (_, kind) in enumerate(KINDS)])
def test_a_fault_has_a_kind_for_programs(tmp_path, row, kind):
    assert [found for found, _ in faults(tmp_path, row)] == [kind]


def test_where_pairs_are_needed_an_unpaired_record_is_a_fault(tmp_path):
    path = write(tmp_path / "a.jsonl", THUMB, {"prompt": "q", "chosen": "a", "rejected": "b"})
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: this row judges one reply") as caught:
        list(read_pairs(path))
    assert caught.value.kind == "unpaired"
    problems = []
    assert [pair.id for pair in read_all([path], on_bad=problems.append)] == ["a:2"]
    assert [problem.where for problem in problems] == [f"{path}, line 1"]


# Streams


def test_read_records_gives_ids_as_read_all_does(tmp_path):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "train.jsonl", pair, {**pair, "id": "x"}, {**pair, "id": "x"}, {**pair, "id": "train:5"}, pair)
    assert [record.id for record in read_records(path)] == [pair.id for pair in read_all([path])] == ["train:1", "x", "x#2", "train:5", "train:5#2"]
    assert [record.id for record in read_records(path, path)][5:7] == ["train:1#2", "x#3"]


def test_read_records_streams(tmp_path):
    path = write(tmp_path / "a.jsonl", *[{"prompt": "q", "chosen": "a", "rejected": "b"}] * 3, {})
    records = read_records(path)
    assert [next(records).id for _ in range(3)] == ["a:1", "a:2", "a:3"], "what is good comes before the bad row is read"
    with pytest.raises(DataError, match="line 4"):
        next(records)


# Tables


@pytest.mark.parametrize("example", ["OpenAI", "LLaMA-Factory sharegpt", "UltraFeedback", "Label Studio", "Label Studio JSON-MIN", "PairRM's ranks"])
def test_the_same_in_a_table(tmp_path, example):
    """Lists and objects stand as JSON text in a CSV file."""
    row, shape, records = EXAMPLES[example]
    seen = Counter()
    read_back = list(read_records(write_table(tmp_path / "one.csv", row), seen=seen))
    assert [(record.prompt, record.chosen, record.rejected, record.annotator) for record in read_back] == [
        (record.prompt, record.chosen, record.rejected, record.annotator) for record in records
    ]
    assert list(seen) == [shape]


# Any JSON in any field

SPECIAL = [
    "",
    " ",
    "up",
    "left",
    "tie",
    "N/A",
    "response1",
    "[{",
    '[{"selected": "left"}]',
    "\n\nHuman: a\n\nAssistant: b",
    "\ud800",
    0,
    1,
    -1,
    0.5,
    10**400,
    [],
    {},
    [[]],
    [{}],
    [None, None],
    {"rank": [1], "value": ["a"]},
    {"rating": "up"},
    {"value": None},
    {"messages": []},
    [said("user", "q"), said("assistant", "a")],
    [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}],
    {"from": "function_call", "value": "[5]"},
    [{"role": "assistant", "content": "", "tool_calls": 5}],
]
KEYS = ["role", "content", "from", "value", "rank", "response", "score", "annotations", "result", "messages", "user_id", "values", "a"]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=3) | st.sampled_from(SPECIAL).map(copy.deepcopy),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged_rows(draw):
    """An example in which a value somewhere, however deep, is another one, or gone."""
    row = json.loads(json.dumps(EXAMPLES[draw(st.sampled_from(sorted(EXAMPLES)))][0]))
    for _ in range(draw(st.integers(1, 3))):
        place = row
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.integers(0, 4)):
                place[key] = draw(ANY)
            else:
                del place[key]
            break
    if draw(st.booleans()):
        fields = [name for example, _, _ in EXAMPLES.values() for name in example]
        row[draw(st.sampled_from(sorted(set(fields))))] = draw(ANY)
    return row


def write_table(path, row):
    """One row of a CSV file, its lists and objects as JSON text."""
    cells = {name: cell if isinstance(cell, str) else json.dumps(cell) for name, cell in row.items() if "\ud800" not in (name, cell)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, {"n": "1", **cells})
        writer.writeheader()
        writer.writerow({"n": "1", **cells})
    return path


@settings(max_examples=400, deadline=None)
@given(
    damaged_rows(),
    st.sampled_from([None, None, *BY_NAME]),
    st.sampled_from([Pairing(), Pairing("all"), Pairing("all", 1.0)]),
    st.booleans(),
)
def test_any_json_in_any_field_gives_records_or_data_errors(row, shape, pairing, as_table):
    with tempfile.TemporaryDirectory() as folder:
        path = write_table(Path(folder, "a.csv"), row) if as_table else write(Path(folder, "a.jsonl"), row)
        problems = []
        records = list(read_records(path, on_bad=problems.append, shape=shape, pairing=pairing))
        event("records" if records else "errors")
        assert records or problems
        assert all(problem.where == f"{path}, {'row' if as_table else 'line'} 1" for problem in problems)
        for record in records:
            again = list(read_records(write(Path(folder, "b.jsonl"), record.as_dict())))
            assert again == [record], "what was read is canonical"


# What people are told

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `([\w-]+)` \| .* \| `(\{.*\})` \|$", DOCS, flags=re.MULTILINE)


@pytest.mark.parametrize("name, example", TABLE, ids=[name for name, _ in TABLE])
def test_the_examples_of_the_page_are_of_their_shape(tmp_path, name, example):
    shape = name if name == "implicit-text" else None
    [record], seen = read(tmp_path, json.loads(example), shape=shape)
    assert seen == [name]
    reply = record.completion if isinstance(record, Labelled) else record.chosen
    assert reply[0].content in ("a", " blue.")


def test_every_shape_is_on_the_page_and_in_the_help():
    assert sorted(name for name, _ in TABLE) == sorted(BY_NAME)
    assert set(BY_NAME) <= set(re.findall(r"[\w-]+", convert.__doc__))


def test_every_kind_of_fault_is_on_the_page_and_in_the_error():
    kinds = {"identical", "empty", "tie", "prompts-differ", "unlabelled", "unpaired", "malformed"}
    assert kinds == set(re.findall(r"^        ([\w-]+)   ", DataError.__doc__, flags=re.MULTILINE))
    assert all(f"| `{kind}` |" in DOCS for kind in kinds)
