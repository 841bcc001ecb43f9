"""Labels that mean nothing: with chosen and rejected swapped at random, held-out accuracy must stay at chance.

    python studies/shuffled_labels.py [FOLDER] [--page docs/studies/shuffled-labels.md]

One run on the shipped support pairs as they are, and four on the same pairs with each pair's sides swapped by the toss of a coin, a coin a run.
The held-out pairs are as they are. About twelve minutes on two quiet cores.
"""

import random
import statistics
from dataclasses import replace
from pathlib import Path

from runs import COLORS, GREY, NOTE, Study, curve, held_out, legend, panels, table_of

from likelier.data.formats import read_all, write_pairs
from likelier.records import Pair

SHUFFLES = 4


def shuffled(seed: int) -> list[Pair]:
    """The support pairs, each with its sides swapped with probability ½."""
    coin = random.Random(seed)
    return [replace(pair, chosen=pair.rejected, rejected=pair.chosen) if coin.random() < 0.5 else pair for pair in read_all(["embedded:support"])]


def right(pairs: list[Pair]) -> float:
    """Share of pairs whose sides are as they were."""
    truth = {pair.id: pair.chosen for pair in read_all(["embedded:support"])}
    return statistics.mean(pair.chosen == truth[pair.id] for pair in pairs)


def shorter_chosen(pairs: list[Pair]) -> float:
    """Share of pairs whose chosen reply has fewer characters."""
    return statistics.mean(sum(len(m.content) for m in pair.chosen) < sum(len(m.content) for m in pair.rejected) for pair in pairs)


def main() -> None:
    study = Study(__doc__, "shuffled_labels")
    runs = {"as they are": study.run("true")}
    shares = [f"as they are: 100% right, shorter reply chosen in {shorter_chosen(list(read_all(['embedded:support']))):.0%}"]
    for seed in range(SHUFFLES):
        pairs, path = shuffled(seed), Path(study.folder / f"shuffled-{seed}.jsonl")
        write_pairs(path, pairs)
        runs[f"shuffled {seed + 1}"] = study.run(f"shuffled-{seed}", {"data": {"train": [str(path)]}})
        shares.append(f"shuffled {seed + 1}: {right(pairs):.0%} right, shorter reply chosen in {shorter_chosen(pairs):.0%}")
    figure, (accuracy, margin) = panels(2, titles=["held-out accuracy", "held-out margin"])
    for i, (name, run) in enumerate(runs.items()):
        for axes, field in ((accuracy, "accuracy"), (margin, "margin")):
            curve(axes, run, field, kind="eval", label=name, color=COLORS[min(i, 1)], alpha=1 if i == 0 else 0.7, marker="o", markersize=3)
    accuracy.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
    margin.axhline(0, color=GREY, linestyle="--", linewidth=1)
    legend(accuracy)
    mean = statistics.mean(held_out(run, "accuracy").value for name, run in runs.items() if name != "as they are")
    study.write(
        TEXT.format(
            count=SHUFFLES,
            table=table_of(runs),
            note=NOTE,
            plot=study.plot("accuracy and margin", figure),
            shares="\n".join(f"- {line}" for line in shares),
            mean=f"{mean:.0%}",
        )
    )


TEXT = """# Shuffled labels

    python studies/shuffled_labels.py --page docs/studies/shuffled-labels.md

makes this page: 15 steps of 16 of the 230 shipped support pairs, LoRA, DPO with β 0.3, SmolLM2-135M-Instruct, two CPU cores; once with the pairs
as they are, and {count} times with each pair's sides swapped by the toss of a coin. The 50 held-out pairs are never swapped.

Expected: with shuffled labels there is nothing to learn, so that accuracy on the held-out pairs stays at 50% and the margin at 0.

{table}

Mean accuracy of the shuffled runs: {mean}. {note}

The training pairs:

{shares}

{plot}
"""


if __name__ == "__main__":
    main()
