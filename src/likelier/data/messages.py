"""What the tools of the field write as messages: text, lists of `role` and `content`, lists of `from` and `value`, transcripts.

All of it becomes a tuple of `Message`; every fault names the field and the number of the message.
"""

import re
from typing import Any

from likelier.data.fields import Fields, kind_of
from likelier.data.plain import parsed
from likelier.errors import DataError, did_you_mean
from likelier.records import Message, Messages

ROLES = ("system", "developer", "user", "assistant", "tool")

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""What `from` says in ShareGPT's turns, and the role that it stands for."""

PROMPTS = ("prompt", "messages", "conversation", "conversations", "instruction", "question", "query", "input")
"""Fields in which tools keep the prompt, in the order in which they are looked for."""


def messages(value: Any, field: str, role: str) -> Messages:
    """A string is one message of `role`, unless it is a transcript of several."""
    if isinstance(value, str):
        return _turns(value) if is_transcript(value) else (Message(role, value),)
    if isinstance(value, list):
        return tuple([_message(item, field, number) for number, item in enumerate(value, 1)])
    if isinstance(value, tuple):
        return value
    raise DataError(f'`{field}` is {kind_of(value)}. It holds text, or a list of messages such as {{"role": "{role}", "content": "…"}}.')


def prompt_messages(value: Any, field: str = "prompt") -> Messages:
    """A prompt's messages, without the open turn ("Assistant:") with which some end."""
    prompt = messages(value, field, "user")
    return prompt[:-1] if prompt and prompt[-1] == Message("assistant", "") else prompt


def take_prompt(fields: Fields) -> tuple[Messages, Fields]:
    """(the prompt, the row without it), from whichever of PROMPTS the row has. An Alpaca `input` follows its `instruction` on a new line."""
    name = next((name for name in PROMPTS if name in fields), None)
    if name is None:
        raise DataError(f"this row has no prompt: none of {', '.join(f'`{name}`' for name in PROMPTS)}. Add `prompt`.")
    rest = {other: value for other, value in fields.items() if other != name}
    value = fields[name]
    if name == "instruction" and isinstance(value, str) and isinstance(rest.get("input"), str):
        value = "\n".join(part for part in (value, rest.pop("input")) if part)
    return prompt_messages(value, name), rest


def split_reply(conversation: Messages, field: str) -> tuple[Messages, Messages]:
    """(the prompt, the reply) of a whole conversation: the reply is what the assistant said last."""
    start = len(conversation)
    while start and conversation[start - 1].role == "assistant":
        start -= 1
    if start == len(conversation):
        raise DataError(f"`{field}` does not end with a message of the assistant, so it holds no reply. Add the reply or drop the row.", kind="empty")
    return conversation[:start], conversation[start:]


def is_conversation(value: Any) -> bool:
    """Whether a side holds more than a reply: it begins with somebody else's turn."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return value[0].get("role") in ("system", "developer", "user") or value[0].get("from") in ("system", "human", "user")
    return is_transcript(value)


def is_transcript(value: Any) -> bool:
    """Whether a text is written as HH-RLHF writes conversations."""
    return isinstance(value, str) and "\n\nAssistant:" in value and value.lstrip().startswith("Human:")


def _turns(transcript: str) -> Messages:
    _, *parts = re.split(r"\n\n(Human|Assistant):", f"\n\n{transcript.strip()}")
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(names[name], text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True))


def _message(value: Any, field: str, number: int) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"`{field}`, message {number} is {kind_of(value)}, not an object with `role` and `content`.")
    role, content = value.get("role"), value.get("content")
    if len(value) == 2 and type(role) is str and role in ROLES and type(content) is str:
        return Message(role, content)  # nearly all messages; what follows gives the same, more slowly
    where = f"`{field}`, message {number}"
    if "from" in value and "role" not in value:
        value = _from_sharegpt(value, where)
    extra = {name: part for name, part in value.items() if part is not None}
    role, content = extra.pop("role", None), extra.pop("content", "" if extra.get("tool_calls") else None)
    if not isinstance(role, str) or role not in ROLES:
        said = f"has the unknown role {role[:40]!r}" if isinstance(role, str) else "has no `role`"
        raise DataError(f"{where} {said}.{did_you_mean(str(role)[:40], ROLES)} Roles are {', '.join(ROLES)}.")
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        content = "".join(part["text"] for part in content)  # parts of text, as OpenAI's API has them
    if not isinstance(content, str):
        said = "no `content`" if content is None else f"{kind_of(content)} as `content`"
        raise DataError(f"{where} has {said}; it must be text, or a list of parts that are text.")
    return Message(role, content, extra)


def _from_sharegpt(turn: Fields, where: str) -> Fields:
    """`{"from": …, "value": …}` as `{"role": …, "content": …}`; a `function_call`'s value is the JSON of one call or of a list of them."""
    said, value = turn["from"], turn.get("value")
    if not isinstance(said, str) or said not in SHAREGPT_ROLES:
        raise DataError(f"{where} comes `from` {said!r:.40}.{did_you_mean(str(said)[:40], SHAREGPT_ROLES)} Known: {', '.join(SHAREGPT_ROLES)}.")
    if not isinstance(value, str):
        raise DataError(f"{where} has {'no `value`' if value is None else f'{kind_of(value)} as `value`'}; it must be text.")
    rest = {name: part for name, part in turn.items() if name not in ("from", "value")}
    if said != "function_call":
        return {**rest, "role": SHAREGPT_ROLES[said], "content": value}
    try:
        calls = parsed(value)
    except ValueError as problem:
        raise DataError(f"{where} is a function_call whose `value` is not JSON ({problem}). Write the call's name and arguments as JSON.") from None
    calls = calls if isinstance(calls, list) else [calls]
    return {**rest, "role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call} for call in calls]}
