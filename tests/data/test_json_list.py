"""A streamed JSON list is what `json.load` gives, wherever the pieces of the file are cut."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likelier.data import json_list
from likelier.data.json_list import list_items

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=[1, 3, 7, 1 << 20])
def piece(request, monkeypatch):
    monkeypatch.setattr(json_list, "PIECE", request.param)
    return request.param


@settings(max_examples=300, deadline=None)
@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 0, 3]), st.booleans(), st.sampled_from(["", "\n", " \r\n\t"]), st.integers(1, 9))
def test_it_gives_what_json_load_gives(items, indent, ascii_only, blank, size):
    text = blank + json.dumps(items, indent=indent, ensure_ascii=ascii_only) + blank
    before, json_list.PIECE = json_list.PIECE, size
    try:
        assert list(list_items(io.StringIO(text, newline=""))) == items
    finally:
        json_list.PIECE = before


FAULTS = ["[", "[1", "[1,", "[1,]", "[1 2]", '[1,\n "a', '[\n{"a": tru}]', '[{"a" 1}]', "[1]\n[2]", '["\\u12"]', '["\\x"]', "[,]", "[-]"]


@pytest.mark.parametrize("text", FAULTS)
def test_what_is_no_json_is_refused_at_the_same_place(piece, text):
    with pytest.raises(json.JSONDecodeError) as slow:
        json.loads(text)
    with pytest.raises(ValueError, match="this is not valid JSON") as fast:
        list(list_items(io.StringIO(text)))
    line, column = (int(word.split()[1]) for word in str(fast.value).split(":")[0].split(","))
    assert line == slow.value.lineno
    assert abs(column - slow.value.colno) <= 1


def test_no_more_is_read_than_is_asked_for(monkeypatch):
    monkeypatch.setattr(json_list, "PIECE", 10)
    file = io.StringIO(json.dumps(["abcdefgh"] * 1000))
    items = list_items(file)
    assert [next(items) for _ in range(3)] == ["abcdefgh"] * 3
    assert file.tell() < 100


def test_nested_too_deeply(piece):
    with pytest.raises(ValueError, match="nested too deeply"):
        list(list_items(io.StringIO("[" * 100_000)))
