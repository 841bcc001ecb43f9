"""Exports of Label Studio: pairwise comparisons and choices between two replies, as JSON and as JSON-MIN (or CSV).

    data       {"prompt": …, "answer1": …, "answer2": …}        the task
    result     {"to_name": "answer1,answer2", "value": {"selected": "left"}}    or  {"value": {"choices": ["Response A"]}}

An annotation names a side; the task says what stood there. Every annotation becomes a record of its own.
"""

from collections.abc import Iterator
from typing import Any

from likelier.data.fields import Fields, kind_of, without
from likelier.data.messages import PROMPTS, take_prompt
from likelier.data.plain import parsed
from likelier.data.shapes.sides import is_first, names_side, two_replies
from likelier.errors import DataError

ABOUT = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")
"""What JSON-MIN says of an annotation beside the task and the result."""


def has_annotations(row: Fields) -> bool:
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def has_annotation_id(row: Fields) -> bool:
    return "annotation_id" in row


def tasks(fields: Fields) -> Iterator[Fields | DataError]:
    """JSON: one task with all its annotations; those that were cancelled are left out."""
    valid = [each for each in fields["annotations"] if isinstance(each, dict) and not (each.get("was_cancelled") or each.get("skipped"))]
    if not valid:
        raise DataError("this task has no annotation. Label it or drop the row.", kind="unlabelled")
    task = {name: value for name, value in fields["data"].items() if value is not None}
    about = {"id": fields["id"]} if "id" in fields else {}
    for annotation in valid:
        try:
            said, compared = _result(annotation.get("result"))
            details = {**about, **_annotator(annotation.get("completed_by"))}
            if "id" in annotation:
                details["annotation_id"] = annotation["id"]
            yield _preference(task, said, compared, details)
        except DataError as problem:
            yield problem


def rows(fields: Fields) -> Iterator[Fields]:
    """JSON-MIN and CSV: one row an annotation, the task's fields beside the control's result."""
    about = {name: fields[name] for name in ABOUT if name in fields}
    task = without(fields, *about)
    results = {name: said for name, value in task.items() if (said := _selected(value)) is not None}
    if not results:
        replies = two_replies(list(task))
        words = {name: value for name, value in task.items() if isinstance(value, str) and name not in (*PROMPTS, *replies)}
        results = {name: value for name, value in words.items() if names_side(value)}
    if len(results) != 1:
        found, kind = (f"{len(results)} results of comparisons or choices", "malformed") if results else ("no comparison and no choice", "unlabelled")
        raise DataError(f"this annotation holds {found}. Keep the one that says which reply is better.", kind=kind)
    [(control, said)] = results.items()
    yield _preference(without(task, control), said, [], {**_annotator(about.pop("annotator", None)), **about})


def _preference(task: Fields, said: str, compared: list[str], details: Fields) -> Fields:
    first, second = compared if len(compared) == 2 and all(name in task for name in compared) else two_replies(list(task))
    chosen, rejected = (first, second) if is_first(said, first, second) else (second, first)
    prompt, rest = take_prompt(without(task, first, second))
    return {**rest, **details, "prompt": prompt, "chosen": task[chosen], "rejected": task[rejected]}


def _result(results: Any) -> tuple[str, list[str]]:
    """(what was selected, the two tags that were compared) of one annotation."""
    if not isinstance(results, list):
        raise DataError(f"an annotation's `result` is {kind_of(results)}; it must be a list.")
    for result in results:
        if isinstance(result, dict) and (said := _selected([result.get("value")])) is not None:
            compared = result.get("to_name")
            return said, [name.strip() for name in compared.split(",")] if isinstance(compared, str) else []
    raise DataError("an annotation holds no pairwise comparison and no choice. Label the task or drop the row.", kind="unlabelled")


def _selected(value: Any) -> str | None:
    """What a control's result selects: `selected` of a pairwise comparison, or the one choice."""
    if isinstance(value, str) and value.startswith("[{"):
        try:
            value = parsed(value)
        except ValueError:
            return None
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        return None
    choices = value[0].get("choices")
    said = choices[0] if isinstance(choices, list) and len(choices) == 1 else value[0].get("selected")
    return said if isinstance(said, str) else None


def _annotator(value: Any) -> Fields:
    """Who labelled: a number, a name, or an object with `email` or `id`."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return {} if value is None or value == "" else {"annotator": value}
