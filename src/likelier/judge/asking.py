"""Every pair of replies in both orders, each question at most once: what is on disk is not asked, what arrives is on disk before anything else."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, NamedTuple

from likelier.errors import JudgeError
from likelier.judge.questions import Answer, Choice, Judge, Question, question_key
from likelier.judge.store import VerdictStore
from likelier.records import Messages
from likelier.wording import count

FAILED_SHARE = 0.2
"""A judge of whose answers more than this share cannot be read is no judge."""

PATIENCE = 20
"""Answers that are awaited before that share is looked at."""

Side = Literal["a", "b", "tie"]


class Match(NamedTuple):
    """Two replies to one prompt."""

    prompt: Messages
    a: str
    b: str

    @property
    def orders(self) -> tuple[Question, Question]:
        return Question(self.prompt, self.a, self.b), Question(self.prompt, self.b, self.a)


class Verdict(NamedTuple):
    """How a match went. `side` is None where one of the two answers failed; `flipped` tells that the two orders gave different verdicts."""

    side: Side | None
    flipped: bool
    answers: tuple[Answer, ...]  # (a first, b first); none for replies that are equal word for word

    @property
    def fault(self) -> str:
        return next((answer.fault for answer in self.answers if answer.choice is None), "")


@dataclass
class Spent:
    """What judging took: questions, and tokens of those that were asked now. `known_*` are of verdicts that were on disk."""

    asked: int = 0
    cached: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    known_tokens_in: int = 0
    known_tokens_out: int = 0
    faults: Counter[str] = field(default_factory=Counter)


def judge_matches(
    judge: Judge, matches: Sequence[Match], store: VerdictStore, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[Verdict], Spent]:
    """A verdict on each match, in their order. A side wins where it is chosen in both orders; anything else is a tie.

    `on_progress(done, total)` counts questions. Raises JudgeError where the judge cannot be asked, or more than FAILED_SHARE of its answers cannot
    be read; what was answered until then is in the store.
    """
    keys = [[question_key(judge.identity, question) for question in match.orders] if match.a != match.b else [] for match in matches]
    questions = {key: question for match, both in zip(matches, keys, strict=True) for key, question in zip(both, match.orders, strict=False)}
    answers = store.find(questions)
    spent = Spent(cached=len(answers))
    for answer in answers.values():
        spent.known_tokens_in += answer.tokens_in
        spent.known_tokens_out += answer.tokens_out
    left = [key for key in questions if key not in answers]
    one_at_a_time = Lock()

    def keep(place: int, answer: Answer) -> None:
        if answer.choice:
            store.keep(left[place], answer, judge.name)
        with one_at_a_time:
            answers[left[place]] = answer
            _count(spent, answer)
            if spent.asked >= PATIENCE:
                _refuse_unreadable(judge, spent)
            on_progress(len(answers), len(questions))

    judge.ask([questions[key] for key in left], keep)
    _refuse_unreadable(judge, spent)
    return [_verdict([answers[key] for key in both]) for both in keys], spent


AS_SIDES: tuple[dict[Choice, Side], ...] = ({"first": "a", "second": "b", "tie": "tie"}, {"first": "b", "second": "a", "tie": "tie"})
"""What a choice means in either order."""


def _verdict(answers: Sequence[Answer]) -> Verdict:
    if not answers:
        return Verdict("tie", False, ())
    sides = [meaning[answer.choice] for meaning, answer in zip(AS_SIDES, answers, strict=True) if answer.choice]
    if len(sides) < len(answers):
        return Verdict(None, False, tuple(answers))
    agreed = sides[0] == sides[1]
    return Verdict(sides[0] if agreed else "tie", not agreed, tuple(answers))


def _count(spent: Spent, answer: Answer) -> None:
    spent.asked += 1
    spent.tokens_in += answer.tokens_in
    spent.tokens_out += answer.tokens_out
    if answer.choice is None:
        spent.failed += 1
        spent.faults[answer.fault] += 1


def _refuse_unreadable(judge: Judge, spent: Spent) -> None:
    """Of few questions a single one may fail, whatever its share. What was answered before counts, or the same command would stop the second time,
    when only those that fail are left."""
    answers = spent.asked + spent.cached
    if spent.failed > 1 and spent.failed > FAILED_SHARE * answers:
        [(fault, _)] = spent.faults.most_common(1)
        raise JudgeError(
            f"judge {judge.name}: {spent.failed} of {count(answers, 'answer')} failed, so it is no judge of these replies. For example: {fault}. "
            "What it did answer is kept. Take a stronger judge, or another rubric."
        )


def spent_as_dict(spent: Spent, prices: tuple[float, float] | None) -> dict[str, Any]:
    """`cost` in compare.json. Prices are of a million tokens, in and out, in any currency; `total` is of what was asked now."""
    fields = {name: value for name, value in vars(spent).items() if name != "faults"}
    total = None if prices is None else (spent.tokens_in * prices[0] + spent.tokens_out * prices[1]) / 1e6
    return {
        **fields,
        "prices": None if prices is None else {"in": prices[0], "out": prices[1]},
        "total": total,
        "faults": dict(spent.faults.most_common(5)),
    }
