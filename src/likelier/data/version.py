"""The version of a data set: a name made of its content."""

import hashlib
from collections.abc import Iterable

import numpy as np

from likelier.records import Record, content_hash


def dataset_id(records: Iterable[Record]) -> str:
    """SHA-256 (64 hex digits) of the content of all records, whatever their order, ids and files.

    Equal multisets of records, equal id: a record that stands twice counts twice. It is the root of a Merkle tree as in RFC 6962, section 2.1, over
    the records' content hashes (32 bytes each) in ascending order:

        leaf   = SHA-256(0x00 ‖ content hash)
        inner  = SHA-256(0x01 ‖ left ‖ right)     neighbours joined level by level; an odd last one moves up as it is
        empty  = SHA-256(nothing)

    A tree and not one long hash, so that one record can be shown to belong to a data set without handing out the others.
    """
    return id_of_hashes(b"".join(bytes.fromhex(content_hash(record)) for record in records))


def id_of_hashes(contents: bytes | np.ndarray) -> str:
    """`dataset_id` of records whose content hashes are known: 32 bytes each, end to end in any order."""
    hashes = [bytes(one) for one in np.sort(np.frombuffer(contents, "V32"))]
    level = [_sha256(b"\x00" + leaf) for leaf in hashes] or [_sha256(b"")]
    while len(level) > 1:
        joined = [_sha256(b"\x01" + left + right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = joined + level[len(joined) * 2 :]
    return level[0].hex()


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
