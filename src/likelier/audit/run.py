"""An audit from file to findings, as a stream: rows are read once, measured in blocks (in other processes if wanted), and forgotten.

read ──blocks of pairs──▶ measure ──columns──▶ checks ──rows──▶ read again, for the examples
  └── faults, by kind ─────────────────────────┘
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from likelier.audit.checks import CHECKS
from likelier.audit.faults import Faults
from likelier.audit.findings import MOST_IDS, Audit, Example, Finding, Verdict, exact
from likelier.audit.privacy import mask
from likelier.audit.table import PROMPT, CountTokens, Sampled, Table, joined, measure, text_of
from likelier.data.formats import OnBad, read_records
from likelier.data.leaks import leaked
from likelier.data.version import id_of_hashes
from likelier.errors import DataError, RequestError
from likelier.records import Pair
from likelier.thresholds import AuditSettings

BLOCK = 500
"""Pairs that are measured at once."""

AHEAD = 3
"""Blocks for each process that wait or are worked on."""

ALONE = 4
"""Blocks up to which other processes are not worth their start."""

SHOWN_LEAKS = 20
"""Leaks that are named one by one."""

EXAMPLES = 2
"""Rows of a finding that are shown."""

SHOWN = 320
"""Characters of a side that an example shows."""

Sources = Sequence[str | Path]


def audit(
    sources: Sources,
    *,
    limits: AuditSettings | None = None,
    count_tokens: CountTokens | None = None,
    max_length: int = 1024,
    against: Sources = (),
    workers: int = 1,
) -> Audit:
    """Ask every check about the pairs of `sources`. With `against`, also whether their prompts stand in those held-out files.

    With `count_tokens`, pairs of more than `max_length` tokens are counted too; it is called in this process alone if `workers` is 1, else in each,
    so it must be picklable. With more than one worker, a script that calls this needs the guard `if __name__ == "__main__"`.

    Raises RequestError without any source, and DataError for one that cannot be read at all; bad rows become findings.
    """
    if not sources:
        raise RequestError("no data was named. Give a file, a folder, a glob, hf:owner/name or embedded:name.")
    limits = limits or AuditSettings()
    faults = Faults()
    shapes: Counter[str] = Counter()
    table = tabulate(read_each(sources, faults.note, shapes), limits, count_tokens=count_tokens, max_length=max_length, workers=workers)
    findings = [*faults.findings(len(table)), *_asked(table, limits), _leakage(table, sources, against, limits)]
    pairs = partial(read_each, sources, pass_over)
    made = _audit(table, findings, pairs)
    return replace(made, sources=tuple(map(str, sources)), unreadable=faults.total, shapes=dict(shapes))


def audit_pairs(pairs: Sequence[Pair], *, limits: AuditSettings | None = None, workers: int = 1) -> Audit:
    """The same for pairs in memory, which a reader has already accepted."""
    limits = limits or AuditSettings()
    table = tabulate(pairs, limits, workers=workers)
    return _audit(table, _asked(table, limits), partial(iter, pairs))


def _asked(table: Table, limits: AuditSettings) -> list[Finding]:
    return [check(table, limits) for check in CHECKS.values()] if len(table) else []


def _audit(table: Table, findings: Sequence[Finding], pairs: Callable[[], Iterator[Pair]]) -> Audit:
    return Audit(
        dataset=id_of_hashes(table.content),
        pairs=len(table),
        prompts=len(np.unique(table.keys[:, PROMPT])),
        findings=tuple(_illustrated(findings, table, pairs)),
    )


def tabulate(
    pairs: Iterable[Pair], limits: AuditSettings, *, count_tokens: CountTokens | None = None, max_length: int = 1024, workers: int = 1
) -> Table:
    """The columns of all `pairs`, in their order. Memory grows by about a kilobyte a pair, not by its text."""
    sample = _Sample(limits.sample)
    parts: list[Table] = []
    for part in _measured(pairs, sample, count_tokens, workers):
        sample.add(part.sampled)
        parts.append(replace(part, sampled=[]))
    return replace(joined(parts), sampled=sample.drawn(), max_length=max_length)


class _Sample:
    """The `size` pairs whose content hashes are the smallest numbers: the same whatever the order of rows, and drawn in one pass."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[Sampled] = []
        self.below = 2**64

    def add(self, found: Iterable[Sampled]) -> None:
        self._kept += found
        if len(self._kept) > 2 * self._size:
            self._kept = self.drawn()
            self.below = self._kept[-1].order

    def drawn(self) -> list[Sampled]:
        return sorted(self._kept, key=lambda sampled: sampled.order)[: self._size]


