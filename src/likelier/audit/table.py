"""The audited data as columns: what the checks ask of each pair is measured once, in whatever process, and kept in about a kilobyte.

Shape legend: N pairs, F surface features. Sides stand in the order of SIDES.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import pycld2
from rapidfuzz.fuzz import ratio

from likelier.audit.privacy import find_private, glimpse
from likelier.audit.surface import FEATURES, Reply, marks_of, opening, reply_of
from likelier.data.near import SLOTS, signature
from likelier.data.split import prompt_key
from likelier.records import EXTRAS, Messages, Pair, content_hash

SIDES = ("prompt", "chosen", "rejected")
PROMPT, CHOSEN, REJECTED = range(3)
CATEGORIES = ("group", "source", "annotator", "reason")

CLOSE = 80.0
"""Similarity in percent below which the distance of two sides is not worked out: no check asks for less."""

SHORTEST, MOST = 60, 80
"""Bytes of letters, and percent of them in one language, from which a text's language is believed."""

MOST_PRIVATE = 20
"""Secrets of one side that are kept: a list of a thousand addresses says no more than twenty."""

UNKNOWN = b"un"
"""The language of a text that is too short or too mixed to tell."""

CountTokens = Callable[[Sequence[Pair]], np.ndarray]
"""Tokens of each pair's prompt, chosen and rejected as a model reads them: (N, 3) int32."""


@dataclass(frozen=True, slots=True)
class Private:
    """One secret or personal datum: in which row and side, of which kind, and what may be shown of it."""

    row: int
    side: str
    kind: str
    glimpse: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """A pair kept with its text because its content's hash is a small number: a random sample that does not depend on the order of rows."""

    order: int
    row: int
    texts: tuple[str, str, str]


@dataclass(frozen=True)
class Table:
    """What was measured of N pairs in a row."""

    ids: list[str]
    content: np.ndarray  # (N,) V32 SHA-256 of the record
    keys: np.ndarray  # (N, 3) uint64 hash of each side, case and white space folded
    characters: np.ndarray  # (N, 3) int32
    similarity: np.ndarray  # (N,) float32 of the two replies, 0 to 1; 0 where it is below CLOSE
    features: np.ndarray  # (N, F) float32 chosen − rejected
    marks: np.ndarray  # (N, 2) uint32 bits of surface.MARKS, of chosen and rejected
    openings: np.ndarray  # (N, 2) object: the first three words of chosen and rejected
    languages: np.ndarray  # (N, 3) S3 ISO 639 code
    signatures: np.ndarray  # (N, 3, 128) uint8 MinHash of each side
    categories: np.ndarray  # (N, 4) object: str or None, in the order of CATEGORIES
    tokens: np.ndarray | None = None  # (N, 3) int32, if a tokenizer was given
    max_length: int = 1024  # tokens of prompt and reply that the model is to be trained on
    private: list[Private] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def category(self, name: str) -> np.ndarray:
        """(N,) object: the values of one of CATEGORIES, None where a pair has none."""
        return np.asarray(self.categories[:, CATEGORIES.index(name)])

    def shows(self, mark: int) -> np.ndarray:
        """(N, 2) bool: whether chosen and rejected show a mark, by its number in surface.MARKS."""
        return np.asarray((self.marks >> mark) & 1, dtype=bool)

    @property
    def order(self) -> np.ndarray:
        """(N,) rows by the hash of their content: an order that does not depend on how the data is sorted."""
        return np.argsort(np.ascontiguousarray(self.content).view(">u8")[::4], kind="stable")

    def take(self, rows: np.ndarray) -> "Table":
        """The columns of these rows alone, without what was found or sampled by row number."""
        columns = {column.name: getattr(self, column.name) for column in fields(Table)}
        taken = {name: column[rows] for name, column in columns.items() if isinstance(column, np.ndarray)}
        return Table(**(columns | taken | {"ids": [self.ids[row] for row in rows], "private": [], "sampled": []}))

    @property
    def coin(self) -> np.ndarray:
        """(N,) bool: a toss for each pair that depends on its content alone."""
        return np.asarray(np.ascontiguousarray(self.content).view(np.uint8).reshape(-1, 32)[:, -1] % 2, dtype=bool)

    @property
    def longer(self) -> np.ndarray:
        """(N,) int: chosen's characters − rejected's."""
        return np.asarray(self.characters[:, CHOSEN] - self.characters[:, REJECTED])


