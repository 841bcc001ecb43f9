"""Safe mends, each by its name: which rows are left out, and what is rewritten. What it makes is a new version of the data.

A mend leaves out what its check found, so that an audit of the result does not find it again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from likelier.audit.checks import content, labels, sides
from likelier.audit.privacy import mask
from likelier.audit.run import tabulate
from likelier.audit.table import CountTokens, Table
from likelier.errors import RequestError, did_you_mean
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
class Plan:
    """What will be done: rows to leave out, and how many each mend was the first to name."""

    left_out: frozenset[int]
    counts: dict[str, int]
    masks: bool


def plan(pairs: Iterable[Pair], do: Sequence[str], limits: AuditSettings, *, count_tokens: CountTokens | None = None, workers: int = 1) -> Plan:
    """Decide about `pairs`, in their order. Raises RequestError for a mend that does not exist, or that needs a tokenizer and has none."""
    for name in do:
        if name not in MENDS:
            raise RequestError(f"there is no mend `{name}`.{did_you_mean(name, MENDS)} Mends: {', '.join(MENDS)}.")
    if "drop-over-long" in do and count_tokens is None:
        raise RequestError("drop-over-long counts tokens as a model does: name it with --model.")
    table = tabulate(pairs, limits, count_tokens=count_tokens, workers=workers) if set(do) & set(DROPS) else None
    gone: set[int] = set()
    counts = {}
    for name, rows_of in DROPS.items():
        if table is not None and name in do:
            fresh = set(rows_of(table, limits).tolist()) - gone
            counts[name] = len(fresh)
            gone |= fresh
    return Plan(frozenset(gone), counts, MASK in do)


def carry_out(plan: Plan, pairs: Iterable[Pair], counts: dict[str, int]) -> Iterator[Pair]:
    """The pairs that stay, masked if that was asked for; how many were is added to `counts`."""
    for row, pair in enumerate(pairs):
        if row in plan.left_out:
            continue
        if plan.masks:
            masked = _masked(pair)
            counts[MASK] = counts.get(MASK, 0) + (masked != pair)
            pair = masked
        yield pair


def _masked(pair: Pair) -> Pair:
    return replace(pair, prompt=_mask(pair.prompt), chosen=_mask(pair.chosen), rejected=_mask(pair.rejected))


def _mask(messages: Messages) -> Messages:
    return tuple(replace(message, content=mask(message.content)) for message in messages)
