"""Rows in the formats of training services and trainers: OpenAI's preference fine-tuning, LLaMA-Factory's Alpaca and ShareGPT files."""

from collections.abc import Iterator
from typing import Any

from likelier.data.fields import Fields, first_of, kind_of, without
from likelier.data.messages import messages, split_reply, take_prompt
from likelier.data.plain import parsed
from likelier.data.shapes.pairs import is_paired
from likelier.errors import DataError
from likelier.records import Message, Messages


def has_preferred_output(row: Fields) -> bool:
    return "input" in row and "preferred_output" in row and "non_preferred_output" in row


def openai(fields: Fields) -> Iterator[Fields]:
    """OpenAI preference fine-tuning: `input` with `messages` and perhaps `tools`, `preferred_output` and `non_preferred_output`.

    The arguments of a tool call, JSON text there, become the object that chat templates expect. Settings that say what the service does
    anyway (no tools, parallel calls allowed) are left out.
    """
    given = fields["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise DataError(f"`input` is {kind_of(given)}{' without `messages`' if isinstance(given, dict) else ''}; it must hold `messages`.")
    rest = {**without(fields, "input", "preferred_output", "non_preferred_output"), **without(given, "messages")}
    rest = {name: value for name, value in rest.items() if value is not None and (name, value) not in (("tools", []), ("parallel_tool_calls", True))}
    sides = (("prompt", given["messages"]), ("chosen", fields["preferred_output"]), ("rejected", fields["non_preferred_output"]))
    yield {**rest, **{side: _with_arguments(messages(value, side, "assistant")) for side, value in sides}}


def _with_arguments(turns: Messages) -> Messages:
    """Messages whose tool calls have their arguments as objects."""
    return tuple(Message(turn.role, turn.content, _objects(turn.extra)) if "tool_calls" in turn.extra else turn for turn in turns)


def _objects(extra: Any) -> Fields:
    calls = extra["tool_calls"]
    return {**extra, "tool_calls": [_object_call(call) for call in calls] if isinstance(calls, list) else calls}


def _object_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = parsed(function["arguments"])
    except ValueError:
        return call  # a model's own malformed call: that may be what is wrong with the rejected side
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def has_alpaca_pair(row: Fields) -> bool:
    return is_paired(row) and "instruction" in row


def has_sharegpt_pair(row: Fields) -> bool:
    return is_paired(row) and "prompt" not in row and first_of(("conversations", "messages"), row) is not None


def has_kto_tag(row: Fields) -> bool:
    return "kto_tag" in row and ("instruction" in row or "conversations" in row or "messages" in row)


def alpaca_pair(fields: Fields) -> Iterator[Fields]:
    """LLaMA-Factory, Alpaca: `instruction`, perhaps `input`, `system` and `history`, and both replies as text."""
    yield _with_history(fields)


def sharegpt_pair(fields: Fields) -> Iterator[Fields]:
    """LLaMA-Factory, ShareGPT: `conversations` as prompt, and each reply one turn."""
    name = "conversations" if "conversations" in fields else "messages"
    sides = {side: [fields[side]] if isinstance(fields[side], dict) else fields[side] for side in ("chosen", "rejected")}
    yield _with_functions({**without(fields, name), **sides, "prompt": messages(fields[name], name, "user")})


def kto(fields: Fields) -> Iterator[Fields]:
    """LLaMA-Factory, KTO: Alpaca with `output`, or a whole ShareGPT conversation, and `kto_tag` true or false."""
    rest = {**without(fields, "kto_tag"), "label": fields["kto_tag"]}
    name = first_of(("conversations", "messages"), rest)
    if name is None:
        if "output" not in rest:
            raise DataError("this row has a `kto_tag` and no `output` that it judges. Add `output`.")
        yield _with_history({**without(rest, "output"), "completion": rest["output"]})
    else:
        prompt, completion = split_reply(messages(rest[name], name, "user"), name)
        yield _with_functions({**without(rest, name), "prompt": prompt, "completion": completion})


def _with_history(fields: Fields) -> Fields:
    history = fields.get("history") or []
    rounds = isinstance(history, list) and all(isinstance(turns, list) and len(turns) == 2 for turns in history)
    if not rounds or not all(isinstance(text, str) for turns in history for text in turns):
        raise DataError("`history` is not a list of [what the user said, what the assistant said]. Mend it or leave it out.")
    earlier = [Message(role, text) for turns in history for role, text in zip(("user", "assistant"), turns, strict=True)]
    prompt, rest = take_prompt(without(fields, "history"))
    return _with_functions({**rest, "prompt": (*earlier, *prompt)})


def _with_functions(fields: Fields) -> Fields:
    """LLaMA-Factory's `tools`, JSON text of bare definitions, as chat templates read them: each a `function`."""
    tools = fields.get("tools")
    if isinstance(tools, str):
        try:
            tools = parsed(tools) if tools.strip() else []
        except ValueError as problem:
            raise DataError(f"`tools` is text that is not JSON ({problem}). Write the list of tool definitions.") from None
    if not tools:
        return without(fields, "tools")
    if not isinstance(tools, list):
        raise DataError(f"`tools` is {kind_of(tools)}; it must be a list of tool definitions.")
    return {**fields, "tools": [{"type": "function", "function": tool} if _is_bare(tool) else tool for tool in tools]}


def _is_bare(tool: Any) -> bool:
    return isinstance(tool, dict) and "name" in tool and "function" not in tool
