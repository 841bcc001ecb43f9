"""Lists of judged replies: which pairs they give, and what is refused."""

import json

import pytest
from tests.data.shapes.examples import RANKED, RATED, assistant, faults, read, write

from likelier.data.formats import read_records
from likelier.data.shapes.lists import Pairing


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
