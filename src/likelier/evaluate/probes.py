"""What both models' replies and answers show beside the pairs: rows of `probes`. Pure functions of answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from likelier.evaluate.answers import Answers
from likelier.evaluate.exam import Exam
from likelier.generation.sample import Reply
from likelier.metrics import Statistic, bootstrap, bootstrap_difference, has_apology, in_a_loop


@dataclass(frozen=True)
class ReplyProbe:
    """One thing to measure of replies."""

    name: str
    title: str
    unit: str  # share or tokens
    better: str  # higher, lower or none
    measure: Callable[[Reply], float]
    statistic: Statistic = "mean"


NEUTRAL_PROBES = (
    ReplyProbe("reply_length", "Reply length, neutral prompts (median)", "tokens", "none", lambda reply: reply.length, "median"),
    ReplyProbe("apology_rate", "Apologies, neutral prompts", "share", "lower", lambda reply: has_apology(reply.text)),
    ReplyProbe("loop_rate", "Replies in a loop, neutral prompts", "share", "lower", lambda reply: in_a_loop(reply.text)),
    ReplyProbe("ended_rate", "Replies that end before the limit, neutral prompts", "share", "higher", lambda reply: reply.ended),
)
HELD_OUT_PROBES = (
    ReplyProbe("held_out_reply_length", "Reply length, held-out prompts (median)", "tokens", "none", lambda reply: reply.length, "median"),
    ReplyProbe("held_out_loop_rate", "Replies in a loop, held-out prompts", "share", "lower", lambda reply: in_a_loop(reply.text)),
)


def measure_probes(exam: Exam, before: Answers, after: Answers) -> list[dict[str, Any]]:
    """Rows of `probes`, none if the recipe does not want them. A reply that reaches the limit counts with that length."""
    if not exam.recipe.eval.probes:
        return []
    right = [[float(question.is_right(side.logps)) for question in exam.questions] for side in (before, after)]
    rows = [_probe("qa_accuracy", "Factual questions answered", "share", "higher", *right)] if exam.questions else []
    for probes, old, new in ((NEUTRAL_PROBES, before.neutral, after.neutral), (HELD_OUT_PROBES, before.held_out, after.held_out)):
        for probe in probes if old else ():
            measured = [[float(probe.measure(reply)) for reply in replies] for replies in (old, new)]
            rows.append(_probe(probe.name, probe.title, probe.unit, probe.better, *measured, statistic=probe.statistic))
    return rows


def _probe(
    name: str, title: str, unit: str, better: str, before: list[float], after: list[float], *, statistic: Statistic = "mean"
) -> dict[str, Any]:
    each = range(len(before))
    intervals = {
        "before": bootstrap(before, each, statistic=statistic),
        "after": bootstrap(after, each, statistic=statistic),
        "difference": bootstrap_difference(before, after, each, statistic=statistic),
    }
    sides = {side: interval.as_dict() for side, interval in intervals.items()}
    return {"name": name, "title": title, "unit": unit, "better": better, "items": len(before), **sides}
