"""The way into the records: rows in canonical shape are checked once, here, and become `Pair` or `Labelled`."""

import math
import sys
from collections.abc import Callable
from typing import Any

from likelier.data.fields import Fields, kind_of, shown
from likelier.data.messages import messages, prompt_messages
from likelier.data.plain import parsed
from likelier.errors import DataError
from likelier.records import EXTRAS, Labelled, Message, Messages, Pair, Record

SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating"))
"""Fields in which data sets keep the scores of both sides."""

VERDICTS = ("label", "preference", "winner", "verdict")
TIES = ("tie", "tied", "draw", "equal", "tie (bothbad)")


def record(fields: Fields) -> Record:
    """The record that a row says, given `prompt`, `chosen` and `rejected`, or `prompt`, `completion` and `label`; what else it has is kept.

    Raises DataError for whatever could not be trained on or would teach what nobody meant.
    """
    return _pair(fields) if "chosen" in fields and "rejected" in fields else _labelled(fields)


def tie_in(fields: Fields) -> str | None:
    """What a row says that makes it a tie, or None. A tie is not a preference (pitfall 16)."""
    for name in VERDICTS:
        if name in fields and isinstance(fields[name], str) and fields[name].strip().lower() in TIES:
            return f"`{name}` says {fields[name]!r}"
    for chosen, rejected in SCORES:
        if chosen in fields and rejected in fields and fields[chosen] == fields[rejected]:
            return f"`{chosen}` and `{rejected}` are equal"
    if "margin" in fields and fields["margin"] == 0:
        return "`margin` is 0"
    return None


def tie(said: str) -> DataError:
    """The fault of a row that is a tie."""
    return DataError(f"{said}: this row is a tie. A tie is not a preference, and training on it would teach one. Drop the row.", kind="tie")


def _pair(fields: Fields) -> Pair:
    rest = dict(fields)
    prompt = _checked_prompt(rest)
    chosen, rejected = (_checked_reply(rest, side) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(
            "`chosen` and `rejected` are identical, so the row prefers nothing. Drop it, or mend the side that was copied.", kind="identical"
        )
    return Pair(prompt, chosen, rejected, **_extras(rest, EXTRAS))


def _labelled(fields: Fields) -> Labelled:
    rest = dict(fields)
    prompt, completion = _checked_prompt(rest), _checked_reply(rest, "completion")
    return Labelled(prompt, completion, _label(rest.pop("label")), **_extras(rest, LABELLED_EXTRAS))


def _checked_prompt(rest: Fields) -> Messages:
    prompt = _with_system(rest.pop("system", ""), prompt_messages(rest.pop("prompt")))
    if not any(message.content.strip() for message in prompt):
        raise DataError(
            "`prompt` is empty. A reply is only better than another one as the answer to something: write the prompt or drop the row.", kind="empty"
        )
    return prompt


def _with_system(system: Any, prompt: Messages) -> Messages:
    if not isinstance(system, str):
        raise DataError(f"`system` is {kind_of(system)}; it must be text, the system prompt.")
    if not system.strip() or prompt[:1] == (Message("system", system),):
        return prompt
    if any(message.role == "system" for message in prompt):
        raise DataError("`system` and the system message of the prompt differ. Keep one of them.")
    return (Message("system", system), *prompt)


def _checked_reply(rest: Fields, side: str) -> Messages:
    """One assistant message, or several turns that begin and end with one; none of the assistant's is empty (pitfall 17)."""
    reply = messages(rest.pop(side), side, "assistant")
    blank = any(message.role == "assistant" and not message.content.strip() and not message.extra.get("tool_calls") for message in reply)
    if not reply or blank:
        raise DataError(f"`{side}` is an empty response: there is nothing to score. Write the reply or drop the row.", kind="empty")
    strangers = [message.role for message in (reply[0], reply[-1]) if message.role != "assistant"]
    if strangers:
        raise DataError(
            f"`{side}` begins or ends with a message of the {strangers[0]}; a reply begins and ends with the assistant's. Cut it or drop the row."
        )
    return reply


def _label(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower(), value)
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    raise DataError(f"`label` is {shown(value)}; it must be true (a good reply) or false.")


def _extras(rest: Fields, names: tuple[str, ...]) -> Fields:
    """The record's optional fields, checked; what is left of the row becomes `meta`."""
    extras: Fields = {}
    for name in names:
        if name in rest:
            value = rest.pop(name)
            if value != "":
                extras[name] = CHECKS.get(name, _name)(name, value)
    if "meta" in extras:
        twice = sorted(rest.keys() & extras["meta"].keys())
        if twice:
            raise DataError(f"`{twice[0]}` stands both in the row and in its `meta`. Keep one of them.")
        rest = {**extras["meta"], **rest}
    if "tools" in rest:
        rest["tools"] = _tools(rest["tools"])
    return {**extras, "meta": rest}


def _name(field: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"`{field}` is {kind_of(value)}; it must be text. Mend it, or rename the field to keep it in `meta`.")


def _positive(field: str, value: Any) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 < number <= sys.float_info.max:
        said = str(value)[:40] if isinstance(value, int | float) else kind_of(value)
        raise DataError(f"`{field}` is {said}; it must be a positive finite number. Mend it or leave it out.")
    return float(number)


def _object(field: str, value: Any) -> Fields:
    if not isinstance(value, dict):
        raise DataError(f"`{field}` is {kind_of(value)}; it must be an object.")
    return dict(value)


def _tools(value: Any) -> list[Fields]:
    """Tool definitions, perhaps written as text; the empty text is none."""
    if isinstance(value, str):
        try:
            value = parsed(value) if value.strip() else []
        except ValueError as problem:
            raise DataError(f"`tools` is text that is not JSON ({problem}). Write the list of tool definitions.") from None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"`tools` is {kind_of(value)}; it must be a list of objects, one a tool.")
    return value


CHECKS: dict[str, Callable[[str, Any], Any]] = {"weight": _positive, "margin": _positive, "meta": _object}
"""How each optional field is checked; any other is a name."""

LABELLED_EXTRAS = tuple(name for name in EXTRAS if name != "margin")
