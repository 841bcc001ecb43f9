"""A run's model, before and after, as eval.json and samples.jsonl.

    exam       what is asked, in tokens: the held-out pairs, prompts to reply to, the shipped probes
    ask        one model's answers; both models are asked by the same code, in the same arithmetic, one after the other
    compare    two sets of answers → numbers with intervals: pure

Shape legend: B pairs, K replies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likelier.data.chat import Encoder
from likelier.data.load import Side, load_sides
from likelier.errors import DataError, ModelError, RunError
from likelier.examples import Example, Ids, LabelledExample, all_pairs
from likelier.generation.sample import Reply, generate
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.reference import ReferenceStore, fill, identity, numerics_of
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.metrics import Statistic, bootstrap, bootstrap_difference, calibration, correct, has_apology, in_a_loop
from likelier.model_files import cache_dir
from likelier.models import LoadedModel, as_reference, fingerprint, held_as, load_model, load_trained
from likelier.objectives import Logps, Objective, Responses, make_objective
from likelier.probes import Question, neutral_prompts, questions
from likelier.recipe import Recipe, load_recipe
from likelier.records import Labelled, Record
from likelier.rundir import RunDir, write_json, write_jsonl

LogpsOf = Mapping[PromptResponse, Tensor]
"""For each sequence the (L,) fp32 log-probabilities of its response's tokens, on the CPU."""

Say = Callable[[str], None]


def quiet(text: str) -> None:
    """Says nothing."""


# The exam


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


# One model's answers


@dataclass(frozen=True)
class Answers:
    """All that one model says to an exam. `sampled` are the policy's replies at temperature 1, which both models score."""

    logps: LogpsOf
    held_out: list[Reply]
    neutral: list[Reply]
    sampled: list[PromptResponse]


def ask(exam: Exam, scorer: Scorer, *, sampled: list[PromptResponse] | None = None, store: ReferenceStore | None = None, say: Say = quiet) -> Answers:
    """Have a model answer. The policy comes first, with `sampled` None, and writes what the reference then scores too.

    `store`: where the reference's values of the pairs are kept; what it holds is not computed again.
    """
    prompts = exam.prompts
    greedy = _replies(exam, scorer, [*prompts, *exam.neutral], 0.0, say)
    if sampled is None:
        drawn = _replies(exam, scorer, prompts, 1.0, say)
        sampled = [PromptResponse(prompt, reply.ids) for prompt, reply in zip(prompts, drawn, strict=True)]
    say("scoring")
    tokens_per_batch = exam.recipe.train.tokens_per_batch
    pairs = _score(scorer, exam.pairs, store, tokens_per_batch)
    rest = _score(scorer, [*exam.choices, *sampled], None, tokens_per_batch)  # in the same batches for both models: the same rounding
    return Answers({**pairs, **rest}, greedy[: len(prompts)], greedy[len(prompts) :], sampled)


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


def _score(scorer: Scorer, sequences: Sequence[PromptResponse], store: ReferenceStore | None, tokens_per_batch: int) -> LogpsOf:
    if store is not None:
        fill(store, scorer, sequences, tokens_per_batch=tokens_per_batch)
        return {sequence: store[sequence] for sequence in sequences}
    unique = list(dict.fromkeys(sequences))
    batches = scorer.score_all(unique, tokens_per_batch=tokens_per_batch)
    return {unique[i]: values_L for indices, values in batches for i, values_L in zip(indices, values, strict=True)}


# Numbers


def compare(exam: Exam, before: Answers, after: Answers) -> dict[str, Any]:
    """eval.json: what the run changed, each number with its 95% interval over prompts."""
    objective = make_objective(exam.recipe.objective.name, **exam.recipe.objective.given())
    result = measure_held_out(exam.held_out, objective, policy=after.logps, reference=before.logps)
    result["held_out"]["kl"] = measure_kl(after.sampled, policy=after.logps, reference=before.logps, limit=exam.recipe.eval.max_new_tokens)
    return result | {"probes": measure_probes(exam, before, after)}


