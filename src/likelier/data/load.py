"""From a recipe's data settings to training and held-out pairs: read, split, check for leaks. Every stage of a run calls this and gets the same."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from likelier.data.chat import Encoded, Encoder
from likelier.data.formats import read_all
from likelier.data.leaks import check_leaks
from likelier.data.split import prompt_key, split_pairs
from likelier.data.version import dataset_id
from likelier.errors import DataError
from likelier.examples import PreferenceExample
from likelier.metrics import histogram, length_summary
from likelier.recipe import DataSettings
from likelier.records import Pair


@dataclass(frozen=True)
class Side:
    """One side of the split: its pairs and what became of them as examples. `pairs` holds only those that have an example, in the same order."""

    sources: tuple[str, ...]
    pairs: list[Pair]
    encoded: Encoded
    id: str

    @property
    def examples(self) -> list[PreferenceExample]:
        return self.encoded.examples

    def summary(self) -> dict[str, Any]:
        """The manifest's account of it."""
        lengths = {
            "prompt": [len(e.prompt_ids) for e in self.examples],
            "chosen": [len(e.chosen_ids) for e in self.examples],
            "rejected": [len(e.rejected_ids) for e in self.examples],
        }
        return {
            "id": self.id,
            "sources": list(self.sources),
            "pairs": len(self.pairs),
            "prompts": len({prompt_key(pair.prompt) for pair in self.pairs}),
            "dropped": [{"id": d.id, "reason": d.reason} for d in self.encoded.dropped],
            "boundary_mismatches": len(self.encoded.boundary_mismatches),
            "tokens": {name: length_summary(values) for name, values in lengths.items()} if self.pairs else {},
            "histogram": histogram(lengths) if self.pairs else {},
            "reasons": dict(Counter(pair.reason for pair in self.pairs if pair.reason)),
        }


def load_sides(settings: DataSettings, encoder: Encoder) -> tuple[Side, Side]:
    """(training, held-out). Raises DataError for unusable data and Refused for a prompt that stands on both sides, as it is or nearly so."""
    train, held_out = read_sides(settings)
    check_leaks(train, held_out)
    return _side(settings.train, train, encoder, required=True), _side(settings.eval or settings.train, held_out, encoder)


def read_sides(settings: DataSettings) -> tuple[list[Pair], list[Pair]]:
    """The pairs of both sides as the files hold them, before any is dropped. Raises DataError for unusable data."""
    train = read_all(settings.train)
    return (train, read_all(settings.eval)) if settings.eval else split_pairs(train, eval_fraction=settings.eval_fraction)


def _side(sources: tuple[str, ...], pairs: Sequence[Pair], encoder: Encoder, *, required: bool = False) -> Side:
    encoded = encoder.encode_pairs(pairs)
    dropped = {d.id for d in encoded.dropped}
    kept = [pair for pair in pairs if pair.id not in dropped]
    if required and not kept:
        first = f" The first: {encoded.dropped[0].id}: {encoded.dropped[0].reason}." if encoded.dropped else ""
        raise DataError(f"{', '.join(sources)}: no pair is left to train on ({len(dropped)} dropped).{first}")
    return Side(sources, kept, encoded, dataset_id(kept))
