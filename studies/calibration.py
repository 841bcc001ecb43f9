"""Is σ(margin) a probability? Calibration of the implicit reward on held-out pairs, before and after a fitted temperature.

    python studies/calibration.py [FOLDER] [--page docs/studies/calibration.md]

The shipped support and facts pairs together, 40% of their prompts held out; one pass over the rest, and three. About fourteen minutes on two quiet
cores.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from runs import COLORS, GREY, NOTE, Study, legend, panels, table, table_of

from likelier.metrics import Interval
from likelier.rundir import RunDir

DATA = {"train": ["embedded:support", "embedded:facts"], "eval": [], "eval_fraction": 0.4, "max_length": 512}
RUNS = {"one pass": 20, "three passes": 60}
"""Name → steps of 16 pairs."""


def main() -> None:
    study = Study(__doc__, "calibration")
    runs = {
        name: study.run(name.replace(" ", "-"), {"data": DATA, "train": {"max_steps": steps, "epochs": 4, "eval_every": 20}})
        for name, steps in RUNS.items()
    }
    figure, axes = panels(2, titles=list(runs), xlabel="σ(|margin|), how sure it is")
    for each, run in zip(axes, runs.values(), strict=True):
        found = calibration_of(run)
        diagram(each, found["bins"], "as it is", COLORS[1])
        diagram(each, found["after"]["bins"], "margins / T", COLORS[0])
        each.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1)
        legend(each)
    axes[0].set_ylabel("how often it is right", color=GREY, fontsize=9)
    head = ("run", "temperature T", "ECE", "ECE after", "Brier", "Brier after")
    study.write(
        TEXT.format(
            pairs=pairs_of(runs),
            calibration=table(head, [(name, *row_of(calibration_of(run))) for name, run in runs.items()]),
            table=table_of(runs),
            note=NOTE,
            plot=study.plot("reliability", figure),
        )
    )


def calibration_of(run: RunDir) -> dict[str, Any]:
    found = run.read_eval()
    assert found is not None
    return dict(found["calibration"])


def row_of(found: Mapping[str, Any]) -> tuple[str, ...]:
    temperature = Interval.from_dict(found["temperature"])
    figures = (f"{value:.3f}" for value in (found["ece"], found["after"]["ece"], found["brier"], found["after"]["brier"]))
    return f"{temperature.value:.2f} ({temperature.low:.2f} to {temperature.high:.2f})", *figures


def diagram(axes: Axes, bins: Sequence[Mapping[str, float]], label: str, color: str) -> None:
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], color=color, label=label, marker="o", markersize=3, linewidth=1.2)


def pairs_of(runs: Mapping[str, RunDir]) -> str:
    data = next(iter(runs.values())).read_manifest()["data"]
    return f"{data['train']['pairs']} pairs trained on, {data['eval']['pairs']} held out"


TEXT = """# Is the margin a probability?

    python studies/calibration.py --page docs/studies/calibration.md

makes this page: the shipped support and facts pairs, {pairs}, LoRA, DPO with β 0.3, steps of 16 pairs,
SmolLM2-135M-Instruct, two CPU cores.

DPO fits σ(margin) to be the probability that the chosen reply is preferred. A reliability diagram says whether it is, on pairs that it has not
seen: of those for which the model is 80% sure, are 80% right? The expected calibration error (ECE) is the mean distance from the diagonal over ten
bins of equal mass; the Brier score the mean squared error of the probability. T is the one number by which margins have to be divided to fit best.
It is fitted on some prompts and applied to others ("after"), so that its figures are not flattered.

Expected: one pass leaves a model that is about as sure as it is right, or less; three passes make it too sure (T above 1), and T mends most of that.

{calibration}

{plot}

{table}

{note}
"""


if __name__ == "__main__":
    main()
