"""A Python function as a judge.

def better(prompt, a, b):            # [{"role": …, "content": …}, …], text, text
    return len(b) - len(a)           # "a", "b" or "tie"; or a number: above 0 where `a` is better, below 0 where `b` is
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from likelier.errors import JudgeError, RequestError
from likelier.hashing import file_hash
from likelier.judge.questions import Answer, Choice, Keep, Question, by_score
from likelier.user_code import load_function

SAID: dict[Any, Choice] = {"a": "first", "b": "second", "tie": "tie"}


class FunctionJudge:
    """The function `name` in a file, called once a question. Raises JudgeError where there is no such file or function."""

    def __init__(self, where: str) -> None:
        path, colon, name = where.rpartition(":")
        if not colon or not path.endswith(".py"):
            raise JudgeError(f"judge python:{where}: a function is named python:FILE.py:FUNCTION.")
        self.name = f"python:{where}"
        try:
            self._function = load_function(Path(path).expanduser(), name)
        except RequestError as problem:
            raise JudgeError(f"judge python:{where}: {problem}") from problem
        self.identity: dict[str, Any] = {"kind": "function", "file": file_hash(Path(path).expanduser()), "function": name}

    def ask(self, questions: Sequence[Question], keep: Keep) -> None:
        for place, question in enumerate(questions):
            keep(place, self._answer(question))

    def _answer(self, question: Question) -> Answer:
        try:
            said = self._function([message.as_dict() for message in question.prompt], question.first, question.second)
        except (Exception, SystemExit) as problem:  # it is the user's own code
            return Answer(None, fault=f"it raised {type(problem).__name__}: {str(problem)[:200]}")
        if isinstance(said, str) and said in SAID:
            return Answer(SAID[said])
        if isinstance(said, int | float) and not isinstance(said, bool) and not math.isnan(said):
            return Answer(by_score(said))
        return Answer(None, fault=f"it returned {str(said)[:80]!r}, which is neither 'a', 'b', 'tie' nor a number")
