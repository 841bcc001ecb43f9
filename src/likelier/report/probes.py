"""Probes in their sets, before and after, with the items whose answer flipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likelier.changes import Probe, probe_row
from likelier.report.samples import turns_of
from likelier.wording import count

Row = Mapping[str, Any]
MOST_FLIPS = 12


@dataclass(frozen=True)
class Flip:
    """An item on which one model counts for the probe and the other does not."""

    prompt: str
    before: str
    after: str
    now: str


@dataclass(frozen=True)
class Flips:
    """Those of one probe, the worse ones first; `more` are in probes.jsonl alone."""

    title: str
    said: str
    items: tuple[Flip, ...]
    more: int


def view_probes(evaluation: Row) -> list[tuple[str, list[Probe]]]:
    """(name of the set, its rows), sets in the order in which they come; probes of one set stand together. An old run has one set without a name."""
    sets: dict[str, list[Probe]] = {}
    for probe in evaluation.get("probes") or []:
        sets.setdefault(probe.get("set") or "", []).append(probe_row(probe))
    return list(sets.items())


def view_flips(rows: Sequence[Row], evaluation: Row) -> list[Flips]:
    """Rows of probes.jsonl whose verdict changed, a list a probe."""
    probes = {probe["name"]: probe for probe in evaluation.get("probes") or []}
    by_probe: dict[str, list[Row]] = {}
    for row in rows:
        if row["before_hit"] != row["after_hit"]:
            by_probe.setdefault(row["probe"], []).append(row)
    return [_flips(probes.get(name, {"title": name, "better": "none"}), rows) for name, rows in by_probe.items()]


def _flips(probe: Row, rows: Sequence[Row]) -> Flips:
    bad_hit = probe["better"] == "lower"
    worse_first = sorted(rows, key=lambda row: row["after_hit"] != bad_hit)
    began = sum(row["after_hit"] for row in rows)
    items = tuple(
        Flip(turns_of(row["prompt"])[-1][1], row["before"], row["after"], _now(row["after_hit"], probe["better"])) for row in worse_first[:MOST_FLIPS]
    )
    said = f"{count(len(rows), 'item')} flipped: {began} now count, {len(rows) - began} no longer do"
    return Flips(probe["title"], said, items, len(rows) - len(items))


def _now(hit: bool, better: str) -> str:
    """The class that colours the item: worse, better, or neither."""
    if better == "none":
        return "different"
    return "better" if hit == (better == "higher") else "worse"
