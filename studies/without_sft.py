"""Preference tuning of a model that never learned the format: DPO alone, against a short supervised start and then DPO.

    python studies/without_sft.py [FOLDER] [--page docs/studies/without-sft.md]

The embedded model is instruction-tuned, under its own chat template. Here it gets conversations in another format (recipes/base-chat.jinja: "User:",
"Assistant:", a reply that ends with the end-of-sequence token), which it has never been tuned on: as near to a base model as it can be had without
a download. Three runs of 15 steps: DPO, supervised tuning on the chosen replies, and DPO from there. About ten minutes on two quiet cores.
"""

import statistics
from pathlib import Path

from runs import COLORS, NOTE, Study, curve, legend, panels, table, table_of

from likelier.metrics import in_a_loop
from likelier.rundir import RunDir

FORMAT = {"model": {"chat_template": str(Path(__file__).parent.parent / "recipes" / "base-chat.jinja")}}


def main() -> None:
    study = Study(__doc__, "without_sft")
    supervised = study.run("sft", FORMAT, {"objective": {"name": "sft"}})
    runs = {
        "dpo alone": study.run("dpo", FORMAT),
        "sft": supervised,
        "sft, then dpo": study.run("sft-then-dpo", FORMAT, {"adapter": {"start": str(supervised.model)}}),
    }
    figure, (accuracy, chosen) = panels(2, titles=["held-out accuracy", "log-probability of chosen, held-out, in nats"])
    for i, (name, run) in enumerate(runs.items()):
        curve(accuracy, run, "accuracy", kind="eval", label=name, color=COLORS[i], marker="o", markersize=3)
        curve(chosen, run, "chosen_logp", kind="eval", label=name, color=COLORS[i], marker="o", markersize=3)
    legend(accuracy)
    rows = [("before all", *manners(runs["dpo alone"], "before")), *((name, *manners(run, "after")) for name, run in runs.items())]
    study.write(
        TEXT.format(
            table=table_of(runs),
            note=NOTE,
            plot=study.plot("accuracy and log-probability", figure),
            manners=table(("model", "replies that end", "replies in a loop", "words a reply", "goes on as the user"), rows),
        )
    )


def manners(run: RunDir, side: str) -> tuple[str, str, str, str]:
    """Of the shown replies: how many end before the limit, run in a loop, how long they are, and how many write the user's next turn."""
    replies = [row[side] for row in run.read_samples()]
    shares = [statistics.mean(map(test, replies)) for test in (ended, in_a_loop, lambda reply: "User:" in reply)]
    return f"{shares[0]:.0%}", f"{shares[1]:.0%}", f"{statistics.median(len(reply.split()) for reply in replies):.0f}", f"{shares[2]:.0%}"


def ended(reply: str) -> bool:
    """Whether a reply ends like a sentence: samples do not say if it ran into the limit."""
    return reply.rstrip().endswith((".", "!", "?", ")", '"'))


TEXT = """# DPO without supervised tuning first

    python studies/without_sft.py --page docs/studies/without-sft.md

makes this page: SmolLM2-135M-Instruct under a chat format that it was never tuned on (`recipes/base-chat.jinja`), on the 230 shipped support pairs,
LoRA, 15 steps of 16 pairs a run, two CPU cores. `sft, then dpo` continues the adapter of `sft`, which is then its reference. β 0.3.

Expected: DPO alone learns to rank, for that takes no manners; but it is not taught to write: chosen replies stay unlikely under it, replies run on.
After supervised tuning the same DPO ends its replies and needs less KL.

{table}

{note} The KL and the log-ratio of `sft, then dpo` are against `sft`, those of the others against the model before all.

Sixteen greedy replies of up to 96 tokens to held-out prompts. A reply "ends" if it ends as a sentence does:

{manners}

{plot}
"""


if __name__ == "__main__":
    main()
