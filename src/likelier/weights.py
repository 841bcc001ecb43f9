"""Weights as files, without torch: what they are a fingerprint of, and the notes in their headers.

A safetensors file is eight bytes with the length of its header, the header (JSON: name → type, shape, place; notes under `__metadata__`), and the
numbers.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from likelier.atomic import atomic_file
from likelier.errors import ModelError

# Fingerprint


def fingerprint_of(digests: Mapping[str, bytes]) -> str:
    """SHA-256 (hex) of the digests of all weights in the order of their names."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()


def digest(name: str, values: NDArray[np.float32]) -> bytes:
    """SHA-256 over name, shape and fp32 value of one weight."""
    made = hashlib.sha256(f"{name} {values.shape} ".encode())
    made.update(np.ascontiguousarray(values).data)
    return made.digest()


def filed_fingerprint(folder: Path, *, loaded_as: str) -> str | None:
    """What `models.fingerprint` says of the model in `folder` once it is loaded as `bfloat16` or `float32`, worked out from its files alone; None
    where they hold other types of numbers than bf16, fp16, fp32 and fp64.

    Equal where the model's weights are called in the files what they are called in the model, as is usual. A head without weights of its own is
    the embedding. Raises ModelError where there are no files, or damaged ones.
    """
    digests: dict[str, bytes] = {}
    for file in _weight_files(folder):
        for tensor in _read_header(file).tensors:
            if tensor.type not in READERS:
                return None
            values = READERS[tensor.type](np.fromfile(file, np.uint8, tensor.size, offset=tensor.start)).reshape(tensor.shape)
            values = _rounded(values) if loaded_as == "bfloat16" else values
            digests[tensor.name] = digest(tensor.name, values)
            if tensor.name == "model.embed_tokens.weight":
                tied = digest("lm_head.weight", values)
    if "lm_head.weight" not in digests and "model.embed_tokens.weight" in digests:
        digests["lm_head.weight"] = tied
    return fingerprint_of(digests)


def _weight_files(folder: Path) -> list[Path]:
    """The files that a loader takes: `model.safetensors`, or those that the index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return [folder / "model.safetensors"]
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(f"{index}: this index of weight files cannot be read ({problem}).") from None


def _from_bfloat16(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To bf16 and back: to the nearest, ties to the even one."""
    bits = values.view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.where(np.isnan(values), values, nearest.astype(np.uint32).view(np.float32))


READERS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    "BF16": _from_bfloat16,
    "F16": lambda raw: raw.view("<f2").astype(np.float32),
    "F32": lambda raw: raw.view("<f4").astype(np.float32, copy=False),
    "F64": lambda raw: raw.view("<f8").astype(np.float32),
}
"""fp32 values of the raw bytes, by the type that a header names."""


# Headers


class Tensor(NamedTuple):
    name: str
    type: str
    shape: tuple[int, ...]
    start: int  # byte in the file
    size: int  # bytes


class Header(NamedTuple):
    fields: dict[str, Any]
    length: int  # bytes before the numbers

    @property
    def notes(self) -> dict[str, str]:
        return dict(self.fields.get("__metadata__", {}))

    @property
    def tensors(self) -> Iterable[Tensor]:
        for name, field in self.fields.items():
            if name != "__metadata__":
                start, end = field["data_offsets"]
                yield Tensor(name, field["dtype"], tuple(field["shape"]), self.length + start, end - start)


def read_notes(path: Path) -> dict[str, str]:
    """The notes (`__metadata__`) in the header of a safetensors file. Raises ModelError for a file that is none."""
    return _read_header(path).notes


def add_notes(path: Path, notes: Mapping[str, str]) -> None:
    """Put notes into the header of a safetensors file, in a whole new file or not at all; the numbers stay as they are, byte for byte."""
    old = _read_header(path)
    header = json.dumps({**old.fields, "__metadata__": {**old.notes, **notes}}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of eight
    with path.open("rb") as source, atomic_file(path) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        source.seek(old.length)
        shutil.copyfileobj(source, file, 1 << 24)


def _read_header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size - 8:
                raise ValueError("its header is longer than the file")
            header = Header(json.loads(file.read(length)), 8 + length)
        if max((tensor.start + tensor.size for tensor in header.tensors), default=8 + length) != path.stat().st_size:
            raise ValueError("its numbers are cut off")
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file.") from None
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(f"{path}: this is not a whole safetensors file ({problem}).") from None
    return header
