"""Records → the rows of other tools. A new target is one function and one row of TARGETS.

A target writes what its format holds and counts, by field, what it does not; a record whose meaning it cannot hold is a DataError.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from likelier.data.checks import SCORES, VERDICTS, tie_in
from likelier.data.fields import Fields
from likelier.data.plain import json_text
from likelier.errors import DataError, RequestError, did_you_mean
from likelier.records import EXTRAS, Labelled, Message, Messages, Pair, Record

Lost = Counter[str]
"""How often a field did not fit: "weight", "meta.lang", "message.name"."""

COLUMNS = tuple(name for name in EXTRAS if name != "meta")


def trl(record: Record, lost: Lost) -> Fields:
    """TRL's conversational preference and unpaired preference types, with `tools`; other fields that are text or a number stay as columns."""
    row = record.as_dict()
    row.pop("meta", None)
    return {**row, **_columns(record, TRL_FIELDS, lost)}


def openai(record: Record, lost: Lost) -> Fields:
    """OpenAI's preference fine-tuning: messages and tools, and nothing else."""
    if isinstance(record, Labelled):
        fault = "this record judges one reply, and OpenAI's preference format holds pairs only. Write it for trl or llamafactory."
        raise DataError(fault, kind="unpaired")
    strangers = {message.role for message in (*record.chosen, *record.rejected)} - {"assistant", "tool"}
    if strangers:
        raise DataError(f"a reply holds a message of the {min(strangers)}; OpenAI's outputs hold the assistant's and tools' only. Cut it.")
    settings = _tools_of(record)
    if "parallel_tool_calls" in record.meta:
        settings["parallel_tool_calls"] = record.meta["parallel_tool_calls"]
    lost.update(name for name in COLUMNS if _is_set(record, name))
    lost.update(f"meta.{name}" for name in record.meta if name not in settings)
    given = {"messages": _openai_messages(record.prompt, lost), **settings}
    chosen, rejected = _told_apart(_openai_messages(record.chosen, lost), _openai_messages(record.rejected, lost))
    return {"input": given, "preferred_output": chosen, "non_preferred_output": rejected}


def llamafactory(record: Record, lost: Lost) -> Fields:
    """LLaMA-Factory's ShareGPT files: `conversations` with `chosen` and `rejected`, or ending with the reply and with `kto_tag`.

    Its turns alternate, the user's (or a tool's) first, and a reply is one turn: a record that has it otherwise would be skipped there.
    """
    system, turns = _system_of(record.prompt, lost)
    row: Fields = {"conversations": [_turn(message, lost) for message in turns]}
    if isinstance(record, Pair):
        row["chosen"], row["rejected"] = _told_apart(_only_turn(record.chosen, lost), _only_turn(record.rejected, lost))
    else:
        row["conversations"].append(_only_turn(record.completion, lost))
        row["kto_tag"] = record.label
    users = [turn["from"] in ("human", "observation") for turn in row["conversations"]]
    alternate = [at % 2 == 0 for at in range(len(users))]
    if users != alternate or users[-1:] != [isinstance(record, Pair)]:
        raise DataError("its turns do not alternate: the prompt must begin and end with the user (or a tool), the assistant between. Drop it.")
    columns = _columns(record, LLAMAFACTORY_FIELDS, lost)
    tools = columns.pop("tools", None)
    row |= {"system": system, "tools": json_text([_bare(tool) for tool in tools]) if tools else ""}
    return {**row, **{name: getattr(record, name) for name in COLUMNS if _is_set(record, name)}, **columns}


def dataset_info(file_name: str, *, paired: bool) -> Fields:
    """What LLaMA-Factory's dataset_info.json must say of a file that `llamafactory` wrote."""
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    if paired:
        return {"file_name": file_name, "formatting": "sharegpt", "ranking": True, "columns": columns | {"chosen": "chosen", "rejected": "rejected"}}
    return {"file_name": file_name, "formatting": "sharegpt", "columns": columns | {"kto_tag": "kto_tag"}}


TARGETS: dict[str, Callable[[Record, Lost], Fields]] = {"trl": trl, "openai": openai, "llamafactory": llamafactory}

TRL_FIELDS = ("prompt", "chosen", "rejected", "completion", "label", "system", "tools", *EXTRAS)
LLAMAFACTORY_FIELDS = (*TRL_FIELDS, "conversations", "messages", "kto_tag", "instruction", "input", "output", "history")
"""Names that mean something in a target's rows (or would when they are read again), so that no field of `meta` can have them."""

