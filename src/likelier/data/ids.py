"""Texts ⇄ token ids, many at once."""

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likelier.data.rendering import Tokenizer
from likelier.examples import Ids


class TextIds:
    """Ids of texts, and texts of ids, with one tokenizer: nothing is added, cut, padded or cleaned up.

    Both equal what `tokenizer(texts, add_special_tokens=False)` and `tokenizer.batch_decode(ids)` give. Where a Rust tokenizer does all of the work
    it is asked itself: it works on all cores both ways, and leaves out the offsets that nobody reads.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._backend = plain_backend(tokenizer)
        self._ints = SharedInts()

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text."""
        if not texts:
            return []
        if self._backend is None:
            found = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        else:
            found = [encoding.ids for encoding in settled(self._backend, self._tokenizer).encode_batch_fast(texts, add_special_tokens=False)]
        lengths = [*map(len, found)]
        return self._ints.cut(np.fromiter(chain.from_iterable(found), np.int32, sum(lengths)), lengths)

    def texts(self, sequences: Sequence[Ids]) -> list[str]:
        """What each sequence of ids spells."""
        if not sequences:
            return []
        if self._backend is None:
            return list(self._tokenizer.batch_decode([*map(list, sequences)], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return list(self._backend.decode_batch(sequences, skip_special_tokens=False))


class SharedInts:
    """Arrays of ids → tuples that share one int object an id: 8 bytes a token, where Python would make an int of 28 bytes for each."""

    def __init__(self) -> None:
        self._table = np.empty(0, object)

    def cut(self, values: NDArray[np.int32], lengths: Sequence[int]) -> list[Ids]:
        """`values` (N,) in pieces of `lengths`, which add up to N."""
        if values.size and values.max() >= len(self._table):
            self._table = np.arange(max(int(values.max()) + 1, 2 * len(self._table))).astype(object)
        shared = tuple(self._table[values].tolist())
        return [shared[start:stop] for start, stop in pairwise(accumulate(lengths, initial=0))]


TRANSFORMERS = ("transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers")
METHODS = ("__call__", "_encode_plus", "batch_decode", "decode", "_decode", "apply_chat_template", "get_chat_template")


def plain_backend(tokenizer: Any) -> Any:
    """The Rust tokenizer that does all of `tokenizer`'s work; None where there is none, or where a class adds Python of its own to what it does."""
    methods = [getattr(type(tokenizer), name, None) for name in METHODS]
    return getattr(tokenizer, "backend_tokenizer", None) if all(getattr(method, "__module__", "") in TRANSFORMERS for method in methods) else None


def settled(backend: Any, tokenizer: Any) -> Any:
    """`backend`, without what the last call of `tokenizer` has set in it, whoever made it."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend
