"""One model's answers to an exam."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from likelier.evaluate.exam import Exam, Request, Say, quiet
from likelier.evaluate.held_out import LogpsOf
from likelier.examples import Ids
from likelier.generation.sample import Reply, generate
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse


@dataclass(frozen=True)
class Answers:
    """All that one model says to an exam. `sampled` are the policy's replies at temperature 1, which both models score; `probed`, the
    greedy replies to `exam.requests`."""

    logps: LogpsOf
    held_out: list[Reply]
    probed: Mapping[Request, Reply]
    sampled: list[PromptResponse]


def ask(exam: Exam, scorer: Scorer, *, sampled: list[PromptResponse] | None = None, store: ReferenceStore | None = None, say: Say = quiet) -> Answers:
    """Have a model answer. The policy comes first, with `sampled` None, and writes what the reference then scores too.

    `store`: where the reference's values of the pairs are kept; what it holds is not computed again.
    """
    prompts = exam.prompts
    greedy = _greedy(exam, scorer, say)
    if sampled is None:
        drawn = _replies(exam, scorer, prompts, 1.0, say)
        sampled = [PromptResponse(prompt, reply.ids) for prompt, reply in zip(prompts, drawn, strict=True)]
    say("scoring")
    tokens_per_batch = exam.recipe.train.tokens_per_batch
    pairs = _score(scorer, exam.pairs, store, tokens_per_batch)
    rest = _score(scorer, [*exam.choices, *sampled], None, tokens_per_batch)  # in the same batches for both models: the same rounding
    return Answers({**pairs, **rest}, [greedy[prompt, exam.recipe.eval.max_new_tokens] for prompt in prompts], greedy, sampled)


def _greedy(exam: Exam, scorer: Scorer, say: Say) -> dict[Request, Reply]:
    """Replies to all requests, those of one length together."""
    prompts_of: dict[int, list[Ids]] = {}
    for prompt, limit in exam.requests:
        prompts_of.setdefault(limit, []).append(prompt)
    replies: dict[Request, Reply] = {}
    for limit, prompts in prompts_of.items():
        written = _replies(exam, scorer, prompts, 0.0, say, max_new_tokens=limit)
        replies.update({(prompt, limit): reply for prompt, reply in zip(prompts, written, strict=True)})
    return replies


def _replies(exam: Exam, scorer: Scorer, prompts: Sequence[Ids], temperature: float, say: Say, *, max_new_tokens: int | None = None) -> list[Reply]:
    say(f"writing {len(prompts)} replies")
    return generate(
        scorer.model,
        exam.tokenizer,
        prompts,
        end_token_id=exam.end_token_id,
        max_new_tokens=max_new_tokens or exam.recipe.eval.max_new_tokens,
        temperature=temperature,
        seed=exam.recipe.train.seed,
        precision=scorer.precision,
        on_progress=lambda done, total: say(f"{done} of {total}") if done < total else None,
    )


def _score(scorer: Scorer, sequences: Sequence[PromptResponse], store: ReferenceStore | None, tokens_per_batch: int) -> LogpsOf:
    if store is not None:
        fill(store, scorer, sequences, tokens_per_batch=tokens_per_batch)
        return {sequence: store[sequence] for sequence in sequences}
    unique = list(dict.fromkeys(sequences))
    batches = scorer.score_all(unique, tokens_per_batch=tokens_per_batch)
    return {unique[i]: values_L for indices, values in batches for i, values_L in zip(indices, values, strict=True)}
