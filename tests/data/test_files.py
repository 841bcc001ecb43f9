import gzip
import json
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from likelier.data import files
from likelier.data.files import read_rows, write_rows
from likelier.errors import DataError, RequestError

ROWS = [{"prompt": "Zwölf?", "chosen": "12"}, {"prompt": 'a,\n"b"', "chosen": "x"}]


def jsonl(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def values(source: object) -> list[object]:
    rows = [row.value for row in read_rows(source)]
    for value in rows:
        if isinstance(value, DataError):
            raise value
    return rows


def refusal(source: object) -> str:
    with pytest.raises(DataError) as caught:
        values(source)
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, RequestError)
    return str(caught.value)


# Containers


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL.GZ", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet"])
def test_every_container_gives_the_same_rows(tmp_path, name):
    kind = name.lower().removesuffix(".gz").rpartition(".")[2]
    content = {
        "jsonl": "\n\n".join(json.dumps(row) for row in ROWS),
        "json": json.dumps(ROWS, indent=1),
        "csv": '\ufeffprompt,chosen\r\nZwölf?,12\r\n"a,\n""b""",x\r\n',
    }.get(kind, "")
    path = tmp_path / name
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes(gzip.compress(content.encode()) if name.lower().endswith(".gz") else content.encode())
    assert values(path) == ROWS


def test_a_row_knows_where_it_stands(tmp_path):
    path = tmp_path / "train.v2.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    rows = list(read_rows(path))
    assert [(row.number, row.where, row.stem) for row in rows] == [(1, f"{path}, line 1", "train.v2"), (3, f"{path}, line 3", "train.v2")]


def test_byte_order_mark_is_not_content(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"a": 1}\r\n{"a": 2}\r\n')
    assert values(path) == [{"a": 1}, {"a": 2}]


def test_json_list_with_byte_order_mark(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(("\ufeff\r\n " + json.dumps(ROWS)).encode()))
    assert values(path) == ROWS


def test_json_object_with_one_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "rows": ROWS}))
    assert values(path) == ROWS
    path.write_text(json.dumps({"rows": ROWS, "more": ROWS}))
    assert "one field is that list" in refusal(path)
    path.write_text('"text"')
    assert "a list of rows" in refusal(path)


