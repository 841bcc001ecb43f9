"""Every shape: its example gives exactly its records, from a file of lines and from a table."""

from collections import Counter

import pytest
from tests.data.shapes.examples import EXAMPLES, SHAREGPT, THUMB, assistant, faults, read, user, write, write_table

from likelier.data.formats import read_all, read_records
from likelier.data.shapes import ASKED_FOR, BY_NAME, SHAPES
from likelier.errors import DataError, RequestError
from likelier.records import Labelled, Pair


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
