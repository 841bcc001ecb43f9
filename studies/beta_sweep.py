"""How strong should the tie to the reference be? One sweep over four values of β, one reference pass.

    python studies/beta_sweep.py [FOLDER] [--page docs/studies/beta-sweep.md]

It is `likelier sweep` with --grid objective.beta=0.05,0.1,0.3,1.0 on the recipe of the other studies, with a cache of its own, so that what it counts
is what it did. There is one evaluation, after the last step: else each run would keep the weights of another step. The sweep's own page is
FOLDER/sweep.html.
About twelve minutes on two quiet cores.
"""

import os
from typing import Any

from runs import COLORS, GREY, NOTE, SHORT_RUN, Study, curve, legend, merged, panels, table, table_of

from likelier.recipe import parse_recipe
from likelier.rundir import RunDir
from likelier.sweep import sweep_recipe
from likelier.train.progress import Progress

BETAS = (0.05, 0.1, 0.3, 1.0)


class Said(Progress):
    """Shows what a sweep says, run by run."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def say(self, text: str) -> None:
        self._study.say(text)


def main() -> None:
    study = Study(__doc__, "beta_sweep")
    os.environ["LIKELIER_CACHE"] = str(study.folder / "cache")
    recipe = parse_recipe(merged(SHORT_RUN, {"train": {"eval_every": 0}, "out": str(study.folder)}), where="studies/beta_sweep.py")
    result = sweep_recipe(recipe, grid={"objective.beta": BETAS}, out=study.folder, keep_all=True, show=Said(study))
    rows = sorted(result["runs"], key=lambda row: row["settings"]["objective.beta"])
    runs = {f"β {row['settings']['objective.beta']:g}": RunDir(study.folder / row["folder"]) for row in rows}
    titles = ["accuracy against KL", "log-ratio of chosen, training", "log-ratio of rejected, training"]
    figure, (frontier, chosen, rejected) = panels(3, titles=titles)
    draw_frontier(frontier, rows, result["distance"])
    for i, (name, run) in enumerate(runs.items()):
        curve(chosen, run, "chosen_log_ratio", label=name, color=COLORS[i])
        curve(rejected, run, "rejected_log_ratio", label=name, color=COLORS[i])
    legend(chosen)
    passes = [run.read_manifest()["reference"] for run in runs.values()]
    study.write(
        TEXT.format(
            table=table_of(runs),
            note=NOTE,
            plot=study.plot("frontier and curves", figure),
            reference=table(
                ("run", "replies scored under the reference", "read from the store"),
                [(name, f"{each['computed']:,}", f"{each['reused']:,}") for name, each in zip(runs, passes, strict=True)],
            ),
            frontier=", ".join(f"`{name}`" for name in result["frontier"]),
            advice=recommended(result),
        )
    )


def recommended(result: dict[str, Any]) -> str:
    found = result["recommended"]
    return f"`{found['name']}`. {found['reason']}" if found else "none."


def draw_frontier(axes: Any, rows: list[dict[str, Any]], distance: str) -> None:
    for i, row in enumerate(rows):
        kl, accuracy = row[distance], row["accuracy"]
        widths = [[[max(0, each["value"] - each["low"])], [max(0, each["high"] - each["value"])]] for each in (kl, accuracy)]
        axes.errorbar(kl["value"], accuracy["value"], xerr=widths[0], yerr=widths[1], color=COLORS[i], marker="o", markersize=4, linewidth=0.8)
        axes.annotate(
            f"β {row['settings']['objective.beta']:g}", (kl["value"], accuracy["value"]), xytext=(5, 5), textcoords="offset points", color=GREY
        )
    axes.set_xlabel("KL on held-out replies, nats a reply", color=GREY, fontsize=9)


TEXT = """# How strong a tie to the reference

    python studies/beta_sweep.py --page docs/studies/beta-sweep.md

makes this page: `likelier sweep` over four values of β. Each run is 15 steps of 16 of the 230 shipped support pairs, LoRA, SmolLM2-135M-Instruct, two
CPU cores.

Expected: the smaller β, the farther the model goes from its reference (more KL) for the same loss; accuracy on held-out pairs is much the same, for
the sign of a margin does not depend on its scale. All runs read the reference that the first one scored.

{table}

{note}

{reference}

The sweep weighs accuracy against the KL on held-out replies, which is exact at every place of a reply, not the drawn one of the table. On the
frontier (no other run has both more accuracy and less of that KL): {frontier}. It recommends {advice}

{plot}
"""


if __name__ == "__main__":
    main()
