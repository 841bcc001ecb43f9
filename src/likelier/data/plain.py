"""JSON's own types: what a record can hold so that it can be hashed, written and read back."""

import json
import math
from datetime import date, time
from decimal import Decimal
from typing import Any


def plain(value: Any) -> Any:
    """The value in JSON's own types. Raises ValueError, naming the field, for what JSON cannot hold."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _whole(value)
    if kind is dict:
        return {plain(name): _named(name, field) for name, field in value.items()}
    if kind is list or kind is tuple:
        return [plain(item) for item in value]
    if value is None or kind is bool or kind is int:
        return value
    if kind is float:
        if math.isfinite(value):
            return value
        raise ValueError(f"{value} is not a number that JSON can hold. Write null, or leave the field out.")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return plain(float(value))
    raise ValueError(f"a value of type {kind.__name__} is not text, number, list or object. Leave the field out.")


def parsed(text: str) -> Any:
    """The JSON value that a text spells. Raises ValueError where it spells none, or one that JSON's own rules forbid."""
    try:
        return plain(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _named(name: str, field: Any) -> Any:
    if type(field) is str and field.isascii():
        return field
    try:
        return plain(field)
    except ValueError as problem:
        raise ValueError(f"`{name!s}`: {problem}") from None


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        half = ascii(text[problem.start])
        raise ValueError(f"this text holds {half}, half of a character (a lone surrogate). Write the whole character or remove it.") from None
    return text


def json_text(value: Any) -> str:
    """The value as JSON, with letters as they are."""
    return json.dumps(value, ensure_ascii=False)
