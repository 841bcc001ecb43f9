"""Near-duplicate texts, among millions of them.

    text ──word pairs──▶ a set ──MinHash──▶ signature (128 bytes) ──bands──▶ candidates ──agreeing bytes──▶ groups, matches

How alike two texts are is the Jaccard similarity of their sets of word pairs: shared ones over all. Two signatures agree in about that share of
their bytes, so no text is needed once its signature is made.

Letters: N rows, D different signatures, P candidate pairs, S = 128 slots of a signature.
"""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from likelier.errors import RequestError

SLOTS = 128
SEED = 1
"""Fixes the hash functions: signatures made with another one cannot be compared."""

SIMILAR = 0.8
"""Jaccard similarity from which two texts are near-duplicates, as in Lee et al. 2021, "Deduplicating training data makes language models better"."""

BAND = 6
BANDS = SLOTS // BAND
"""A pair is looked at if all slots of a band agree, in any of 21 bands of 6: 1 − (1 − s⁶)²¹ of the pairs of similarity s, which is 99.8% at 0.8,
93% at 0.7, 29% at 0.5."""

LEAST = 0.7
"""The lowest similarity that may be asked for; below it the bands would miss too many pairs."""

WINDOW = 8
"""How many rows on each side of it a row is compared with in a band's bucket. What bounds the work where a million texts share a template."""

CHUNK = 1 << 16
"""Pairs verified at once."""

Signatures = NDArray[np.uint8] | Sequence[bytes]
"""(N, 128) bytes, or N signatures of 128 bytes."""

_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
"""Runs of characters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, Han. Each character counts as a word."""


def signature(text: str) -> bytes:
    """The 128 bytes that stand for a text: of a MinHash of its word pairs with 128 slots, the lowest byte of each slot.

    Case and the amount of white space do not count. A text of one word is a set of that word; an empty one is a set of the empty word. Keeping a byte
    of each slot is b-bit minwise hashing (Li and König 2010): for the same memory more, smaller slots estimate better than few large ones.
    """
    said = words(text)
    sketch = RMinHash(SLOTS, SEED)
    sketch.update([f"{left} {right}" for left, right in pairwise(said)] or said or [""])
    return np.array(sketch.digest(), "<u4").tobytes()[::4]


def words(text: str) -> list[str]:
    """The words of a text, case folded: what stands between white space, and each character of a script that has none."""
    return spaced(text.casefold()).split()


def spaced(text: str) -> str:
    """The text with spaces around each character of a script that puts none between words."""
    return text if text.isascii() else _UNSPACED.sub(lambda run: f" {' '.join(run[0])} ", text)


