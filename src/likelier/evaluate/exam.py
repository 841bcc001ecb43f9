"""What both models are asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from likelier.data.load import Side
from likelier.errors import DataError, ModelError
from likelier.evaluate.drift import spread
from likelier.examples import Ids
from likelier.generation.sample import Reply
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.probes import Question, neutral_prompts, questions
from likelier.recipe import Recipe

Say = Callable[[str], None]


def quiet(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Exam:
    """What both models are asked."""

    recipe: Recipe
    tokenizer: Any
    end_token_id: int
    held_out: Side
    shown: list[int]  # which held-out pairs' prompts are replied to: one pair a prompt
    questions: list[Question]
    neutral: list[Ids]

    @property
    def prompts(self) -> list[Ids]:
        """Held-out prompts to reply to."""
        return [self.held_out.examples[i].prompt_ids for i in self.shown]

    @property
    def pairs(self) -> list[PromptResponse]:
        """Both sides of the held-out pairs."""
        return sequences_of(self.held_out.examples)

    @property
    def asked(self) -> list[Ids]:
        """All prompts that a model replies to with the likeliest tokens."""
        return [*self.prompts, *self.neutral]

    def apart(self, replies: Sequence[Reply]) -> tuple[list[Reply], list[Reply]]:
        """Replies to `asked`: those to held-out prompts, and those to neutral ones."""
        return list(replies[: len(self.shown)]), list(replies[len(self.shown) :])

    def spread_pairs(self, scorer: Scorer) -> list[PromptResponse]:
        """The replies on which the KL on the data is measured."""
        return sequences_of(spread(self.held_out.examples, scorer))

    @property
    def choices(self) -> list[PromptResponse]:
        """The possible answers to the questions."""
        return [choice for question in self.questions for choice in question.choices]


def make_exam(recipe: Recipe, tokenizer: Any, held_out: Side, *, end_token_id: int, say: Say = quiet) -> Exam:
    """The exam for one run: up to `eval.samples` held-out prompts, spread evenly over the file, and the probes if they are wanted."""
    first_of_prompt: dict[Ids, int] = {}
    for i, example in enumerate(held_out.examples):
        first_of_prompt.setdefault(example.prompt_ids, i)
    firsts = list(first_of_prompt.values())
    wanted = min(recipe.eval.samples, len(firsts))
    shown = [firsts[k * len(firsts) // wanted] for k in range(wanted)]
    asked, neutral = _probes(recipe, tokenizer, say) if recipe.eval.probes else ([], [])
    return Exam(recipe, tokenizer, end_token_id, held_out, shown, asked, neutral)


def _probes(recipe: Recipe, tokenizer: Any, say: Say) -> tuple[list[Question], list[Ids]]:
    template = recipe.model.chat_template
    try:
        return questions(tokenizer, template), neutral_prompts(tokenizer, template)
    except (DataError, ModelError) as problem:  # one that has every reply begin with its reasoning, for example
        say(f"The shipped probes are left out, they do not fit this chat template: {problem}")
        return [], []
