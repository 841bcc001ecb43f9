"""What a judge is asked and what it answers. A judge is anything with a name, an identity and a way to be asked."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from likelier.records import Messages

Choice = Literal["first", "second", "tie"]


@dataclass(frozen=True, slots=True)
class Question:
    """Which of two replies to a prompt is better, shown in this order."""

    prompt: Messages
    first: str
    second: str

    def as_dict(self) -> dict[str, Any]:
        return {"prompt": [message.as_dict() for message in self.prompt], "first": self.first, "second": self.second}


@dataclass(frozen=True, slots=True)
class Answer:
    """A judge's choice and what it took. Without a choice, `fault` says why there is none: a reply that cannot be read is never guessed at."""

    choice: Choice | None
    reason: str = ""
    fault: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


Keep = Callable[[int, Answer], None]
"""Called with the place of a question in the list and its answer, when that arrives, from whatever thread."""


class Judge(Protocol):
    """`identity` holds everything, beside the question, on which an answer depends; answers are filed under it, so it holds no secrets. `ask` hands
    every answer to `keep` at once. It raises JudgeError where going on makes no sense; what was kept before stays."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    def ask(self, questions: Sequence[Question], keep: Keep) -> None: ...


def by_score(difference: float) -> Choice:
    """What a score of the first reply over the second says."""
    return "first" if difference > 0 else "second" if difference < 0 else "tie"


def question_key(identity: dict[str, Any], question: Question) -> str:
    """SHA-256 (hex) of the judge's identity and of everything that it is shown, the order too."""
    asked = json.dumps([identity, question.as_dict()], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()
