"""One source into one file, and what there is to say about the way: shapes seen, records written, rows left out, fields that did not fit."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

from likelier.data.files import BAD_ROWS, refuse_input_as_output
from likelier.data.formats import read_records, stop, write_records
from likelier.data.shapes.lists import Pairing
from likelier.data.skipped import SkippedRows
from likelier.data.targets import dataset_info
from likelier.data.version import forget_version, write_version
from likelier.errors import DataError, RequestError
from likelier.records import Record


def convert_file(src: str, dst: Path, *, to: str | None, shape: str | None, pairing: Pairing, skip_bad: bool) -> list[str]:
    """Stream `src` into `dst`; returns the account of it, line by line.

    Canonical records become a version, with a manifest beside the file; a file for another tool does not. Raises as `read_records` and
    `write_records` do, and DataError if no row is left.
    """
    refuse_input_as_output(dst, [src])
    if not 0 <= pairing.min_gap < math.inf:
        raise RequestError(f"--min-gap is {pairing.min_gap:g}; it must be 0 or a positive number.")
    shapes: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    with SkippedRows(_beside(dst)) if skip_bad else nullcontext(stop) as on_bad:
        records = _some(read_records(src, on_bad=on_bad, shape=shape, pairing=pairing, seen=shapes), src)
        if to:
            written = write_records(dst, records, to=to, on_bad=on_bad)
            forget_version(dst)
            paired, lost = "pair" in written.records, written.lost
            made = " and ".join(_amount(unit, count) for unit, count in written.records.items()) + f", for {to}"
        else:
            manifest = write_version(dst, records, parents=(), step=_step(src, shape, pairing, skip_bad), on_bad=on_bad)
            made = f"{manifest.counts}, data set {manifest.id}"
    account = [f"{src}: {_amounts(shapes, 'row')}", f"{dst}: {made}"]
    if isinstance(on_bad, SkippedRows) and on_bad.kinds:
        account.append(f"left out: {_amounts(on_bad.kinds, 'fault')}; listed in {on_bad.path}")
    if lost:
        account.append(f"{to} cannot hold: {', '.join(f'{field} ({count:,})' for field, count in lost.most_common())}")
    if to == "llamafactory":
        entry = dataset_info(dst.name, paired=paired)
        account.append(f"dataset_info.json: {json.dumps({_stem(dst): entry})}")
    return account


def _step(src: str, shape: str | None, pairing: Pairing, skip_bad: bool) -> str:
    """What was done, as it was asked for."""
    plain = Pairing()
    asked = [
        ("--format", shape, shape is not None),
        ("--pairs", pairing.pairs, pairing.pairs != plain.pairs),
        ("--min-gap", pairing.min_gap, pairing.min_gap != plain.min_gap),
    ]
    options = [f"{name} {value}" for name, value, given in asked if given]
    return " ".join(["convert", src, *options, *(["--skip-bad"] if skip_bad else [])])


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
