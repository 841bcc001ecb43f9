"""What a run will be, by counting and arithmetic alone: `train` says it before it begins, and `plan` tries it out."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from likelier.examples import Example, LabelledExample
from likelier.logprobs.examples import cut_examples, mismatched, replies_of, sequences_of
from likelier.logprobs.reference import ReferenceStore
from likelier.logprobs.tree import PromptResponse, count_unique_tokens
from likelier.model_files import cache_dir
from likelier.models import count_parameters, trainable
from likelier.recipe import TrainSettings
from likelier.section import Recomputing
from likelier.train.advice import Advice, Facts, advise, facts_of, gigabytes
from likelier.train.memory import BatchSize, Part, added, estimate, free, takes_less, weights_bytes
from likelier.train.optimizer import expected_state_bytes
from likelier.train.order import ExampleOrder
from likelier.train.progress import Progress

if TYPE_CHECKING:
    from likelier.train.session import Prepared

KEY_BYTES = 36
"""What the reference store keeps of a sequence beside 4 bytes a token."""

ADVICE_TOLD = 2
"""Pieces of advice that `train` gives; `plan` gives all."""


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, as `train` will take them."""

    steps: int
    epochs: float
    pairs_per_step: int
    fewest_batches: int  # in a step
    most_batches: int
    tokens: int  # unique, with gradient, in the whole run
    tokens_unshared: int  # the same if every reply brought its own prompt
    largest_batch: int  # unique tokens
    largest_example: int
    evaluations: int
    tokens_scored: int  # without gradient: evaluations, and KTO's mismatched replies


@dataclass(frozen=True)
class Reference:
    """The reference pass: what the store has, and what it lacks."""

    sequences: int
    in_store: int
    tokens: int  # unique ones of what is lacking
    bytes: int  # that these will add to the store


@dataclass(frozen=True)
class Outlook:
    """A run before anything is tried. `lengths` are tokens of prompt, chosen and rejected replies of the training records."""

    lengths: dict[str, dict[str, float]]
    records: int
    dropped: dict[str, str]  # id → reason, training records
    schedule: Schedule
    reference: Reference | None
    memory: tuple[Part, ...]
    memory_free: int
    disk: dict[str, int]  # bytes of a checkpoint, of the best one, of the model, and the most at one time
    facts: Facts

    @property
    def memory_total(self) -> int:
        return sum(part.bytes for part in self.memory)

    @property
    def advice(self) -> list[Advice]:
        return advise(self.facts)


def outlook(prepared: "Prepared", store: ReferenceStore | None) -> tuple[Outlook, list[list[Example]]]:
    """The outlook of a run, and the batches of all its steps, in their order."""
    settings, policy = prepared.recipe.train, prepared.policy
    order = ExampleOrder(prepared.train.examples, settings)
    steps = [cut_examples(order.step(step), settings.tokens_per_batch) for step in range(order.steps)]
    batches = [batch for step in steps for batch in step]
    schedule = _schedule(order, steps, prepared.held_out.examples, settings, pads=policy.engine == "plain")
    largest = max(batches, key=lambda batch: batch_tokens(batch, pads=policy.engine == "plain"))
    worst = BatchSize(schedule.largest_batch, sum(len(reply) for example in largest for reply in example.replies))

    def memory_of(changed: TrainSettings) -> list[Part]:
        return estimate(policy.model, changed, engine=policy.engine, precision=policy.precision, batch=worst)

    memory = memory_of(settings)
    with_less = {how: added(memory_of(settings.model_copy(update={"gradient_checkpointing": how}))) for how in takes_less(settings, policy.device)}
    reference = None if store is None else _reference(store, [*prepared.train.examples, *prepared.held_out.examples])
    memory_free, disk = free(policy.device), _disk(prepared)
    facts = _facts(prepared, schedule, reference, memory, memory_free, disk, with_less)
    summary = prepared.train.summary()
    dropped = {each["id"]: each["reason"] for each in summary["dropped"]}
    return Outlook(summary["tokens"], facts.records, dropped, schedule, reference, tuple(memory), memory_free, disk, facts), batches


def announce(prepared: "Prepared", store: ReferenceStore | None, show: Progress) -> None:
    """Say in at most five lines what is about to begin."""
    for line in essence(outlook(prepared, store)[0]):
        show.say(line)


def essence(seen: Outlook) -> list[str]:
    """Lengths and steps; memory; the reference pass; the weightiest advice."""
    lengths = ", ".join(f"{name} {length['mean']:.0f}" for name, length in seen.lengths.items())
    schedule, reference = seen.schedule, seen.reference
    lines = [
        f"Plan: {seen.records:,} records in {count(schedule.steps, 'step')} of {schedule.pairs_per_step}; mean tokens {lengths}; "
        f"{schedule.tokens:,} to go through the model.",
        f"Memory, by arithmetic: {gigabytes(seen.memory_total)}, most of it {_most(seen.memory)}; {gigabytes(seen.memory_free)} more are free.",
    ]
    if reference is not None:
        lines.append(f"Reference: {in_store(reference)}" + (f"; {reference.tokens:,} tokens to score." if reference.tokens else "."))
    told = seen.advice[: ADVICE_TOLD if reference is not None else ADVICE_TOLD + 1]
    lines += [f"Advice: {advice.reason} → {advice.change}" for advice in told]
    if more := len(seen.advice) - len(told):
        lines[-1] += f" ({more} more: likelier plan)"
    return lines


