"""Versions of a data set: its id, which is a hash of its content, and what is written beside its file.

NAME                    the records, as convert, split or fix write them
NAME.manifest.json      id, parents, the step that made it, counts, hash of the file, audit, Likelier's version, date
NAME.croissant.json     the same for other tools: Croissant metadata (see croissant.py)
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from likelier.atomic import atomic_file
from likelier.data.croissant import croissant
from likelier.data.files import SCHEMES
from likelier.data.formats import OnBad, read_records, stop, write_records
from likelier.data.split import held_out, prompt_key
from likelier.errors import DataError, Refused, RequestError
from likelier.hashing import file_hash
from likelier.records import EXTRAS, Pair, Record, content_hash


class Counts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: int
    unpaired: int
    prompts: int  # different ones

    def __str__(self) -> str:
        amounts = ((self.pairs, "pair"), (self.unpaired, "unpaired record"))
        return " and ".join(f"{count:,} {unit}{'' if count == 1 else 's'}" for count, unit in amounts if count) or "nothing"


class Manifest(BaseModel):
    """What NAME.manifest.json says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str  # as `dataset_id` has it
    parents: tuple[str, ...]  # ids of the data sets that it was made of
    step: str  # how: "split eval 0.1 by prompt"
    counts: Counts
    fields: tuple[str, ...]  # that any record has
    files: dict[str, str]  # name: SHA-256 of its bytes
    audit: str | None = None  # hash of its newest audit
    likelier: str
    created: str


class Check(NamedTuple):
    """One thing that `verify` looked at."""

    what: str
    verdict: Literal["holds", "differs", "not checked"]
    detail: str = ""  # what was said and what was found, or why it was not checked


def dataset_id(records: Iterable[Record]) -> str:
    """SHA-256 (64 hex digits) of the content of all records, whatever their order, ids and files.

    Equal multisets of records, equal id: a record that stands twice counts twice. It is the root of a Merkle tree as in RFC 6962, section 2.1, over
    the records' content hashes (32 bytes each) in ascending order:

        leaf   = SHA-256(0x00 ‖ content hash)
        inner  = SHA-256(0x01 ‖ left ‖ right)     neighbours joined level by level; an odd last one moves up as it is
        empty  = SHA-256(nothing)

    A tree and not one long hash, so that one record can be shown to belong to a data set without handing out the others.
    """
    account = Account()
    for _ in account.watch(records):
        pass
    return account.id


def id_of_hashes(contents: NDArray[np.void]) -> str:
    """`dataset_id` of records whose content hashes (V32 each) are known, in any order."""
    return _merkle_root(np.sort(contents).tobytes()).hex()


