"""Training and held-out records, with what hangs together on one side: equal and near-duplicate prompts, and the rows of one group or other field.

The side is decided by a hash of the content: each prompt (or value of the field) has a number in [0, 1), its share. Prompts that hang together form a
family, and a family is held out if the shares of all its members lie below the fraction asked for. So whatever rows are added,

- no trained-on row becomes held out,
- a held-out row becomes trained on only if an added near-duplicate (or a row that joins its family to another) belongs there.

Both sides of a family cannot stay where they were when a row joins them; this way round no model is ever judged by what it was trained on. Only in
sets (and strata) so small that every share lies on one side of the fraction does more move: there neither side is left empty.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import compress
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from likelier.data.near import SLOTS, groups, matches, signature, words
from likelier.errors import DataError, RecipeError, did_you_mean
from likelier.records import Messages, Record

R = TypeVar("R", bound=Record)

FIELDS = ("group", "source", "annotator", "reason")
"""Fields that rows can be kept together by, besides `prompt` and `meta.NAME`."""

FEW_WORDS = 5
"""A prompt of fewer words is no near-duplicate of any but an equal one: "hi" to one system prompt says nothing about "hi" to another."""


def split_pairs(pairs: Iterable[R], *, eval_fraction: float, by: str = "prompt", stratify: str | None = None) -> tuple[list[R], list[R]]:
    """(training records, held-out records), each in the order in which they came; `held_out` says which is which."""
    pairs = list(pairs)
    out = held_out(pairs, eval_fraction=eval_fraction, by=by, stratify=stratify)
    return list(compress(pairs, ~out)), list(compress(pairs, out))


def held_out(records: Iterable[Record], *, eval_fraction: float, by: str = "prompt", stratify: str | None = None) -> NDArray[np.bool_]:
    """For each record whether it is held out, in one pass over them; about 800 bytes are kept of each prompt.

    `by` is `prompt`, `group`, `source`, `annotator`, `reason` or `meta.NAME`: rows with the same value stay together, and so do rows with equal or
    near-duplicate prompts. About `eval_fraction` of the prompts (or values) that stand alone are held out, fewer of those that have near-duplicates.

    With two families or more and a fraction above 0 neither side stays empty: the family with the smallest share is held out if none would be, the
    one with the largest is trained on. `stratify` is such a field too: then this holds among the rows of each of its values. A single family is
    trained on.

    Raises RecipeError for a fraction outside [0, 1) or an unknown field, and DataError for a row that has no value to keep it together by.
    """
    if not 0 <= eval_fraction < 1:
        raise RecipeError(f"`eval_fraction` is {eval_fraction}; it must lie in [0, 1). 0.1 holds out a tenth of the prompts.")
    key_of = _reader("by", by, required=True)
    stratum_of = _reader("stratify", stratify, required=False) if stratify else lambda _: ""
    keys, prompts, strata = _Numbered(), _Numbered(), _Numbered()
    signatures = bytearray()
    for record in records:
        keys.add(key_of(record))
        strata.add(stratum_of(record))
        if prompts.add(prompt_key(record.prompt)):
            signatures += prompt_signature(record.prompt)
    if not eval_fraction or not keys.row_numbers:
        return np.zeros(len(keys.row_numbers), bool)
    rows_PS = np.frombuffer(signatures, np.uint8).reshape(-1, SLOTS)
    keys_N, prompts_N, strata_N = (np.array(numbered.row_numbers) for numbered in (keys, prompts, strata))
    families_N = _families(keys_N, groups(rows_PS)[prompts_N])
    shares_F = np.zeros(families_N.max() + 1)
    np.maximum.at(shares_F, families_N, np.array(keys.shares)[keys_N])
    out_F = _with_both_sides(shares_F < eval_fraction, shares_F, families_N, strata_N)
    return _without_leaks(out_F, families_N, rows_PS, prompts_N)[families_N]


def prompt_key(prompt: Messages) -> str:
    """The whole prompt as one text in which case and white space do not count: equal keys, same prompt."""
    return json.dumps([(message.role, " ".join(message.content.split()).casefold(), dict(message.extra)) for message in prompt], sort_keys=True)


def prompt_signature(prompt: Messages) -> bytes:
    """What near-duplicate prompts are found by: the signature (see `near.py`) of all that is said in it but by the system.

    Hundreds of rows may share a long system prompt and have nothing else in common. Where fewer than 5 words are said, it is that of the whole
    prompt as a single word.
    """
    said = "\n".join(message.content for message in prompt if message.role not in ("system", "developer"))
    return signature(said if len(words(said)) >= FEW_WORDS else "_".join(prompt_key(prompt).split()))


class _Numbered:
    """Texts numbered as they come, each with its share; `row_numbers` has one number a row."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}
        self.shares: list[float] = []
        self.row_numbers: list[int] = []

    def add(self, text: str) -> bool:
        """Whether the next row's text is a new one."""
        digest = hashlib.sha256(text.encode()).digest()
        number = self.numbers.setdefault(digest[:16], len(self.numbers))
        self.row_numbers.append(number)
        if number < len(self.shares):
            return False
        self.shares.append((int.from_bytes(digest[:8]) >> 11) / 2**53)  # in [0, 1), as many bits as a float holds
        return True


