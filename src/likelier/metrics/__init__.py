"""Numbers about a run, with their uncertainty. Pure functions of plain sequences.

intervals.py     shares, means and medians with intervals over prompts; what lengths are like
reliability.py   whether σ(margin) says how often the ranking is right, and the temperature that mends it
text.py          what a reply's surface shows: apologies, refusals, loops
"""

from likelier.metrics.intervals import (
    Interval,
    Statistic,
    accuracy,
    bootstrap,
    bootstrap_difference,
    bootstrap_share,
    bootstrap_share_difference,
    clustered_share,
    correct,
    histogram,
    length_summary,
    wilson,
)
from likelier.metrics.reliability import Calibration, CalibrationBin, Tempered, calibration, fit_temperature, tempered
from likelier.metrics.text import APOLOGY, REFUSAL, has_apology, has_refusal, in_a_loop, repetition

__all__ = [
    "APOLOGY",
    "REFUSAL",
    "Calibration",
    "CalibrationBin",
    "Interval",
    "Statistic",
    "Tempered",
    "accuracy",
    "bootstrap",
    "bootstrap_difference",
    "bootstrap_share",
    "bootstrap_share_difference",
    "calibration",
    "clustered_share",
    "correct",
    "fit_temperature",
    "has_apology",
    "has_refusal",
    "histogram",
    "in_a_loop",
    "length_summary",
    "repetition",
    "tempered",
    "wilson",
]
