"""One source into one file, and what there is to say about the way: shapes seen, records written, rows left out, fields that did not fit."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

from likelier.data.files import BAD_ROWS
from likelier.data.formats import read_records, stop, write_records
from likelier.data.shapes.lists import Pairing
from likelier.data.skipped import SkippedRows
from likelier.data.targets import dataset_info
from likelier.data.version import dataset_id
from likelier.errors import DataError
from likelier.records import Record


def convert_file(src: str, dst: Path, *, to: str | None, shape: str | None, pairing: Pairing, skip_bad: bool) -> list[str]:
    """Stream `src` into `dst`; returns the account of it, line by line.

    The data set's id is that of the written file, read again: nothing of the data is held. Raises as `read_records` and `write_records` do, and
    DataError if no row is left.
    """
    shapes: Counter[str] = Counter()
    with SkippedRows(_beside(dst)) if skip_bad else nullcontext(stop) as on_bad:
        records = read_records(src, on_bad=on_bad, shape=shape, pairing=pairing, seen=shapes)
        written = write_records(dst, _some(records, src), to=to, on_bad=on_bad)
    identity = f"for {to}" if to else f"data set {dataset_id(read_records(dst))}"
    amounts = " and ".join(_amount(unit, count) for unit, count in written.records.items()) or "nothing"
    account = [f"{src}: {_amounts(shapes, 'row')}", f"{dst}: {amounts}, {identity}"]
    if isinstance(on_bad, SkippedRows) and on_bad.kinds:
        account.append(f"left out: {_amounts(on_bad.kinds, 'fault')}; listed in {on_bad.path}")
    if written.lost:
        account.append(f"{to} cannot hold: {', '.join(f'{field} ({count:,})' for field, count in written.lost.most_common())}")
    if to == "llamafactory":
        entry = dataset_info(dst.name, paired="pair" in written.records)
        account.append(f"dataset_info.json: {json.dumps({_stem(dst): entry})}")
    return account


def _some(records: Iterable[Record], src: str) -> Iterator[Record]:
    """The records, of which there must be one."""
    records = iter(records)
    first = next(records, None)
    if first is None:
        raise DataError(f"{src}: no row of it is usable, so nothing was written.")
    yield first
    yield from records


def _beside(dst: Path) -> Path:
    """`pairs.bad.jsonl` for `pairs.jsonl.gz`."""
    return dst.with_name(f"{_stem(dst)}{BAD_ROWS}")


def _stem(dst: Path) -> str:
    return Path(dst.name.removesuffix(".gz")).stem


def _amounts(counts: Counter[str], unit: str) -> str:
    """`2,312 rows: hh-rlhf`, or `5 rows: 3 hh-rlhf, 2 unpaired`."""
    named = [name if len(counts) == 1 else f"{count:,} {name}" for name, count in counts.most_common()]
    return f"{_amount(unit, counts.total())}: {', '.join(named)}"


def _amount(unit: str, count: int) -> str:
    return f"{count:,} {unit}{'' if count == 1 else 's'}"
