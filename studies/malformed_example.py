"""One bad record among 230: what does a malformed rejected reply do to a run, and who sees it?

    python studies/malformed_example.py [FOLDER] [--page docs/studies/malformed-example.md]

The shipped support pairs as they are, and the same with the rejected reply of one pair replaced: by the error page that a broken logger wrote, and by
nothing but one word said 300 times. About nine minutes on two quiet cores.
"""

import statistics
from dataclasses import replace
from pathlib import Path

from runs import COLORS, NOTE, Study, curve, legend, panels, table, table_of

from likelier.audit.findings import Verdict
from likelier.audit.run import audit
from likelier.data.formats import read_all, write_pairs
from likelier.records import Message, Pair
from likelier.rundir import RunDir

NUMBER = 61
"""Which pair: one that stands in the second step and again in the last, by the order of seed 0."""

BROKEN = {
    "an error page": '<html><head><title>502 Bad Gateway</title></head><body>\n{"error": {"code": 502, "trace": "'
    + "\\x00\\x1f\\ufffd/srv/app/handlers/reply.py:118 " * 12,
    "one word 300 times": "please " * 300,
}


def with_one_broken(reply: str) -> list[Pair]:
    pairs = list(read_all(["embedded:support"]))
    pairs[NUMBER] = replace(pairs[NUMBER], rejected=(Message("assistant", reply.strip()),))
    return pairs


def main() -> None:
    study = Study(__doc__, "malformed_example")
    runs, findings = {"as they are": study.run("clean")}, []
    for name, reply in BROKEN.items():
        path = Path(study.folder / f"{name.replace(' ', '-')}.jsonl")
        write_pairs(path, with_one_broken(reply))
        runs[name] = study.run(name.replace(" ", "-"), {"data": {"train": [str(path)]}})
        findings += [(name, *row) for row in named_by_audit(path)]
    figure, (norm, loss, margin) = panels(3, titles=["gradient norm", "loss", "training margin"])
    for i, (name, run) in enumerate(runs.items()):
        for axes, field in ((norm, "grad_norm"), (loss, "loss"), (margin, "margin")):
            curve(axes, run, field, label=name, color=COLORS[i])
    legend(norm)
    study.write(
        TEXT.format(
            table=table_of(runs),
            note=NOTE,
            plot=study.plot("curves", figure),
            norms=table(("run", "largest gradient norm", "median", "at step"), [norms(name, run) for name, run in runs.items()]),
            audit=table(("broken by", "verdict", "check", "what it says"), findings),
        )
    )


def named_by_audit(path: Path) -> list[tuple[str, str, str]]:
    """Findings of the audit that name the broken pair, and did not before it was broken."""
    sound, broken = audit(["embedded:support"]), audit([str(path)])
    identity = list(read_all([str(path)]))[NUMBER].id
    before = {finding.check for finding in sound.findings if identity in finding.ids and finding.verdict >= Verdict.NOTE}
    found = [f for f in broken.findings if identity in f.ids and f.verdict >= Verdict.NOTE and f.check not in before]
    return [(str(finding.verdict), finding.check, finding.summary.replace("|", "/")) for finding in found] or [("ok", "none", "")]


def norms(name: str, run: RunDir) -> tuple[str, str, str, str]:
    rows = run.read_metrics("train")
    largest = max(rows, key=lambda row: row["grad_norm"])
    return name, f"{largest['grad_norm']:.1f}", f"{statistics.median(row['grad_norm'] for row in rows):.1f}", str(largest["step"])


TEXT = """# One malformed record

    python studies/malformed_example.py --page docs/studies/malformed-example.md

makes this page: the 230 shipped support pairs as they are, and twice with the rejected reply of one pair replaced: by an error page that a broken
logger wrote, and by "please" said 300 times. 15 steps of 16 pairs (a pass and a bit), LoRA, DPO with β 0.3, SmolLM2-135M-Instruct, two CPU cores.

Expected: the gradient norm jumps at the step that holds the pair, whose margin is easily won; held-out accuracy hardly suffers, since one pair in 230
is one gradient of many and clipping bounds it; the audit names the pair.

{table}

{note}

{norms}

What the audit says of the broken pair that it did not say of the sound one:

{audit}

{plot}
"""


if __name__ == "__main__":
    main()
