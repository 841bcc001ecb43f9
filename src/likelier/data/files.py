"""Containers: whatever holds rows (files, folders, saved datasets, hub names) as one stream of JSON values, and back.

What a row means is the business of `shapes/`. A new container is one function and one row of CONTAINERS.

    path.jsonl  path.json  path.csv  (each also .gz)  path.parquet
    folder/                    all such files in it, by name (not in its subfolders), or a dataset saved by `datasets`
    folder/part-*.jsonl        a glob; `**` goes into subfolders
    hf:owner/name[:split]      a dataset of the Hugging Face hub
    embedded:name              a set that ships with Likelier
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from likelier.atomic import atomic_file
from likelier.data.json_list import list_items, not_json
from likelier.data.plain import json_text, plain
from likelier.errors import DataError, RequestError, did_you_mean
from likelier.records import EXTRAS

BAD_ROWS = ".bad.jsonl"
"""How the name of a list of bad rows ends (see `skipped.py`)."""

BESIDE = (BAD_ROWS, ".manifest.json", ".croissant.json")
"""How the names of files end that are written beside data (see `version.py` for the last two)."""

LONGEST_CELL = 2**31 - 1  # the csv module's own limit of 131,072 characters is shorter than some conversations


class Row(NamedTuple):
    """One row of a container, before anyone asks what it means."""

    value: Any  # a JSON value, or the DataError that says why there is none
    number: int  # from 1: the line of a JSONL file, the row of any other
    where: str  # "data/train.jsonl, line 17"
    stem: str  # "train"
    table: bool  # a cell of a table may hold numbers, lists and objects as text


class Container(NamedTuple):
    """One kind of file. `rows` yields numbered values; a ValueError in a value's place says why that one row cannot be read."""

    rows: Callable[[IO[bytes]], Iterator[tuple[int, Any]]]
    unit: str
    table: bool


def read_rows(source: str | Path) -> Iterator[Row]:
    """All rows of a source, streamed. Raises DataError for a source that is missing, empty or of an unknown kind."""
    scheme, colon, rest = str(source).partition(":")
    if colon and scheme in SCHEMES:
        yield from SCHEMES[scheme](rest)
        return
    for path in _find(str(source)):
        yield from _read_saved(path) if path.is_dir() else _read_file(path, str(path))


def require_source(source: str | Path) -> None:
    """Raises DataError for a source of this machine that is missing, without reading it. The hub is not asked."""
    scheme, colon, _ = str(source).partition(":")
    if not (colon and scheme in SCHEMES):
        _find(str(source))


# Where rows are


