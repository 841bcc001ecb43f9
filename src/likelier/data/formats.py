"""The way in: a source of any known shape → records, as a stream; and the way out, records → a file.

    row ──shapes/──▶ rows with `prompt`, `chosen`, `rejected` (or `completion`, `label`) ──checks.py──▶ Pair or Labelled

Fields that no shape and no record knows stay in `meta`. Every fault is a DataError that names file, row and mend; nothing is guessed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from likelier.data.cells import from_cells
from likelier.data.checks import record, tie, tie_in
from likelier.data.fields import Fields, kind_of
from likelier.data.files import Row, read_rows, write_rows
from likelier.data.shapes import Shape, check_fits, named, shape_of
from likelier.data.shapes.lists import Candidates, Pairing, pairs_of
from likelier.data.targets import target_named
from likelier.errors import DataError
from likelier.records import Pair, Record

OnBad = Callable[[DataError], None]
"""Called with the fault of each row that is left out."""

OnWritten = Callable[[Record], None]

AnyRecord = TypeVar("AnyRecord", bound=Record)

BEST_AND_WORST = Pairing()


class Written(NamedTuple):
    """What has become of records that were written."""

    records: Counter[str]
    """How many of each kind the file holds: "pair", "unpaired record"."""
    lost: Counter[str]
    """How often a field did not fit: "weight", "meta.lang", "message.name"."""


def stop(problem: DataError) -> None:
    """The strict way with a bad row: raise its fault."""
    raise problem


def read_records(
    *sources: str | Path,
    on_bad: OnBad = stop,
    shape: str | None = None,
    pairing: Pairing = BEST_AND_WORST,
    seen: Counter[str] | None = None,
) -> Iterator[Record]:
    """Stream the records of one source or of several, each with an id of its own.

    A source is a file, folder, glob, `hf:owner/name[:split]` or `embedded:name` (see `files.py`). Each row's shape is recognised, or is `shape`
    where one is named; `seen` counts the rows of each shape. `pairing` says which pairs a list of scored or ranked replies gives.

    A record without an id is named after its file and row ("train:17"); an id that was already taken gets "#2", "#3" … For that the ids that were
    given are kept, about 120 bytes a record, and nothing else is: hashes would take half of that, but two ids with one hash would then change
    each other's names.

    Raises RequestError for an unknown shape, DataError for a source that cannot be read, and for the first bad row, unless `on_bad` takes it:
    then what is bad is left out (of several annotators' answers in one row, only the unusable ones).
    """
    asked_for = named(shape) if shape else None
    return _with_ids(sources, on_bad, asked_for, pairing, seen)


def read_pairs(source: str | Path, *, on_bad: OnBad = stop) -> Iterator[Pair]:
    """Stream the pairs of one source, with no other ids than the file's own. An unpaired record is a bad row here. Raises as `read_records` does."""
    return (pair for _, pair in _only_pairs(_read(source, on_bad), on_bad))


def read_all(sources: Iterable[str | Path], *, on_bad: OnBad = stop) -> list[Pair]:
    """All pairs of several sources, with the ids that `read_records` gives. An unpaired record is a bad row here. Raises as `read_records` does."""
    taken: dict[str, int] = {}
    rows = (read for source in sources for read in _read(source, on_bad))
    return [_renamed(pair, row, taken) for row, pair in _only_pairs(rows, on_bad)]


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write pairs in their canonical shape: `write_records` without a target."""
    write_records(path, pairs)


def write_records(
    path: str | Path, records: Iterable[Record], *, to: str | None = None, on_bad: OnBad = stop, on_written: OnWritten | None = None
) -> Written:
    """Write records as a file; returns how many it holds, and how often each field did not fit.

    In the canonical shape (`to` is None), as `.jsonl`, `.jsonl.gz` or `.parquet`, every field fits, and reading the file gives equal records.
    `to` names another tool's format (see `targets.py`), written as `.jsonl` or `.jsonl.gz`. Pairs and unpaired records go into one file only as
    canonical JSONL. The file appears whole or not at all. `on_written` is called with each record that goes into it.

    Raises RequestError for an unknown target, and DataError for another ending, where the file cannot be written, and for a record that the
    file cannot hold at all, unless `on_bad` takes it.
    """
    done = Written(Counter(), Counter())
    write = target_named(to) if to else _canonical
    is_table = Path(path).suffix.lower() == ".parquet"
    if to and is_table:
        raise DataError(f"{path}: the format `{to}` is written as .jsonl or .jsonl.gz; name the file so.")
    write_rows(path, _rows_of(records, write, done, on_bad, on_written, of_one_kind=bool(to) or is_table))
    return done


def _canonical(record: Record, lost: Counter[str]) -> Fields:
    return record.as_dict()


def _rows_of(
    records: Iterable[Record],
    write: Callable[[Record, Counter[str]], Fields],
    done: Written,
    on_bad: OnBad,
    on_written: OnWritten | None,
    *,
    of_one_kind: bool,
) -> Iterator[Fields]:
    for each in records:
        kind = "pair" if isinstance(each, Pair) else "unpaired record"
        lost: Counter[str] = Counter()
        try:
            row = write(each, lost)
            if of_one_kind and done.records.keys() - {kind}:
                fault = "the records before it were of the other kind, and such a file holds either pairs or unpaired records. Write two files."
                raise DataError(fault, kind="unpaired")
        except DataError as problem:
            on_bad(DataError(problem.fault, kind=problem.kind, where=f"record {each.id or '(without id)'}"))
        else:
            done.lost.update(lost)
            done.records[kind] += 1
            if on_written:
                on_written(each)
            yield row


def _read(
    source: str | Path,
    on_bad: OnBad,
    asked_for: Shape | None = None,
    pairing: Pairing = BEST_AND_WORST,
    seen: Counter[str] | None = None,
) -> Iterator[tuple[Row, Record]]:
    for row in read_rows(source):
        for made in _records_of(row, asked_for, pairing, seen):
            if isinstance(made, DataError):
                on_bad(DataError(made.fault, kind=made.kind, where=row.where))
            else:
                yield row, made


def _records_of(row: Row, asked_for: Shape | None, pairing: Pairing, seen: Counter[str] | None) -> Iterator[Record | DataError]:
    """The records that a row gives, and a fault in the place of each that it does not."""
    try:
        fields = _fields(row)
        shape = asked_for or shape_of(fields)
        if asked_for:
            check_fits(shape, fields)
        if seen is not None:
            seen[shape.name] += 1
        for rewritten in shape.rewrite(fields):
            for canonical in _paired(rewritten, pairing) if isinstance(rewritten, Candidates) else [rewritten]:
                yield canonical if isinstance(canonical, DataError) else _checked(canonical)
    except DataError as problem:
        yield problem


def _fields(row: Row) -> Fields:
    if isinstance(row.value, DataError):
        raise row.value
    if not isinstance(row.value, dict):
        raise DataError(f"this row is {kind_of(row.value)}, not an object with fields such as `prompt`, `chosen` and `rejected`.")
    fields = {name: value for name, value in row.value.items() if value is not None}
    if row.table:
        fields = from_cells(fields)
    said = tie_in(fields)
    if said:
        raise tie(said)
    return fields


def _paired(candidates: Candidates, pairing: Pairing) -> Iterator[Fields | DataError]:
    try:
        yield from pairs_of(candidates, pairing)
    except DataError as problem:
        yield problem


def _checked(canonical: Fields) -> Record | DataError:
    try:
        return record(canonical)
    except DataError as problem:
        return problem


def _only_pairs(records: Iterable[tuple[Row, Record]], on_bad: OnBad) -> Iterator[tuple[Row, Pair]]:
    for row, each in records:
        if isinstance(each, Pair):
            yield row, each
        else:
            fault = (
                "this row judges one reply (`completion` and `label`), and pairs are needed here. "
                "Give pairs; or train on single replies, by objective.name kto, bco or apo-zero-unpaired."
            )
            on_bad(DataError(fault, kind="unpaired", where=row.where))


def _with_ids(sources: Iterable[str | Path], on_bad: OnBad, asked_for: Shape | None, pairing: Pairing, seen: Counter[str] | None) -> Iterator[Record]:
    taken: dict[str, int] = {}
    for source in sources:
        for row, each in _read(source, on_bad, asked_for, pairing, seen):
            yield _renamed(each, row, taken)


def _renamed(each: AnyRecord, row: Row, taken: dict[str, int]) -> AnyRecord:
    name = _free_id(each.id or f"{row.stem}:{row.number}", taken)
    return each if each.id == name else replace(each, id=name)


def _free_id(wanted: str, taken: dict[str, int]) -> str:
    free = wanted
    while free in taken:
        taken[wanted] += 1
        free = f"{wanted}#{taken[wanted]}"
    taken[free] = 1
    return free
