"""Training and held-out pairs, with every pair of a prompt (or of a group) on one side.

The side is decided by a hash of the prompt itself. Adding rows to a data set therefore moves no old row to the other side, and two data sets that
share a prompt agree about it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence

from likelier.errors import DataError, RecipeError, Refused, did_you_mean
from likelier.records import Messages, Pair


def split_pairs(pairs: Iterable[Pair], *, eval_fraction: float, by: str = "prompt") -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs), each in the order in which they came.

    A prompt (or with `by="group"` a group) is held out if its hash, read as a number in [0, 1), lies below `eval_fraction`; so about that share
    of the prompts is. With two prompts or more and a fraction above 0 neither side stays empty: the prompt with the smallest hash is held out, the
    one with the largest is trained on. Only in sets so small that this matters can a new row move an old one. A single prompt is trained on.

    Split by group, a prompt that stands in several groups may come to stand on both sides: `check_leaks` refuses that.

    Raises RecipeError for a fraction outside [0, 1) or an unknown `by`, and DataError for a pair without a group.
    """
    if not 0 <= eval_fraction < 1:
        raise RecipeError(f"`eval_fraction` is {eval_fraction}; it must lie in [0, 1). 0.1 holds out a tenth of the prompts.")
    if by not in KEYS:
        raise RecipeError(f"`by` is {by!r}.{did_you_mean(by, KEYS)} Pairs are split by {' or '.join(KEYS)}.")
    pairs = list(pairs)
    shares = [_share(KEYS[by](pair)) for pair in pairs]
    smallest, largest = min(shares, default=0.0), max(shares, default=0.0)
    if smallest == largest or eval_fraction == 0:
        return pairs, []
    threshold = min(max(eval_fraction, smallest), largest)
    held_out = [share < threshold or share == smallest for share in shares]
    return [pair for pair, out in zip(pairs, held_out, strict=True) if not out], [pair for pair, out in zip(pairs, held_out, strict=True) if out]


def leaked(train: Sequence[Pair], held_out: Sequence[Pair]) -> list[tuple[str, str]]:
    """(held-out id, id of the first training pair with the same prompt) for every held-out pair whose prompt is trained on."""
    trained: dict[str, str] = {}
    for pair in train:
        trained.setdefault(prompt_key(pair.prompt), pair.id)
    keyed = ((pair.id, prompt_key(pair.prompt)) for pair in held_out)
    return [(name, trained[key]) for name, key in keyed if key in trained]


def check_leaks(train: Sequence[Pair], held_out: Sequence[Pair]) -> None:
    """Raises Refused, naming the pairs, if a held-out prompt is also trained on: accuracy on it would measure memory."""
    leaks = leaked(train, held_out)
    if leaks:
        named = ", ".join(f"{name or 'a pair without id'} (trained on as {twin or 'a pair without id'})" for name, twin in leaks[:5])
        more = f" and {len(leaks) - 5} more" if len(leaks) > 5 else ""
        raise Refused(
            f"{len(leaks)} of {len(held_out)} held-out pairs have a prompt that is also trained on: {named}{more}. "
            "Held-out accuracy would measure memory. Remove them from one side, or let `likelier split` make the split."
        )


def prompt_key(prompt: Messages) -> str:
    """The whole prompt as one text in which case and white space do not count: equal keys, same prompt."""
    return json.dumps([(message.role, " ".join(message.content.split()).casefold(), dict(message.extra)) for message in prompt], sort_keys=True)


def _group(pair: Pair) -> str:
    if pair.group is None:
        raise DataError(
            f"Pair {pair.id or '(without id)'} has no `group`, so the set cannot be split by group. Give every pair one, or split by prompt."
        )
    return pair.group


KEYS: dict[str, Callable[[Pair], str]] = {"prompt": lambda pair: prompt_key(pair.prompt), "group": _group}
"""What is kept on one side, by name."""


def _share(key: str) -> float:
    """A number in [0, 1), spread evenly over keys: the first 53 bits of SHA-256, as many as a float holds."""
    return (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 11) / 2**53
