"""What both models' replies and answers show beside the pairs: rows of `probes` in eval.json and of probes.jsonl. Pure functions of answers, but for
what a user's own function does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from likelier.errors import RecipeError
from likelier.evaluate.answers import Answers
from likelier.evaluate.exam import Exam
from likelier.generation.sample import Reply
from likelier.metrics import Interval, Statistic, bootstrap, bootstrap_difference, bootstrap_share, bootstrap_share_difference
from likelier.probes import Asked, Item
from likelier.probes.measures import MEASURES, Measure, is_answer, own_number
from likelier.records import Messages

Found = tuple[str, float]
"""What a model replied, or of choices which it took, and the number that it counts with: 1 or 0 for a share."""


@dataclass(frozen=True)
class Measured:
    """A probe with what it found in both models, item by item."""

    name: str
    set: str
    title: str
    unit: str  # share, tokens, or "" for a number of a user's own
    better: str  # higher, lower or none
    statistic: Statistic
    items: Sequence[tuple[str, Messages]]  # id and prompt
    before: Sequence[Found]
    after: Sequence[Found]

    def summary(self) -> dict[str, Any]:
        """Its row in eval.json, with intervals over prompts."""
        old, new = ([number for _, number in side] for side in (self.before, self.after))
        each = range(len(old))
        share = self.unit == "share"
        difference = bootstrap_share_difference(old, new, each) if share else bootstrap_difference(old, new, each, statistic=self.statistic)
        intervals = {"before": self._interval(old), "after": self._interval(new), "difference": difference}
        about = {"name": self.name, "set": self.set, "title": self.title, "unit": self.unit, "better": self.better, "items": len(old)}
        return {**about, **{side: interval.as_dict() for side, interval in intervals.items()}}

    def _interval(self, numbers: Sequence[float]) -> Interval:
        each = range(len(numbers))
        return bootstrap_share(numbers, each) if self.unit == "share" else bootstrap(numbers, each, statistic=self.statistic)

    def rows(self) -> list[dict[str, Any]]:
        """Its rows in probes.jsonl. Whether a reply is a hit is null where the probe takes a number of each."""
        return [
            {
                "probe": self.name,
                "id": name,
                "prompt": [message.as_dict() for message in prompt],
                "before": old,
                "after": new,
                "before_hit": bool(old_number) if self.unit == "share" else None,
                "after_hit": bool(new_number) if self.unit == "share" else None,
            }
            for (name, prompt), (old, old_number), (new, new_number) in zip(self.items, self.before, self.after, strict=True)
        ]


HELD_OUT_PROBES: dict[str, tuple[str, str, Measure]] = {
    "held_out_reply_length": ("Reply length, held-out prompts (median)", "none", MEASURES["length"]),
    "held_out_loop_rate": ("Replies in a loop, held-out prompts", "lower", MEASURES["loop"]),
}
"""Title, better and measure of what is measured of the replies to held-out prompts, wherever shipped probes are asked."""


def measure_probes(exam: Exam, before: Answers, after: Answers) -> tuple[list[Measured], dict[str, str]]:
    """What the probes of the exam found, and by title why one is left out, whose own function fails: what both models answered is not lost for it."""
    measured, left_out = [], {}
    for asked in exam.probes:
        try:
            measured.append(_measured(asked, before, after))
        except RecipeError as problem:
            left_out[asked.probe.title] = str(problem)
    if exam.recipe.eval.probes and exam.shown:
        records = [exam.held_out.records[i] for i in exam.shown]
        items = [(record.id, record.prompt) for record in records]
        for name, (title, better, measure) in HELD_OUT_PROBES.items():
            sides = [[(reply.text, _by(measure, reply)) for reply in side.held_out(exam)] for side in (before, after)]
            measured.append(Measured(name, f"held-out@{exam.held_out.id[:12]}", title, measure.unit, better, measure.statistic, items, *sides))
    return measured, left_out


def _measured(asked: Asked, before: Answers, after: Answers) -> Measured:
    probe = asked.probe
    found = [_found(asked, side) for side in (before, after)]
    yes_or_no = all(isinstance(number, bool) for side in found for _, number in side)
    unit = probe.measure.unit if probe.measure else "share" if yes_or_no else ""
    statistic: Statistic = probe.measure.statistic if probe.measure else "mean"
    items = [(item.id, item.prompt) for item in probe.items]
    return Measured(probe.name, probe.set, probe.title, unit, probe.want, statistic, items, *found)


def _found(asked: Asked, answers: Answers) -> list[Found]:
    probe = asked.probe
    if asked.questions:
        taken = [question.chosen(answers.logps) for question in asked.questions]
        return [("" if place is None else item.choices[place], place == item.right) for item, place in zip(probe.items, taken, strict=True)]
    replies = [answers.replies[request] for request in asked.requests]
    return [(reply.text, _number(asked, item, reply)) for item, reply in zip(probe.items, replies, strict=True)]


def _number(asked: Asked, item: Item, reply: Reply) -> bool | float:
    probe = asked.probe
    if probe.measure:
        return _by(probe.measure, reply)
    if probe.function:
        return own_number(probe.function, reply.text, [message.as_dict() for message in item.prompt], where=f"probe `{probe.name}`, prompt {item.id}")
    return item.pattern.search(reply.text) is not None if item.pattern else is_answer(reply.text, item.answers)


def _by(measure: Measure, reply: Reply) -> float:
    return measure.of(reply.text, reply.length, reply.ended)
