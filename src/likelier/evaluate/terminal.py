"""An evaluation in the terminal: what was measured, each number with its 95% interval over prompts."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from likelier.changes import held_out_amount, held_out_measures, probe_row
from likelier.metrics import Interval
from likelier.wording import count, estimate, number, quantity

PARTS = {"reason": "by reason", "group": "by group", "length": "by length"}


def show_evaluation(evaluation: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables of eval.json; what was not measured is left out. Names that users gave are shown as they are, brackets too."""
    console = console or Console()
    console.print(f"{held_out_amount(evaluation)}, data set {evaluation['dataset'][:12]}", highlight=False)
    if evaluation.get("reward"):
        console.print(Text(f"reward: {evaluation['reward']}"))
    table = _table("", "", "95% interval", "")
    for measure in held_out_measures(evaluation):
        table.add_row(measure.title, measure.value, measure.ends, measure.note)
    console.print(table)
    for kind, title in PARTS.items():
        if parts := evaluation["by"].get(kind):
            console.print(_parts(title, parts))
    if calibration := evaluation.get("calibration"):
        console.print(_calibration(calibration), highlight=False)
    if evaluation.get("probes"):
        table = _table("probe", "before", "after", "difference", "")
        for probe in evaluation["probes"]:
            row = probe_row(probe)
            table.add_row(Text(row.title), row.before, row.after, f"{row.difference} ({row.difference_ends})", row.verdict)
        console.print(table)


def _parts(title: str, parts: Mapping[str, Any]) -> Table:
    table = _table(title, "", "accuracy", "margin")
    for name, part in parts.items():
        accuracy, margin = (Interval.from_dict(part[key]) for key in ("accuracy", "margin"))
        table.add_row(Text(name), count(part["pairs"], "pair"), estimate(accuracy, "share"), estimate(margin, ""))
    return table


def _calibration(calibration: Mapping[str, Any]) -> str:
    text = f"calibration: expected error {quantity(calibration['ece'], 'share')}, Brier score {number(calibration['brier'])}"
    if calibration["temperature"]:
        text += f"; temperature {estimate(Interval.from_dict(calibration['temperature']), '')}"
    if calibration["after"]:
        after = calibration["after"]
        text += f", after it {quantity(after['ece'], 'share')} and {number(after['brier'])}"
    return text


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1])
    return table
