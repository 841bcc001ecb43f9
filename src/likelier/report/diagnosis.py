"""What the curves said while the run went on: its symptoms, each with its evidence and its mend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Symptom:
    """A line of the diagnosis. `number` marks its step in the curves."""

    number: int
    title: str
    verdict: str
    step: int
    evidence: str
    mend: str


def view_symptoms(rows: Sequence[Row]) -> list[Symptom]:
    """Symptoms by rising step. One that was told again, as by a resumed run, is shown once, where it was first seen."""
    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        first.setdefault(row["name"], row)
    return [
        Symptom(number, row["title"], row["verdict"], row["step"], row["evidence"], row.get("mend") or "")
        for number, row in enumerate(first.values(), start=1)
    ]
