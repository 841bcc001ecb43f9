"""Shapes: the ways in which tools write preferences down. One function and one row of SHAPES each; no shape knows another.

    row ──fits──▶ shape ──rewrite──▶ canonical rows, with `prompt`, `chosen`, `rejected` or `prompt`, `completion`, `label`
                                     or Candidates: several judged replies, of which `lists.pairs_of` makes pairs
                                     or a DataError in a row's place, where one of several annotators said nothing usable

Which function stands in which file: `pairs.py` both replies in a row, `judged.py` one, `lists.py` several, `tools.py` trainers and services,
`argilla.py` and `label_studio.py` what people said on labelling pages.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from likelier.data.fields import Fields, first_of, listed
from likelier.data.shapes import argilla, judged, label_studio, lists, pairs, tools
from likelier.data.shapes.lists import Candidates
from likelier.errors import DataError, RequestError, did_you_mean


class Shape(NamedTuple):
    """One way of writing preferences down. `rewrite` may count on what `fits` has seen, and on nothing else."""

    name: str
    fits: Callable[[Fields], bool]
    rewrite: Callable[[Fields], Iterator[Fields] | Iterator[Candidates] | Iterator[Fields | DataError] | Iterator[Candidates | DataError]]
    looks: str
    """How it is recognised, for people."""


SHAPES = (
    Shape("ultrafeedback-binarized", pairs.has_conversations, pairs.repeated_prompt, "`prompt`, and `chosen` and `rejected` that repeat it"),
    Shape("reward-bench", pairs.has_subset, pairs.subset, "`prompt`, `chosen`, `rejected` and `subset`"),
    Shape("explicit-prompt", pairs.has_prompt, pairs.explicit_prompt, "`prompt`, `chosen` and `rejected`, text or messages"),
    Shape("hh-rlhf", pairs.has_transcripts, pairs.transcripts, "`chosen` and `rejected`, transcripts of Human: and Assistant:"),
    Shape("sharegpt", tools.has_sharegpt_pair, tools.sharegpt_pair, "`conversations`, `chosen` and `rejected`"),
    Shape("alpaca", tools.has_alpaca_pair, tools.alpaca_pair, "`instruction`, `chosen` and `rejected`"),
    Shape("implicit-prompt", pairs.has_lists, pairs.implicit_prompt, "`chosen` and `rejected`, messages that begin alike"),
    Shape("unpaired", judged.is_unpaired, judged.unpaired, "`prompt`, `completion` and `label`"),
    Shape("kto", tools.has_kto_tag, tools.kto, "`kto_tag` beside `instruction` and `output`, or `conversations`"),
    Shape("openai", tools.has_preferred_output, tools.openai, "`input`, `preferred_output` and `non_preferred_output`"),
    Shape("label-studio", label_studio.has_annotations, label_studio.tasks, "`data` and `annotations`"),
    Shape("argilla", argilla.has_fields, argilla.nested, "`fields` and `responses` or `suggestions`"),
    Shape("argilla-flat", argilla.has_flat_answers, argilla.flat, "columns such as `question.responses` or `question-suggestion`"),
    Shape("label-studio-min", label_studio.has_annotation_id, label_studio.rows, "`annotation_id` beside the task's fields"),
    Shape("ultrafeedback", lists.has_ultrafeedback, lists.scored_list, "`instruction` and `completions` with `response`"),
    Shape("scored-list", lists.has_scores, lists.scored_list, "`responses` and `scores`, or responses with a `score`"),
    Shape("ranked-list", lists.has_ranks, lists.ranked_list, "`responses` and `ranks`, `order` or `ranking`, or responses with a `rank`"),
    Shape("edits", pairs.has_edit, pairs.edits, "`draft` and `sent`"),
    Shape("labelled-messages", judged.has_labelled_messages, judged.labelled_messages, "`messages` that end with the reply, and `label`"),
    Shape("thumbs", judged.has_thumbs, judged.thumbs, "`response` and `feedback`, `rating` or `thumbs`"),
)
"""The shapes, in the order in which they are tried."""

ASKED_FOR = (Shape("implicit-text", pairs.has_texts, pairs.shared_beginning, "`chosen` and `rejected`, texts that begin with the prompt"),)
"""Shapes that a row alone cannot prove: read only where their name is given."""

BY_NAME = {shape.name: shape for shape in (*SHAPES, *ASKED_FOR)}


def named(name: str) -> Shape:
    """The shape of that name. Raises RequestError, with the nearest ones, if there is none."""
    if name not in BY_NAME:
        raise RequestError(f"there is no format `{name}`.{did_you_mean(name, BY_NAME)} Formats: {', '.join(BY_NAME)}.")
    return BY_NAME[name]


def shape_of(row: Fields) -> Shape:
    """The first shape that fits. Raises DataError, saying what is missing, if none does."""
    for shape in SHAPES:
        if shape.fits(row):
            return shape
    raise _unknown(row)


def check_fits(shape: Shape, row: Fields) -> None:
    """Raises DataError if a row has not the shape that was asked for."""
    if not shape.fits(row):
        raise DataError(f"this row is not in the format `{shape.name}`: that has {shape.looks}; the row has {listed(row)}.")


def _unknown(row: Fields) -> DataError:
    has = listed(row)
    if pairs.has_texts(row):
        return DataError(
            f"this row has no `prompt`, and `chosen` and `rejected` are not whole conversations that would begin with it; it has {has}."
            f"{did_you_mean('prompt', row)} Add `prompt`, or give the format `implicit-text` if both texts begin with the prompt."
        )
    if pairs.is_paired(row):
        return DataError(
            f"this row has no `prompt`, and `chosen` and `rejected` are not whole conversations that would begin with it; it has {has}."
            f"{did_you_mean('prompt', row)} Add `prompt`."
        )
    if first_of(judged.REPLIES, row) and first_of(("prompt", "messages"), row):
        return DataError(f"this row has a reply and no judgement of it; it has {has}. Add `label` or drop the row.", kind="unlabelled")
    missing = "chosen" if "chosen" not in row else "rejected"
    others = [name for name in row if name not in ("prompt", "chosen", "rejected")]
    return DataError(f"this row has no `{missing}`; it has {has}.{did_you_mean(missing, others)} A pair needs `prompt`, `chosen` and `rejected`.")
