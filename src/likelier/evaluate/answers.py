"""Both models' answers to an exam. One is asked after the other, as they need not be in memory at once:

reference   writes its greedy replies, unless it has before (kept on disk)
policy      writes its own, greedy and drawn, and scores everything
reference   scores everything
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from likelier.evaluate.exam import Exam, Say, quiet
from likelier.generation.requests import Replies, Request, write_replies
from likelier.generation.sample import Reply
from likelier.logprobs.divergence import KeptLogits, kept_logits, token_divergences
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.wording import count


@dataclass(frozen=True)
class Answers:
    """All that one model says to an exam. `replies` are greedy; `sampled` are the policy's at temperature 1, which both models score."""

    logps: Mapping[PromptResponse, Tensor]
    replies: Mapping[Request, Reply]
    sampled: list[PromptResponse]
    kept: KeptLogits | None = None  # the policy's, for the KL on the data
    divergences: Mapping[PromptResponse, Tensor] = field(default_factory=dict)  # what the reference makes of them

    def held_out(self, exam: Exam) -> list[Reply]:
        """The replies to the held-out prompts that are shown."""
        return [self.replies[request] for request in exam.shown_requests]


def write(
    exam: Exam, scorer: Scorer, requests: Sequence[Request], *, keep: Callable[[Replies], object] = lambda batch: None, say: Say = quiet
) -> dict[Request, Reply]:
    """A model's replies. `keep` is given each batch of them as it is written."""
    drawn = any(request.temperature for request in requests)
    say(f"{'drawing' if drawn else 'writing'} {count(len(requests), 'reply', 'replies')}")
    return write_replies(
        scorer.model,
        exam.tokenizer,
        requests,
        end_token_id=exam.end_token_id,
        precision=scorer.precision,
        on_batch=keep,
        on_progress=lambda done, total: say(f"{done} of {total}") if done < total else None,
    )


def ask_policy(exam: Exam, scorer: Scorer, before: Mapping[Request, Reply], say: Say = quiet) -> Answers:
    """The policy's answers; it scores the reference's replies `before`, too."""
    after = write(exam, scorer, exam.requests, say=say)
    drawn = write(exam, scorer, exam.drawn_requests, say=say)
    sampled = [PromptResponse(request.prompt, drawn[request].ids) for request in exam.drawn_requests]
    say("scoring")
    tokens_per_batch = exam.recipe.train.tokens_per_batch
    logps = score(scorer, exam.pairs, tokens_per_batch=tokens_per_batch) | _beside(exam, scorer, sampled, before, after)
    kept = kept_logits(scorer, exam.spread_pairs(scorer), tokens_per_batch=tokens_per_batch)
    return Answers(logps, after, sampled, kept)


def ask_reference(
    exam: Exam, scorer: Scorer, before: Mapping[Request, Reply], policy: Answers, *, store: ReferenceStore | None = None, say: Say = quiet
) -> Answers:
    """The reference's, whose replies are `before`. `store`: where its values of the pairs are kept; what that holds is not computed again."""
    say("scoring")
    tokens_per_batch = exam.recipe.train.tokens_per_batch
    logps = score(scorer, exam.pairs, store=store, tokens_per_batch=tokens_per_batch)
    logps |= _beside(exam, scorer, policy.sampled, before, policy.replies)
    assert policy.kept is not None
    divergences = token_divergences(policy.kept, scorer, list(policy.kept.hidden), tokens_per_batch=tokens_per_batch)
    return Answers(logps, before, policy.sampled, divergences=divergences)


def _beside(
    exam: Exam, scorer: Scorer, sampled: Sequence[PromptResponse], before: Mapping[Request, Reply], after: Mapping[Request, Reply]
) -> dict[PromptResponse, Tensor]:
    """What is scored beside the pairs, in the same batches for both models: the same rounding."""
    written = [PromptResponse(request.prompt, side[request].ids) for side in (before, after) for request in exam.shown_requests]
    return score(scorer, [*exam.choices, *sampled, *written], tokens_per_batch=exam.recipe.train.tokens_per_batch)


def score(
    scorer: Scorer, sequences: Sequence[PromptResponse], *, store: ReferenceStore | None = None, tokens_per_batch: int
) -> dict[PromptResponse, Tensor]:
    """Log-probabilities of `sequences`; with a store only those that it lacks are computed."""
    if store is not None:
        fill(store, scorer, sequences, tokens_per_batch=tokens_per_batch)
        return {sequence: store[sequence] for sequence in sequences}
    unique = list(dict.fromkeys(sequences))
    batches = scorer.score_all(unique, tokens_per_batch=tokens_per_batch)
    return {unique[i]: values_L for indices, values in batches for i, values_L in zip(indices, values, strict=True)}
