"""Safe mends, each by its name: which rows are left out, and what is rewritten. What it makes is a new version of the data.

A mend leaves out what its check found, so that an audit of the result does not find it again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from likelier.audit.checks import content, labels, sides
from likelier.audit.privacy import mask_all
from likelier.audit.run import pass_over, tabulate
from likelier.audit.table import CountTokens, Table
from likelier.data.checks import record as checked
from likelier.data.files import refuse_input_as_output
from likelier.data.formats import read_records
from likelier.data.version import Account, Manifest, write_version
from likelier.errors import DataError, Refused, RequestError, did_you_mean
from likelier.records import Pair, Record
from likelier.thresholds import AuditSettings

RowsOf = Callable[[Table, AuditSettings], np.ndarray]


def balanced(table: Table, limits: AuditSettings) -> np.ndarray:
    """Rows to leave out so that, whatever the difference of lengths, the longer side wins as often as the shorter one.

    In each bin of |Δlength| the more frequent outcome is thinned, by the hash of the pairs' content, to as many as the other has.
    """
    difference = table.longer
    bins, order = sides.bin_of(difference), table.order
    left_out = []
    for index in np.unique(bins):
        outcomes = [order[(bins[order] == index) & (np.sign(difference[order]) == sign)] for sign in (1, -1)]
        fewer, more = sorted(outcomes, key=len)
        left_out.append(more[len(fewer) :])
    return np.concatenate(left_out) if left_out else np.empty(0, np.int64)


DROPS: dict[str, RowsOf] = {
    "drop-near-identical": lambda table, limits: sides.near_identical(table, limits).rows,
    "drop-duplicates": lambda table, limits: content.exact_repeats(table),
    "drop-near-duplicates": content.near_repeats,
    "drop-contradictions": lambda table, limits: labels.outvoted(table),
    "drop-cycles": lambda table, limits: labels.cycles(table, limits).rows,
    "drop-over-ratio": lambda table, limits: sides.length_ratio(table, limits).rows,
    "drop-over-long": lambda table, limits: sides.over_long(table, limits).rows,
    "drop-cut-off": lambda table, limits: sides.cut_off(table, limits).rows,
    "balance-length": balanced,
}
"""Mends that leave rows out, in the order in which they are carried out: each sees what those before it have left."""

UNUSABLE = "drop-unusable"
"""Leaves out the rows that cannot be read as a preference: empty or identical sides, ties, differing prompts, malformed rows."""

MASK = "mask-secrets"
"""Puts its kind in the place of every credential and personal datum."""

MENDS = (UNUSABLE, *DROPS, MASK)


@dataclass(frozen=True)
class Fixed:
    """What was done: the version that was written, and how many rows each mend touched."""

    manifest: Manifest
    counts: dict[str, int]


def fix(
    sources: Sequence[str | Path],
    target: Path,
    do: Sequence[str],
    *,
    limits: AuditSettings | None = None,
    count_tokens: CountTokens | None = None,
    max_length: int = 1024,
    workers: int = 1,
) -> Fixed:
    """Write the records of `sources`, mended by the names in `do`, to `target` as a new version of them. Reads them twice, holds none.

    Unpaired records stay as they are, but for masks. Raises RequestError for a mend that does not exist, or that needs a tokenizer and has none, or
    for a target that is a source; DataError for a bad row unless `drop-unusable` is done; Refused where nothing would be left.
    """
    _check(do, count_tokens)
    refuse_input_as_output(target, sources)
    limits = limits or AuditSettings()
    counts = dict.fromkeys((name for name in MENDS if name in do), 0)

    def drop(problem: DataError) -> None:
        if UNUSABLE not in do:
            raise problem
        counts[UNUSABLE] += 1

    before = Account()
    pairs = (record for record in before.watch(read_records(*sources, on_bad=drop)) if isinstance(record, Pair))
    table = tabulate(pairs, limits, count_tokens=count_tokens, max_length=max_length, workers=workers)
    gone = left_out(table, do, limits, counts)
    if not before.counts.unpaired and len(gone) == len(table):
        raise Refused(f"{', '.join(map(str, sources))}: these mends would leave nothing of {len(table):,} pairs. Look at what the audit names.")
    manifest = write_version(target, _kept(sources, gone, counts), parents=[before.id], step=_step(counts, limits))
    return Fixed(manifest, counts)


def left_out(table: Table, do: Sequence[str], limits: AuditSettings, counts: dict[str, int]) -> set[int]:
    """Rows that the mends leave out, one mend after the other; `counts` is told how many each did."""
    left = np.arange(len(table))
    for name, rows_of in DROPS.items():
        if name in do and len(left):
            found = rows_of(table.take(left), limits)
            counts[name] = len(found)
            left = np.delete(left, found)
    return set(range(len(table))) - set(left.tolist())


def _kept(sources: Sequence[str | Path], gone: set[int], counts: dict[str, int]) -> Iterator[Record]:
    """The records that stay, masked if that is counted. Of a pair whose sides differ in nothing but what was masked, nothing is left."""
    row = -1
    for record in read_records(*sources, on_bad=pass_over):
        row += isinstance(record, Pair)
        if isinstance(record, Pair) and row in gone:
            continue
        clean = masked(record) if MASK in counts else record
        if MASK in counts:
            counts[MASK] += clean != record
        if clean is not None:
            yield clean


def masked(record: Record) -> Record | None:
    """The record with secrets and personal data masked in all of its fields; None where its sides differed in nothing else."""
    try:
        return checked(mask_all(record.as_dict()))
    except DataError as problem:
        if problem.kind != "identical":
            raise
        return None


def _step(counts: dict[str, int], limits: AuditSettings) -> str:
    """What the manifest says was done: the mends, and the limits that are not the usual ones."""
    usual = AuditSettings()
    own = [f"{name} {value}" for name, value in limits if name != "accept" and value != getattr(usual, name)]
    return f"fix {' '.join(counts)}" + (f" with {', '.join(own)}" if own else "")


def _check(do: Sequence[str], count_tokens: CountTokens | None) -> None:
    if not do:
        raise RequestError(f"no mend was named with --do. Mends: {', '.join(MENDS)}.")
    for name in do:
        if name not in MENDS:
            raise RequestError(f"there is no mend `{name}`.{did_you_mean(name, MENDS)} Mends: {', '.join(MENDS)}.")
    if "drop-over-long" in do and count_tokens is None:
        raise RequestError("drop-over-long counts tokens as a model does: name it with --model.")
