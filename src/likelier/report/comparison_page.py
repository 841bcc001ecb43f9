"""A comparison as one HTML page that needs no network: who wins how often, at equal lengths too, and what the judge said of some replies."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likelier.changes import Strip, strip_around, strip_of_share
from likelier.metrics import Interval
from likelier.report.build import template
from likelier.report.samples import turns_of
from likelier.rundir import COMPARISON, COMPARISON_PAGE, VERDICTS, read_json, read_jsonl, write_atomic
from likelier.wording import UNKNOWN, count, ends, estimate, listing, number, quantity

Row = Mapping[str, Any]


EXAMPLES = (("a", 2), ("b", 2), ("tie", 1))
"""How many matches of a pair are shown of each outcome."""


@dataclass(frozen=True)
class Cell:
    """A number with its interval and that drawn."""

    value: str
    ends: str
    strip: Strip | None


@dataclass(frozen=True)
class PairRow:
    title: str
    win_rate: Cell
    length_controlled: Cell
    record: str
    flips: str


@dataclass(frozen=True)
class Example:
    """One prompt, both replies and what the judge said of them, in each order."""

    prompt: str
    verdict: str
    replies: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]


def write_comparison_page(folder: Path) -> Path:
    """Write compare.html beside compare.json and verdicts.jsonl; return its path. Raises RunError where compare.json is missing or damaged."""
    comparison = read_json(folder / COMPARISON)
    files = {row["name"]: row["file"] for row in comparison["contestants"]}
    page = {
        "name": folder.resolve().name,
        "subtitle": f"{count(comparison['prompts'], 'prompt')}, judged by {comparison['judge']['name']} in both orders",
        "headline": [headline(pair) for pair in comparison["pairs"]],
        "pairs": [_pair_row(pair) for pair in comparison["pairs"]],
        "contestants": [_contestant(row) for row in comparison["contestants"]],
        "strengths": len(comparison["contestants"]) > 2,
        "notes": _notes(comparison),
        "examples": [(f"{pair['a']} against {pair['b']}", _examples(folder, pair, files)) for pair in comparison["pairs"]],
    }
    write_atomic(folder / COMPARISON_PAGE, template("compare.html.jinja").render(page))
    return folder / COMPARISON_PAGE


def headline(pair: Row) -> str:
    """Who wins, as far as the interval can tell, and what is left of it at equal lengths."""
    if not pair["win_rate"]:
        return f"{pair['a']} and {pair['b']} were not judged: no answer of the judge could be read."
    rate, equal = (Interval.from_dict(pair[name]) for name in ("win_rate", "length_controlled"))
    told = f"in {estimate(rate, 'share')} of {count(pair['prompts'], 'prompt')}, a tie counting half"
    at_equal = f"at equal lengths {estimate(equal, 'share')}"
    if not rate.excludes(0.5):
        return f"{pair['a']} and {pair['b']} cannot be told apart: {pair['a']} wins {told}; {at_equal}."
    better = "beats" if rate.value > 0.5 else "loses to"
    kept = equal.excludes(0.5) and (equal.value > 0.5) == (rate.value > 0.5)
    but = "" if kept else ", so that length may be all there is to it"
    return f"{pair['a']} {better} {pair['b']}: it wins {told}; {at_equal}{but}."


def _pair_row(pair: Row) -> PairRow:
    record = f"{pair['wins']:,} won, {pair['ties']:,} tied, {pair['losses']:,} lost"
    failed = f", {pair['failed']:,} without a verdict" if pair["failed"] else ""
    return PairRow(
        f"{pair['a']} against {pair['b']}",
        _share(pair["win_rate"]),
        _share(pair["length_controlled"]),
        record + failed,
        quantity(pair["flips"], "share"),
    )


def _share(measured: Row | None) -> Cell:
    if not measured:
        return Cell(UNKNOWN, "", None)
    interval = Interval.from_dict(measured)
    return Cell(quantity(interval.value, "share"), ends(interval, "share"), strip_of_share(interval))


def _contestant(row: Row) -> dict[str, Any]:
    length = Interval.from_dict(row["length"])
    return {
        "name": row["name"],
        "spec": row["spec"],
        "length": Cell(quantity(length.value, row.get("length_unit", ""), length), ends(length, ""), None),
        "strength": _strength(row["strength"]),
    }


def _strength(measured: Row | None) -> Cell:
    if not measured:
        return Cell(UNKNOWN, "", None)
    strength = Interval.from_dict(measured)
    return Cell(number(strength.value, strength), ends(strength, ""), strip_around(strength))


def _notes(comparison: Row) -> list[str]:
    long = [f"{pair['a']} against {pair['b']}" for pair in comparison["pairs"] if pair.get("extrapolated")]
    notes = [f"{listing(long)}: one is longer at every prompt, so the rate at equal lengths speaks of what was not seen."] if long else []
    cut = [f"{row['name']} {quantity(row['cut'], 'share')}" for row in comparison["contestants"] if row.get("cut")]
    notes += [f"Replies that were cut at the limit of tokens: {listing(cut)}."] if cut else []
    cost = comparison.get("cost") or {}
    if "asked" in cost:
        total = f", cost {number(cost['total'])}" if cost.get("total") is not None else ""
        notes.append(f"{count(cost['asked'], 'question')} asked of the judge, {cost.get('cached', 0):,} known from before{total}.")
    return notes


def _examples(folder: Path, pair: Row, files: Mapping[str, str]) -> list[Example]:
    """The first matches of each outcome, from verdicts.jsonl and the replies on disk; `files` are those of the contestants."""
    replies = {side: {row["id"]: row for row in read_jsonl(folder / files[pair[side]])} for side in ("a", "b")}
    rows = [row for row in read_jsonl(folder / VERDICTS) if (row["a"], row["b"]) == (pair["a"], pair["b"])]
    told = [row for row in rows if row.get("orders") and row["id"] in replies["a"] and row["id"] in replies["b"]]
    wanted = [row for outcome, most in EXAMPLES for row in [row for row in told if row["verdict"] == outcome][:most]]
    return [_example(row, *(replies[side][row["id"]] for side in ("a", "b"))) for row in wanted]


def _example(row: Row, a: Row, b: Row) -> Example:
    won = {"a": f"{row['a']} wins", "b": f"{row['b']} wins", "tie": "a tie"}[row["verdict"]]
    orders = (f"{row['a']} shown first", f"{row['b']} shown first")
    reasons = tuple(f"{order}: {reason}" for order, reason in zip(orders, row["reasons"], strict=True) if reason)
    prompt = turns_of(a["prompt"])[-1][1]
    return Example(prompt, f"{won}, {row['why']}", ((row["a"], a["reply"]), (row["b"], b["reply"])), reasons)