def jaccard(left: Signatures, right: Signatures) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of each row of `left` and the same row of `right`.

    Different slots agree in their lowest byte one time in 256, so the share a of agreeing bytes is corrected: (a − 1/256) / (1 − 1/256).
    The standard error is at most 0.044, and about 0.03 at similarity 0.8.
    """
    agreeing_N = np.count_nonzero(_matrix(left) == _matrix(right), axis=1)
    estimated_N: NDArray[np.float64] = np.maximum(0.0, (agreeing_N / SLOTS - 1 / 256) / (1 - 1 / 256))
    return estimated_N


def groups(signatures: Signatures, *, similarity: float = SIMILAR) -> NDArray[np.int64]:
    """For each row the first row of its group: rows hang together if a chain of pairs with at least `similarity` joins them.

    Equals the connected components of all N² pairs with `jaccard ≥ similarity`, but for pairs that share no band (see BANDS) or stand further
    apart than WINDOW in every bucket that they share. The groups depend on the set of signatures alone, not on the order of rows.

    Memory is about 300 bytes a row beside the signatures; time is N log N, whatever the rows hold. Raises RequestError for a similarity below 0.7.
    """
    needed = _slots_needed(similarity)
    rows_NS = _matrix(signatures)
    if not len(rows_NS):
        return np.empty(0, np.int64)
    rows_DS, first_D, different_N = _distinct(rows_NS)
    labels_D = np.arange(len(rows_DS))
    for band in range(BANDS):
        for left_P, right_P in _neighbours(_keys(rows_DS, band)):
            apart = labels_D[left_P] != labels_D[right_P]
            left_P, right_P = left_P[apart], right_P[apart]
            alike = _agreeing(rows_DS, left_P, rows_DS, right_P) >= needed
            labels_D = _joined(labels_D, left_P[alike], right_P[alike])
    lowest_D = np.full(len(rows_DS), len(rows_NS))
    np.minimum.at(lowest_D, labels_D, first_D)
    found: NDArray[np.int64] = lowest_D[labels_D][different_N]
    return found


def matches(queries: Signatures, corpus: Signatures, *, similarity: float = SIMILAR) -> list[tuple[int, int]]:
    """(row of `queries`, the most similar row found in `corpus`) for every query that has one of at least `similarity`, in the queries' order.

    Of corpus rows that are equally similar it is the one whose signature comes first in byte order, and of equal signatures the first row. Raises
    RequestError for a similarity below 0.7.
    """
    needed = _slots_needed(similarity)
    queries_QS, corpus_NS = _matrix(queries), _matrix(corpus)
    if not len(queries_QS) or not len(corpus_NS):
        return []
    rows_DS, first_D, _ = _distinct(corpus_NS)
    best_Q = np.full(len(queries_QS), needed - 1)
    twin_Q = np.full(len(queries_QS), -1)
    for band in range(BANDS):
        keys_D, keys_Q = _keys(rows_DS, band), _keys(queries_QS, band)
        order_D = np.argsort(keys_D, kind="stable")
        keys_D = keys_D[order_D]
        position_Q = np.searchsorted(keys_D, keys_Q)
        for offset in range(-WINDOW, WINDOW + 1):
            at_Q = np.clip(position_Q + offset, 0, len(keys_D) - 1)
            asked_P = np.flatnonzero(_bucket(keys_D[at_Q]) == _bucket(keys_Q))
            found_P = order_D[at_Q[asked_P]]
            agreeing_P = _agreeing(queries_QS, asked_P, rows_DS, found_P)
            better = (agreeing_P > best_Q[asked_P]) | ((agreeing_P == best_Q[asked_P]) & (found_P < twin_Q[asked_P]))
            best_Q[asked_P[better]], twin_Q[asked_P[better]] = agreeing_P[better], found_P[better]
    return [(int(query), int(first_D[twin_Q[query]])) for query in np.flatnonzero(twin_Q >= 0)]


def _slots_needed(similarity: float) -> int:
    """How many of the 128 bytes agree where the estimate reaches `similarity`."""
    if not LEAST <= similarity <= 1:
        raise RequestError(f"similarity is {similarity}; near-duplicates can be looked for from {LEAST} to 1 (equal word pairs).")
    return math.ceil(SLOTS * (similarity + (1 - similarity) / 256) - 1e-9)


def _matrix(signatures: Signatures) -> NDArray[np.uint8]:
    if isinstance(signatures, np.ndarray):
        return signatures
    return np.frombuffer(b"".join(signatures), np.uint8).reshape(len(signatures), SLOTS)


def _distinct(rows_NS: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """(different rows in byte order, first row that holds each, which of them each row is): `np.unique` in less memory."""
    whole_N = np.ascontiguousarray(rows_NS).view(f"V{SLOTS}").ravel()
    order_N = np.argsort(whole_N, kind="stable")
    sorted_N = whole_N[order_N]
    new_N = np.ones(len(order_N), bool)
    new_N[1:] = sorted_N[1:] != sorted_N[:-1]
    different_N = np.empty(len(order_N), np.int64)
    different_N[order_N] = np.cumsum(new_N) - 1
    kept_D = sorted_N if new_N.all() else sorted_N[new_N]
    return kept_D.view(np.uint8).reshape(-1, SLOTS), order_N[new_N], different_N


def _keys(rows_DS: NDArray[np.uint8], band: int) -> NDArray[np.uint64]:
    """The band's six slots as a number's high bytes; the next two slots below them put the most alike of a bucket side by side."""
    eight = np.ascontiguousarray(rows_DS[:, band * BAND : band * BAND + 8])
    return eight.view(">u8").ravel().astype(np.uint64)


def _bucket(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return keys >> np.uint64(16)


def _neighbours(keys_D: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows that share a bucket and stand at most WINDOW apart in it, one array of pairs for each distance."""
    order_D = np.argsort(keys_D, kind="stable")
    buckets_D = _bucket(keys_D[order_D])
    for distance in range(1, WINDOW + 1):
        shared = np.flatnonzero(buckets_D[distance:] == buckets_D[:-distance])
        if not len(shared):
            return
        yield order_D[shared], order_D[shared + distance]


def _agreeing(left_S: NDArray[np.uint8], left_P: NDArray[np.int64], right_S: NDArray[np.uint8], right_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many slots agree, for each pair of a left and a right row."""
    counts_P = np.empty(len(left_P), np.int64)
    for start in range(0, len(left_P), CHUNK):
        chunk = slice(start, start + CHUNK)
        counts_P[chunk] = np.count_nonzero(left_S[left_P[chunk]] == right_S[right_P[chunk]], axis=1)
    return counts_P


def _joined(labels_D: NDArray[np.int64], left_P: NDArray[np.int64], right_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """The labels after the two ends of each pair have become one group."""
    if not len(left_P):
        return labels_D
    count = len(labels_D)
    edges = coo_array((np.ones(len(left_P), bool), (labels_D[left_P], labels_D[right_P])), shape=(count, count))
    components = connected_components(edges, directed=False)[1]
    joined: NDArray[np.int64] = components[labels_D].astype(np.int64)
    return joined
