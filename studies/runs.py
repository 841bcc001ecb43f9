"""What studies that train the embedded model share: runs that are made once, rows of numbers, plots, and a page whose reading stays."""

import argparse
import copy
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from rich.console import Console

from likelier.evaluate import evaluate
from likelier.metrics import Interval
from likelier.recipe import parse_recipe
from likelier.rundir import RunDir
from likelier.train.progress import Progress
from likelier.train.session import train_recipe
from likelier.wording import quantity

READING = "## What came out"

SHORT_RUN: dict[str, Any] = {
    "data": {"train": ["embedded:support"], "eval": ["embedded:support-held-out"], "max_length": 512},
    "objective": {"name": "dpo", "beta": 0.3},
    "train": {"max_steps": 15, "epochs": 2, "learning_rate": 2e-4, "eval_every": 5, "checkpoint_every": 5},
    "eval": {"samples": 16, "max_new_tokens": 96, "probes": False},
}
"""15 steps of 16 of the 230 shipped support pairs, LoRA of rank 16, 50 held-out pairs: about three minutes on two CPU cores."""


class Study:
    """A folder of runs and the page that is made of them. `python studies/NAME.py [FOLDER] [--page FILE]`."""

    def __init__(self, doc: str, name: str) -> None:
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument(
            "folder", nargs="?", type=Path, default=Path("runs/studies") / name, help="where its runs are kept; what is there is reused"
        )
        parser.add_argument("--page", type=Path, help="write the page here, its plots beside it; the reading at its end stays")
        arguments = parser.parse_args()
        self.name = name
        self.folder: Path = arguments.folder
        self.page: Path | None = arguments.page
        self.console = Console()
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, *changes: Mapping[str, Any]) -> RunDir:
        """The run called `name`: SHORT_RUN with `changes`, trained and evaluated unless that is done."""
        settings = merged({**copy.deepcopy(SHORT_RUN), "out": str(self.folder / name)}, *changes)
        recipe = parse_recipe(settings, where=f"studies/{self.name}.py")
        run = RunDir(recipe.out)
        if not (run.manifest.is_file() and run.read_manifest().get("outcome")):
            self.say(f"{name}: training")
            train_recipe(recipe, show=Progress())
        if not run.eval.is_file():
            evaluate(run)
        self.say(f"{name}: {', '.join(f'{key} {value}' for key, value in numbers(run).items())}")
        return run

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def plot(self, name: str, figure: Figure) -> str:
        """Save `figure` beside the page; returns the Markdown that shows it, with `name` as its text."""
        if self.page is None:
            return ""
        path = self.page.with_name(f"{self.page.stem}-{name.replace(' ', '-')}.svg")
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
        return f"![{name}]({path.name})"

    def write(self, text: str) -> None:
        """Write the page: `text`, and below it what somebody wrote there from "## What came out" on."""
        self.say(text)
        if self.page is not None:
            before = self.page.read_text() if self.page.is_file() else ""
            reading = before[before.index(READING) :] if READING in before else f"{READING}\n"
            self.page.write_text(f"{text.strip()}\n\n{reading}")


def merged(settings: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with the sections of `changes` put over its own, key by key; an objective that changes its name starts anew."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    for change in changes:
        for section, values in change.items():
            anew = section == "objective" and "name" in values
            result[section] = {**({} if anew else result.get(section, {})), **values} if isinstance(values, Mapping) else values
    return result


def held_out(run: RunDir, name: str) -> Interval:
    """A number of the run's eval.json, with its interval."""
    found = run.read_eval()
    assert found is not None
    return Interval.from_dict(found["held_out"][name])


def words(run: RunDir, side: str) -> float:
    """Median number of words of the replies to held-out prompts; `side` is before or after."""
    return statistics.median(len(row[side].split()) for row in run.read_samples())


def numbers(run: RunDir) -> dict[str, str]:
    """What the tables of most studies show of a run."""
    accuracy, margin, chosen, kl = (held_out(run, name) for name in ("accuracy", "margin", "chosen_logp_change", "kl"))
    return {
        "accuracy": f"{accuracy.value:.0%} ({accuracy.low:.0%} to {accuracy.high:.0%})",
        "margin": f"{margin.value:+.2f}",
        "log-ratio of chosen": f"{chosen.value:+.1f}",
        "KL": f"{kl.value:.1f}",
        "words a reply": f"{words(run, 'before'):.0f} → {words(run, 'after'):.0f}",
        "minutes": f"{run.read_manifest()['outcome']['seconds'] / 60:.1f}",
    }


NOTE = """Accuracy is on held-out pairs, with its 95% interval over prompts; margin is the mean difference of implicit rewards β·log π/π_ref. The
log-ratio of chosen is that of the chosen reply, in nats: below 0 it became less likely than it was. KL is the mean log π/π_ref of 16 replies of the
tuned model, in nats a reply: a rough number. Words a reply is a median over 16 held-out prompts, before and after. Minutes are those of training."""
"""What stands below a table of `numbers`."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def table_of(runs: Mapping[str, RunDir]) -> str:
    """The numbers of some runs, a row each."""
    rows = [(name, *numbers(run).values()) for name, run in runs.items()]
    return table(("run", *numbers(next(iter(runs.values())))), rows)


def panels(count: int = 1, *, titles: Sequence[str] = (), xlabel: str = "step") -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side, in colours that can be read on white and on black."""
    figure = Figure(figsize=(4.2 * count, 3.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = [figure.add_subplot(1, count, i + 1, facecolor="none") for i in range(count)]
    for i, each in enumerate(axes):
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(GREY)
        each.tick_params(colors=GREY, labelsize=8)
        each.set_xlabel(xlabel, color=GREY, fontsize=9)
        each.set_title(titles[i] if i < len(titles) else "", color=GREY, fontsize=10, loc="left")
    return figure, axes


GREY = "#808080"
COLORS = ("#3b82c4", "#c8752f", "#3a9a63", "#a45fb8", "#b8484a", "#8a8a2e")


def legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=GREY)


def curve(axes: Axes, run: RunDir, field: str, *, kind: str = "train", label: str = "", color: str = COLORS[0], **style: Any) -> None:
    """One field of metrics.jsonl over steps."""
    rows = [row for row in run.read_metrics(kind) if row.get(field) is not None]
    axes.plot([row["step"] for row in rows], [row[field] for row in rows], color=color, label=label, linewidth=1.4, **style)


def percent(value: float) -> str:
    return quantity(value, "share")