def test_csv_cell_longer_than_the_csv_modules_own_limit(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen\nq," + "x" * 200_000 + "\n")
    assert len(values(path)[0]["chosen"]) == 200_000


def test_csv_empty_cell_is_an_absent_field(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,weight\nq,\n")
    assert values(path) == [{"prompt": "q"}]


def test_arrow_nulls_are_absent_fields_and_other_types_become_json(tmp_path):
    path = tmp_path / "a.parquet"
    messages = [{"role": "user", "content": "q", "name": "Al"}, {"role": "assistant", "content": "a"}]
    pq.write_table(
        pa.Table.from_pylist([{"m": messages, "day": date(2024, 2, 29), "price": Decimal("1.5")}, {"m": None, "day": None, "price": None}]), path
    )
    assert values(path) == [{"m": messages, "day": "2024-02-29", "price": 1.5}, {}]


# Places


def test_folder_and_glob_read_their_files_in_order_of_name(tmp_path):
    jsonl(tmp_path / "b.jsonl", {"n": 2})
    jsonl(tmp_path / "a.jsonl", {"n": 1})
    jsonl(tmp_path / ".hidden.jsonl", {"n": 0})
    jsonl(tmp_path / "a.bad.jsonl", {"where": "a.jsonl, line 2"})
    jsonl(tmp_path / "deeper" / "c.jsonl", {"n": 3})
    (tmp_path / "README.md").write_text("not data")
    assert values(tmp_path) == [{"n": 1}, {"n": 2}]
    assert values(f"{tmp_path}/[ab].jsonl") == [{"n": 1}, {"n": 2}]
    assert values(f"{tmp_path}/**/*.jsonl") == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert values(f"{tmp_path}/deep*") == [{"n": 3}]


def test_glob_relative_to_the_working_folder(tmp_path, monkeypatch):
    jsonl(tmp_path / "data" / "a.jsonl", {"n": 1})
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert values("../data/*.jsonl") == [{"n": 1}]


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    path = jsonl(tmp_path / "a[1].jsonl", {"n": 1})
    assert values(path) == [{"n": 1}]


def test_embedded_sets(tmp_path, monkeypatch):
    jsonl(tmp_path / "support.jsonl", {"n": 1})
    monkeypatch.setattr(files, "_assets", lambda: tmp_path)
    assert [(row.value, row.where, row.stem) for row in read_rows("embedded:support")] == [({"n": 1}, "embedded:support, line 1", "support")]
    assert "Did you mean `support`?" in refusal("embedded:suport")


def test_dataset_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list([{"prompt": "q", "weight": 2.0}, {"prompt": "r", "weight": None}])
    saved.save_to_disk(str(tmp_path / "one"))
    assert values(tmp_path / "one") == [{"prompt": "q", "weight": 2.0}, {"prompt": "r"}]
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert str(tmp_path / "two" / "test") in refusal(tmp_path / "two")
    rows = list(read_rows(tmp_path / "two" / "test"))
    assert [(row.value["prompt"], row.stem, row.where) for row in rows] == [("q", "test", f"{tmp_path}/two/test, row 1")]
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    assert "cannot be read" in refusal(tmp_path / "one")


def test_hub_names(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([{"n": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train"] if name == "ann/one" else ["train", "test"])
    assert [(row.value, row.where, row.stem) for row in read_rows("hf:ann/prefs:train[:1]")] == [
        ({"n": 1}, "hf:ann/prefs:train[:1], row 1", "prefs-train[:1]")
    ]
    assert values("hf:ann/one") == [{"n": 1}]
    assert asked == [("ann/prefs", "train[:1]"), ("ann/one", "train")]
    assert "hf:ann/prefs:train, hf:ann/prefs:test" in refusal("hf:ann/prefs")
    assert "hf:owner/name" in refusal("hf:prefs")


def test_hub_that_cannot_be_reached(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(name, split):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "hf:ann/prefs:train: the hub's dataset cannot be loaded (no route)" in refusal("hf:ann/prefs:train")


def test_without_the_datasets_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "state.json").write_text("{}")
    assert "pip install 'likelier[datasets]'" in refusal("hf:ann/prefs")
    assert "pip install 'likelier[datasets]'" in refusal(tmp_path)


# Faults


def test_missing_file_suggests_its_siblings(tmp_path):
    jsonl(tmp_path / "train.jsonl", {})
    message = refusal(tmp_path / "trian.jsonl")
    assert f"{tmp_path}/trian.jsonl: there is no such file. Did you mean `train.jsonl`?" in message
    assert f"not even the folder {tmp_path}/no exists" in refusal(tmp_path / "no" / "train.jsonl")
    assert "no file matches" in refusal(tmp_path / "*.csv")
    (tmp_path / "empty").mkdir()
    assert "holds no data file (.jsonl" in refusal(tmp_path / "empty")
    assert "name of a data source is empty" in refusal("")


@pytest.mark.parametrize("name", ["train.jsonlines", "train", "train.parquet.gz", "train.txt"])
def test_unknown_ending(tmp_path, name):
    (tmp_path / name).write_text("{}")
    message = refusal(tmp_path / name)
    assert f"{tmp_path}/{name}: files ending in" in message
    assert ".jsonl.gz" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.parquet"])
def test_empty_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"\n") if name.endswith(".gz") else b"")
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    assert f"{path}: this file holds no rows" in refusal(path)


def test_bad_json_line_is_named_with_its_column_and_the_next_line_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n' * 16 + '{"n": 1, }\n{"n": 18}\n')
    assert f"{path}, line 17: column 10: this line is not valid JSON" in refusal(path)
    assert [row.value for row in read_rows(path)][-1] == {"n": 18}


@pytest.mark.parametrize(
    "line, fault",
    [
        (b'{"n": NaN}', "`n`: nan is not a number"),
        (b'{"a": {"b": [1e999]}}', "`a`: `b`: inf is not a number"),
        (b'{"n": "\\ud800"}', "`n`: this text holds '\\ud800', half of a character"),
        (b'{"n": "\xff"}', "column 8: this line is not UTF-8"),
        (b'{"n": ' + b"9" * 5000 + b"}", "beyond what can be read"),
        (b"[" * 100_000, "beyond what can be read"),
    ],
)
def test_json_that_could_not_be_written_back(tmp_path, line, fault):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b"\n")
    message = refusal(path)
    assert f"{path}, line 2: " in message
    assert fault in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_deep_nesting_is_read_whole_or_refused(tmp_path, name):
    path = tmp_path / name
    faults = []
    for depth in range(100, 1200, 100):
        path.write_text("[" * depth + "]" * depth)
        try:
            json.dumps(values(path))
        except DataError as problem:
            faults.append(str(problem))
    assert 0 < len(faults) < 11
    assert all(str(path) in fault for fault in faults)


def test_bad_json_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"n": 1},\n {"n" 2}]')
    assert f"{path}: this file cannot be read after row 1: line 3, column 7: this is not valid JSON" in refusal(path)
    path.write_text('{"n": 1}\n{"n": 2}\n')
    assert "one object a line is named .jsonl" in refusal(path)
    path.write_text("[" * 100_000)
    assert "nested too deeply" in refusal(path)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("a,b\n1,2,3\n", ", row 1: this row has more cells than the 2"),
        ("a,a\n1,2\n", "names a column twice (a, a)"),
        ('a,b\n1,2\n3,"x\n', "cannot be read after row 1: unexpected end of data"),
    ],
)
def test_bad_csv(tmp_path, text, fault):
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert fault in refusal(path)


def test_damaged_files(tmp_path):
    for name in ("a.parquet", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(b"neither of them")
        assert f"{tmp_path / name}: this file cannot be read" in refusal(tmp_path / name)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n' * 1000)[:-20])
    assert "cannot be read" in refusal(tmp_path / "cut.jsonl.gz")
    (tmp_path / "a.csv").write_bytes("prompt\nZwölf\n".encode("latin-1"))
    assert "Save it as UTF-8" in refusal(tmp_path / "a.csv")


def test_parquet_value_that_json_does_not_have(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"\x89PNG"]}), path)
    assert f"{path}, row 1: `image`: a value of type bytes" in refusal(path)


# Writing


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_equal_rows_give_equal_bytes(tmp_path, name):
    rows = [{"prompt": [{"role": "user", "content": "ü"}], "id": str(n), "weight": 0.5} for n in range(2001)]
    write_rows(tmp_path / "one" / name, rows)
    write_rows(tmp_path / "two" / f"other-{name}", iter(rows))
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / f"other-{name}").read_bytes()
    assert len(values(tmp_path / "one" / name)) == 2001


def test_gzip_does_not_hold_the_time(tmp_path):
    write_rows(tmp_path / "a.jsonl.gz", ROWS)
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"n": 1})

    def rows():
        yield {"n": 2}
        raise DataError("the source broke")

    with pytest.raises(DataError, match="the source broke"):
        write_rows(path, rows())
    assert values(path) == [{"n": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_writing_to_an_impossible_place(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv: records are written as \.jsonl, \.jsonl\.gz, \.parquet"):
        write_rows(tmp_path / "a.csv", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_rows(tmp_path / "file" / "a.jsonl", [])
