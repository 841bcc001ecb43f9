"""Plots of what `gpu.py --scaling` measured: one SVG for each thing that is varied."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

TITLES = {"length": "tokens of the prompt, and of each response", "pairs a prompt": "pairs a prompt"}
RATE = {"default": "pairs_per_second_all", "best": "pairs_per_second"}
"""Likelier's figure that is compared with each opponent: against `default`, which scores the reference in its step, with the reference pass."""


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """One file for each axis: pairs a second of both tools above, how many times as many below. Raises SystemExit for a file without such figures."""
    folder.mkdir(parents=True, exist_ok=True)
    matches = [match for match in found["matches"] if match.get("axis") and "figures" in match]
    axes = list(dict.fromkeys(axis for match in matches for axis in match["axis"]))
    if not axes:
        raise SystemExit("Nothing is varied in this file: it is not one of `gpu.py --scaling`.")
    return [draw_axis(found, [match for match in matches if axis in match["axis"]], axis, folder) for axis in axes]


def draw_axis(found: dict[str, Any], matches: list[dict[str, Any]], axis: str, folder: Path) -> Path:
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(6.5, 6.5), height_ratios=(3, 2))
    for opponent, style in (("default", "--"), ("best", "-")):
        points = sorted(((match["axis"][axis], match["figures"]) for match in matches if match["opponent"] == opponent), key=lambda point: point[0])
        for tool, colour in (("likelier", "tab:blue"), ("trl", "tab:orange")):
            rate = RATE[opponent] if tool == "likelier" else "pairs_per_second"
            label = f"TRL, {opponent}" if tool == "trl" else f"Likelier, {'with' if opponent == 'default' else 'without'} reference pass"
            fitting = [(value, figures[tool][rate]) for value, figures in points if tool in figures]
            above.plot(*zip(*fitting, strict=True), style, color=colour, marker="o", label=label) if fitting else None
        ratios = [(value, figures["speed_up"]) for value, figures in points if "speed_up" in figures]
        below.plot(*zip(*ratios, strict=True), style, color="black", marker="o", label=f"against TRL, {opponent}") if ratios else None
    above.set_ylabel("pairs a second")
    above.set_yscale("log")
    below.set_ylabel("times as many")
    below.set_ylim(bottom=0)
    below.set_xlabel(TITLES[axis])
    below.set_xscale("log", base=2)
    values = sorted({match["axis"][axis] for match in matches})
    below.set_xticks(values, [str(value) for value in values])
    below.minorticks_off()
    for plot in (above, below):
        plot.grid(alpha=0.3)
        plot.legend(frameon=False, fontsize=8)
    above.set_title(f"{matches[0]['case'].rsplit('/', 1)[0]} on {found['device']}, {found['date'][:10]}", fontsize=10)
    figure.tight_layout()
    file = folder / f"{axis.replace(' ', '-')}.svg"
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file