def _find(source: str) -> list[Path]:
    """The files and saved datasets that a path, folder or glob names, in the order of their names."""
    path = Path(source)
    if not source.strip():
        raise DataError("The name of a data source is empty. Give a file, a folder, a glob, hf:owner/name or embedded:name.")
    if path.is_file() or _is_saved(path):
        return [path]
    if path.is_dir():
        found = [file for file in _visible(path.iterdir()) if file.is_file() and _ending(file) in CONTAINERS]
        if not found:
            raise DataError(f"{path}: this folder holds no data file ({KNOWN}). Name one of its subfolders, or use a glob such as {path}/**/*.jsonl.")
        _refuse_sides(path, found)
        return found
    if any(wildcard in source for wildcard in "*?["):
        matches = _visible(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not matches:
            raise DataError(f"{path}: no file matches this pattern.")
        readable = [match for match in matches if match.is_file() or _is_saved(match)]
        return readable or list(chain.from_iterable(_find(str(folder)) for folder in matches))
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no such file; not even the folder {path.parent} exists.")
    raise DataError(f"{path}: there is no such file.{did_you_mean(path.name, (sibling.name for sibling in path.parent.iterdir()))}")


def _refuse_sides(folder: Path, files: Iterable[Path]) -> None:
    """A file and what was split from it hold the same rows: read together, held-out rows would be trained on."""
    names = {file.name.removesuffix(_ending(file)) for file in files}
    for name in sorted(names):
        whole, _, side = name.rpartition(".")
        if side in ("train", "eval") and whole in names:
            raise DataError(f"{folder}: this folder holds {whole} and its side {name}, which are the same rows. Name the files that are meant.")


def _visible(paths: Iterable[Path]) -> list[Path]:
    """What a folder or glob means: no hidden files, no lists of bad rows, and nothing else that stands beside data."""
    return sorted(path for path in paths if not path.name.startswith(".") and not path.name.endswith(BESIDE))


def _is_saved(path: Path) -> bool:
    """Whether `datasets` saved this folder: one dataset, or one for each split."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _read_saved(path: Path) -> Iterator[Row]:
    datasets = _import_datasets(str(path))
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as problem:  # the library raises whatever its own dependencies raise
        raise DataError(f"{path}: this saved dataset cannot be read ({_brief(problem)}).") from None
    if isinstance(dataset, dict):
        splits = [str(path / split) for split in dataset]
        raise DataError(f"{path}: this is a saved dataset of several splits. Name the one to read: {', '.join(splits)}.")
    yield from _number(dataset.with_format(None), str(path), path.name)


def _read_hub(rest: str) -> Iterator[Row]:
    name, _, split = rest.partition(":")
    if name.count("/") != 1 or name.startswith("/") or name.endswith("/"):
        raise DataError(f"hf:{rest}: a dataset of the hub is named hf:owner/name or hf:owner/name:split.")
    datasets = _import_datasets(f"hf:{rest}")
    try:
        splits = [split] if split else datasets.get_dataset_split_names(name)
        dataset = datasets.load_dataset(name, split=splits[0]) if len(splits) == 1 else None
    except Exception as problem:  # the library raises whatever its own dependencies raise
        raise DataError(f"hf:{rest}: the hub's dataset cannot be loaded ({_brief(problem)}). Check its name, its split and the network.") from None
    if dataset is None:
        raise DataError(f"hf:{rest}: this dataset has several splits. Name the one to read: {', '.join(f'hf:{name}:{split}' for split in splits)}.")
    yield from _number(dataset.with_format(None), f"hf:{name}:{splits[0]}", f"{name.rpartition('/')[2]}-{splits[0]}")


def _import_datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source}: reading this needs the `datasets` library. Install it with: pip install 'likelier[datasets]'") from None
    return datasets


def _number(dataset: Iterable[Any], name: str, stem: str) -> Iterator[Row]:
    number = 0
    for number, value in enumerate(dataset, 1):
        yield _row(_without_nulls(value), number, f"{name}, row {number}", stem, table=True)
    if not number:
        raise DataError(f"{name}: this dataset holds no rows.")


def _read_embedded(name: str) -> Iterator[Row]:
    known = sorted(file.name.removesuffix(".jsonl") for file in _assets().iterdir() if file.name.endswith(".jsonl"))
    if name not in known:
        raise DataError(f"embedded:{name}: no such set ships with Likelier.{did_you_mean(name, known)} Known: {', '.join(known) or 'none'}.")
    with resources.as_file(_assets() / f"{name}.jsonl") as path:
        yield from _read_file(path, f"embedded:{name}")


def _assets() -> Any:
    return resources.files("likelier") / "assets"


SCHEMES: dict[str, Callable[[str], Iterator[Row]]] = {"hf": _read_hub, "embedded": _read_embedded}


# How a file holds them


def _read_file(path: Path, name: str) -> Iterator[Row]:
    ending = _ending(path)
    if ending not in CONTAINERS:
        raise DataError(f"{name}: files ending in `{ending or path.name}` are not read.{did_you_mean(ending, CONTAINERS)} Known: {KNOWN}.")
    container = CONTAINERS[ending]
    number = 0
    try:
        with _open(path) as file:
            for number, value in container.rows(file):
                yield _row(value, number, f"{name}, {container.unit} {number}", path.name[: -len(ending)], table=container.table)
    except UnicodeDecodeError as problem:
        raise DataError(f"{name}: this text is not UTF-8 ({problem}). Save it as UTF-8.") from None
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException, ValueError) as problem:
        after = f" after {container.unit} {number}" if number else ""
        raise DataError(f"{name}: this file cannot be read{after}: {_brief(problem)}.") from None
    if not number:
        raise DataError(f"{name}: this file holds no rows. Put at least one into it, or leave the file out.")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _ending(path: Path) -> str:
    """`.jsonl` or `.jsonl.gz`; a binary format's own compression makes `.parquet.gz` an ending that nobody reads."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes and suffixes[-1] == ".gz" else "".join(suffixes[-1:])


def _json_lines(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except json.JSONDecodeError as problem:
            fault = f"column {problem.colno}: this line is not valid JSON: {problem.msg}. A JSONL file holds one whole object a line."
            yield number, ValueError(fault)
        except UnicodeDecodeError as problem:
            yield number, ValueError(f"column {problem.start + 1}: this line is not UTF-8 ({problem.reason}). Save the file as UTF-8.")
        except (ValueError, RecursionError) as problem:
            yield number, ValueError(f"this line's JSON goes beyond what can be read ({problem}).")


def _json(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """A list is streamed; an object in which one field is a list is read as a whole."""
    text = TextIOWrapper(file, encoding="utf-8-sig", newline="")
    start = text.read(1)
    while start.isspace():
        start = text.read(1)
    if start == "[":
        text.seek(0)
        yield from enumerate(list_items(text), 1)
    elif start:
        text.seek(0)
        yield from enumerate(_only_list(text.read()), 1)


def _only_list(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise not_json(problem.msg, problem.lineno, problem.colno) from None
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    lists = [field for field in value.values() if isinstance(field, list)] if isinstance(value, dict) else []
    if len(lists) != 1:
        raise ValueError(
            "a JSON file holds a list of rows, or an object in which one field is that list; a file with one object a line is named .jsonl"
        )
    return lists[0]


def _csv(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.DictReader(TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    names = rows.fieldnames or []
    if len(set(names)) < len(names):
        raise ValueError(f"its first line names a column twice ({', '.join(names)})")
    for number, row in enumerate(rows, 1):
        if None in row:
            yield (
                number,
                ValueError(f"this row has more cells than the {len(names)} that the first line names. Put quotes around text that holds a comma."),
            )
        else:
            yield number, {name: cell for name, cell in row.items() if cell}  # an empty cell is an absent field


def _parquet(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    batches = pq.ParquetFile(file).iter_batches(batch_size=1000)
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    yield from enumerate(map(_without_nulls, rows), 1)


CONTAINERS: dict[str, Container] = {
    ".jsonl": Container(_json_lines, "line", table=False),
    ".jsonl.gz": Container(_json_lines, "line", table=False),
    ".json": Container(_json, "row", table=False),
    ".json.gz": Container(_json, "row", table=False),
    ".csv": Container(_csv, "row", table=True),
    ".csv.gz": Container(_csv, "row", table=True),
    ".parquet": Container(_parquet, "row", table=True),
}

KNOWN = ", ".join(CONTAINERS)


def _without_nulls(value: Any) -> Any:
    """Arrow gives every struct of a column the keys of all of them, null where a row had none: null means absent there."""
    if isinstance(value, dict):
        return {name: _without_nulls(field) for name, field in value.items() if field is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _row(value: Any, number: int, where: str, stem: str, *, table: bool) -> Row:
    try:
        value = DataError(str(value), where=where) if isinstance(value, ValueError) else plain(value)
    except ValueError as problem:
        value = DataError(str(problem), where=where)
    except RecursionError:
        value = DataError("this row's JSON is nested too deeply.", where=where)
    return Row(value, number, where, stem, table)


def _brief(problem: BaseException) -> str:
    """The first line of an error, without its final full stop."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(".")


def refuse_input_as_output(target: str | Path, sources: Iterable[str | Path]) -> None:
    """Raises RequestError if `target` is one of the files that are read: writing it would destroy what it is made of."""
    for source in sources:
        if Path(target).absolute() == Path(source).absolute() or (Path(target).exists() and Path(source).exists() and Path(target).samefile(source)):
            raise RequestError(f"{target}: this is what is read, and writing it would destroy that. Name another file.")


# Writing


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as `.jsonl` or `.jsonl.gz`, and those of records as `.parquet`: the whole file or nothing, the same bytes for the same rows.

    Raises DataError for any other ending, or where the file cannot be written.
    """
    path = Path(path)
    refuse_ending(path)
    try:
        with atomic_file(path) as file:
            WRITERS[_ending(path)](file, rows)
    except OSError as problem:
        raise DataError(f"{path}: this file cannot be written ({_brief(problem)}).") from None


def refuse_ending(path: Path) -> None:
    """Raises DataError for a file by whose name it is not known how to write it."""
    if _ending(path) not in WRITERS:
        raise DataError(f"{path}: records are written as {', '.join(WRITERS)}; name the file so.")


def _write_json_lines(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        file.write(json_text(row).encode() + b"\n")


def _write_gzip(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> None:
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:  # no name and no time: equal rows, equal bytes
        _write_json_lines(cast(IO[bytes], packed), rows)


def _write_parquet(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> None:
    """Lists and objects go into text columns as JSON, because Arrow would give all structs the keys of each. The first row says which sides there
    are: all rows are pairs, or all are unpaired."""
    rows = iter(rows)
    batch = list(islice(rows, 1000))
    sides = ("completion", "label") if batch and "completion" in batch[0] else ("chosen", "rejected")
    types = {"weight": pa.float64(), "margin": pa.float64(), "label": pa.bool_()}
    schema = pa.schema({name: types.get(name, pa.string()) for name in ("prompt", *sides, *EXTRAS)})
    with pq.ParquetWriter(file, schema) as writer:
        while batch:
            cells = [{name: json_text(field) if isinstance(field, list | dict) else field for name, field in row.items()} for row in batch]
            writer.write_table(pa.Table.from_pylist(cells, schema=schema))
            batch = list(islice(rows, 1000))


WRITERS: dict[str, Callable[[IO[bytes], Iterable[dict[str, Any]]], None]] = {
    ".jsonl": _write_json_lines,
    ".jsonl.gz": _write_gzip,
    ".parquet": _write_parquet,
}
