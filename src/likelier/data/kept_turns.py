"""Token ids of records, kept on disk: what was tokenised once is read by the runs of a sweep, by a resumed run, and by the other ranks.

The ids of a turn depend on its prompt, reply and tools, and on tokenizer, template and packages, and are found by exactly these. Limits of length
are applied afterwards, so that no setting of a recipe makes them anew.

    <root>/<identity>/<name>.ids      identity: of tokenizer, template, packages (`chat.Encoder.identity`)
                                      name: the SHA-256 of the turns' keys in their order, those of up to `chat.CHUNK` records
        32 bytes                      SHA-256 of the name and of all that follows
        int32, little-endian          P prompts · T turns · lengths of the prompts (P) · of the responses (T) · which prompt is each turn's (T) ·
                                      whether it is spelled (T) · ids of all prompts, then of all responses

Files are written beside and renamed, so that any number of processes uses them at once. A damaged one is set aside, and what it held is tokenised
again.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from likelier.atomic import atomic_file
from likelier.data.ids import SharedInts
from likelier.examples import Ids
from likelier.rundir import writing


class EncodedTurn(NamedTuple):
    """One reply to a prompt, in tokens."""

    prompt_ids: Ids
    response_ids: Ids
    spelled: bool  # together they decode to what the template writes


class KeptTurns:
    """Encoded turns in the folder `root` / `identity`; without an identity nothing is kept. `damaged` names what reading has set aside."""

    def __init__(self, root: Path, identity: str | None) -> None:
        self.damaged: list[Path] = []
        self._folder = root / identity if identity else None
        self._ints = SharedInts()

    def read(self, name: str) -> list[EncodedTurn] | None:
        """The turns that were written under `name`; None where there are none."""
        if self._folder is None:
            return None
        path = self._path(name)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if content[:32] == _checksum(name, content[32:]):
            return self._unpacked(content[32:])
        self.damaged.append(path)
        with suppress(FileNotFoundError):  # another run was first to set it aside
            path.replace(path.with_suffix(".damaged"))
        return None

    def write(self, name: str, turns: Sequence[EncodedTurn]) -> None:
        """Keep `turns` under `name`. Raises RunError if the disk does not take them."""
        if self._folder is None:
            return
        content, path = _packed(turns), self._path(name)
        with writing(path), atomic_file(path) as file:
            file.write(_checksum(name, content) + content)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.ids"

    def _unpacked(self, content: bytes) -> list[EncodedTurn]:
        numbers = np.frombuffer(content, "<i4")
        prompts, turns = numbers[:2]
        prompt_lengths, response_lengths, prompt_of, spelled, ids = np.split(numbers[2:], np.cumsum([prompts, turns, turns, turns]))
        pieces = self._ints.cut(ids, [*prompt_lengths.tolist(), *response_lengths.tolist()])
        of_turns = zip(prompt_of.tolist(), pieces[prompts:], spelled.tolist(), strict=True)
        return [EncodedTurn(pieces[prompt], response, bool(well)) for prompt, response, well in of_turns]


def _packed(turns: Sequence[EncodedTurn]) -> bytes:
    place = {ids: number for number, ids in enumerate(dict.fromkeys(turn.prompt_ids for turn in turns))}
    pieces = [*place, *(turn.response_ids for turn in turns)]
    numbers = [len(place), len(turns), *map(len, pieces), *(place[turn.prompt_ids] for turn in turns), *(turn.spelled for turn in turns)]
    return np.fromiter(chain(numbers, *pieces), "<i4").tobytes()


def _checksum(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()
