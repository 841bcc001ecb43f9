"""Drawings of several runs at once. Each run has a colour of its own, a variable of the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from likelier.metrics import Interval
from likelier.report import plots

EXACT, SAMPLED = "kl_on_data", "kl"
DISTANCES = {EXACT: "KL on held-out replies", SAMPLED: "KL on sampled replies"}
"""How far a run moved from the reference: the measures of eval.json and their names. The first is exact at each token, so that no noise of sampling
decides between runs."""

PAGE = "sweep.html"
"""The page of a sweep, beside its sweep.json."""

CHARACTER, LINE = 5.6, 12
"""How much room a label takes, in points."""


@dataclass(frozen=True)
class Point:
    """One run of the frontier plot; `run` is its number, and so its colour."""

    run: int
    label: str
    kl: Interval
    accuracy: Interval
    on_frontier: bool
    recommended: bool


def color(run: int) -> str:
    """Stands for the colour of a run until `colored`."""
    return f"#ab{run:04x}"


def colored(svg: str, runs: int) -> str:
    """The drawing with the page's variables in place of the runs' stand-ins."""
    for run in range(runs):
        svg = svg.replace(color(run), f"var(--run-{run})")
    return svg


def distance_of(sweep: Mapping[str, Any]) -> str:
    """The measure by which sweep.json compares its runs."""
    return str(sweep.get("distance", SAMPLED))


def label_of(run: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """A run's label beside its point: its value where all `runs` set one and the same setting, else its name."""
    one_setting = len({tuple(each["settings"]) for each in runs}) == 1 and len(run["settings"]) == 1
    return str(run["name"]).partition("=")[2] if one_setting else str(run["name"])


def draw_frontier(label: str, points: Sequence[Point], runs: int, distance: str = SAMPLED) -> str:
    """Accuracy against KL, of which `distance` is the measure. A cross is a run's two intervals, a ring the recommended one; the frontier is a line
    of steps."""
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plots.panel()
        best = sorted((point for point in points if point.on_frontier), key=lambda point: point.kl.value)
        axes.step([p.kl.value for p in best], [p.accuracy.value for p in best], where="post", color=plots.FAINT, linewidth=1, dashes=(4, 3), zorder=1)
        for point in points:
            hue, at = color(point.run), (point.kl.value, point.accuracy.value)
            axes.plot([point.kl.low, point.kl.high], [at[1]] * 2, color=hue, linewidth=1.4, alpha=0.45, zorder=2)
            axes.plot([at[0]] * 2, [point.accuracy.low, point.accuracy.high], color=hue, linewidth=1.4, alpha=0.45, zorder=2)
            axes.scatter(*at, s=34, color=hue, linewidths=0, zorder=4)
            if point.recommended:
                axes.scatter(*at, s=130, facecolors="none", edgecolors=plots.INK, linewidths=1.4, zorder=5)
        axes.margins(x=0.08, y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        plots.name_last_tick(axes, f"{DISTANCES[distance]}, nats each")
        _name_points(figure, axes, points)
        return colored(plots.svg(figure, "frontier", label), runs)


def _name_points(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Each label beside its point, where it covers neither a point nor another label; below it where there is no such place."""
    axes.autoscale_view()
    scale = 72 / figure.dpi  # of pixels: a drawing is saved in points
    centres = [tuple(scale * axes.transData.transform((point.kl.value, point.accuracy.value))) for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    left, right = scale * axes.bbox.x0, scale * axes.bbox.x1
    for point, (x, y) in zip(points, centres, strict=True):
        width = CHARACTER * len(point.label)
        offsets = [(dx, dy) for dy in (5, -3 - LINE) for dx in (8, -8 - width)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + LINE) for dx, dy in offsets]
        free = [i for i, box in enumerate(boxes) if left <= box[0] and box[2] <= right and not any(_overlap(box, other) for other in taken)]
        chosen = free[0] if free else 2
        taken.append(boxes[chosen])
        axes.annotate(
            point.label, (point.kl.value, point.accuracy.value), xytext=offsets[chosen], textcoords="offset points", color=plots.INK, zorder=6
        )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