def in_store(reference: Reference) -> str:
    """ "already in store: 431 of 862"."""
    return f"already in store: {reference.in_store:,} of {reference.sequences:,}"


def count(number: int, what: str) -> str:
    """ "1 step", "2,000 batches"."""
    return f"{number:,} {what if number == 1 else what + ('es' if what.endswith('ch') else 's')}"


def batch_tokens(batch: Sequence[Example], *, pads: bool) -> int:
    """What a batch puts through the model: unique tokens; where the engine pads, rows times the longest."""
    sequences = sequences_of(batch)
    return len(sequences) * max(map(_length, sequences)) if pads else count_unique_tokens(sequences)


def _schedule(order: ExampleOrder, steps: list[list[list[Example]]], held_out: Sequence[Example], settings: TrainSettings, *, pads: bool) -> Schedule:
    sizes = [batch_tokens(batch, pads=pads) for step in steps for batch in step]
    taken = [example for step in steps for batch in step for example in batch]
    evaluations = 0 if not held_out else sum(1 for n in range(1, len(steps)) if settings.eval_every and n % settings.eval_every == 0) + 1
    an_evaluation = sum(batch_tokens(batch, pads=pads) for batch in cut_examples(held_out, settings.tokens_per_batch)) if held_out else 0
    return Schedule(
        steps=order.steps,
        epochs=order.epochs_at(order.steps),
        pairs_per_step=order.per_step,
        fewest_batches=min(map(len, steps)),
        most_batches=max(map(len, steps)),
        tokens=sum(sizes),
        tokens_unshared=sum(_length(sequence) for sequence in sequences_of(taken)),
        largest_batch=max(sizes),
        largest_example=max(count_unique_tokens(replies_of(example)) for example in order.examples),
        evaluations=evaluations,
        tokens_scored=evaluations * (an_evaluation + count_unique_tokens(mismatched(held_out))) + sum(map(_length, mismatched(taken))),
    )


def _reference(store: ReferenceStore, examples: Sequence[Example]) -> Reference:
    wanted = dict.fromkeys([*sequences_of(examples), *mismatched(examples)])
    lacking = [sequence for sequence in wanted if sequence not in store]
    values = 4 * sum(len(sequence.response_ids) for sequence in lacking) + KEY_BYTES * len(lacking)
    return Reference(len(wanted), len(wanted) - len(lacking), count_unique_tokens(lacking), values)


def _disk(prepared: "Prepared") -> dict[str, int]:
    """Bytes of a checkpoint (weights as the optimizer changes them, and its state), of the best weights, of the model, and the most that stands
    there at one time: a checkpoint is whole before the one before it goes."""
    settings, changed = prepared.recipe.train, list(trainable(prepared.policy.model).values())
    held = sum(p.nbytes for p in changed)
    weights = held if settings.bf16_weights == "stochastic-rounding" else 4 * sum(p.numel() for p in changed)
    saved = weights_bytes(prepared.policy.model) if settings.method == "full" else held
    checkpoint = weights + expected_state_bytes([p.numel() for p in changed], settings) if settings.checkpoint_every else 0
    best = weights if prepared.held_out.examples else 0
    return {"checkpoint": checkpoint, "best": best, "model": saved, "most": best + max(2 * checkpoint, checkpoint + saved)}


def _facts(
    prepared: "Prepared",
    schedule: Schedule,
    reference: Reference | None,
    memory: list[Part],
    memory_free: int,
    disk: dict[str, int],
    with_less: dict[Recomputing, int],
) -> Facts:
    recipe, train = prepared.recipe, prepared.train
    labels = [example.label for example in train.examples if isinstance(example, LabelledExample)]
    lengths = train.summary()["tokens"]
    return facts_of(
        recipe,
        prepared.objective,
        precision=prepared.policy.precision,
        epochs=schedule.epochs,
        steps=schedule.steps,
        pairs=len(train.pairs),
        good=sum(labels),
        bad=len(labels) - sum(labels),
        margins=sum(pair.margin is not None for pair in train.pairs),
        longest=schedule.largest_example,
        too_long=sum("data.max_length" in dropped.reason for dropped in train.encoded.dropped),
        chosen_length=lengths["chosen"]["mean"] if "chosen" in lengths else None,
        rejected_length=lengths["rejected"]["mean"] if "rejected" in lengths else None,
        findings={finding["check"]: finding["verdict"] for finding in prepared.audit["findings"]},
        parameters=count_parameters(prepared.policy.model),
        has_template=bool(getattr(prepared.loaded.tokenizer, "chat_template", None)),
        memory_needed=added(memory),
        memory_free=memory_free,
        memory_recomputing=with_less,
        reference_bytes=reference.bytes if reference else 0,
        disk_bytes=disk["most"],
        cache_free=_free_on_disk(cache_dir()),
        disk_free=_free_on_disk(Path(recipe.out)),
    )


def _free_on_disk(path: Path) -> int:
    """Bytes free where `path` is or would be."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _most(memory: Sequence[Part]) -> str:
    first, second = sorted(memory, key=lambda part: -part.bytes)[:2]
    return f"{first.name} {gigabytes(first.bytes)} and {second.name} {gigabytes(second.bytes)}"


def _length(sequence: PromptResponse) -> int:
    return len(sequence.prompt_ids) + len(sequence.response_ids)
