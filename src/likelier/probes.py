"""The probes that ship with Likelier: what a model is asked beside the pairs, before and after.

assets/qa.jsonl        {"id", "question", "choices": [4], "answer": index, "group"}     does it still know what it knew?
assets/neutral.jsonl   {"id", "prompt": [messages]}                                     how does it answer when nothing is wrong?
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from torch import Tensor

from likelier.data.chat import Encoder
from likelier.errors import ModelError
from likelier.examples import Ids
from likelier.logprobs.tree import PromptResponse
from likelier.records import Labelled, Message, Messages

UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True)
class Question:
    """One question in tokens: its possible answers as sequences to score, and which of them is right."""

    choices: tuple[PromptResponse, ...]
    answer: int

    def is_right(self, logps: Mapping[PromptResponse, Tensor]) -> bool:
        """Whether the right choice has the largest sum of log-probabilities."""
        sums = [float(logps[choice].sum()) for choice in self.choices]
        return all(sums[self.answer] > other for i, other in enumerate(sums) if i != self.answer)


def questions(tokenizer: Any, chat_template: str = "own") -> list[Question]:
    """The shipped questions, each asked as a user's message, each choice a possible beginning of the reply.

    A choice is scored by log P(the reply begins with it): the sum over its tokens, without the end token. Whether a reply of one bare word would
    end there says nothing about knowledge, and a mean over tokens favours long choices: with the embedded model 65% are right by this score,
    49% with the end token, 44% by the mean (38% with the end token). `studies/choice_scores.py` counts them.
    """
    encoder = Encoder(tokenizer, chat_template=chat_template, max_length=UNLIMITED)
    return [Question(tuple(_choice(encoder, row, choice, chat_template) for choice in row["choices"]), row["answer"]) for row in _rows("qa.jsonl")]


def _choice(encoder: Encoder, row: dict[str, Any], choice: str, chat_template: str) -> PromptResponse:
    """Plain text has no turns, so it says by words what a template says by tokens."""
    plain = chat_template == "none"
    question, answer = (f"Question: {row['question']}\nAnswer:", f" {choice}") if plain else (row["question"], choice)
    example = encoder.encode_one(Labelled((Message("user", question),), (Message("assistant", answer),), True, row["id"]))
    return PromptResponse(example.prompt_ids, example.replies[0][:-1])


def neutral_prompts(tokenizer: Any, chat_template: str = "own") -> list[Ids]:
    """The shipped neutral prompts: plain questions to which a short, calm reply fits."""
    encoder = Encoder(tokenizer, chat_template=chat_template, max_length=UNLIMITED)
    return [_prompt(encoder, tuple(Message(**message) for message in row["prompt"]), chat_template) for row in _rows("neutral.jsonl")]


def _prompt(encoder: Encoder, messages: Messages, chat_template: str) -> Ids:
    whole = "\n\n".join(message.content for message in messages)
    if chat_template == "none":
        return encoder.encode_prompt((Message("user", whole + "\n\n"),))
    try:
        return encoder.encode_prompt(messages)
    except ModelError:  # some templates refuse a system message; such models get its text before the question
        return encoder.encode_prompt((Message("user", whole),))


def _rows(name: str) -> Sequence[dict[str, Any]]:
    text = (resources.files("likelier") / "assets" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