def measure_held_out(held_out: Side, objective: Objective, *, policy: LogpsOf, reference: LogpsOf | None) -> dict[str, Any]:
    """How the policy ranks held-out pairs by the objective's reward; of a set with single replies see `measure_replies`. Without `reference` there
    is no change to measure, and an objective that needs one raises ValueError. Pairs of one prompt are one cluster."""
    examples = held_out.examples
    if not all_pairs(examples):
        return measure_replies(held_out, objective, policy=policy, reference=reference)
    sequences = sequences_of(examples)
    logps = Logps(_responses(sequences[::2], policy, reference), _responses(sequences[1::2], policy, reference))
    chosen_B, rejected_B = (reward_B.double().numpy() for reward_B in objective.rewards(logps))
    margin_B = chosen_B - rejected_B
    clusters = _numbered([example.prompt_ids for example in examples])
    measured = {"accuracy": correct(margin_B), "margin": margin_B, "chosen_reward": chosen_B, "rejected_reward": rejected_B}
    if reference is not None:
        measured["chosen_logp_change"] = logps.chosen.log_ratio_B.double().numpy()
    return {
        "dataset": held_out.id,
        "pairs": len(examples),
        "held_out": {name: bootstrap(values_B, clusters).as_dict() for name, values_B in measured.items()},
        "by_reason": _by_reason(held_out, correct(margin_B), clusters),
        "calibration": calibration(margin_B).as_dict(),
    }


def measure_replies(held_out: Side, objective: Objective, *, policy: LogpsOf, reference: LogpsOf | None) -> dict[str, Any]:
    """The same of replies that are judged one by one (pairs count as two): accuracy is the share of good replies that became likelier than under
    the reference, and of bad ones that became less likely."""
    examples = held_out.examples
    sides = {label: [PromptResponse(e.prompt_ids, reply) for e in examples for reply in _judged(e, label)] for label in (True, False)}
    clusters = {label: _numbered([sequence.prompt_ids for sequence in sequences]) for label, sequences in sides.items()}
    logps = Logps(_responses(sides[True], policy, reference), _responses(sides[False], policy, reference))
    good_B, bad_B = (reward_B.double().numpy() for reward_B in objective.rewards(logps))
    both = _numbered([sequence.prompt_ids for label in (True, False) for sequence in sides[label]])
    measured = {"accuracy": bootstrap(correct(np.concatenate([good_B, -bad_B])), both).as_dict()}
    for name, values_B, label in (("chosen_reward", good_B, True), ("rejected_reward", bad_B, False)):
        if len(values_B):
            measured[name] = bootstrap(values_B, clusters[label]).as_dict()
    counts = {"pairs": len(held_out.pairs), "replies": len(good_B) + len(bad_B)}
    return {"dataset": held_out.id, **counts, "held_out": measured, "by_reason": {}}


def _judged(example: Example, label: bool) -> tuple[Ids, ...]:
    """The replies of an example that are good, or bad."""
    if isinstance(example, LabelledExample):
        return example.replies if example.label == label else ()
    return (example.chosen_ids if label else example.rejected_ids,)


def _by_reason(held_out: Side, correct_B: np.ndarray, clusters: Sequence[int]) -> dict[str, Any]:
    reasons: dict[str, list[int]] = {}
    for i, record in enumerate(held_out.records):
        if record.reason:
            reasons.setdefault(record.reason, []).append(i)
    return {
        reason: {"accuracy": bootstrap(correct_B[rows], [clusters[i] for i in rows]).as_dict(), "pairs": len(rows)}
        for reason, rows in reasons.items()
    }


