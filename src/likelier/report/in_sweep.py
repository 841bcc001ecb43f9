"""The run among the other runs of its sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likelier.metrics import Interval
from likelier.report.curves import Drawing, Key
from likelier.report.frontier import DISTANCES, PAGE, Point, distance_of, draw_frontier, label_of
from likelier.rundir import SWEEP, read_json
from likelier.wording import count, quantity


@dataclass(frozen=True)
class Place:
    """The frontier with this run in it. `advice` says which setting the sweep recommends and why, `page` is a link to its page if there is one."""

    drawing: Drawing
    advice: str
    page: str | None


def place_in_sweep(folder: Path) -> Place | None:
    """What `sweep.json`, beside a run's `folder`, says; None where there is none that names this run, or fewer than two runs have been measured."""
    path = folder.resolve().parent / SWEEP
    if not path.is_file():
        return None
    sweep = read_json(path)
    name = next((run["name"] for run in sweep["runs"] if run["folder"] == folder.resolve().name), None)
    distance = distance_of(sweep)
    measured = [run for run in sweep["runs"] if run.get(distance) and run.get("accuracy")]
    if len(measured) < 2 or name is None:
        return None
    points = [_point(run, name, sweep) for run in measured]
    told = "; ".join(f"{point.label}: {quantity(point.accuracy.value, 'share')} at {quantity(point.kl.value, 'nats')}" for point in points)
    where = "on the frontier: no other one is better without moving further" if name in sweep["frontier"] else "not on the frontier"
    keys = (Key("accent", f"this run, {where}"), Key("plain", f"the others, of {count(len(measured), 'run')}; the ring is the recommended one"))
    svg = draw_frontier(f"Held-out accuracy against {DISTANCES[distance]}. {told}.", points, 2, distance)
    about = f"What a run gains, over how far it moved from the reference: {DISTANCES[distance]}. Crosses are 95% intervals."
    drawing = Drawing("Accuracy against KL", about, keys, svg)
    return Place(drawing, _advice(sweep["recommended"], name), f"../{PAGE}" if path.with_name(PAGE).is_file() else None)


def _point(run: Mapping[str, Any], here: str, sweep: Mapping[str, Any]) -> Point:
    """This run has colour 1, the others have colour 0."""
    name = run["name"]
    label = "this run" if name == here else label_of(run, sweep["runs"])
    recommended = name == (sweep["recommended"] or {}).get("name")
    kl, accuracy = (Interval.from_dict(run[measure]) for measure in (distance_of(sweep), "accuracy"))
    return Point(int(name == here), label, kl, accuracy, name in sweep["frontier"], recommended)


def _advice(recommended: Mapping[str, Any] | None, here: str) -> str:
    if recommended is None:
        return "The sweep recommends none of its runs yet."
    which = "this run" if recommended["name"] == here else f"another run, {recommended['name']}"
    return f"The sweep recommends {which}. {recommended['reason'].strip()}"
