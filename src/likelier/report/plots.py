"""Small drawings as inline SVG. Colours are CSS variables and text is text, so one drawing serves light, dark and paper.

matplotlib draws in placeholder colours, each of which is replaced by a variable of page.css. Sizes are in CSS pixels.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 340, 208
MOST_POINTS = 300
RUNNING_MEAN_FROM = 40  # steps; below that every step is drawn as it is

INK, FAINT, RULE = "#010101", "#020202", "#030303"
ACCENT, CHOSEN, REJECTED = "#040404", "#050505", "#060606"
BAD, PAPER = "#070707", "#080808"
VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    RULE: "--rule",
    ACCENT: "--accent",
    CHOSEN: "--chosen",
    REJECTED: "--rejected",
    BAD: "--bad",
    PAPER: "--paper",
}

STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.linewidth": 1.0,
    "grid.color": RULE,
    "grid.linewidth": 1.0,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


@dataclass(frozen=True)
class Line:
    """One curve. A training curve is thin, with a running mean when it is long; a held-out one is strong and dotted."""

    steps: Sequence[float]
    values: Sequence[float]
    color: str
    held_out: bool


@dataclass(frozen=True)
class Mark:
    """A numbered place over the steps, and its colour."""

    step: float
    text: str
    color: str


def curves(
    name: str,
    label: str,
    lines: Sequence[Line],
    *,
    level: float | None = None,
    level_label: str = "",
    best: float | None = None,
    marks: Sequence[Mark] = (),
    share: bool = False,
    from_zero: bool = False,
) -> str:
    """Curves over steps, with a dashed `level` to compare with, a line at the `best` step and numbered `marks` above."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        for line in lines:
            (_draw_held_out if line.held_out else _draw_train)(axes, line)
        if best is not None:
            axes.axvline(best, color=FAINT, linewidth=1, dashes=(1, 3), zorder=1)
        if level is not None:
            axes.axhline(level, color=FAINT, linewidth=1, dashes=(4, 3), zorder=1)
            axes.annotate(level_label, (1, level), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", ha="right")
        for mark in marks:
            axes.axvline(mark.step, color=mark.color, linewidth=1, alpha=0.5, zorder=1)
            at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "va": "center"}
            axes.annotate(mark.text, (mark.step, 1), xytext=(0, 6), color=mark.color, weight="bold", annotation_clip=False, **at)
        axes.margins(x=0.02, y=0.12)
        if from_zero:
            axes.set_ylim(bottom=0, top=None if axes.get_ylim()[1] > 0 else 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        name_last_tick(axes, "step")
        if share:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        return svg(figure, name, label)


def _draw_train(axes: Axes, line: Line) -> None:
    steps, values = np.asarray(line.steps, dtype=float), np.asarray(line.values, dtype=float)
    if len(values) < RUNNING_MEAN_FROM:
        axes.plot(steps, values, color=line.color, linewidth=1.2, alpha=0.65)
        return
    axes.plot(thin(steps), thin(values), color=line.color, linewidth=0.8, alpha=0.22)
    width = len(values) // 20
    axes.plot(thin(running_mean(steps, width)), thin(running_mean(values, width)), color=line.color, linewidth=1.2, alpha=0.8)


def _draw_held_out(axes: Axes, line: Line) -> None:
    dots = "o" if len(line.values) <= RUNNING_MEAN_FROM else ""
    axes.plot(line.steps, line.values, color=line.color, linewidth=1.8, marker=dots, markersize=4, zorder=3)


def running_mean(values: ArrayLike, width: int) -> np.ndarray:
    """Mean of each run of `width` neighbours: N values give N - width + 1."""
    return np.convolve(np.asarray(values, dtype=float), np.full(width, 1 / width), mode="valid")


def thin(values: ArrayLike, most: int = MOST_POINTS) -> np.ndarray:
    """At most `most` values: means of equal blocks, so that a long run does not make a heavy page."""
    array = np.asarray(values, dtype=float)
    if len(array) <= most:
        return array
    return np.array([block.mean() for block in np.array_split(array, most)])


def histogram(name: str, label: str, edges: Sequence[float], sides: Sequence[tuple[Sequence[int], str]]) -> str:
    """Counts per bin of token length, `sides` (counts, colour) laid over each other. Bins that widen are drawn on a logarithmic axis."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        for counts, color in sides:
            axes.stairs(counts, edges, fill=True, color=color, alpha=0.16)
            axes.stairs(counts, edges, color=color, linewidth=1.5)
        widths = np.diff(edges)
        if edges[0] > 0 and widths.max() > 3 * widths.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        name_last_tick(axes, "tokens")
        return svg(figure, name, label)


@dataclass(frozen=True)
class Reliability:
    """Bins of a reliability diagram, by rising confidence."""

    confidences: Sequence[float]
    accuracies: Sequence[float]
    counts: Sequence[int]


def reliability(name: str, label: str, *series: Reliability) -> str:
    """Reliability diagram: share right against confidence; on the dashed line the two are equal. A dot's area grows with its pairs.

    The last of the `series` is drawn full, those before it hollow.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        axes.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1, dashes=(4, 3))
        for bins in series:
            color, fill = (ACCENT, ACCENT) if bins is series[-1] else (REJECTED, PAPER)
            areas = 60 * np.asarray(bins.counts) / max(bins.counts) + 6
            axes.plot(bins.confidences, bins.accuracies, color=color, linewidth=1.2, alpha=0.5)
            axes.scatter(bins.confidences, bins.accuracies, s=areas, color=fill, edgecolors=color, linewidths=1.2, zorder=3, clip_on=False)
        axes.set_xlim(0.49, 1.04)
        axes.set_ylim(min(0.4, *(share for bins in series for share in bins.accuracies)) - 0.02, 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(0.1))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        name_last_tick(axes, "confidence")
        return svg(figure, name, label)


def panel() -> tuple[Figure, Axes]:
    """An empty drawing with horizontal lines."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.125, 0.17, 0.855, 0.8), facecolor="none")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def name_last_tick(axes: Axes, unit: str) -> None:
    """Write below the end of the horizontal axis what it measures."""
    axes.annotate(unit, (1, 0), xycoords="axes fraction", xytext=(0, -27), textcoords="offset points", ha="right")


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element that can stand in a page among others: own ids, no header, colours from the page."""
    with matplotlib.rc_context({"svg.hashsalt": name}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<svg[^>]*>", f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">', text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    text = re.sub(r"font(-family)?: [^;\"]*;?", "", text)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text