def measure(pairs: Sequence[Pair], *, first_row: int = 0, count_tokens: CountTokens | None = None, sample_below: int = 0) -> Table:
    """The columns of `pairs`, whose rows are numbered from `first_row`. Texts whose content hash is below `sample_below` (of 2^64) are kept."""
    sides = [(text_of(pair.prompt), text_of(pair.chosen), text_of(pair.rejected)) for pair in pairs]
    replies = [_replies(*texts) for texts in sides]
    contents = [bytes.fromhex(content_hash(pair)) for pair in pairs]
    orders = [int.from_bytes(content[:8]) for content in contents]
    rows = range(first_row, first_row + len(pairs))
    return Table(
        ids=[pair.id for pair in pairs],
        content=np.array(contents, "V32"),
        keys=np.array([_keys(pair) for pair in pairs], np.uint64).reshape(-1, 3),
        characters=np.array([tuple(map(len, texts)) for texts in sides], np.int32).reshape(-1, 3),
        similarity=np.array([ratio(chosen, rejected, score_cutoff=CLOSE) / 100 for _, chosen, rejected in sides], np.float32),
        features=np.array([_differences(*both) for both in replies], np.float32).reshape(-1, len(FEATURES)),
        marks=np.array([(marks_of(chosen), marks_of(rejected)) for _, chosen, rejected in sides], np.uint32).reshape(-1, 2),
        openings=_objects([tuple(sys.intern(opening(reply.words)) for reply in both) for both in replies], 2),
        languages=np.array([tuple(map(language, texts)) for texts in sides], "S3").reshape(-1, 3),
        signatures=_packed(signature(text) for texts in sides for text in texts),
        categories=_objects([(pair.group, pair.source, pair.annotator, pair.reason) for pair in pairs], len(CATEGORIES)),
        tokens=None if count_tokens is None else count_tokens(pairs),
        private=[found for row, pair, texts in zip(rows, pairs, sides, strict=True) for found in _private(row, pair, texts)],
        sampled=[Sampled(o, row, texts) for o, row, texts in zip(orders, rows, sides, strict=True) if o < sample_below],
    )


def text_of(messages: Messages) -> str:
    """What a side says, message by message, calls of tools included."""
    return "\n".join(part for message in messages for part in (message.content, _extra(message.extra)) if part)


def _extra(extra: Mapping[str, Any]) -> str:
    return json.dumps(extra, sort_keys=True, ensure_ascii=False) if extra else ""


def language(text: str) -> bytes:
    """ISO 639 code of the language that most of a text is in, by Compact Language Detector 2; UNKNOWN where it cannot tell.

    Of a few words it says something all the same, often Danish or Scots: below SHORTEST bytes of letters nothing is believed.
    """
    try:
        reliable, letters, guesses, *_ = pycld2.detect(text)
    except (pycld2.error, UnicodeEncodeError):  # control characters; half of a character
        return UNKNOWN
    code, percent = guesses[0][1].partition("-")[0], guesses[0][2]
    return code.encode()[:3] if reliable and letters >= SHORTEST and percent >= MOST else UNKNOWN


def joined(parts: Sequence[Table]) -> Table:
    """The columns of consecutive parts, end to end."""
    columns: dict[str, object] = {}
    for column in fields(Table):
        values = [getattr(part, column.name) for part in parts]
        if isinstance(values[0], list):
            columns[column.name] = [item for value in values for item in value]
        else:
            columns[column.name] = np.concatenate(values) if isinstance(values[0], np.ndarray) else values[0]
    return Table(**columns)  # type: ignore[arg-type]


def _replies(prompt: str, chosen: str, rejected: str) -> tuple[Reply, Reply]:
    asked = frozenset(reply_of(prompt, frozenset()).words)
    return reply_of(chosen, asked), reply_of(rejected, asked)


def _differences(chosen: Reply, rejected: Reply) -> list[float]:
    return [feature(chosen) - feature(rejected) for feature in FEATURES.values()]


def _keys(pair: Pair) -> tuple[int, ...]:
    folded = (prompt_key(side) for side in (pair.prompt, pair.chosen, pair.rejected))
    return tuple(int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) for text in folded)


def _objects(rows: Sequence[Sequence[str | None]], width: int) -> np.ndarray:
    array = np.empty((len(rows), width), object)
    for index, row in enumerate(rows):
        array[index] = row
    return array


def _packed(signatures: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(signatures), np.uint8).reshape(-1, len(SIDES), SLOTS)


def _private(row: int, pair: Pair, texts: Sequence[str]) -> list[Private]:
    """What is found in the three sides and in all other fields, at most MOST_PRIVATE of each."""
    others = {name: value for name in EXTRAS if (value := getattr(pair, name)) and not isinstance(value, float)}
    return [
        Private(row, side, found.kind, glimpse(text[found.start : found.stop]))
        for side, text in zip((*SIDES, "other fields"), (*texts, _extra(others)), strict=True)
        for found in islice(find_private(text), MOST_PRIVATE)
    ]


def counts_of(values: np.ndarray) -> Mapping[str, int]:
    """How often each value other than None occurs, the most frequent first, equally frequent ones by name."""
    counts = Counter(value for value in values.tolist() if value is not None)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def numbered(values: np.ndarray) -> tuple[list[str | None], np.ndarray]:
    """(different values in the order of their first rows, (N,) number of each row's value). None is a value."""
    numbers: dict[str | None, int] = {}
    column = np.array([numbers.setdefault(value, len(numbers)) for value in values.tolist()], np.int64)
    return list(numbers), column
