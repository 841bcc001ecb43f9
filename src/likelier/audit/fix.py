"""Safe mends, each by its name: which rows are left out, and what is rewritten. What it makes is a new version of the data.

A mend leaves out what its check found, so that an audit of the result does not find it again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from likelier.audit.checks import content, labels, sides
from likelier.audit.privacy import mask
from likelier.audit.run import pass_over, read_each, tabulate
from likelier.audit.table import CountTokens, Table
from likelier.data.version import Manifest, id_of_hashes, write_version
from likelier.errors import DataError, RequestError, did_you_mean
from likelier.records import Messages, Pair
from likelier.thresholds import AuditSettings

RowsOf = Callable[[Table, AuditSettings], np.ndarray]


def balanced(table: Table, limits: AuditSettings) -> np.ndarray:
    """Rows to leave out so that, whatever the difference of lengths, the longer side wins as often as the shorter one.

    In each bin of |Δlength| the more frequent outcome is thinned, by the hash of the pairs' content, to as many as the other has.
    """
    difference = table.longer
    bins = np.digitize(np.abs(difference), [edge for edge in sides.LENGTH_BINS if 0 < edge < np.inf])
    order = np.argsort(np.ascontiguousarray(table.content).view(">u8")[::4], kind="stable")
    left_out = []
    for index in np.unique(bins):
        outcomes = [order[(bins[order] == index) & (np.sign(difference[order]) == sign)] for sign in (1, -1)]
        fewer, more = sorted(outcomes, key=len)
        left_out.append(more[len(fewer) :])
    return np.concatenate(left_out) if left_out else np.empty(0, np.int64)


DROPS: dict[str, RowsOf] = {
    "drop-near-identical": lambda table, limits: sides.near_identical(table, limits).rows,
    "drop-duplicates": lambda table, limits: content.duplicates(table, limits).rows,
    "drop-near-duplicates": lambda table, limits: content.near_duplicates(table, limits).rows,
    "drop-contradictions": lambda table, limits: labels.opposed(table),
    "drop-cycles": lambda table, limits: labels.cycles(table, limits).rows,
    "drop-over-ratio": lambda table, limits: sides.length_ratio(table, limits).rows,
    "drop-over-long": lambda table, limits: sides.over_long(table, limits).rows,
    "drop-cut-off": lambda table, limits: sides.cut_off(table, limits).rows,
    "balance-length": balanced,
}
"""Mends that leave rows out, in the order in which they are counted."""

UNUSABLE = "drop-unusable"
"""Leaves out the rows that cannot be read as a preference: empty or identical sides, ties, differing prompts, malformed rows."""

MASK = "mask-secrets"
"""Puts its kind in the place of every credential and personal datum."""

MENDS = (UNUSABLE, *DROPS, MASK)


@dataclass(frozen=True)
class Fixed:
    """What was done: the version that was written, the id of the data that it was made of, and how many pairs each mend touched."""

    manifest: Manifest
    parent: str
    counts: dict[str, int]


def fix(
    sources: Sequence[str | Path],
    target: Path,
    do: Sequence[str],
    *,
    limits: AuditSettings | None = None,
    count_tokens: CountTokens | None = None,
    workers: int = 1,
) -> Fixed:
    """Write the pairs of `sources`, mended by the names in `do`, to `target` as a new version of them. Reads them twice, holds none.

    Raises RequestError for a mend that does not exist, or that needs a tokenizer and has none, and DataError for a bad row unless `drop-unusable` is
    done.
    """
    _check(do, count_tokens)
    limits = limits or AuditSettings()
    counts = dict.fromkeys((name for name in MENDS if name in do), 0)

    def drop(problem: DataError) -> None:
        if UNUSABLE not in do:
            raise problem
        counts[UNUSABLE] += 1

    table = tabulate(read_each(sources, drop), limits, count_tokens=count_tokens, workers=workers)
    gone = left_out(table, do, limits, counts)
    parent = id_of_hashes(table.content)
    kept = (pair for row, pair in enumerate(read_each(sources, pass_over)) if row not in gone)
    step = f"fix {' '.join(counts)}"
    return Fixed(write_version(target, masked(kept, counts) if MASK in do else kept, parents=[parent], step=step), parent, counts)


def left_out(table: Table, do: Sequence[str], limits: AuditSettings, counts: dict[str, int]) -> set[int]:
    """Rows that the mends leave out; `counts` is told how many each was the first to name."""
    gone: set[int] = set()
    for name, rows_of in DROPS.items():
        if name in do and len(table):
            fresh = set(rows_of(table, limits).tolist()) - gone
            counts[name] = len(fresh)
            gone |= fresh
    return gone


def masked(pairs: Iterable[Pair], counts: dict[str, int]) -> Iterator[Pair]:
    """The pairs without secrets and personal data; `counts` is told how many had any."""
    for pair in pairs:
        clean = _masked(pair)
        counts[MASK] += clean != pair
        yield clean


def _check(do: Sequence[str], count_tokens: CountTokens | None) -> None:
    if not do:
        raise RequestError(f"no mend was named. Mends: {', '.join(MENDS)}.")
    for name in do:
        if name not in MENDS:
            raise RequestError(f"there is no mend `{name}`.{did_you_mean(name, MENDS)} Mends: {', '.join(MENDS)}.")
    if "drop-over-long" in do and count_tokens is None:
        raise RequestError("drop-over-long counts tokens as a model does: name it with --model.")


def _masked(pair: Pair) -> Pair:
    return replace(pair, prompt=_mask(pair.prompt), chosen=_mask(pair.chosen), rejected=_mask(pair.rejected))


def _mask(messages: Messages) -> Messages:
    return tuple(replace(message, content=mask(message.content)) for message in messages)
