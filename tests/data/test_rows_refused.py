"""Rows and folders that look all right and would teach or leak what nobody meant."""

import json

import pytest

from likelier.data.formats import read_records, write_pairs
from likelier.errors import DataError


def records_of(tmp_path, row):
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n")
    return list(read_records(tmp_path / "one.jsonl"))


PLAIN = {"prompt": "Why?", "chosen": "Because.", "rejected": "Never mind."}


@pytest.mark.parametrize("tools", [5, {}, [1], "5", "{}"])
def test_tools_that_no_template_can_list(tools, tmp_path):
    with pytest.raises(DataError, match="`tools` is"):
        records_of(tmp_path, {**PLAIN, "tools": tools})


def test_parts_of_text_are_one_text(tmp_path):
    parts = [{"type": "text", "text": "Why "}, {"type": "text", "text": "not?"}]
    [read] = records_of(tmp_path, {**PLAIN, "prompt": [{"role": "user", "content": parts}]})
    assert read.prompt[0].content == "Why not?"
    with pytest.raises(DataError, match="list of parts that are text"):
        records_of(tmp_path, {**PLAIN, "prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]})


@pytest.mark.parametrize("rating", [1, 1.0, "1", {"rating": 1, "by": "x"}])
def test_one_star_is_no_thumb_up(rating, tmp_path):
    with pytest.raises(DataError, match="worst of five stars"):
        records_of(tmp_path, {"prompt": "Why?", "response": "Because.", "rating": rating})
    assert records_of(tmp_path, {"prompt": "Why?", "response": "Because.", "thumbs": rating})[0].label is True


def test_labels_in_a_table(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,label\nWhy?,Because.,1\nWhy?,No.,0\n")
    assert [record.label for record in read_records(tmp_path / "a.csv")] == [True, False]


def test_a_folder_with_a_file_and_its_sides_is_refused(tmp_path):
    for name in ("pairs", "pairs.train", "pairs.eval"):
        write_pairs(tmp_path / f"{name}.jsonl", read_records("embedded:facts"))
    with pytest.raises(DataError, match=r"pairs and its side pairs\.eval"):
        list(read_records(tmp_path))
    (tmp_path / "pairs.jsonl").unlink()
    assert next(iter(read_records(tmp_path)))