JUDGEMENTS = (*VERDICTS, *(name for names in SCORES for name in names))


def target_named(name: str) -> Callable[[Record, Lost], Fields]:
    """The target of that name. Raises RequestError, with the nearest one, if there is none."""
    if name not in TARGETS:
        raise RequestError(f"there is no target `{name}`.{did_you_mean(name, TARGETS)} Targets: {', '.join(TARGETS)}.")
    return TARGETS[name]


def _columns(record: Record, reserved: Iterable[str], lost: Lost) -> Fields:
    """`tools`, and what else of `meta` a column of text or numbers can hold."""
    kept = {name: value for name, value in record.meta.items() if isinstance(value, str | int | float) and name not in reserved}
    if tie_in(kept):  # equal scores, by which the record was not judged, would make a tie of its row
        kept = {name: value for name, value in kept.items() if name not in JUDGEMENTS}
    kept |= _tools_of(record)
    lost.update(f"meta.{name}" for name in record.meta if name not in kept)
    return kept


def _tools_of(record: Record) -> Fields:
    tools = record.meta.get("tools")
    return {"tools": tools} if tools and isinstance(tools, list) else {}


def _told_apart(chosen: Any, rejected: Any) -> tuple[Any, Any]:
    """Both sides, which must still differ in a target's row."""
    if chosen == rejected:
        raise DataError("its sides differ only in what this format cannot hold, and would be identical there. Drop it.", kind="identical")
    return chosen, rejected


def _is_set(record: Record, name: str) -> bool:
    return getattr(record, name, None) not in (None, "") and not (name == "weight" and record.weight == 1.0)


def _openai_messages(messages: Messages, lost: Lost) -> list[Fields]:
    return [_openai_message(message, lost) for message in messages]


def _openai_message(message: Message, lost: Lost) -> Fields:
    """A message with what OpenAI's API knows of one; the arguments of a tool call are JSON text there."""
    extra = {name: value for name, value in message.extra.items() if name in ("name", "tool_calls", "tool_call_id")}
    lost.update(f"message.{name}" for name in message.extra if name not in extra)
    if isinstance(extra.get("tool_calls"), list):
        extra["tool_calls"] = [_with_text_arguments(call) for call in extra["tool_calls"]]
    return {"role": message.role, "content": message.content, **extra}


def _with_text_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    return {**call, "function": {**function, "arguments": json_text(function["arguments"])}}


def _system_of(prompt: Messages, lost: Lost) -> tuple[str, Messages]:
    """(the system prompt, the other messages)."""
    if not prompt or prompt[0].role not in ("system", "developer"):
        return "", prompt
    lost.update(f"message.{name}" for name in prompt[0].extra)
    if prompt[0].role == "developer":
        lost["message.role"] += 1
    if not prompt[0].content.strip():
        lost["message.content"] += 1
    return prompt[0].content.strip() and prompt[0].content, prompt[1:]


def _only_turn(reply: Messages, lost: Lost) -> Fields:
    if len(reply) > 1:
        raise DataError(f"a reply has {len(reply)} messages, and LLaMA-Factory's has one. Drop it, or end the prompt before the last one.")
    return _turn(reply[0], lost)


def _turn(message: Message, lost: Lost) -> Fields:
    """One ShareGPT turn. Calls of tools are JSON text, and stand instead of what was said beside them."""
    extra = dict(message.extra)
    calls = extra.pop("tool_calls", None)
    lost.update(f"message.{name}" for name in extra)
    if message.role not in FROM:
        raise DataError(f"its prompt holds a message of the {message.role} after the first; LLaMA-Factory has one system prompt. Drop it.")
    if not calls:
        return {"from": FROM[message.role], "value": message.content}
    functions = [call.get("function") if isinstance(call, dict) else None for call in calls] if isinstance(calls, list) else [None]
    if not all(isinstance(function, dict) for function in functions):
        raise DataError("a message has `tool_calls` that are not a list of function calls. Mend them or drop it.")
    if message.content:
        lost["message.content"] += 1
    if any(call.keys() - {"type", "function"} for call in calls):
        lost["message.tool_calls.id"] += 1
    return {"from": "function_call", "value": json_text(functions[0] if len(functions) == 1 else functions)}


FROM = {"user": "human", "assistant": "gpt", "tool": "observation"}


def _bare(tool: Any) -> Any:
    return tool["function"] if isinstance(tool, dict) and tool.keys() == {"type", "function"} else tool
