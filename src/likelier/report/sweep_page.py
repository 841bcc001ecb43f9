"""A sweep as one HTML page that needs no network: which setting to take and why, the frontier, a table of the runs and their curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from likelier.metrics import Interval
from likelier.recipe import Recipe, parse_recipe
from likelier.report import plots
from likelier.report.build import template
from likelier.report.curves import Drawing
from likelier.report.frontier import DISTANCES, PAGE, Point, color, colored, distance_of, draw_frontier, label_of
from likelier.rundir import SWEEP, RunDir, read_json, write_atomic
from likelier.wording import UNKNOWN, count, duration, ends, number, quantity

CURVES = (
    ("accuracy", "Held-out accuracy", "Share of pairs whose chosen reply gets the higher reward.", "share"),
    ("margin", "Held-out margin", "Reward of the chosen reply minus that of the rejected one.", ""),
    ("loss", "Held-out loss", "Mean over pairs; lower is better.", ""),
)
OWN_SCALE = " In units of its own objective: not comparable between values of β or objectives."


def write_sweep_page(folder: Path) -> Path:
    """Write sweep.html beside sweep.json, as far as the runs have come; return its path."""
    sweep = read_json(folder / SWEEP)
    write_atomic(folder / PAGE, template("sweep.html.jinja").render(_page(folder, sweep)))
    return folder / PAGE


def _page(folder: Path, sweep: Mapping[str, Any]) -> dict[str, Any]:
    recipe, runs = parse_recipe(sweep["recipe"], where=SWEEP), sweep["runs"]
    return {
        "name": folder.resolve().name,
        "subtitle": _subtitle(recipe, runs),
        "headline": headline(sweep),
        "recommended": sweep["recommended"],
        "notes": sweep["notes"],
        "tiles": _tiles(sweep),
        "colors": [round(100 * i / max(1, len(runs) - 1)) for i in range(len(runs))],
        "frontier": _frontier(sweep),
        "distance": DISTANCES[distance_of(sweep)],
        "runs": [_row(folder, run, sweep) for run in runs],
        "curves": _curves(folder, runs),
        "ended": [run for run in runs if run["why"]],
    }


def headline(sweep: Mapping[str, Any]) -> list[str]:
    """How many runs there are, how they ended, and which one to take."""
    runs = sweep["runs"]
    words = {"done": "ended", "stopped": "given up", "failed": "failed", "waiting": "still to come"}
    states = [f"{number_of} {word}" for state, word in words.items() if (number_of := sum(run["state"] == state for run in runs))]
    sentences = [f"{count(len(runs), 'run')}: {', '.join(states)}."]
    if chosen := sweep["recommended"]:
        sentences.append(f"Recommended: {chosen['name']}.")
    return sentences


def _subtitle(recipe: Recipe, runs: Sequence[Mapping[str, Any]]) -> str:
    settings = dict.fromkeys(setting for run in runs for setting in run["settings"])
    return f"{', '.join(settings) or 'the recipe alone'} · {recipe.objective.name} on {', '.join(recipe.data.train)} · {recipe.model.name}"


def _tiles(sweep: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, number and note of each."""
    shown = []
    chosen = next((run for run in sweep["runs"] if run["name"] == (sweep["recommended"] or {}).get("name")), None)
    for name, label, unit in (("accuracy", "Accuracy", "share"), (distance_of(sweep), "KL", "nats")):
        if chosen and chosen[name]:
            interval = Interval.from_dict(chosen[name])
            shown.append((f"{label}, recommended", quantity(interval.value, unit, interval), ends(interval, unit)))
    reference, seconds = sweep["reference"], sum(run["seconds"] for run in sweep["runs"])
    shown.append(("Training time", duration(seconds), f"over {count(sum(run['steps'] for run in sweep['runs']), 'step')}"))
    if any(reference.values()):
        shown.append(("Reference", f"{reference['computed']:,} scored", f"{reference['reused']:,} read from the store"))
    return shown


def _row(folder: Path, run: Mapping[str, Any], sweep: Mapping[str, Any]) -> dict[str, Any]:
    recommended = run["name"] == (sweep["recommended"] or {}).get("name")
    place = "recommended" if recommended else "on the frontier" if run["name"] in sweep["frontier"] else ""
    return {
        "name": run["name"],
        "link": f"{quote(run['folder'])}/report.html" if RunDir(folder / run["folder"]).report.is_file() else "",
        "state": {"done": place, "stopped": "given up", "failed": "failed", "waiting": "to come"}[run["state"]],
        "recommended": recommended,
        "kl": _cell(run[distance_of(sweep)], "nats"),
        **{name: _cell(run[name], unit) for name, unit in (("accuracy", "share"), ("margin", ""))},
        "length": f"{number(run['length']['before'])} → {number(run['length']['after'])}" if run["length"] else UNKNOWN,
        "against": _against(run),
        "steps": f"{run['steps']:,}",
    }


def _against(run: Mapping[str, Any]) -> str:
    found = [*([count(run["symptoms"], "symptom")] if run["symptoms"] else []), *(f"worse: {title}" for title in run["worse"])]
    return ", ".join(found) or ("nothing" if run["state"] == "done" else UNKNOWN)


def _cell(measured: Mapping[str, Any] | None, unit: str) -> tuple[str, str]:
    """Value and ends."""
    if not measured:
        return UNKNOWN, ""
    interval = Interval.from_dict(measured)
    return quantity(interval.value, unit, interval), ends(interval, unit)


def _frontier(sweep: Mapping[str, Any]) -> str:
    """The frontier plot of runs that have both numbers; empty without any."""
    recommended = (sweep["recommended"] or {}).get("name")
    distance, points = distance_of(sweep), []
    for number_of, run in enumerate(sweep["runs"]):
        if run[distance] and run["accuracy"]:
            kl, accuracy = Interval.from_dict(run[distance]), Interval.from_dict(run["accuracy"])
            points.append(Point(number_of, label_of(run, sweep["runs"]), kl, accuracy, run["name"] in sweep["frontier"], run["name"] == recommended))
    if not points:
        return ""
    told = "; ".join(f"{point.label}: {quantity(point.accuracy.value, 'share')} at {quantity(point.kl.value, 'nats')}" for point in points)
    return draw_frontier(f"Held-out accuracy against {DISTANCES[distance]}. {told}.", points, len(sweep["runs"]), distance)


def _curves(folder: Path, runs: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    rows = [RunDir(folder / run["folder"]).read_metrics("eval") for run in runs]
    one_scale = not any(setting.startswith("objective.") for run in runs for setting in run["settings"])
    drawings = []
    for name, title, note, unit in CURVES:
        lines = []
        for number_of, evaluations in enumerate(rows):
            points = [(row["step"], row[name]) for row in evaluations if row.get(name) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                lines.append(plots.Line(steps, values, color(number_of), held_out=True))
        if lines:
            last = "; ".join(f"{run['name']} {quantity(each[-1].get(name), unit)}" for run, each in zip(runs, rows, strict=True) if each)
            level = {"accuracy": (0.5, "chance"), "margin": (0.0, "")}.get(name, (None, ""))
            svg = plots.curves(
                f"all-{name}", f"{title} over steps. Last: {last}.", lines, level=level[0], level_label=level[1], share=unit == "share"
            )
            drawings.append(Drawing(title, note if one_scale or name == "accuracy" else note + OWN_SCALE, (), colored(svg, len(runs))))
    return drawings
