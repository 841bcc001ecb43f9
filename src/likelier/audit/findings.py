"""What an audit says: one finding a check, with a verdict, numbers, rows and a mend."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from likelier.metrics import Interval, wilson

MOST_IDS = 1000
"""Ids that are written down for one finding; its count tells the rest."""


class Verdict(IntEnum):
    """How much a finding matters, in rising order."""

    SKIPPED = 0
    OK = 1
    NOTE = 2
    WARN = 3
    FATAL = 4

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Number:
    """One measured quantity. `unit` is "share", "pairs", "characters", "tokens" or empty (a bare number); the ends of `value` may be equal."""

    name: str
    value: Interval
    unit: str = ""


@dataclass(frozen=True)
class Bars:
    """A small plot: one value a label, with interval where there is one, and a level to compare with."""

    title: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    level: float | None = None


@dataclass(frozen=True)
class Example:
    """One offending row as a person reads it, shortened, secrets masked."""

    id: str
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Finding:
    """The answer of one check. `rows` are numbers of rows in the audited data, all that were found; `ids` are their names."""

    check: str
    title: str
    verdict: Verdict
    summary: str
    mend: str = ""
    numbers: tuple[Number, ...] = ()
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    ids: tuple[str, ...] = ()
    count: int = 0
    details: tuple[str, ...] = ()
    plots: tuple[Bars, ...] = ()
    examples: tuple[Example, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "check": self.check,
            "title": self.title,
            "verdict": str(self.verdict),
            "summary": self.summary,
            "mend": self.mend,
            "numbers": {number.name: {**number.value.as_dict(), "unit": number.unit} for number in self.numbers},
            "count": self.count,
            "ids": list(self.ids[:MOST_IDS]),
            "details": list(self.details),
            "plots": [asdict(plot) for plot in self.plots],
            "examples": [asdict(example) for example in self.examples],
        }


@dataclass(frozen=True)
class Audit:
    """All findings about one data set, and which data set that is."""

    dataset: str  # its id, as `data/version.py` has it
    pairs: int
    prompts: int  # different ones
    findings: tuple[Finding, ...]
    sources: tuple[str, ...] = ()
    unreadable: int = 0  # rows that are no pair
    shapes: dict[str, int] = field(default_factory=dict)  # rows by the shape that was recognised

    def at_least(self, verdict: Verdict) -> list[Finding]:
        """Findings of this verdict or a graver one, the gravest first."""
        return sorted((f for f in self.findings if f.verdict >= verdict), key=lambda f: -f.verdict)

    def fatal(self, accepted: Iterable[str] = ()) -> list[Finding]:
        """Findings that close the gate."""
        return [finding for finding in self.at_least(Verdict.FATAL) if finding.check not in set(accepted)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "dataset": self.dataset,
            "sources": list(self.sources),
            "pairs": self.pairs,
            "prompts": self.prompts,
            "unreadable": self.unreadable,
            "shapes": self.shapes,
            "verdict": str(max((f.verdict for f in self.findings), default=Verdict.OK)),
            "findings": [finding.as_dict() for finding in self.findings],
        }

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of data set, verdicts, counts and numbers, whatever the rows are called and however they are sorted: what a manifest names an
        audit by."""
        numbers = [[number.name, round(number.value.value, 3)] for finding in self.findings for number in finding.numbers]
        found = [self.dataset, [[finding.check, str(finding.verdict), finding.count] for finding in self.findings], numbers]
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"


def exact(name: str, value: float, unit: str = "") -> Number:
    """A number without uncertainty: a count, or a property of this very data set."""
    return Number(name, Interval(float(value), float(value), float(value)), unit)


def share_of(name: str, hits: int, total: int) -> Number:
    """A share with its Wilson interval."""
    return Number(name, wilson(hits, total), "share")


def any_of(count: int) -> Verdict:
    """A note where there is any at all."""
    return Verdict.NOTE if count else Verdict.OK


def graded(value: float, *limits: tuple[float, Verdict]) -> Verdict:
    """The verdict of the highest limit that `value` reaches; OK below all."""
    reached: Sequence[Verdict] = [verdict for limit, verdict in limits if value >= limit]
    return max(reached, default=Verdict.OK)


def noted_share(name: str, hits: int, total: int, *, warn: float) -> tuple[Number, Verdict]:
    """A share, and its verdict: a note for any hit at all, a warning from the share `warn` on."""
    share = share_of(name, hits, total)
    return share, max(any_of(hits), graded(share.value.value, (warn, Verdict.WARN)))
