"""What people are told of the shapes: the page's examples are of their shape, and nothing is missing."""

import json
import re
from pathlib import Path

import pytest
from tests.data.shapes.examples import read

from likelier.cli import convert
from likelier.data.shapes import BY_NAME
from likelier.errors import DataError
from likelier.records import Labelled

DOCS = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
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