def _reader(setting: str, name: str, *, required: bool) -> Callable[[Record], str]:
    """What reads the text of field `name`. Raises RecipeError for a name that no record has; the reader raises DataError where it is missing."""
    if name == "prompt":
        return lambda record: prompt_key(record.prompt)
    if name not in FIELDS and not name.startswith("meta."):
        known = ("prompt", *FIELDS)
        raise RecipeError(f"`{setting}` is {name!r}.{did_you_mean(name, known)} Rows are split by {', '.join(known)} or meta.NAME.")

    def read(record: Record) -> str:
        value = getattr(record, name) if name in FIELDS else record.meta.get(name.removeprefix("meta."))
        if value is None and required:
            raise DataError(
                f"Row {record.id or '(without id)'} has no `{name}`, so the set cannot be split by it. Give every row one, or split by prompt."
            )
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True)

    return read


def _families(keys_N: NDArray[np.int64], prompts_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row the number of its family: rows hang together that share a key or a group of prompts, and so does what these share."""
    keys, prompts = int(keys_N.max()) + 1, int(prompts_N.max()) + 1
    edges = coo_array((np.ones(len(keys_N), bool), (keys_N, keys + prompts_N)), shape=(keys + prompts, keys + prompts))
    families_N: NDArray[np.int64] = np.unique(connected_components(edges, directed=False)[1][keys_N], return_inverse=True)[1]
    return families_N


def _with_both_sides(
    out_F: NDArray[np.bool_], shares_F: NDArray[np.float64], families_N: NDArray[np.int64], strata_N: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """`out_F` with as few families moved as give each stratum a held-out one, if it has two, and then each a trained-on one."""
    members = np.unique(strata_N * len(out_F) + families_N)  # stratum and family as one number
    strata = np.split(members % len(out_F), np.flatnonzero(np.diff(members // len(out_F))) + 1)
    out_F[[family[shares_F[family].argmin()] for family in strata if len(family) > 1 and not out_F[family].any()]] = True
    out_F[[family[shares_F[family].argmax()] for family in strata if out_F[family].all()]] = False
    return out_F


def _without_leaks(
    out_F: NDArray[np.bool_], families_N: NDArray[np.int64], rows_PS: NDArray[np.uint8], prompts_N: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """`out_F` after families went to the training side whose prompts `groups` kept apart from it and `matches`, which checks for leaks, does not."""
    family_P = np.empty(len(rows_PS), np.int64)
    family_P[prompts_N] = families_N
    while out_F.any():
        out, trained = np.flatnonzero(out_F[family_P]), np.flatnonzero(~out_F[family_P])
        leaks = [query for query, _ in matches(rows_PS[out], rows_PS[trained])]
        if not leaks:
            break
        out_F[family_P[out[leaks]]] = False
    return out_F
