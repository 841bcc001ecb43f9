"""Rows of metrics.jsonl as captioned drawings, one question a panel."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from likelier.report import plots
from likelier.report.diagnosis import Symptom
from likelier.wording import number, quantity

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """What one colour of a drawing stands for, and its last numbers."""

    css: str
    text: str


@dataclass(frozen=True)
class Drawing:
    title: str
    note: str
    keys: tuple[Key, ...]
    svg: str


@dataclass(frozen=True)
class Panel:
    """Which fields of a row one drawing shows, each in a colour: (field, name, placeholder colour, CSS class)."""

    name: str
    title: str
    note: str
    sides: tuple[tuple[str, str, str, str], ...]
    unit: str = ""


PANELS = (
    Panel("loss", "Loss", "Mean over pairs; lower is better.", (("loss", "", plots.ACCENT, "accent"),)),
    Panel("accuracy", "Accuracy", "Share of pairs whose chosen reply gets the higher reward.", (("accuracy", "", plots.ACCENT, "accent"),), "share"),
    Panel("margin", "Margin", "Reward of the chosen reply minus that of the rejected one.", (("margin", "", plots.ACCENT, "accent"),)),
    Panel(
        "rewards",
        "Rewards",
        "Both sides. The margin also grows while both fall.",
        (("chosen_reward", "chosen", plots.CHOSEN, "chosen"), ("rejected_reward", "rejected", plots.REJECTED, "rejected")),
    ),
    Panel(
        "logps",
        "Log-probability of a reply",
        "Sum over its tokens, in nats, under the model in training.",
        (("chosen_logp", "chosen", plots.CHOSEN, "chosen"), ("rejected_logp", "rejected", plots.REJECTED, "rejected")),
    ),
    Panel("norm", "Gradient norm", "Before clipping.", (("grad_norm", "", plots.ACCENT, "accent"),)),
    Panel(
        "kl",
        "KL from the reference",
        "KL(π_ref ‖ π) of a reply to the watched prompts: a rough estimate, in the other direction than the evaluation’s.",
        (("kl", "", plots.ACCENT, "accent"),),
        "nats",
    ),
)


OF_REPLIES = {
    "loss": "Mean over replies; lower is better.",
    "accuracy": "Single replies: the share on the right side of the reference point. Pairs: those whose chosen reply gets the higher reward.",
    "margin": "Mean reward of good replies minus that of bad ones.",
}
"""Notes of panels where replies are judged one by one."""

SIDES_ALONE = {"chosen": "good", "rejected": "bad"}


def draw_curves(
    train: Sequence[Row],
    held_out: Sequence[Row],
    *,
    expected_loss: float | None,
    best_step: int | None,
    alone: bool = False,
    symptoms: Sequence[Symptom] = (),
) -> list[Drawing]:
    """One drawing for each panel that has numbers, with the number of each symptom over its step. `expected_loss` is that of a policy equal to its
    reference: log 2 for DPO. `alone` says that replies were judged one by one."""
    levels = {"accuracy": (0.5, "chance"), "margin": (0.0, ""), "rewards": (0.0, "")}
    if expected_loss is not None:
        is_log_2 = math.isclose(expected_loss, math.log(2), abs_tol=1e-4)
        levels["loss"] = (expected_loss, "log 2" if is_log_2 else f"untrained: {number(expected_loss)}")
    panels = [_of_replies(panel) for panel in PANELS] if alone else PANELS
    marks = _marks(symptoms)
    return [drawing for panel in panels if (drawing := _draw(panel, train, held_out, levels.get(panel.name, (None, "")), best_step, marks))]


def _marks(symptoms: Sequence[Symptom]) -> list[plots.Mark]:
    """One a step, with the numbers of all that were seen there."""
    by_step: dict[int, list[Symptom]] = {}
    for symptom in symptoms:
        by_step.setdefault(symptom.step, []).append(symptom)
    return [
        plots.Mark(step, ", ".join(str(s.number) for s in seen), plots.BAD if any(s.verdict == "warn" for s in seen) else plots.FAINT)
        for step, seen in by_step.items()
    ]


def _of_replies(panel: Panel) -> Panel:
    sides = tuple((field, SIDES_ALONE.get(name, name), color, css) for field, name, color, css in panel.sides)
    return replace(panel, note=OF_REPLIES.get(panel.name, panel.note), sides=sides)


def _draw(
    panel: Panel, train: Sequence[Row], held_out: Sequence[Row], level: tuple[float | None, str], best_step: int | None, marks: Sequence[plots.Mark]
) -> Drawing | None:
    lines, keys = [], []
    for field, name, color, css in panel.sides:
        last = []
        for rows, is_held_out, stage in ((train, False, "training"), (held_out, True, "held-out")):
            points = [(row["step"], row[field]) for row in rows if row.get(field) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                lines.append(plots.Line(steps, values, color, is_held_out))
                last.append(f"{stage} {quantity(values[-1], panel.unit)}")
        if last:
            keys.append(Key(css, f"{name}: {', '.join(last)}".removeprefix(": ")))
    if not lines:
        return None
    label = f"{panel.title} over steps. Last values: {'; '.join(key.text for key in keys)}."
    value, text = level
    best, share = best_step if held_out else None, panel.unit == "share"
    svg = plots.curves(panel.name, label, lines, level=value, level_label=text, best=best, marks=marks, share=share)
    return Drawing(panel.title, panel.note, tuple(keys), svg)
