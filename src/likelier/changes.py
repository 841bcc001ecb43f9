"""What eval.json says about before and after: tables with intervals, and two lists, what changed and what did not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from likelier.metrics import Interval
from likelier.wording import change, count, ends, estimate, quantity


@dataclass(frozen=True)
class Strip:
    """An interval drawn on a line, in per cent of the line's length. `point` is the value that means "nothing happened"."""

    low: float
    value: float
    high: float
    point: float


@dataclass(frozen=True)
class Measure:
    """One measured number with its interval. `strip` is None where the data give no interval."""

    title: str
    note: str
    value: str
    ends: str
    strip: Strip | None


@dataclass(frozen=True)
class Probe:
    """A row of the before/after table. `verdict` is better, worse, different, or the same as far as the interval can tell."""

    title: str
    items: str
    before: str
    before_ends: str
    after: str
    after_ends: str
    difference: str
    difference_ends: str
    verdict: str
    strip: Strip | None


@dataclass(frozen=True)
class Finding:
    """One line of "what changed" or "what did not"."""

    title: str
    text: str
    verdict: str


SAME = "no change seen"

HELD_OUT = (
    ("accuracy", "Accuracy", "pairs whose chosen reply gets the higher reward; chance is 50%", "share"),
    ("margin", "Margin", "reward of chosen minus reward of rejected", ""),
    ("chosen_reward", "Reward of chosen", "", ""),
    ("rejected_reward", "Reward of rejected", "", ""),
    ("chosen_logp_change", "Log-probability of chosen", "after minus before, sum over the reply", "nats"),
    ("rejected_logp_change", "Log-probability of rejected", "after minus before, sum over the reply", "nats"),
    ("kl", "KL from the reference", "", "nats"),
    ("kl_on_data", "KL from the reference, on the data", "", "nats"),
)


OF_REPLIES = (
    ("accuracy", "Accuracy", "good replies that became likelier, bad ones that became less likely; chance is 50%", "share"),
    ("chosen_reward", "Reward of good replies", "", ""),
    ("rejected_reward", "Reward of bad replies", "", ""),
    ("chosen_logp_change", "Log-probability of good replies", "after minus before, sum over the reply", "nats"),
    ("rejected_logp_change", "Log-probability of bad replies", "after minus before, sum over the reply", "nats"),
    *HELD_OUT[-2:],
)
"""The same where replies are judged one by one."""


def held_out_measures(evaluation: Mapping[str, Any]) -> list[Measure]:
    """Rows of the held-out table; what was not measured is left out."""
    held_out = evaluation["held_out"]
    return [
        _measure(title, held_out[name].get("note") or note, Interval.from_dict(held_out[name]), unit, point=0.5 if name == "accuracy" else 0.0)
        for name, title, note, unit in (OF_REPLIES if evaluation.get("replies") else HELD_OUT)
        if held_out.get(name)
    ]


def held_out_amount(evaluation: Mapping[str, Any]) -> str:
    """ "50 held-out pairs", or "9 held-out replies" where some are judged alone: a pair then counts as two."""
    if evaluation.get("replies"):
        return count(evaluation["replies"], "held-out reply", "held-out replies")
    return count(evaluation["pairs"], "held-out pair")


def measures_by(rows: Mapping[str, Any], *, ordered: bool = False) -> list[Measure]:
    """Accuracy of each part of the held-out pairs: as they come where they are `ordered` (bins of length), else lowest first."""
    parts = list(rows.items()) if ordered else sorted(rows.items(), key=lambda item: item[1]["accuracy"]["value"])
    return [_measure(name, count(row["pairs"], "pair"), Interval.from_dict(row["accuracy"]), "share", point=0.5) for name, row in parts]


def _measure(title: str, note: str, interval: Interval, unit: str, *, point: float) -> Measure:
    strip = strip_of_share(interval, point) if unit == "share" else strip_around(interval, point)
    return Measure(title, note, quantity(interval.value, unit, interval), ends(interval, unit), strip)


