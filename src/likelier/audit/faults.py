"""Rows that are no preference at all, as findings: training refuses them one by one, an audit counts them by kind."""

from collections.abc import Sequence
from typing import NamedTuple

from likelier.audit.findings import MOST_IDS, Finding, Verdict, share_of
from likelier.errors import DataError


class _Kind(NamedTuple):
    check: str
    title: str
    what: str
    mend: str


KINDS = {
    "identical": _Kind(
        "identical-sides", "Identical sides", "prefer a reply to itself", "`likelier fix --do drop-unusable`, or mend the side that was copied."
    ),
    "empty": _Kind("empty-sides", "Empty sides", "have a side without text", "`likelier fix --do drop-unusable`, or write the reply."),
    "tie": _Kind("ties", "Ties", "are ties, which are not preferences", "`likelier fix --do drop-unusable`: training on a tie teaches a preference."),
    "prompts-differ": _Kind(
        "differing-prompts", "Sides with different prompts", "compare replies to different prompts", "Make the prompts equal, or drop the rows."
    ),
    "unlabelled": _Kind("unlabelled-rows", "Unlabelled rows", "were judged by nobody", "`likelier fix --do drop-unusable`, or have them judged."),
    "unpaired": _Kind(
        "unpaired-records", "Unpaired records", "judge one reply and are not audited", "Pair them up, or train on them with an unpaired objective."
    ),
    "malformed": _Kind(
        "unreadable-rows", "Unreadable rows", "cannot be read as a comparison", "Each is named with its fault: mend them, or `--skip-bad`."
    ),
}
"""What a reader's faults are called here, by `DataError.kind`."""

SHOWN = 20


def fault_findings(faults: Sequence[DataError], rows: int) -> list[Finding]:
    """One finding for each kind of fault, of `rows` rows in all. Any makes the data fatal: `train` would stop at it."""
    return [_finding(kind, [fault for fault in faults if fault.kind == name], rows) for name, kind in KINDS.items()]


def _finding(kind: _Kind, faults: Sequence[DataError], rows: int) -> Finding:
    return Finding(
        kind.check,
        kind.title,
        Verdict.FATAL if faults else Verdict.OK,
        f"{len(faults):,} of {rows:,} rows {kind.what}." if faults else "None.",
        mend=kind.mend,
        numbers=(share_of("rows", len(faults), rows),),
        ids=tuple(fault.where for fault in faults[:MOST_IDS]),
        count=len(faults),
        details=tuple(str(fault) for fault in faults[:SHOWN]),
    )