def _measured(pairs: Iterable[Pair], sample: _Sample, count_tokens: CountTokens | None, workers: int) -> Iterator[Table]:
    """Blocks of measured pairs, in order; in other processes once the data turns out to be large enough."""
    blocks = _blocks(pairs)
    work = partial(measure, count_tokens=count_tokens)
    for start, block in blocks if workers == 1 else islice(blocks, ALONE):
        yield work(block, first_row=start, sample_below=sample.below)
    more = next(blocks, None)
    if more is None:
        return
    waiting: deque[Future[Table]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for start, block in chain([more], blocks):
            waiting.append(pool.submit(work, block, first_row=start, sample_below=sample.below))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _blocks(pairs: Iterable[Pair]) -> Iterator[tuple[int, list[Pair]]]:
    """(number of the first row, pairs); one empty block where there are none."""
    stream, start = iter(pairs), 0
    while (block := list(islice(stream, BLOCK))) or not start:
        yield start, block
        start += len(block) or 1


def read_each(sources: Sources, on_bad: OnBad, seen: Counter[str] | None = None) -> Iterator[Pair]:
    """The pairs of all sources; an unpaired record is a bad row. `seen` counts the rows of each shape."""
    for record in read_records(*sources, on_bad=on_bad, seen=seen):
        if isinstance(record, Pair):
            yield record
        else:
            on_bad(DataError("this record judges one reply, and a pair compares two.", kind="unpaired", where=record.id))


def pass_over(problem: DataError) -> None:
    """What to do with a bad row that was counted before."""


def _leakage(table: Table, sources: Sources, against: Sources, limits: AuditSettings) -> Finding:
    """Prompts that are also held out, of pairs or of unpaired records: accuracy on them would measure memory. Raises DataError for a held-out row
    that cannot be read: what it would leak is not known."""
    title = "Prompts that are also held out"
    if not against:
        return Finding("leakage", title, Verdict.SKIPPED, "Asked only with --against, which names the held-out files.")
    leaks = leaked(read_each(sources, pass_over), read_records(*against), similarity=limits.near_duplicate)
    exact_ones = sum(leak.exact for leak in leaks)
    trained = {leak.trained for leak in leaks}
    return Finding(
        "leakage",
        title,
        Verdict.FATAL if leaks else Verdict.OK,
        f"{len(leaks):,} held-out records have a prompt that stands here too: {exact_ones:,} exactly, {len(leaks) - exact_ones:,} nearly so."
        if leaks
        else "No prompt stands on both sides.",
        mend="Write both files as one (`likelier convert`) and let `likelier split` divide it: it keeps near-duplicates on one side.",
        numbers=(exact("exact leaks", exact_ones), exact("near leaks", len(leaks) - exact_ones)),
        rows=np.array([row for row, name in enumerate(table.ids) if name in trained], np.int64),
        details=tuple(f"{leak.held_out} is {leak.trained} ({leak.similarity:.0%} alike)" for leak in leaks[:SHOWN_LEAKS]),
    )


def _illustrated(findings: Sequence[Finding], table: Table, pairs: Callable[[], Iterator[Pair]]) -> Iterator[Finding]:
    """The findings with the ids of their rows, and with examples, for which the pairs are gone through once more."""
    wanted = {int(row) for finding in findings for row in finding.rows[:EXAMPLES]}
    shown = {row: _example(pair) for row, pair in islice(enumerate(pairs()), max(wanted, default=-1) + 1) if row in wanted}
    for finding in findings:
        if len(finding.rows):
            ids = tuple(table.ids[row] for row in finding.rows[:MOST_IDS])
            examples = tuple(shown[int(row)] for row in finding.rows[:EXAMPLES] if int(row) in shown)
            yield replace(finding, ids=ids, count=len(finding.rows), examples=examples)
        else:
            yield finding


def _example(pair: Pair) -> Example:
    return Example(pair.id, *(_shortened(text_of(side)) for side in (pair.prompt, pair.chosen, pair.rejected)))


def _shortened(text: str) -> str:
    text = mask(text)
    return text if len(text) <= SHOWN else f"{text[: SHOWN * 2 // 3]} … {text[-SHOWN // 3 :]}"
