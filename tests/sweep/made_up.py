"""A made-up sweep on disk: sweep.json and each run's metrics, without a run."""

from pathlib import Path
from typing import Any

import numpy as np

from likelier.recipe import parse_recipe
from likelier.report.sweep_page import write_sweep_page
from likelier.rundir import SWEEP, RunDir, write_json, write_jsonl

BETAS = {0.01: (0.77, 118.0), 0.03: (0.87, 61.0), 0.1: (0.892, 24.5), 0.3: (0.875, 7.2), 0.5: (0.795, 3.1)}
"""Accuracy and KL of made-up runs."""


def made_up_sweep(folder: Path, *, hostile: str = "") -> Path:
    """Five runs of which one is given up and one still to come, and the page of them. `hostile` is markup in what runs say."""
    rng = np.random.default_rng(0)
    runs = [made_up_row(beta, accuracy, kl) for beta, (accuracy, kl) in BETAS.items()]
    runs.append(
        made_up_row(0.7, 0, 0)
        | {"state": "failed", "why": f"TrainingStopped {hostile}", "accuracy": None, "margin": None, "kl": None, "length": None}
    )
    runs[0] |= {"state": "stopped", "why": "given up at step 40 of 120: its held-out accuracy had reached 58.0%, when that of beta=0.1 was 88.0%."}
    runs[0] |= {"accuracy": None, "margin": None, "kl": None, "length": None, "steps": 40}
    runs[1] |= {"symptoms": 1, "worse": ["Factual questions answered"]}
    for number, row in enumerate(runs):
        steps = range(10, row["steps"] + 1, 10)
        rise = [1 - np.exp(-step / 30) for step in steps]
        metrics = [
            {
                "kind": "eval",
                "step": step,
                "accuracy": 0.5 + (0.3 + 0.02 * number) * up,
                "margin": (3 - number / 2) * up,
                "loss": 0.69 - 0.1 * up * number,
            }
            for step, up in zip(steps, rise, strict=True)
        ]
        write_jsonl(RunDir(folder / row["folder"]).metrics, [row | {"accuracy": row["accuracy"] + rng.normal(0, 0.01)} for row in metrics])
    RunDir(folder / "beta=0.1").report.write_text("a report")
    sweep = {
        "grid": {"objective.beta": [*BETAS, 0.7]},
        "runs": runs,
        "frontier": ["beta=0.5", "beta=0.3", "beta=0.1"],
        "recommended": {
            "name": "beta=0.3",
            "reason": f"It is within one standard error of the best, beta=0.1 (89.2%), and nearest to the reference. {hostile}",
        },
        "notes": ["118 held-out prompts cannot tell beta=0.1 from beta=0.03, beta=0.3 by accuracy at 95%."],
        "reference": {"computed": 2156, "reused": 8624},
        "recipe": parse_recipe({"data": {"train": ["embedded:support"]}}, where="test").model_dump(mode="json"),
    }
    write_json(folder / SWEEP, sweep)
    return write_sweep_page(folder)


def made_up_row(beta: float, accuracy: float, kl: float) -> dict[str, Any]:
    return {
        "name": f"beta={beta}",
        "settings": {"objective.beta": beta},
        "state": "done",
        "why": "",
        "folder": f"beta={beta}",
        "accuracy": {"value": accuracy, "low": accuracy - 0.06, "high": accuracy + 0.05},
        "margin": {"value": beta * kl, "low": 0.8 * beta * kl, "high": 1.2 * beta * kl},
        "kl": {"value": kl, "low": 0.7 * kl, "high": 1.3 * kl},
        "length": {"before": 72.5, "after": 30.0},
        "steps": 120,
        "seconds": 400.0,
        "symptoms": 0,
        "worse": [],
    }