def _responses(sequences: Sequence[PromptResponse], policy: LogpsOf, reference: LogpsOf | None) -> Responses:
    if not sequences:
        return Responses(torch.zeros(0), None if reference is None else torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return Responses(
        torch.cat([policy[sequence] for sequence in sequences]),
        None if reference is None else torch.cat([reference[sequence] for sequence in sequences]),
        torch.tensor([len(sequence.response_ids) for sequence in sequences]),
    )


def measure_kl(sampled: Sequence[PromptResponse], *, policy: LogpsOf, reference: LogpsOf, limit: int) -> dict[str, Any]:
    """KL(π ‖ π_ref) of a whole reply, in nats: the mean of log π(y|x) − log π_ref(y|x) over replies y that π wrote at temperature 1.

    Without bias for replies of up to `limit` tokens; with few replies it may come out below 0, which a KL never is.
    """
    log_ratio_K = _responses(sampled, policy, reference).log_ratio_B.double().numpy()
    replies = f"{len(sampled)} replies of the tuned model" if len(sampled) > 1 else "one reply of the tuned model"
    note = f"per reply, estimated on {replies}, sampled at temperature 1, up to {limit} tokens"
    return {**bootstrap(log_ratio_K, _numbered([sequence.prompt_ids for sequence in sampled])).as_dict(), "note": note}


@dataclass(frozen=True)
class ReplyProbe:
    """One thing to measure of replies."""

    name: str
    title: str
    unit: str  # share or tokens
    better: str  # higher, lower or none
    measure: Callable[[Reply], float]
    statistic: Statistic = "mean"


NEUTRAL_PROBES = (
    ReplyProbe("reply_length", "Reply length, neutral prompts (median)", "tokens", "none", lambda reply: reply.length, "median"),
    ReplyProbe("apology_rate", "Apologies, neutral prompts", "share", "lower", lambda reply: has_apology(reply.text)),
    ReplyProbe("loop_rate", "Replies in a loop, neutral prompts", "share", "lower", lambda reply: in_a_loop(reply.text)),
    ReplyProbe("ended_rate", "Replies that end before the limit, neutral prompts", "share", "higher", lambda reply: reply.ended),
)
HELD_OUT_PROBES = (
    ReplyProbe("held_out_reply_length", "Reply length, held-out prompts (median)", "tokens", "none", lambda reply: reply.length, "median"),
    ReplyProbe("held_out_loop_rate", "Replies in a loop, held-out prompts", "share", "lower", lambda reply: in_a_loop(reply.text)),
)


def measure_probes(exam: Exam, before: Answers, after: Answers) -> list[dict[str, Any]]:
    """Rows of `probes`, none if the recipe does not want them. A reply that reaches the limit counts with that length."""
    if not exam.recipe.eval.probes:
        return []
    right = [[float(question.is_right(side.logps)) for question in exam.questions] for side in (before, after)]
    rows = [_probe("qa_accuracy", "Factual questions answered", "share", "higher", *right)] if exam.questions else []
    for probes, old, new in ((NEUTRAL_PROBES, before.neutral, after.neutral), (HELD_OUT_PROBES, before.held_out, after.held_out)):
        for probe in probes if old else ():
            measured = [[float(probe.measure(reply)) for reply in replies] for replies in (old, new)]
            rows.append(_probe(probe.name, probe.title, probe.unit, probe.better, *measured, statistic=probe.statistic))
    return rows


def _probe(
    name: str, title: str, unit: str, better: str, before: list[float], after: list[float], *, statistic: Statistic = "mean"
) -> dict[str, Any]:
    each = range(len(before))
    intervals = {
        "before": bootstrap(before, each, statistic=statistic),
        "after": bootstrap(after, each, statistic=statistic),
        "difference": bootstrap_difference(before, after, each, statistic=statistic),
    }
    sides = {side: interval.as_dict() for side, interval in intervals.items()}
    return {"name": name, "title": title, "unit": unit, "better": better, "items": len(before), **sides}


def side_by_side(exam: Exam, before: Answers, after: Answers) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: held-out prompts with the reply of each model and the chosen one."""
    return [
        {
            "id": record.id,
            "prompt": [message.as_dict() for message in record.prompt],
            "before": old.text,
            "after": new.text,
            "chosen": _good_reply(record),
        }
        for record, old, new in zip([exam.held_out.records[i] for i in exam.shown], before.held_out, after.held_out, strict=True)
    ]


def _good_reply(record: Record) -> str | None:
    """The text of the reply that was preferred, or judged good."""
    if isinstance(record, Labelled) and not record.label:
        return None
    reply = record.completion if isinstance(record, Labelled) else record.chosen
    return "\n\n".join(message.content for message in reply if message.content)


def _numbered(keys: Sequence[Any]) -> list[int]:
    """Equal keys, equal numbers."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


# A run


def evaluate(run: RunDir, say: Say = quiet) -> dict[str, Any] | None:
    """Ask the run's model and its reference, in the run's own arithmetic, and write eval.json and samples.jsonl. Returns what eval.json holds.

    A run without held-out pairs is not evaluated: None. Raises RunError where the run did not end, or its data or its base model are no longer
    those it was trained with.
    """
    recipe, manifest = load_recipe(run.require().recipe), run.read_manifest()
    if not manifest.get("outcome"):
        raise RunError(f"{run.path}: this run has not ended. `likelier train` with the same recipe goes on with it.")
    numerics = manifest["numerics"]
    dtype = getattr(torch, numerics["weights_dtype"])
    full = recipe.train.method == "full"
    loaded = load_trained(run.model, recipe.model, dtype=dtype, **held_as(recipe))
    if not full:
        _require_base(run, manifest, loaded)
    tokenizer = loaded.tokenizer
    encoder = Encoder(tokenizer, chat_template=recipe.model.chat_template, max_length=recipe.data.max_length)
    held_out = _held_out(run, manifest, recipe, encoder)
    if not held_out.records:
        say("Nothing was held out, so there is nothing to evaluate on: set data.eval or data.eval_fraction.")
        return None
    exam = make_exam(recipe, tokenizer, held_out, end_token_id=encoder.end_token_id, say=say)
    arithmetic = {"engine": numerics["engine"], "precision": numerics["precision"], "pad_id": encoder.end_token_id}
    after = ask(exam, Scorer(loaded.model, **arithmetic), say=lambda text: say(f"Tuned model: {text}"))
    if full:
        del loaded  # never two models at once
        loaded = load_model(recipe.model, dtype=dtype)
        _require_base(run, manifest, loaded)
    with as_reference(loaded.model):
        scorer = Scorer(loaded.model, **arithmetic)
        # The one that training filled, if this is the same machinery.
        store = ReferenceStore(cache_dir() / "reference", identity(weights=manifest["model"]["weights"], numerics=numerics_of(scorer)))
        before = ask(exam, scorer, sampled=after.sampled, store=store, say=lambda text: say(f"Reference: {text}"))
    result = compare(exam, before, after)
    write_json(run.eval, result)
    write_jsonl(run.samples, side_by_side(exam, before, after))
    return result


def _require_base(run: RunDir, manifest: dict[str, Any], base: LoadedModel) -> None:
    if fingerprint(base.model) != manifest["model"]["weights"]:
        raise RunError(f"{run.path}: `{base.name}` no longer has the weights that this run began with, so it is not its reference. Put them back.")


def _held_out(run: RunDir, manifest: dict[str, Any], recipe: Recipe, encoder: Encoder) -> Side:
    objective = make_objective(recipe.objective.name, **recipe.objective.given())
    _, held_out = load_sides(recipe.data, encoder, unpaired=not objective.paired)
    if held_out.id != manifest["data"]["eval"]["id"]:
        raise RunError(
            f"{run.path}: the held-out pairs of {', '.join(held_out.sources)} are not those of this run any more (data set {held_out.id[:12]}, "
            f"then {manifest['data']['eval']['id'][:12]}). Put the files back as they were, or train again."
        )
    return held_out
