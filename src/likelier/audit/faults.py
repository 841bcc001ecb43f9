"""Rows that are no preference at all, as findings: training refuses them one by one, an audit counts them by kind."""

from collections import Counter
from typing import NamedTuple

from likelier.audit.findings import MOST_IDS, Finding, Verdict, share_of
from likelier.errors import DataError


class _Kind(NamedTuple):
    check: str
    title: str
    what: str
    mend: str
    verdict: Verdict = Verdict.FATAL


KINDS = {
    "identical": _Kind(
        "identical-sides", "Identical sides", "prefer a reply to itself", "`likelier fix --do drop-unusable`, or mend the side that was copied."
    ),
    "empty": _Kind("empty-sides", "Empty sides", "have a side without text", "`likelier fix --do drop-unusable`, or write the reply."),
    "tie": _Kind("ties", "Ties", "are ties, which are not preferences", "`likelier fix --do drop-unusable`: training on a tie teaches a preference."),
    "prompts-differ": _Kind(
        "differing-prompts",
        "Sides with different prompts",
        "compare replies to different prompts",
        "`likelier fix --do drop-unusable`, or make the prompts equal.",
    ),
    "unlabelled": _Kind("unlabelled-rows", "Unlabelled rows", "were judged by nobody", "`likelier fix --do drop-unusable`, or have them judged."),
    "unpaired": _Kind(
        "unpaired-records",
        "Unpaired records",
        "judge one reply and are not audited",
        "Train on them with `objective.name` kto, bco or apo-zero-unpaired; for an objective of pairs leave them out.",
        Verdict.WARN,  # they train, if not by every objective
    ),
    "malformed": _Kind(
        "unreadable-rows",
        "Unreadable rows",
        "cannot be read as a comparison",
        "`likelier fix --do drop-unusable`, or mend what each one's fault names.",
    ),
}
"""What a reader's faults are called here, by `DataError.kind`."""

SHOWN = 20
"""Faults of a kind that are told in full."""


class Faults:
    """The faults of rows while they are read: how many of each kind, where the first ones are, and what the very first say."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[DataError]] = {kind: [] for kind in KINDS}

    @property
    def total(self) -> int:
        return self._counts.total()

    def note(self, fault: DataError) -> None:
        self._counts[fault.kind] += 1
        if self._counts[fault.kind] <= MOST_IDS:
            self._first[fault.kind].append(fault)

    def findings(self, pairs: int) -> list[Finding]:
        """One for each kind of fault, beside so many `pairs`. What `train` would stop at is fatal."""
        return [self._finding(name, kind, pairs + self.total) for name, kind in KINDS.items()]

    def _finding(self, name: str, kind: _Kind, rows: int) -> Finding:
        count, first = self._counts[name], self._first[name]
        return Finding(
            kind.check,
            kind.title,
            kind.verdict if count else Verdict.OK,
            f"{count:,} of {rows:,} rows {kind.what}." if count else "None.",
            mend=kind.mend,
            numbers=(share_of("rows", count, rows),),
            ids=tuple(fault.where for fault in first),
            count=count,
            details=tuple(str(fault) for fault in first[:SHOWN]),
        )
