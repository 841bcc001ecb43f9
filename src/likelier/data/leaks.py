"""Prompts that stand on both sides of a split, as they are or nearly so: what makes held-out accuracy measure memory."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from likelier.data.near import SIMILAR, jaccard, matches
from likelier.data.split import prompt_key, prompt_signature
from likelier.errors import Refused
from likelier.records import Record

NAMED = 5
"""How many leaks of a kind an error names."""


class Leak(NamedTuple):
    """A held-out record whose prompt is trained on."""

    held_out: str  # its id
    trained: str  # id of the training record with the same prompt, or with the most similar one
    exact: bool  # the same prompt but for case and white space, or a near-duplicate?
    similarity: float  # estimated share of word pairs that both prompts have; 1 where exact


def leaked(train: Iterable[Record], held_out: Iterable[Record], *, similarity: float = SIMILAR) -> list[Leak]:
    """One Leak for every held-out record whose prompt is trained on, in their order; exact before near where a prompt has both.

    Near is what `near.matches` finds among the prompts' signatures: 998 of 1,000 at similarity 0.8. Goes over each side once; keeps about 300 bytes
    of each training record. Raises RequestError for a similarity outside [0.7, 1].
    """
    asked = [(record.id, prompt_key(record.prompt), prompt_signature(record.prompt)) for record in held_out]
    twins: dict[str, str | None] = dict.fromkeys(key for _, key, _ in asked)
    names, signatures = [], []
    for record in train:
        names.append(record.id)
        signatures.append(prompt_signature(record.prompt))
        key = prompt_key(record.prompt)
        if key in twins and twins[key] is None:
            twins[key] = record.id
    near = dict(matches([made for *_, made in asked], signatures, similarity=similarity))
    leaks = []
    for number, (name, key, made) in enumerate(asked):
        exact = twins[key]
        if exact is not None:
            leaks.append(Leak(name, exact, True, 1.0))
        elif number in near:
            leaks.append(Leak(name, names[near[number]], False, float(jaccard([made], [signatures[near[number]]])[0])))
    return leaks


def check_leaks(train: Sequence[Record], held_out: Sequence[Record]) -> None:
    """Raises Refused, naming records, if a held-out prompt or a near-duplicate of it is also trained on."""
    leaks = leaked(train, held_out)
    if not leaks:
        return
    exact, near = [leak for leak in leaks if leak.exact], [leak for leak in leaks if not leak.exact]
    kinds = [
        f"{len(exact)} of {len(held_out)} held-out records have a prompt that is also trained on: {_named(exact)}" if exact else "",
        f"{len(near)} of {len(held_out)} held-out records have a prompt of which a near-duplicate is trained on "
        f"(at least {SIMILAR:.0%} of the word pairs in common): {_named(near)}"
        if near
        else "",
    ]
    raise Refused(
        f"{'. '.join(filter(None, kinds))}. Held-out accuracy would measure memory. "
        "Remove them from one side, or let `likelier split` make the split."
    )


def _named(leaks: Sequence[Leak]) -> str:
    named = ", ".join(f"{leak.held_out or 'a record without id'} (trained on as {leak.trained or 'a record without id'})" for leak in leaks[:NAMED])
    return named + (f" and {len(leaks) - NAMED} more" if len(leaks) > NAMED else "")
