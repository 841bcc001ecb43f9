"""From a recipe's data settings to training and held-out records: read, split, check for leaks. Every stage of a run calls this and gets the same."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from likelier.data.chat import Encoded, Encoder
from likelier.data.formats import read_all, read_records
from likelier.data.kept_turns import KeptTurns
from likelier.data.leaks import check_leaks
from likelier.data.split import prompt_key, split_pairs
from likelier.data.version import dataset_id
from likelier.errors import DataError
from likelier.examples import Example, Ids, LabelledExample, with_others
from likelier.metrics import histogram, length_summary
from likelier.recipe import DataSettings
from likelier.records import Labelled, Pair, Record


@dataclass(frozen=True)
class Side:
    """One side of the split: its records and what became of them as examples. `records` holds only those that have an example, in the same order."""

    sources: tuple[str, ...]
    records: list[Record]
    encoded: Encoded
    id: str

    @property
    def examples(self) -> list[Example]:
        return self.encoded.examples

    def spread_prompts(self, most: int) -> list[int]:
        """Up to `most` of its examples, spread evenly over them, each with a prompt of its own: the first that has it."""
        first_of_prompt: dict[Ids, int] = {}
        for i, example in enumerate(self.examples):
            first_of_prompt.setdefault(example.prompt_ids, i)
        firsts = list(first_of_prompt.values())
        wanted = min(most, len(firsts))
        return [firsts[k * len(firsts) // wanted] for k in range(wanted)]

    @property
    def pairs(self) -> list[Pair]:
        """The records that are pairs."""
        return [record for record in self.records if isinstance(record, Pair)]

    def with_others(self) -> "Side":
        """The same side, its examples with replies to other prompts (`examples.with_others`)."""
        return replace(self, encoded=replace(self.encoded, examples=with_others(self.examples)))

    def summary(self) -> dict[str, Any]:
        """The manifest's account of it. `unpaired` counts good and bad replies that are judged alone; their tokens count with the chosen and the
        rejected ones."""
        alone = [record.label for record in self.records if isinstance(record, Labelled)]
        lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
        for example in self.examples:
            lengths["prompt"].append(len(example.prompt_ids))
            if isinstance(example, LabelledExample):
                lengths["chosen" if example.label else "rejected"].append(len(example.completion_ids))
            else:
                lengths["chosen"].append(len(example.chosen_ids))
                lengths["rejected"].append(len(example.rejected_ids))
        both_sides = all(lengths.values())
        return {
            "id": self.id,
            "sources": list(self.sources),
            "pairs": len(self.records) - len(alone),
            **({"unpaired": {"good": sum(alone), "bad": len(alone) - sum(alone)}} if alone else {}),
            "prompts": len({prompt_key(record.prompt) for record in self.records}),
            "dropped": [{"id": d.id, "reason": d.reason} for d in self.encoded.dropped],
            "boundary_mismatches": len(self.encoded.boundary_mismatches),
            "tokens": {name: length_summary(values) for name, values in lengths.items() if values},
            "histogram": histogram(lengths) if both_sides else {},
            "reasons": dict(Counter(record.reason for record in self.records if record.reason)),
        }


def load_sides(settings: DataSettings, encoder: Encoder, *, unpaired: bool = False, kept: KeptTurns | None = None) -> tuple[Side, Side]:
    """(training, held-out). What `kept` has is not tokenised again (`Encoder.encode`).

    Raises DataError for unusable data, which without `unpaired` single replies are, and Refused for a prompt that stands on both sides, as it is or
    nearly so.
    """
    train, held_out = read_sides(settings, unpaired=unpaired)
    check_leaks(train, held_out)
    return side_of(settings.train, train, encoder, required=True, kept=kept), side_of(settings.eval or settings.train, held_out, encoder, kept=kept)


def read_sides(settings: DataSettings, *, unpaired: bool = False) -> tuple[list[Record], list[Record]]:
    """The records of both sides as the files hold them, before any is dropped. Raises DataError for unusable data."""
    train = _read(settings.train, unpaired)
    return (train, _read(settings.eval, unpaired)) if settings.eval else split_pairs(train, eval_fraction=settings.eval_fraction)


def _read(sources: tuple[str, ...], unpaired: bool) -> list[Record]:
    return list(read_records(*sources)) if unpaired else list(read_all(sources))


def side_of(sources: tuple[str, ...], records: Sequence[Record], encoder: Encoder, *, required: bool = False, kept: KeptTurns | None = None) -> Side:
    """`records` as one side. Raises DataError for an unusable one, and with `required` where none is left."""
    encoded = encoder.encode(records, kept)
    dropped = {d.id for d in encoded.dropped}
    left = [record for record in records if record.id not in dropped]
    if required and not left:
        first = f" The first: {encoded.dropped[0].id}: {encoded.dropped[0].reason}." if encoded.dropped else ""
        raise DataError(f"{', '.join(sources)}: nothing is left to train on ({len(dropped)} dropped).{first}")
    return Side(sources, left, encoded, dataset_id(left))
