"""Both models' answers to an exam. One is asked after the other, as they need not be in memory at once:

reference   writes its greedy replies, unless it has before (kept on disk)
policy      writes its own, greedy and drawn, and scores everything
reference   scores everything
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from likelier.evaluate.exam import Exam, Say, quiet
from likelier.examples import Ids
from likelier.generation.kept import KeptReplies
from likelier.generation.sample import Reply, generate
from likelier.logprobs.divergence import KeptLogits, kept_logits, token_divergences
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse


@dataclass(frozen=True)
class Answers:
    """All that one model says to an exam. `sampled` are the policy's replies at temperature 1, which both models score."""

    logps: Mapping[PromptResponse, Tensor]
    held_out: list[Reply]
    neutral: list[Reply]
    sampled: list[PromptResponse]
    kept: KeptLogits | None = None  # the policy's, for the KL on the data
    divergences: Mapping[PromptResponse, Tensor] = field(default_factory=dict)  # what the reference makes of them


def write(exam: Exam, scorer: Scorer, *, kept: KeptReplies | None = None, say: Say = quiet) -> list[Reply]:
    """A model's greedy replies to `exam.asked`. `kept`: where the reference's are; what it holds is not written again."""

    def greedy(prompts: Sequence[Ids]) -> list[Reply]:
        return _replies(exam, scorer, prompts, 0.0, say)

    if kept is None:
        return greedy(exam.asked)
    kept.fill(exam.asked, greedy)
    return kept.replies(exam.asked, exam.tokenizer)


def ask_policy(exam: Exam, scorer: Scorer, before: Sequence[Reply], say: Say = quiet) -> Answers:
    """The policy's answers; it scores the reference's replies `before`, too."""
    after = write(exam, scorer, say=say)
    drawn = _replies(exam, scorer, exam.prompts, 1.0, say)
    sampled = [PromptResponse(prompt, reply.ids) for prompt, reply in zip(exam.prompts, drawn, strict=True)]
    say("scoring")
    tokens_per_batch = exam.recipe.train.tokens_per_batch
    logps = score(scorer, exam.pairs, tokens_per_batch=tokens_per_batch) | _beside(exam, scorer, sampled, before, after)
    kept = kept_logits(scorer, exam.spread_pairs(scorer), tokens_per_batch=tokens_per_batch)
    return Answers(logps, *exam.apart(after), sampled, kept)


def ask_reference(
    exam: Exam, scorer: Scorer, before: Sequence[Reply], policy: Answers, *, store: ReferenceStore | None = None, say: Say = quiet
) -> Answers:
    """The reference's, whose replies are `before`. `store`: where its values of the pairs are kept; what that holds is not computed again."""
    say("scoring")
    tokens_per_batch = exam.recipe.train.tokens_per_batch
    logps = score(scorer, exam.pairs, store=store, tokens_per_batch=tokens_per_batch)
    logps |= _beside(exam, scorer, policy.sampled, before, [*policy.held_out, *policy.neutral])
    assert policy.kept is not None
    divergences = token_divergences(policy.kept, scorer, list(policy.kept.hidden), tokens_per_batch=tokens_per_batch)
    return Answers(logps, *exam.apart(before), policy.sampled, divergences=divergences)


def _beside(
    exam: Exam, scorer: Scorer, sampled: Sequence[PromptResponse], before: Sequence[Reply], after: Sequence[Reply]
) -> dict[PromptResponse, Tensor]:
    """What is scored beside the pairs, in the same batches for both models: the same rounding."""
    written = [PromptResponse(prompt, reply.ids) for side in (before, after) for prompt, reply in zip(exam.prompts, exam.apart(side)[0], strict=True)]
    return score(scorer, [*exam.choices, *sampled, *written], tokens_per_batch=exam.recipe.train.tokens_per_batch)


def _replies(exam: Exam, scorer: Scorer, prompts: Sequence[Ids], temperature: float, say: Say) -> list[Reply]:
    say(f"writing {len(prompts)} replies")
    return generate(
        scorer.model,
        exam.tokenizer,
        prompts,
        end_token_id=exam.end_token_id,
        max_new_tokens=exam.recipe.eval.max_new_tokens,
        temperature=temperature,
        seed=exam.recipe.train.seed,
        precision=scorer.precision,
        on_progress=lambda done, total: say(f"{done} of {total}") if done < total else None,
    )


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
