"""A probe in tokens, as a model is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from likelier.data.chat import Encoder
from likelier.errors import DataError, ModelError
from likelier.examples import Ids
from likelier.generation.requests import Request, requests_for
from likelier.logprobs.tree import PromptResponse
from likelier.probes.definition import Item, Probe
from likelier.records import Labelled, Message, Messages

UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True)
class Question:
    """One question in tokens: its possible answers as sequences to score, and which of them is right."""

    choices: tuple[PromptResponse, ...]
    answer: int

    def chosen(self, logps: Mapping[PromptResponse, Tensor]) -> int | None:
        """The choice with the largest sum of log-probabilities; None where two have it."""
        sums = [float(logps[choice].sum()) for choice in self.choices]
        return sums.index(max(sums)) if sums.count(max(sums)) == 1 else None


@dataclass(frozen=True)
class Asked:
    """A probe in tokens: for each of its items a question to score, or else a prompt to reply to in up to `max_new_tokens`."""

    probe: Probe
    questions: tuple[Question, ...]
    prompts: tuple[Ids, ...]
    max_new_tokens: int

    @property
    def requests(self) -> list[Request]:
        """The replies that are wanted: greedy ones."""
        return requests_for(self.prompts, limit=self.max_new_tokens)

    @property
    def longest(self) -> int:
        """Positions that the longest prompt takes with its reply."""
        scored = [len(choice.prompt_ids) + len(choice.response_ids) for question in self.questions for choice in question.choices]
        return max([*scored, *(len(prompt) + self.max_new_tokens for prompt in self.prompts)], default=0)


def in_tokens(probe: Probe, tokenizer: Any, chat_template: str = "own", *, max_new_tokens: int, positions: int = UNLIMITED) -> Asked:
    """The probe as this model is asked; replies are at most as long as both the probe and `max_new_tokens` allow. Raises ModelError or DataError
    where the chat template cannot say it, or a prompt with its reply takes more than the model's `positions`.

    A choice is scored by log P(the reply begins with it): the sum over its tokens, without the end token. Whether a reply of one bare word would
    end there says nothing about knowledge, and a mean over tokens favours long choices: with the embedded model 65% are right by this score,
    49% with the end token, 44% by the mean (38% with the end token). `studies/choice_scores.py` counts them.
    """
    encoder = Encoder(tokenizer, chat_template=chat_template, max_length=UNLIMITED)
    plain = chat_template == "none"
    questions = tuple(
        Question(tuple(_choice(encoder, item, choice, plain) for choice in item.choices), item.right) for item in probe.items if item.choices
    )
    prompts = tuple(_prompt(encoder, item.prompt, plain) for item in probe.items if not item.choices)
    asked = Asked(probe, questions, prompts, min(probe.max_new_tokens or max_new_tokens, max_new_tokens))
    needed = asked.longest
    if needed > positions:
        raise DataError(f"probe `{probe.name}`: this model has {positions} positions, and the longest prompt with its reply takes {needed}.")
    return asked


def _choice(encoder: Encoder, item: Item, choice: str, plain: bool) -> PromptResponse:
    """Plain text has no turns, so it says by words what a template says by tokens."""
    prompt, answer = ((Message("user", f"Question: {_text(item.prompt)}\nAnswer:"),), f" {choice}") if plain else (item.prompt, choice)
    example = encoder.encode_one(Labelled(prompt, (Message("assistant", answer),), True, item.id))
    return PromptResponse(example.prompt_ids, example.replies[0][:-1])


def _prompt(encoder: Encoder, messages: Messages, plain: bool) -> Ids:
    if plain:
        return encoder.encode_prompt((Message("user", _text(messages) + "\n\n"),))
    try:
        return encoder.encode_prompt(messages)
    except ModelError:  # some templates refuse a system message; such models get its text before the question
        if messages[0].role != "system" or len(messages) == 1:
            raise
        first, *rest = messages[1:]
        return encoder.encode_prompt((Message(first.role, _text((messages[0], first))), *rest))


def _text(messages: Messages) -> str:
    return "\n\n".join(message.content for message in messages)
