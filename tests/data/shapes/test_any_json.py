"""Any JSON value in any field of any shape gives records or a DataError, never another exception."""

import copy
import json
import tempfile
from pathlib import Path

from hypothesis import event, given, settings
from hypothesis import strategies as st
from tests.data.shapes.examples import EXAMPLES, said, write, write_table

from likelier.data.formats import read_records
from likelier.data.shapes import BY_NAME
from likelier.data.shapes.lists import Pairing

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
