"""Length by itself: the longer reply is always chosen. Does the audit say so, do replies grow, does dividing by length help?

    python studies/length_bias.py [FOLDER] [--page docs/studies/length-bias.md]

The shipped facts pairs have replies of like length. Here the chosen one gets idle sentences added, and in every second pair the rejected one is
true: what is left to learn is length. DPO, length-normalised DPO and R-DPO on these pairs, and DPO on the pairs before. About twelve minutes on two
quiet cores.
"""

import json
import random
from dataclasses import replace
from pathlib import Path

from runs import COLORS, NOTE, Study, curve, legend, panels, table, table_of, words

from likelier.audit.findings import Verdict
from likelier.audit.run import audit
from likelier.data.formats import read_all, write_pairs
from likelier.records import Message, Pair

PADDING = (
    "I hope this answers your question in full.",
    "Please let me know if there is anything else that you would like to know about this.",
    "It is always worth taking the time to look at such things with care, and I am glad that you asked.",
    "There is of course a great deal more that could be said about it, and many people have written about it at length.",
    "In summary, that is what there is to say about this question for the time being.",
)

RUNS = {
    "dpo": {"name": "dpo", "beta": 0.3},
    "length-normalised-dpo": {"name": "length-normalised-dpo", "beta": 3.0},
    "r-dpo": {"name": "r-dpo", "beta": 0.3, "length_penalty": 0.02},
}


def padded(pairs: list[Pair]) -> list[Pair]:
    """Pairs whose chosen reply is the longer one by two or three idle sentences, and true in half of them."""
    draw = random.Random(0)
    result = []
    for i, pair in enumerate(pairs):
        better, worse = (pair.chosen, pair.rejected) if i % 2 else (pair.rejected, pair.chosen)
        idle = " ".join(draw.sample(PADDING, draw.choice((2, 3))))
        chosen = (*better[:-1], Message("assistant", f"{better[-1].content} {idle}"))
        result.append(replace(pair, chosen=chosen, rejected=worse, reason="padding"))
    return result


def main() -> None:
    study = Study(__doc__, "length_bias")
    plain = list(read_all(["embedded:facts"]))
    path = Path(study.folder / "padded.jsonl")
    write_pairs(path, padded(plain))
    runs = {"dpo, pairs as they were": study.run("plain", {"data": {"train": ["embedded:facts"]}})}
    for name, objective in RUNS.items():
        runs[name] = study.run(name, {"data": {"train": [str(path)]}, "audit": {"accept": sorted(fatal(path))}, "objective": objective})
    figure, (margin, length) = panels(2, titles=["training margin, in β", "words a reply, median of 16"], xlabel="")
    margin.set_xlabel("step")
    for i, (name, run) in enumerate(runs.items()):
        curve(margin, run, "margin", label=name, color=COLORS[i])
    length.bar(range(len(runs) + 1), [words(runs["dpo"], "before"), *(words(run, "after") for run in runs.values())], color=["#808080", *COLORS])
    length.set_xticks(
        range(len(runs) + 1), ["before", *(name.replace(", ", ",\n").replace("length-normalised-", "length-\nnormalised-") for name in runs)]
    )
    legend(margin)
    (study.folder / "audit.json").write_text(json.dumps([(f.check, str(f.verdict), f.summary) for f in audit([str(path)]).findings], indent=1))
    study.write(TEXT.format(table=table_of(runs), note=NOTE, plot=study.plot("margins and lengths", figure), audit=audit_table(path)))


def fatal(path: Path) -> set[str]:
    """Checks of the audit whose findings would keep the data from being trained on."""
    return {finding.check for finding in audit([str(path)]).findings if finding.verdict == Verdict.FATAL}


def audit_table(path: Path) -> str:
    """What the audit says of the pairs before and after padding, of what is a warning or worse."""
    rows = []
    for name, source in (("as they were", "embedded:facts"), ("padded", str(path))):
        found = [finding for finding in audit([source]).findings if finding.verdict >= Verdict.WARN]
        rows += [(name, str(finding.verdict), finding.check, finding.summary.replace("|", "/")) for finding in found] or [(name, "ok", "", "")]
    return table(("pairs", "verdict", "check", "what it says"), rows)


TEXT = """# Length by itself

    python studies/length_bias.py --page docs/studies/length-bias.md

makes this page: the 260 shipped facts pairs, whose replies are of like length, with two or three idle sentences added to the chosen reply, and the
sides swapped in every second pair, so that truth says nothing and length everything. 15 steps of 16 pairs, LoRA, SmolLM2-135M-Instruct, two cores.
`length-normalised-dpo` has β 3 (its rewards are a token), `r-dpo` a length penalty of 0.02 a token, the others β 0.3.

Expected: the audit flags the padded pairs; the model trained on them gets longer; length-normalised DPO resists.

## What the audit says

{audit}

## What the runs learned

{table}

{note} The held-out pairs are those of support, in which the shorter reply is the better one: accuracy below 50% is length learned.

{plot}
"""


if __name__ == "__main__":
    main()
