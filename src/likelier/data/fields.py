"""The fields of one row, as every shape meets them: their type, and the words in which a fault names a value."""

from collections.abc import Iterable
from typing import Any

Fields = dict[str, Any]
"""The fields of one row: JSON values, or what a shape has already made of them (tuples of messages)."""


def kind_of(value: Any) -> str:
    """What an error message calls a JSON value of the wrong type: "a list", "text" …"""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", tuple: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


def shown(value: Any) -> str:
    """A short value as it stands, any other by its type."""
    if isinstance(value, str) and len(value) <= 40:
        return repr(value)
    return str(value)[:40] if isinstance(value, int | float) else kind_of(value)


def first_of(names: Iterable[str], fields: Fields) -> str | None:
    """The first of the names that the row has."""
    return next((name for name in names if name in fields), None)


def listed(fields: Iterable[str]) -> str:
    """The names of a row's fields, as an error lists them."""
    names = list(fields)
    return ", ".join(f"`{name}`" for name in names[:12]) + (" …" if len(names) > 12 else "") or "no field at all"


def without(fields: Fields, *names: str) -> Fields:
    """The row without some of its fields."""
    return {name: value for name, value in fields.items() if name not in names}
