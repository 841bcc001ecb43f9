"""The reference's per-token log-probabilities, computed once and kept on disk.

A value depends on the reference's weights, the token ids and the arithmetic, and is found by exactly these: β, learning rates, output folders
and objectives share it, and so do runs and sweeps at the same time. Kept per token, so that every objective can sum or cut it its own way.

On disk, one folder an identity (weights + numerics), holding immutable chunks:

    <root>/<identity>/<sha256 of the file>.safetensors      keys (n, 32) uint8 · lengths (n,) int32 · values (N,) float32

What a chunk promises says chunks.py.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from likelier.chunks import Chunks
from likelier.four_bits import quantisation
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.models import weights_dtype

FLUSH_TOKENS = 1 << 15
"""Values kept in memory before a chunk is written: what a kill can cost."""


def identity(*, weights: str, numerics: dict[str, Any]) -> str:
    """The name of a reference: its weights' fingerprint and everything about the arithmetic that alters its numbers. Hex."""
    return hashlib.sha256(json.dumps({"weights": weights, **numerics}, sort_keys=True).encode()).hexdigest()[:32]


def numerics_of(scorer: Scorer, device: torch.device | None = None) -> dict[str, Any]:
    """Everything about the arithmetic that alters what `scorer` finds, beside the weights: it and the packages as they are here and now. `device`:
    where it will compute, if it is not there yet."""
    packed = quantisation(scorer.model)
    dtype = str(weights_dtype(scorer.model)).removeprefix("torch.")
    return numerics(precision=scorer.precision, weights_dtype=dtype, engine=scorer.engine, device=device or scorer.device, packed=packed)


def numerics(*, precision: str, weights_dtype: str, engine: str, device: torch.device, packed: Any = None) -> dict[str, Any]:
    """The same of a model that is not loaded."""
    return {
        "precision": precision,
        "weights_dtype": weights_dtype,
        **({"quantisation": packed} if packed else {}),
        **({"layers": "fused"} if device.type == "cuda" else {}),  # logprobs/fused.py
        "device": device.type,
        "engine": engine,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def key_of(sequence: PromptResponse) -> bytes:
    """SHA-256 of the ids: what a value is filed under."""
    digest = hashlib.sha256(len(sequence.prompt_ids).to_bytes(8, "little"))
    digest.update(array("q", sequence.prompt_ids + sequence.response_ids).tobytes())
    return digest.digest()


class ReferenceValues:
    """Values of one reference, in memory alone."""

    def __init__(self) -> None:
        self._values: dict[bytes, np.ndarray] = {}

    def __contains__(self, sequence: PromptResponse) -> bool:
        return key_of(sequence) in self._values

    def __getitem__(self, sequence: PromptResponse) -> Tensor:
        """(L,) fp32 reference log-probabilities of the response's tokens. KeyError if never added."""
        return torch.from_numpy(self._values[key_of(sequence)])

    def add(self, sequence: PromptResponse, values_L: Tensor) -> None:
        """Keep a value."""
        self._values[key_of(sequence)] = values_L.detach().to("cpu", torch.float32).numpy().copy()

    def flush(self) -> None:
        """Nothing waits to be written."""

    def packed(self, keys: Sequence[bytes] | None = None) -> dict[str, np.ndarray]:
        """The values under `keys`, or all, as the three arrays of a chunk."""
        keys = list(self._values) if keys is None else keys
        return {
            "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32).copy(),
            "lengths": np.array([len(self._values[key]) for key in keys], np.int32),
            "values": np.concatenate([np.empty(0, np.float32), *(self._values[key] for key in keys)]),
        }

    def unpack(self, chunk: Mapping[str, np.ndarray]) -> None:
        """Keep the values of a chunk."""
        stops = np.cumsum(chunk["lengths"])
        for key, stop, length in zip(chunk["keys"], stops, chunk["lengths"], strict=True):
            self._values[key.tobytes()] = chunk["values"][stop - length : stop]

    def digest(self, sequences: Iterable[PromptResponse]) -> str:
        """SHA-256 (hex) of the values of `sequences`: taken before and after a run, it shows that the reference did not move."""
        digest = hashlib.sha256()
        for key in sorted({key_of(sequence) for sequence in sequences}):
            digest.update(key + self._values[key].tobytes())
        return digest.hexdigest()


class ReferenceStore(ReferenceValues):
    """Values of one reference, read from and added to disk. Opening reads and verifies every chunk of that reference."""

    def __init__(self, root: Path, reference: str) -> None:
        super().__init__()
        self.folder = root / reference
        self._chunks = Chunks(self.folder, "safetensors")
        self._fresh: list[bytes] = []
        self._fresh_tokens = 0
        for content in self._chunks.read():
            self.unpack(load(content))

    @property
    def damaged(self) -> list[Path]:
        """Chunks that opening has set aside."""
        return self._chunks.damaged

    def add(self, sequence: PromptResponse, values_L: Tensor) -> None:
        """Keep a value; it reaches the disk with the next flush."""
        super().add(sequence, values_L)
        self._fresh.append(key_of(sequence))
        self._fresh_tokens += values_L.numel()
        if self._fresh_tokens >= FLUSH_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last flush as one chunk. Raises RunError if the disk does not take it."""
        if not self._fresh:
            return
        self._chunks.write(save(self.packed(self._fresh)))
        self._fresh, self._fresh_tokens = [], 0

    def forget(self, sequences: Iterable[PromptResponse]) -> None:
        """Let go of values that are on disk: who scores more than memory holds keeps none of them."""
        for sequence in sequences:
            self._values.pop(key_of(sequence), None)


def fill(
    store: ReferenceValues,
    scorer: Scorer,
    sequences: Iterable[PromptResponse],
    *,
    tokens_per_batch: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    until: Callable[[Iterator[Any]], Iterable[Any]] = iter,
) -> int:
    """Score with `scorer`, which must be in its reference state, what the store lacks of `sequences`. Returns how many that were.

    `on_progress(done, total)` counts sequences. What was scored before an interruption stays; `until` may end it early, at a batch.
    """
    missing = [sequence for sequence in dict.fromkeys(sequences) if sequence not in store]
    done = 0
    try:
        with scorer.unchanged_weights():
            for indices, values in until(scorer.score_all(missing, tokens_per_batch=tokens_per_batch)):
                for i, values_L in zip(indices, values, strict=True):
                    store.add(missing[i], values_L)
                done += len(indices)
                on_progress(done, len(missing))
    finally:
        store.flush()
    return len(missing)
