"""A comparison in the terminal: one row a pair, one a contestant, and what there is to mind."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from likelier.metrics import Interval
from likelier.wording import UNKNOWN, count, estimate, number, quantity


def show_comparison(result: dict[str, Any], console: Console | None = None) -> None:
    """Print what compare.json holds. Names are text: `[rude]` in one is no markup."""
    console = console or Console()
    console.print(Text(f"{count(result['prompts'], 'prompt')}, judged by {result['judge']['name']} in both orders"))
    console.print(_pairs(result["pairs"]))
    console.print(_contestants(result["contestants"]))
    for note in _notes(result):
        console.print(Text(note))


def _pairs(pairs: list[dict[str, Any]]) -> Table:
    table = _table("pair", "wins", "at equal lengths")
    for pair in pairs:
        flips = "" if pair["flips"] is None else f", {quantity(pair['flips'], 'share')} flips"
        record = f"{pair['wins']} won, {pair['ties']} tied, {pair['losses']} lost{flips}"
        table.add_row(Text(f"{pair['a']} against {pair['b']}\n{record}"), _share(pair["win_rate"]), _share(pair["length_controlled"]))
    return table


def _contestants(contestants: list[dict[str, Any]]) -> Table:
    """Strengths say something that win rates do not only where three or more are on one scale."""
    strengths = len(contestants) > 2 and any(each["strength"] for each in contestants)
    table = _table("contestant", "characters a reply", *(["strength"] if strengths else []))
    for each in contestants:
        cells = [_strength(each["strength"])] if strengths else []
        table.add_row(Text(each["name"]), estimate(Interval.from_dict(each["length"]), ""), *cells)
    return table


def _strength(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return UNKNOWN
    strength = Interval.from_dict(measured)
    return "0, by definition" if strength == Interval(0, 0, 0) else estimate(strength, "")


def _notes(result: dict[str, Any]) -> list[str]:
    notes = []
    for pair in result["pairs"]:
        both = f"{pair['a']} against {pair['b']}"
        if pair["failed"]:
            notes.append(f"{both}: no verdict on {count(pair['failed'], 'prompt')}, as an answer of the judge failed; verdicts.jsonl says why.")
        if pair["extrapolated"]:
            notes.append(f"{both}: one is longer at every prompt, so the rate at equal lengths speaks of what was not seen.")
    cut = [each for each in result["contestants"] if each["cut"]]
    notes += [f"{each['name']}: {quantity(each['cut'], 'share')} of its replies were cut at the limit (--max-new-tokens)." for each in cut]
    cost = result["cost"]
    asked = f"{count(cost['asked'], 'question')} asked, {cost['cached']:,} known from before"
    tokens = f"; {cost['tokens_in']:,} tokens in, {cost['tokens_out']:,} out" if cost["tokens_in"] or cost["tokens_out"] else ""
    total = f", cost {number(cost['total'])}" if cost["total"] is not None else ""
    return [*notes, f"{asked}{tokens}{total}."]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=bool(place), overflow="fold")
    return table


def _share(interval: dict[str, Any] | None) -> str:
    return UNKNOWN if interval is None else estimate(Interval.from_dict(interval), "share")
