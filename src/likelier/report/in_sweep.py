"""The run among the other runs of its sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likelier.report import plots
from likelier.report.curves import Drawing, Key
from likelier.rundir import read_json
from likelier.wording import count


@dataclass(frozen=True)
class Place:
    """The frontier with this run in it. `advice` says which setting the sweep recommends and why, `page` is a link to its page if there is one."""

    drawing: Drawing
    advice: str
    page: str | None


def place_in_sweep(folder: Path) -> Place | None:
    """What `sweep.json`, beside a run's `folder`, says; None where there is none that names this run, or fewer than two runs have been measured."""
    path = folder.resolve().parent / "sweep.json"
    if not path.is_file():
        return None
    sweep = read_json(path)
    name = next((run["name"] for run in sweep["runs"] if run["folder"] == folder.resolve().name), None)
    measured = [run for run in sweep["runs"] if run.get("kl") and run.get("accuracy")]
    if len(measured) < 2 or name is None:
        return None
    points = [_point(run, name, sweep["frontier"]) for run in measured]
    label = "Held-out accuracy against KL of the runs of the sweep: " + ", ".join(
        f"{point.name} {100 * point.y:.0f}% at {point.x:.2g}" for point in points
    )
    where = "lies on the frontier" if name in sweep["frontier"] else "is beaten by another one in both"
    keys = (Key("accent", f"this run {where}"), Key("ring", f"the others; the line joins those on the frontier, of {count(len(measured), 'run')}"))
    drawing = Drawing(
        "Accuracy against KL",
        "Held-out accuracy, with intervals, against nats of KL from the reference.",
        keys,
        plots.frontier("frontier", label, points),
    )
    return Place(drawing, _advice(sweep.get("recommended"), name), "../sweep.html" if path.with_name("sweep.html").is_file() else None)


def _point(run: Mapping[str, Any], here: str, frontier: list[str]) -> plots.Point:
    accuracy = run["accuracy"]
    low, high = (accuracy["value"] if accuracy[end] is None else accuracy[end] for end in ("low", "high"))
    return plots.Point(run["name"], run["kl"]["value"], accuracy["value"], low, high, run["name"] in frontier, run["name"] == here)


def _advice(recommended: Mapping[str, Any] | None, here: str) -> str:
    if recommended is None:
        return "The sweep recommends none of its runs yet."
    which = "this run" if recommended["name"] == here else f"another run, {recommended['name']}"
    return f"The sweep recommends {which}. {recommended['reason']}"
