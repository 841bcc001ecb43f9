"""Cells of a table (CSV, Parquet, data sets): text that stands for messages, lists, objects or numbers."""

import json
from typing import Any

from likelier.data.checks import SCORES
from likelier.data.fields import Fields
from likelier.data.plain import plain
from likelier.data.shapes.lists import RANK_LISTS, REPLY_LISTS, SCORE_LISTS
from likelier.errors import DataError

NUMBERS = {"weight", "margin", *(name for names in SCORES for name in names)}

STRUCTURES = {"meta", "tools", "conversations", "history", "data", "annotations", "fields", "suggestions", "metadata"}
STRUCTURES |= {*REPLY_LISTS, *SCORE_LISTS, *RANK_LISTS}
"""Fields whose text, if it spells a list or an object, is one."""


def from_cells(fields: Fields) -> Fields:
    """The row with its cells read. Text that stands for nothing else is left as it is."""
    return {name: _from_cell(name, cell) if isinstance(cell, str) else cell for name, cell in fields.items()}


def _from_cell(name: str, cell: str) -> Any:
    if name not in NUMBERS and cell.lstrip()[:1] not in ("[", "{"):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if not _is_meant(name, value):
        return cell
    try:
        return plain(value)
    except (ValueError, RecursionError) as problem:
        raise DataError(f"`{name}`: {problem}") from None


def _is_meant(name: str, value: Any) -> bool:
    """Whether a field's text is there for what it spells: the text of a reply may well be JSON that is meant as text."""
    if name in NUMBERS:
        return isinstance(value, int | float)
    if isinstance(value, list) and value and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value):
        return True
    if isinstance(value, dict) and ({"from", "value"} == value.keys() or (name == "input" and "messages" in value)):
        return True
    return name in STRUCTURES and isinstance(value, list | dict)
