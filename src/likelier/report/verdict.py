"""The verdict on a run in three sentences made from numbers: what it learned, what it cost, and what to do with it. Pure rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

from likelier.changes import SAME, has_reference, held_out_amount, length_probe, probe_row, worse_probes
from likelier.metrics import Interval
from likelier.report.diagnosis import Symptom
from likelier.wording import count, ends, estimate, listing, number, quantity

Row = Mapping[str, Any]

FEWEST_PROMPTS = 20
"""Held-out prompts below which a bootstrap interval, which draws prompts, is too narrow to decide by (`likelier.metrics.bootstrap`)."""

FEWEST_IN_GROUP = 10
"""Pairs below which a reason, a group or a length bin is not held against a run."""

CALIBRATION_ERROR = 0.05
"""Expected calibration error from which on a reader is told of it, if the temperature's interval excludes 1, too: with some hundred pairs the error
alone is as large by chance."""

MOST_NAMED = 3


class Decision(StrEnum):
    """What to do with the model."""

    SHIP = "Ship it"
    LOOK = "Look first"
    STOP = "Do not ship"
    WAIT = "Not yet"


@dataclass(frozen=True)
class Verdict:
    """One sentence each."""

    decision: Decision
    learned: str
    cost: str
    advice: str

    @property
    def sentences(self) -> tuple[str, str, str]:
        return self.learned, self.cost, self.advice


def reach_verdict(manifest: Row, evaluation: Row | None, held_out: Sequence[Row], symptoms: Sequence[Symptom]) -> Verdict:
    """From manifest.json, eval.json (None before there is one), the rows of evaluations during training, and its symptoms.

    The first that holds decides. Do not ship: its reference moved, after which a run saves no model. Not yet: the run has not ended or was not
    evaluated. Do not ship: its held-out accuracy's interval does not lie above 50%, where a policy that equals its reference is. Look first: few
    held-out prompts, no probes, a probe that got worse, a symptom that warns, a group that is ranked wrong, or an audit overruled. Miscalibration is
    told and stands in nobody's way: only who reads margins as probabilities is harmed by it. Without a reference 50% is no starting point, and an
    accuracy that is not above it is something to look at.
    """
    decision, advice = _advice(manifest, evaluation, symptoms)
    learned = _learned(evaluation, held_out, compared=has_reference(manifest.get("reference")))
    return Verdict(decision, learned, _cost(evaluation, symptoms), advice)


def _learned(evaluation: Row | None, held_out: Sequence[Row], *, compared: bool) -> str:
    if not evaluation and not held_out:
        return "What it learned is not known: nothing has been measured on held-out pairs."
    if not evaluation:
        last = held_out[-1]
        return f"At the last evaluation, step {last['step']}, held-out accuracy was {quantity(last['accuracy'], 'share')}, as yet without interval."
    accuracy = _accuracy(evaluation)
    amount = held_out_amount(evaluation)
    interval = f"95% interval {ends(accuracy, 'share')}" if isfinite(accuracy.low) else ends(accuracy, "share")
    share = f"{quantity(accuracy.value, 'share')} ({interval})"
    measured = f"on {amount} it ranks the chosen reply first in {share}"
    if evaluation.get("replies"):
        measured = f"of {amount}, good ones became likelier and bad ones less likely in {share}"
    if not compared:
        return f"{measured[0].upper()}{measured[1:]}, some of which the untrained model ranked so, too: its objective compares with no reference."
    if accuracy.low > 0.5:
        return f"It learned the preference: {measured}, where chance is 50%."
    if accuracy.high < 0.5:
        return f"It learned the opposite of the preference: {measured}, where chance is 50%."
    return f"It has not shown that it learned the preference: {measured}, and chance is 50%."


def _cost(evaluation: Row | None, symptoms: Sequence[Symptom]) -> str:
    if not evaluation:
        return f"What it cost is not known yet: neither KL nor probes have been measured, and {_warnings(symptoms)}."
    kl = evaluation["held_out"].get("kl")
    moved = f"It cost {estimate(Interval.from_dict(kl), 'nats of KL')} from the reference" if kl else "Its KL from the reference was not measured"
    rest = [part for part in (_length(evaluation), _got_worse(evaluation), _warnings(symptoms)) if part]
    return f"{moved}; {listing(rest)}."


def _length(evaluation: Row) -> str:
    probe = length_probe(evaluation)
    if probe is None:
        return ""
    row = probe_row(probe)
    if row.verdict == SAME:
        return "no change of reply length was seen"
    before, after = (number(round(probe[side]["value"], 1)) for side in ("before", "after"))
    return f"replies went from {before} to {after} tokens"


def _got_worse(evaluation: Row) -> str:
    judged = [probe for probe in evaluation.get("probes") or [] if probe["better"] != "none"]
    if not judged:
        return "no probe was asked"
    worse = worse_probes(evaluation)
    named = f" ({listing([_quoted(probe['title']) for probe in worse], MOST_NAMED)})" if worse else ""
    return f"{len(worse) or 'none'} of {count(len(judged), 'probe')} got worse{named}"


def _warnings(symptoms: Sequence[Symptom]) -> str:
    warnings = [_quoted(symptom.title) for symptom in symptoms if symptom.verdict == "warn"]
    if not warnings:
        return "no symptom warns"
    return f"{count(len(warnings), 'symptom')} {'warns' if len(warnings) == 1 else 'warn'} ({listing(warnings, MOST_NAMED)})"


def _advice(manifest: Row, evaluation: Row | None, symptoms: Sequence[Symptom]) -> tuple[Decision, str]:
    if (manifest.get("reference") or {}).get("unchanged") is False:  # such a run has no outcome: it saves no model
        return Decision.STOP, "Do not ship it: its reference changed during the run, so that no reward or margin here can be trusted."
    if not manifest.get("outcome"):
        return Decision.WAIT, "Wait for the end of training: it has not ended."
    if not evaluation:
        if not (manifest["data"].get("eval") or {}).get("prompts"):
            return Decision.WAIT, "Hold pairs out before deciding: set `data.eval` or `data.eval_fraction` and train again."
        return Decision.WAIT, "Evaluate it before deciding: `likelier eval` has not been run."
    if grave := _grave(manifest, evaluation):
        return Decision.STOP, f"Do not ship it: {listing(grave)}."
    if doubts := _doubts(manifest, evaluation, symptoms):
        return Decision.LOOK, f"Before shipping it, look at {listing(doubts, MOST_NAMED + 1)}."
    return Decision.SHIP, f"Ship it: nothing that was measured speaks against it{_calibration(evaluation)}."


def _grave(manifest: Row, evaluation: Row) -> list[str]:
    found = []
    if has_reference(manifest.get("reference")):
        accuracy = _accuracy(evaluation)
        if accuracy.high < 0.5:
            found.append("it ranks held-out pairs the wrong way round (are chosen and rejected swapped?)")
        elif accuracy.low <= 0.5:
            found.append("its held-out accuracy cannot be told from chance")
    return found


def _doubts(manifest: Row, evaluation: Row, symptoms: Sequence[Symptom]) -> list[str]:
    found = []
    compared = has_reference(manifest.get("reference"))
    if not compared and _accuracy(evaluation).low <= 0.5:
        found.append("its held-out accuracy, which does not lie above 50% (did it rise during training?)")
    for probe in worse_probes(evaluation):
        row = probe_row(probe)
        found.append(f"the probe {_quoted(row.title)}, which got worse ({row.before} → {row.after})")
    found += [f"the symptom {_quoted(symptom.title)} of step {symptom.step:,}" for symptom in symptoms if symptom.verdict == "warn"]
    for rows in (evaluation.get("by") or {}).values() if compared else ():
        wrong = [(name, row) for name, row in rows.items() if row["pairs"] >= FEWEST_IN_GROUP and _accuracy_of(row).high < 0.5]
        found += [
            f"the pairs of {_quoted(name)}, of which only {quantity(row['accuracy']['value'], 'share')} are ranked right" for name, row in wrong
        ]
    if (prompts := _held_out_prompts(manifest, evaluation)) < FEWEST_PROMPTS:
        found.append(f"more held-out data ({held_out_amount(evaluation)} on {count(prompts, 'prompt')} are too few to tell)")
    if not evaluation.get("probes"):
        found.append("what else it changed, since no probe was asked")
    if accepted := (manifest.get("audit") or {}).get("accepted"):
        found.append(f"the audit, whose fatal findings were accepted ({listing(accepted)})")
    return found


def _held_out_prompts(manifest: Row, evaluation: Row) -> int:
    """Of how many prompts the evaluation was; of one from before it said so, as many as were held out."""
    asked = (evaluation.get("margins") or {}).get("prompt")
    return len(set(asked)) if asked else int(manifest["data"]["eval"]["prompts"])


def _calibration(evaluation: Row) -> str:
    calibration = evaluation.get("calibration") or {}
    if not calibration.get("temperature"):
        return ""
    temperature = Interval.from_dict(calibration["temperature"])
    if calibration["ece"] < CALIBRATION_ERROR or not temperature.excludes(1.0):
        return ""
    error = quantity(calibration["ece"], "share")
    return f"; only divide its margins by {number(temperature.value)} before reading them as log-odds (calibration error {error})"


def _accuracy(evaluation: Row) -> Interval:
    return _accuracy_of(evaluation["held_out"])


def _accuracy_of(row: Row) -> Interval:
    return Interval.from_dict(row["accuracy"])


def _quoted(text: str) -> str:
    return f"“{text}”"