class Account:
    """What a manifest says of records, noted while they stream by: 48 bytes a record are kept."""

    def __init__(self) -> None:
        self._contents = bytearray()  # 32 bytes a record
        self._prompts = bytearray()  # 16 bytes a record
        self._pairs = 0
        self._fields: set[str] = set()

    def note(self, record: Record) -> None:
        self._contents += bytes.fromhex(content_hash(record))
        self._fields.update(record.as_dict())
        self._prompts += _sha256(prompt_key(record.prompt).encode())[:16]
        self._pairs += isinstance(record, Pair)

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """The same records, each noted."""
        for record in records:
            self.note(record)
            yield record

    @property
    def id(self) -> str:
        return id_of_hashes(np.frombuffer(self._contents, "V32"))

    @property
    def counts(self) -> Counts:
        prompts = len(np.unique(np.frombuffer(self._prompts, "V16")))
        return Counts(pairs=self._pairs, unpaired=len(self._contents) // 32 - self._pairs, prompts=prompts)

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(name for name in ("prompt", "chosen", "rejected", "completion", "label", *EXTRAS) if name in self._fields)


def write_version(path: str | Path, records: Iterable[Record], *, parents: Sequence[str], step: str, on_bad: OnBad = stop) -> Manifest:
    """Write records as `.jsonl`, `.jsonl.gz` or `.parquet`, and their manifest and Croissant metadata beside them; each file whole or not at all.

    `parents` are the ids of the data sets that the records come from, `step` says what was done to those. Streams. Raises DataError for another
    ending, where a file cannot be written, and for a record of another kind than the first in a `.parquet`, unless `on_bad` takes it.
    """
    path, account = Path(path), Account()
    write_records(path, records, on_bad=on_bad, on_written=account.note)
    manifest = Manifest(
        id=account.id,
        parents=tuple(parents),
        step=step,
        counts=account.counts,
        fields=account.fields,
        files={path.name: file_hash(path)},
        likelier=version("likelier"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _write(manifest_path(path), manifest.model_dump_json(indent=2) + "\n")
    _write(croissant_path(path), _croissant_text(path, manifest))
    return manifest


def split_version(source: str, *, eval_fraction: float, by: str = "prompt", stratify: str | None = None) -> list[tuple[Path, Manifest]]:
    """Write SOURCE.train.jsonl and SOURCE.eval.jsonl, both versions whose parent is the source; `held_out` says which record goes where.

    Goes over the source three times and holds no records. Raises DataError for a source that cannot be read so, and Refused where nothing can be
    held out, and RequestError for a fraction outside (0, 1).
    """
    if not 0 < eval_fraction < 1:
        raise RequestError(f"--eval is {eval_fraction:g}; it must lie between 0 and 1. 0.1 holds out a tenth of the prompts.")
    stem, account = _stem(source), Account()
    out = held_out(account.watch(read_records(source)), eval_fraction=eval_fraction, by=by, stratify=stratify)
    if not out.any():
        raise Refused(
            f"{source}: nothing can be held out. At `eval` {eval_fraction:g} and by {by} all {len(out)} records hang together: their prompts are "
            "equal or near-duplicates of each other, or they share a value. Split by another field, or take held-out records from elsewhere."
        )
    step = f"split eval {eval_fraction:g} by {by}" + (f" stratified by {stratify}" if stratify else "")
    made = []
    for side, members in (("train", ~out), ("eval", out)):
        path = stem.with_name(f"{stem.name}.{side}.jsonl")
        records = compress(read_records(source), members)
        made.append((path, write_version(path, records, parents=(account.id,), step=f"{step}, {side} side")))
    return made


def manifest_path(path: str | Path) -> Path:
    return Path(f"{path}.manifest.json")


def croissant_path(path: str | Path) -> Path:
    return Path(f"{path}.croissant.json")


def read_manifest(path: str | Path) -> Manifest:
    """The manifest beside the data file `path`. Raises DataError if there is none, or none that can be read."""
    beside = manifest_path(path)
    try:
        return Manifest.model_validate_json(beside.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no {beside.name} beside it, so it is no version. `likelier convert`, `split` and `fix` write one."
        ) from None
    except OSError as problem:
        raise DataError(f"{beside}: this manifest cannot be read ({problem.strerror}).") from None
    except ValidationError as problem:
        faults = "; ".join(f"`{'.'.join(map(str, fault['loc'])) or 'it'}`: {fault['msg']}" for fault in problem.errors()[:3])
        raise DataError(f"{beside}: this manifest was edited or cut ({faults}). Write the version again with `likelier convert`.") from None


def forget_version(path: str | Path) -> None:
    """Remove the manifest and the Croissant metadata beside a file that has become something else."""
    for beside in (manifest_path(path), croissant_path(path)):
        beside.unlink(missing_ok=True)


def note_audit(path: str | Path, *, dataset: str, audit: str) -> bool:
    """Write the hash of an audit of the data set `dataset` into the manifest beside `path`; False where there is no manifest of that data set."""
    if not manifest_path(path).is_file() or (manifest := read_manifest(path)).id != dataset:
        return False
    _write(manifest_path(path), manifest.model_copy(update={"audit": audit}).model_dump_json(indent=2) + "\n")
    return True


def verify(path: str | Path) -> list[Check]:
    """Whether a data file is what its manifest says: its bytes, and the id and counts of the records in it. Raises DataError where there is no
    file or no manifest to ask."""
    path = Path(path)
    manifest = read_manifest(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    said, found = manifest.files.get(path.name), file_hash(path)
    checks = [compare("bytes of the file", said, found), *_verify_records(path, manifest)]
    beside = croissant_path(path)
    if not beside.is_file():
        return [*checks, Check("Croissant metadata", "not checked", f"{beside.name} is not there")]
    agrees = beside.read_text(encoding="utf-8", errors="replace") == _croissant_text(path, manifest)
    return [*checks, Check("Croissant metadata", "holds" if agrees else "differs", "" if agrees else f"{beside.name} is not that of this manifest")]


def compare(what: str, said: object, found: object) -> Check:
    """Holds if both are equal."""
    return Check(what, "holds") if said == found else Check(what, "differs", f"recorded {said}, found {found}")


def _verify_records(path: Path, manifest: Manifest) -> list[Check]:
    account = Account()
    try:
        for _ in account.watch(read_records(path)):
            pass
    except DataError as problem:
        return [Check("data set id", "differs", f"recorded {manifest.id}, and the records cannot be read: {problem}")]
    return [compare("data set id", manifest.id, account.id), compare("counts", manifest.counts.model_dump(), account.counts.model_dump())]


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


def _croissant_text(path: Path, manifest: Manifest) -> str:
    return croissant(
        path.name,
        id=manifest.id,
        parents=manifest.parents,
        step=manifest.step,
        records=manifest.counts.pairs + manifest.counts.unpaired,
        fields=manifest.fields,
        sha256=manifest.files.get(path.name, ""),
        created=manifest.created,
    )


def _stem(source: str) -> Path:
    """The path that the names of a source's sides begin with: beside a file or folder, here for what is not on this disk."""
    scheme, _, rest = source.partition(":")
    if scheme in SCHEMES:
        return Path(re.sub(r"[/:]", "-", rest))
    if not Path(source).exists() and any(wildcard in source for wildcard in "*?["):
        raise DataError(f"{source}: a pattern has no name for its sides. Write its files as one first: likelier convert '{source}' ALL.jsonl")
    path = Path(source)
    return path if path.is_dir() else Path(source.removesuffix(".gz")).with_suffix("")


def _merkle_root(leaves: bytes) -> bytes:
    """Of content hashes of 32 bytes, one after the other."""
    level = bytearray()
    for start in range(0, len(leaves), 32):
        level += _sha256(b"\x00" + leaves[start : start + 32])
    while len(level) > 32:
        joined = bytearray()
        for start in range(0, len(level) - 32, 64):
            joined += _sha256(b"\x01" + level[start : start + 64])
        level = joined + level[len(joined) * 2 :]
    return bytes(level) or _sha256(b"")


def _sha256(content: bytes | bytearray) -> bytes:
    return hashlib.sha256(content).digest()