def probe_row(probe: Mapping[str, Any]) -> Probe:
    """One probe of eval.json as a table row."""
    unit = probe["unit"]
    before, after, difference = (Interval.from_dict(probe[name]) for name in ("before", "after", "difference"))
    return Probe(
        title=probe["title"],
        items=count(probe["items"], "item"),
        before=quantity(before.value, unit, before),
        before_ends=ends(before, unit),
        after=quantity(after.value, unit, after),
        after_ends=ends(after, unit),
        difference=change(difference.value, unit, difference),
        difference_ends=ends(difference, unit),
        verdict=verdict(difference, probe["better"]),
        strip=strip_around(difference),
    )


def verdict(difference: Interval, better: str) -> str:
    """Only an interval that excludes 0 is a change; `better` (higher, lower, none) says whether it is a good one."""
    if not difference.excludes(0.0):
        return SAME
    if better == "none":
        return "different"
    return "better" if (difference.value > 0) == (better == "higher") else "worse"


def worse_probes(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The probes that became worse for certain."""
    return [probe for probe in evaluation.get("probes") or [] if verdict(Interval.from_dict(probe["difference"]), probe["better"]) == "worse"]


def length_probe(evaluation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The probe that tells how long replies are: that of neutral prompts, or else of held-out ones."""
    return next((probe for probe in evaluation.get("probes") or [] if probe["unit"] == "tokens"), None)


def list_changes(evaluation: Mapping[str, Any], *, has_reference: bool) -> tuple[list[Finding], list[Finding]]:
    """What changed and what did not: every probe goes into one of the lists, by whether the interval of its difference excludes 0.

    With a reference the held-out numbers are differences too: the untrained policy equals it, so its accuracy is ½ and its margin 0.
    """
    findings = _held_out_findings(evaluation["held_out"]) if has_reference else []
    findings += [_probe_finding(probe) for probe in evaluation.get("probes", [])]
    return [finding for finding in findings if finding.verdict != SAME], [finding for finding in findings if finding.verdict == SAME]


def has_reference(reference: Mapping[str, Any] | None) -> bool:
    """Whether the run compared with a reference: it scored or reused responses of one."""
    return reference is not None and bool(reference.get("computed") or reference.get("reused"))


def _held_out_findings(held_out: Mapping[str, Any]) -> list[Finding]:
    findings = []
    if held_out.get("accuracy"):
        share = Interval.from_dict(held_out["accuracy"])
        above_chance = Interval(share.value - 0.5, share.low - 0.5, share.high - 0.5)
        findings.append(Finding("Held-out accuracy", f"{estimate(share, 'share')}, from 50% untrained", verdict(above_chance, "higher")))
    if held_out.get("chosen_logp_change"):
        nats = Interval.from_dict(held_out["chosen_logp_change"])
        text = f"{change(nats.value, 'nats', nats)} ({ends(nats, 'nats')})"
        findings.append(Finding("Log-probability of held-out chosen replies", text, verdict(nats, "none")))
    return findings


def _probe_finding(probe: Mapping[str, Any]) -> Finding:
    row = probe_row(probe)
    return Finding(row.title, f"{row.before} → {row.after}, {row.difference} ({row.difference_ends})", row.verdict)


def strip_around(interval: Interval, point: float = 0.0) -> Strip | None:
    """The interval on a line with `point` in its middle, as long as it takes."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return None
    reach = 1.15 * max(abs(end - point) for end in (interval.low, interval.value, interval.high)) or 1.0
    low, value, high = (round(50 + 50 * (x - point) / reach, 2) for x in (interval.low, interval.value, interval.high))
    return Strip(low, value, high, 50.0)


def strip_of_share(interval: Interval, point: float = 0.5) -> Strip | None:
    """The interval of a share on a line from 0 to 100%."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return None
    low, value, high = (round(100 * x, 2) for x in (interval.low, interval.value, interval.high))
    return Strip(low, value, high, 100 * point)
