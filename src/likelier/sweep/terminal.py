"""A sweep in the terminal: one row a run, the frontier and the recommended one marked, and why."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from likelier.metrics import Interval
from likelier.wording import UNKNOWN, count, estimate, number

STYLES = {"done": "", "stopped": "yellow", "failed": "red", "waiting": "dim"}


def show_sweep(sweep: Mapping[str, Any], console: Console | None = None) -> None:
    """Print sweep.json as a table, the reference pass, what speaks for the recommended run, and why runs did not end."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("run", "state", "held-out accuracy", "KL", "margin", "length", "symptoms"):
        table.add_column(title, justify="left" if title in ("run", "state") else "right", no_wrap=title != "run")
    recommended = (sweep["recommended"] or {}).get("name")
    for row in sweep["runs"]:
        mark = " ←" if row["name"] == recommended else " ·" if row["name"] in sweep["frontier"] else ""
        length = f"{number(row['length']['before'])} → {number(row['length']['after'])}" if row["length"] else UNKNOWN
        against = row["symptoms"] + len(row["worse"]) if row["state"] == "done" else row["symptoms"]
        cells = (_estimate(row["accuracy"], "share"), _value(row["kl"]), _value(row["margin"]), length, str(against))
        table.add_row(Text(row["name"] + mark, "bold" if row["name"] == recommended else ""), Text(row["state"], STYLES[row["state"]]), *cells)
    console.print(table)
    console.print("← recommended   · on the frontier of accuracy against KL   symptoms: warnings of training and worse probes", style="dim")
    reference = sweep["reference"]
    if any(reference.values()):
        console.print(
            f"Reference: {count(reference['computed'], 'reply', 'replies')} scored, {reference['reused']:,} read from the store.", highlight=False
        )
    if recommended:
        console.print(Text(f"Recommended: {recommended}. ", "bold") + Text(sweep["recommended"]["reason"], ""), highlight=False)
    for note in sweep["notes"]:
        console.print(note, highlight=False)
    for row in sweep["runs"]:
        if row["why"]:
            console.print(Text(f"{row['name']}: {row['why']}", STYLES[row["state"]]))


def _estimate(measured: Mapping[str, Any] | None, unit: str) -> str:
    return estimate(Interval.from_dict(measured), unit) if measured else UNKNOWN


def _value(measured: Mapping[str, Any] | None) -> str:
    return number(measured["value"], Interval.from_dict(measured)) if measured else UNKNOWN
