"""What both models are asked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from likelier.data.load import Side
from likelier.errors import DataError, ModelError
from likelier.evaluate.drift import spread
from likelier.examples import Ids
from likelier.generation.requests import Request, requests_for
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.probes import Asked, Probe, in_tokens, probes_of
from likelier.probes.tokens import UNLIMITED
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
    probes: list[Asked]

    @property
    def prompts(self) -> list[Ids]:
        """Held-out prompts to reply to."""
        return [self.held_out.examples[i].prompt_ids for i in self.shown]

    @property
    def pairs(self) -> list[PromptResponse]:
        """Both sides of the held-out pairs."""
        return sequences_of(self.held_out.examples)

    def spread_pairs(self, scorer: Scorer) -> list[PromptResponse]:
        """The replies on which the KL on the data is measured."""
        return sequences_of(spread(self.held_out.examples, scorer))

    @property
    def choices(self) -> list[PromptResponse]:
        """The possible answers to the questions."""
        return [choice for asked in self.probes for question in asked.questions for choice in question.choices]

    @property
    def shown_requests(self) -> list[Request]:
        """Replies to held-out prompts."""
        return requests_for(self.prompts, limit=self.recipe.eval.max_new_tokens)

    @property
    def drawn_requests(self) -> list[Request]:
        """Replies to held-out prompts that are drawn at temperature 1."""
        return requests_for(self.prompts, limit=self.recipe.eval.max_new_tokens, temperature=1.0, seed=self.recipe.train.seed)

    @property
    def requests(self) -> list[Request]:
        """What is replied to with the likeliest tokens: held-out prompts, then those of the probes, each once."""
        probed = [request for asked in self.probes for request in asked.requests]
        return list(dict.fromkeys([*self.shown_requests, *probed]))


def make_exam(recipe: Recipe, tokenizer: Any, held_out: Side, *, end_token_id: int, positions: int = UNLIMITED, say: Say = quiet) -> Exam:
    """The exam for one run: up to `eval.samples` held-out prompts, spread evenly over the file, and the probes that are wanted, but for those that
    the model's template cannot say or its `positions` have no room for."""
    shown = held_out.spread_prompts(recipe.eval.samples)
    wanted_probes = probes_of(recipe.eval.probes, recipe.eval.probe_files)
    return Exam(recipe, tokenizer, end_token_id, held_out, shown, _in_tokens(wanted_probes, recipe, tokenizer, positions, say))


def _in_tokens(probes: list[Probe], recipe: Recipe, tokenizer: Any, positions: int, say: Say) -> list[Asked]:
    asked, left_out = [], {}
    for probe in probes:
        try:
            limits = {"max_new_tokens": recipe.eval.max_new_tokens, "positions": positions}
            asked.append(in_tokens(probe, tokenizer, recipe.model.chat_template, **limits))
        except (DataError, ModelError) as problem:  # one that has every reply begin with its reasoning, for example
            left_out[probe.name] = problem
    if left_out:
        say(f"Probes are left out that do not fit this model or its chat template ({', '.join(left_out)}): {next(iter(left_out.values()))}")
    return asked
