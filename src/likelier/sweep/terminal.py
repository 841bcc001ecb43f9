"""A sweep in the terminal: one row a run, the frontier and the recommended one marked, and why."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from likelier.metrics import Interval
from likelier.report.frontier import DISTANCES, distance_of
from likelier.wording import UNKNOWN, count, estimate, number, quantity

STATES = {"done": ("", ""), "stopped": ("given up", "yellow"), "failed": ("failed", "red"), "waiting": ("to come", "dim")}
"""What the table calls a state, and its colour."""


def show_sweep(sweep: Mapping[str, Any], console: Console | None = None) -> None:
    """Print sweep.json as a table, the reference pass, what speaks for the recommended run, and why runs did not end."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    for title in ("accuracy", "KL", "margin", "length", "against"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    recommended = (sweep["recommended"] or {}).get("name")
    for row in sweep["runs"]:
        state, style = STATES[row["state"]]
        place = "recommended" if row["name"] == recommended else "frontier" if row["name"] in sweep["frontier"] else state
        length = f"{number(row['length']['before'])} → {number(row['length']['after'])}" if row["length"] else UNKNOWN
        numbers = (_share(row["accuracy"]), _value(row[distance_of(sweep)]), _value(row["margin"]), length, str(row["symptoms"] + len(row["worse"])))
        table.add_row(Text(row["name"]), *numbers, place, style="bold" if place == "recommended" else style)
    console.print(table)
    console.print(f"KL: {DISTANCES[distance_of(sweep)]}, nats", style="dim")
    console.print("against: warnings while it trained, and probes that became worse", style="dim")
    reference = sweep["reference"]
    if any(reference.values()):
        console.print(
            f"Reference: {count(reference['computed'], 'reply', 'replies')} scored, {reference['reused']:,} read from the store.", highlight=False
        )
    if recommended:
        console.print(Text(f"Recommended: {recommended}. ", "bold") + Text(sweep["recommended"]["reason"]))
    for note in sweep["notes"]:
        console.print(Text(note))
    for row in sweep["runs"]:
        if row["why"]:
            console.print(Text(f"{row['name']}: {row['why']}", STATES[row["state"]][1]))


def _share(measured: Mapping[str, Any] | None) -> str:
    if not measured:
        return UNKNOWN
    interval = Interval.from_dict(measured)
    return estimate(interval, "share") if math.isfinite(interval.low) else quantity(interval.value, "share")


def _value(measured: Mapping[str, Any] | None) -> str:
    return number(measured["value"]) if measured else UNKNOWN
