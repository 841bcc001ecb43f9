"""The watched prompts: a few held-out ones, the same over the whole run, that the model in training replies to; and how far it is from what it was.

Neither touches weights, optimizer or the global random state: a run is the same, bit for bit, with and without being watched.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from likelier.data.load import Side
from likelier.generation.sample import Reply, generate
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.metrics import has_apology, has_refusal, repetition
from likelier.recipe import Recipe

LONGEST = 64
"""Tokens of a watched reply, at most: enough to see a tone, a loop or a length that doubles."""


@dataclass(frozen=True)
class Drawn:
    """A reply that the untrained model drew at temperature 1, and its log-probability under that model."""

    sequence: PromptResponse
    logp: float


class WatchedPrompts:
    """Up to `eval.watch` prompts of the held-out records, spread evenly over them, and the model in training.

    Raises what the model raises where it cannot write: Watch lets go of it then.
    """

    def __init__(self, policy: Scorer, tokenizer: Any, held_out: Side, recipe: Recipe, *, end_token_id: int) -> None:
        self._policy = policy
        self._end_token_id = end_token_id
        self._tokenizer = tokenizer
        self._recipe = recipe
        self.tokens = min(LONGEST, recipe.eval.max_new_tokens)
        chosen = held_out.spread_prompts(recipe.eval.watch)
        self._records = [held_out.records[i] for i in chosen]
        self._prompts = [held_out.examples[i].prompt_ids for i in chosen]
        self._drawn: list[Drawn] = []

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def is_divided(self) -> bool:
        """Whether all ranks must write together."""
        return self._policy.is_divided

    def replies(self, step: int) -> list[dict[str, Any]]:
        """Rows of filmstrip.jsonl: a greedy reply to each prompt."""
        replies = self._write(temperature=0.0)
        return [
            {
                "step": step,
                "id": record.id,
                "prompt": [message.as_dict() for message in record.prompt],
                "reply": reply.text,
                "ended": reply.ended,
                "length": reply.length,
                "repetition": repetition(reply.ids[: reply.length]),
                "apology": has_apology(reply.text),
                "refusal": has_refusal(reply.text),
            }
            for record, reply in zip(self._records, replies, strict=True)
        ]

    def first_replies(self) -> list[dict[str, Any]]:
        """The rows of step 0, by the untrained model, which also draws the replies that `kl` is measured on."""
        drawn = [PromptResponse(prompt, reply.ids) for prompt, reply in zip(self._prompts, self._write(temperature=1.0), strict=True)]
        logps = self._score(drawn)
        self._drawn = [Drawn(sequence, logp) for sequence, logp in zip(drawn, logps, strict=True)]
        rows = self.replies(0)
        return [row | {"drawn": {"ids": [*each.sequence.response_ids], "logp": each.logp}} for row, each in zip(rows, self._drawn, strict=True)]

    def remember(self, filmstrip: Iterable[dict[str, Any]]) -> None:
        """Take the drawn replies from the rows of step 0, which a run that goes on has. A prompt that was not watched then has none."""
        drawn = {row["id"]: row["drawn"] for row in filmstrip if row["step"] == 0}
        self._drawn = [
            Drawn(PromptResponse(prompt, tuple(drawn[record.id]["ids"])), drawn[record.id]["logp"])
            for record, prompt in zip(self._records, self._prompts, strict=True)
            if record.id in drawn
        ]

    def kl(self) -> float | None:
        """KL(π_ref ‖ π) of a reply of up to `tokens` tokens, in nats: the mean of log π_ref(y|x) − log π(y|x) over replies y that π_ref drew.

        π_ref is the untrained model, so that no second one is needed, nor a new draw: the replies are those of step 0. Without bias, and noisy: with
        four replies its standard error is about half of the standard deviation of one, a few nats once a run is under way, and it may come out
        below 0, which a KL never is. It is the other direction than eval.json's KL(π ‖ π_ref), which asks for replies of π: this one is large where
        π gives up what π_ref would say. None where nothing was drawn or a value is not finite.

        The control variate π/π_ref − 1 (Schulman 2020) was left out: at temperature 1 now and then a rare token is drawn, and one that training made
        50 times likelier would by itself add 49/4 nats.
        """
        if not self._drawn:
            return None
        logps = self._score([each.sequence for each in self._drawn])
        kl = fmean(each.logp - logp for each, logp in zip(self._drawn, logps, strict=True))
        return kl if math.isfinite(kl) else None

    def _write(self, *, temperature: float) -> list[Reply]:
        return generate(
            self._policy.model,
            self._tokenizer,
            self._prompts,
            end_token_id=self._end_token_id,
            max_new_tokens=self.tokens,
            temperature=temperature,
            seed=self._recipe.train.seed,
            precision=self._policy.precision,
            may_halve=not self.is_divided,
        )

    def _score(self, sequences: Sequence[PromptResponse]) -> list[float]:
        """log π(y|x) of each."""
        sums: dict[int, float] = {}
        with self._policy.unchanged_weights():
            for indices, values in self._policy.score_all(sequences, tokens_per_batch=self._recipe.train.tokens_per_batch):
                sums |= {i: float(values_L.double().sum()) for i, values_L in zip(indices, values, strict=True)}
        return [sums[i] for i in range(len(sequences))]
