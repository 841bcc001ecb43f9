"""One short run of each objective on the shipped support pairs: what each does to accuracy, margin, KL and length.

    python studies/objectives.py [FOLDER] [--steps 15] [--page docs/studies/objectives.md]

Every run is LoRA on the embedded model with the same pairs in the same order; only the objective, its β and the learning rate differ, as RUNS says.
Runs that FOLDER holds already are not made again. Writes FOLDER/objectives.json and, where asked for, the page. About two minutes a run.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from likelier.evaluate import evaluate
from likelier.metrics import Interval
from likelier.recipe import Recipe, parse_recipe
from likelier.rundir import RunDir
from likelier.train.progress import Progress
from likelier.train.session import train_recipe

RUNS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"beta": 0.5},
    "robust-dpo": {"beta": 0.5, "label_smoothing": 0.1},
    "length-normalised-dpo": {"beta": 5.0},
    "ld-dpo": {"beta": 0.5, "tail_weight": 0.5},
    "r-dpo": {"beta": 0.5, "length_penalty": 0.01},
    "rpo": {"beta": 0.5},
    "ipo": {"beta": 0.05},
    "hinge": {"beta": 0.1},
    "apo-zero": {"beta": 0.3},
    "nca": {"beta": 0.1},
    "simpo": {"beta": 2.0, "target_margin": 1.0},
    "orpo": {"beta": 1.0},
    "kto": {"beta": 0.3},
    "bco": {"beta": 0.3},
}
"""Objective → its settings. β is chosen so that the curves of rewards are of one order; it is no recommendation."""

READING = "## What came out"

COLUMNS = ("accuracy", "margin", "log-ratio of chosen", "KL", "reply length", "loss", "minutes")


def recipe_for(name: str, folder: Path, steps: int) -> Recipe:
    settings = {
        "data": {"train": ["embedded:support"], "eval": ["embedded:support-held-out"], "max_length": 512},
        "objective": {"name": name, **RUNS[name]},
        "train": {"max_steps": steps, "epochs": math.ceil(16 * steps / 230), "learning_rate": 2e-4, "eval_every": 0, "checkpoint_every": 5},
        "eval": {"samples": 16, "max_new_tokens": 96, "probes": False},
        "out": str(folder / name),
    }
    return parse_recipe(settings, where="studies/objectives.py")


def measured(run: RunDir) -> dict[str, Any]:
    """The row of one run; lengths are words of the shown replies."""
    result, samples, outcome = run.read_eval(), run.read_samples(), run.read_manifest()["outcome"]
    assert result is not None
    held_out = {name: Interval.from_dict(value) for name, value in result["held_out"].items()}
    words = {side: statistics.median(len(row[side].split()) for row in samples) for side in ("before", "after")}
    last = run.read_metrics("train")[-1]
    change = held_out.get("chosen_logp_change")
    return {
        "accuracy": f"{held_out['accuracy'].value:.0%} ({held_out['accuracy'].low:.0%} to {held_out['accuracy'].high:.0%})",
        "margin": f"{held_out['margin'].value:+.2f}",
        "log-ratio of chosen": f"{change.value:+.1f}" if change else "",
        "KL": f"{held_out['kl'].value:.1f}",
        "reply length": f"{words['before']:.0f} → {words['after']:.0f}",
        "loss": f"{outcome['first_loss']:.3f} → {last['loss']:.3f}",
        "minutes": f"{outcome['seconds'] / 60:.1f}",
        "finite": all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in run.read_metrics("train"))
        and not run.read_metrics("skipped"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    arguments = parser.parse_args()
    console, rows = Console(), {}
    for name in arguments.only:
        run = RunDir(arguments.folder / name)
        if not run.eval.is_file():
            if not (run.manifest.is_file() and run.read_manifest().get("outcome")):
                train_recipe(recipe_for(name, arguments.folder, arguments.steps), show=Progress())
            evaluate(run)
        rows[name] = measured(run)
        console.print(name, rows[name], highlight=False)
    (arguments.folder / "objectives.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    if arguments.page:
        arguments.page.write_text(page(rows, arguments.steps, reading_of(arguments.page)))


def reading_of(page: Path) -> str:
    """What somebody wrote below the table, from "## What came out" on: it stays when the page is made again."""
    text = page.read_text() if page.is_file() else ""
    return text[text.index(READING) :].rstrip() if READING in text else READING


def page(rows: dict[str, dict[str, Any]], steps: int, reading: str) -> str:
    table = [f"| objective | settings | {' | '.join(COLUMNS)} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for name, row in rows.items():
        settings = ", ".join(f"{key} {value:g}" for key, value in RUNS[name].items()) or "none"
        table.append(f"| `{name}` | {settings} | {' | '.join(row[column] for column in COLUMNS)} |")
    unfinished = [name for name, row in rows.items() if not row["finite"]]
    finite = "Every loss and gradient was finite." if not unfinished else f"Not finite somewhere: {', '.join(unfinished)}."
    only = "" if set(rows) == set(RUNS) else f" --only {' '.join(rows)}"
    command = f"python studies/objectives.py --page docs/studies/objectives.md{only}"
    return TEXT.format(command=command, count=len(rows), steps=steps, pairs=16 * steps, table="\n".join(table), finite=finite, reading=reading)


TEXT = """# {count} objectives, one short run of each

    {command}

makes this page: {steps} steps of 16 of the 230 shipped support pairs ({pairs} pairs in all), LoRA of rank 16 at a peak rate of 2e-4,
SmolLM2-135M-Instruct, two CPU cores; then the 50 held-out pairs, and 16 replies before and after.

{table}

Accuracy has its 95% interval over prompts. Margin is the mean difference of the objective's own rewards, whose scale differs from objective to
objective: compare signs, not sizes. The log-ratio of chosen is log π/π_ref of the chosen reply, in nats; below 0 it became less likely than it was.
KL is the mean log π/π_ref of 16 replies of the tuned model, in nats a reply: a rough number. Reply length is the median number of words before and
after. Minutes are those of training, on a machine that did other things, too. {finite}

{reading}
"""


if __name__ == "__main__":
    main()
