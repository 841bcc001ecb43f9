"""Whether σ(margin) can be read as a probability: the reliability diagram before and after the temperature, errors, and a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from likelier.metrics import Interval
from likelier.report import plots
from likelier.report.curves import Drawing, Key
from likelier.wording import count, estimate, number, quantity

ERRORS = (
    ("ece", "Expected calibration error", "mean distance of confidence and share right, over bins", "share"),
    ("brier", "Brier score", "mean squared error of σ(margin); always saying ½ gives 0.25", ""),
)


@dataclass(frozen=True)
class CalibrationView:
    """`errors` are rows of title, note, value as it is, and value after the temperature ("" where none was fitted)."""

    drawing: Drawing
    errors: tuple[tuple[str, str, str, str], ...]
    temperature: str
    meaning: str
    note: str


def view_calibration(calibration: Mapping[str, Any] | None) -> CalibrationView | None:
    """The part `calibration` of eval.json; None where there is nothing to show."""
    if not calibration or not calibration["bins"]:
        return None
    after = calibration.get("after")
    temperature = Interval.from_dict(calibration["temperature"]) if calibration.get("temperature") else None
    return CalibrationView(
        drawing=_draw(calibration, after),
        errors=tuple(
            (title, note, quantity(calibration[name], unit), quantity(after[name], unit) if after else "")
            for name, title, note, unit in ERRORS
            if calibration.get(name) is not None
        ),
        temperature=estimate(temperature, "") if temperature else "",
        meaning=meaning(temperature),
        note=calibration.get("note") or "",
    )


def meaning(temperature: Interval | None) -> str:
    """What the fitted temperature says of the margins: σ(margin / T) is how sure the model should be."""
    if temperature is None:
        return "On the dashed line, confidence and share right are equal; below it the model is surer than it is right."
    if not temperature.excludes(1.0):
        return "Confidence fits how often the ranking is right, as far as these pairs can tell: the temperature’s interval holds 1."
    divide = f"Divide its margins by {number(temperature.value)} before reading σ(margin) as a probability."
    if temperature.value > 1:
        return f"The model is surer than it is right. {divide}"
    return f"The model is right more often than it is sure. {divide}"


def _draw(calibration: Mapping[str, Any], after: Mapping[str, Any] | None) -> Drawing:
    error = quantity(calibration["ece"], "share")
    keys, label = [Key("hollow" if after else "accent", f"as it is: error {error}")], f"Reliability diagram; expected calibration error {error}"
    if after:
        mended = quantity(after["ece"], "share")
        keys, label = [*keys, Key("accent", f"margins divided by T: error {mended}")], f"{label}, {mended} after the temperature"
    columns = [_columns(part) for part in (calibration, after) if part]
    svg = plots.reliability("calibration", label, *columns)
    pairs = sum(row["count"] for row in calibration["bins"])
    note = f"How often the ranking is right against σ(|margin|), how sure it is; {count(pairs, 'pair')} in {count(len(calibration['bins']), 'bin')}."
    return Drawing("Reliability", note, tuple(keys), svg)


def _columns(part: Mapping[str, Any]) -> plots.Reliability:
    return plots.Reliability(*([row[name] for row in part["bins"]] for name in ("confidence", "accuracy", "count")))
