"""Conversations → text: what a chat template writes before a reply, and what of its writing is the reply.

A template is a black box that renders whole conversations. What it writes around a reply is found by having it render a probe.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError

from likelier.errors import DataError, ModelError
from likelier.records import Message, Messages

PROBE = "0PROBE0REPLY0"  # stands for a reply when a template is asked what it writes around one

TODAY = datetime(2024, 7, 26)
"""What a template is told that asks for the date (`strftime_now`): the day that Llama 3.1's own falls back to. With the true one a run that goes on
tomorrow would go on with other prompts, and no reference value would be found again."""

FORMS = {"%F": "%Y-%m-%d", "%D": "%m/%d/%y", "%T": "%H:%M:%S", "%R": "%H:%M"}
FORMS |= {f"%-{letter}": TODAY.strftime(f"%{letter}").lstrip("0") or "0" for letter in "dmHIMSjy"} | {"%e": f"{TODAY.day:2}"}
FORMS |= {f"%{letter}": TODAY.strftime(f"%{letter}") for letter in "aAbBcdGHIjmMpSuUVwWxXyY"} | {"%z": "", "%Z": "", "%%": "%"}
DATED = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{form}', '{told}')" for form, told in FORMS.items())
    + " }}{% endmacro %}{{ '' }}"  # behind an expression no line break is lost
)
"""Begins a template that asks for the date: transformers hands no function to a template, but a template may have one of its own."""


class Tokenizer(Protocol):
    """What is asked of a tokenizer; every one of `transformers` can do it."""

    @property
    def chat_template(self) -> Any: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token(self) -> str | None: ...
    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...
    def __call__(self, text: Any, **options: Any) -> Any: ...
    def batch_decode(self, sequences: Any, **options: Any) -> Any: ...
    def convert_tokens_to_ids(self, tokens: Any) -> Any: ...
    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


class Turn(NamedTuple):
    """One reply to encode. `name` tells errors whose it is."""

    prompt: Messages
    reply: Messages
    tools: Any
    name: str


class Ending(NamedTuple):
    """How a template ends a turn."""

    tail: str  # all that it writes after a reply's content
    closing: str  # the scored part of that, up to and including …
    token: str  # … the end token


class PlainText:
    """Prompt and reply are one message each, written as they are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ending = Ending("", *[_eos(tokenizer)] * 2)

    def prompt(self, turn: Turn) -> str:
        return self._only(turn.prompt, turn.name) if turn.prompt else ""

    def response(self, turn: Turn, prompt_text: str) -> str:
        _require_words(turn, self.ending)
        return _close(turn, self._only(turn.reply, turn.name), self.ending)

    def _only(self, messages: Messages, name: str) -> str:
        if len(messages) > 1:
            raise DataError(f"{name}: {len(messages)} messages, and plain text takes one. Set model.chat_template to own or to a Jinja file.")
        return messages[0].content


class ChatTemplate:
    """Renders prompts, and cuts replies out of rendered conversations. `template` None is the tokenizer's own."""

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        self._tokenizer = tokenizer
        text = tokenizer.chat_template if template is None else template
        if not isinstance(text, str) and "strftime_now" in str(text):
            raise ModelError(
                "this model has several chat templates that ask for the date. Write one into a Jinja file, and set model.chat_template to it."
            )
        self._template = DATED + text if "strftime_now" in text else template
        self._special = _any_of([token.content for token in tokenizer.added_tokens_decoder.values() if token.special] + [tokenizer.eos_token or ""])
        probe = Turn((Message("user", "Hello."),), (Message("assistant", PROBE),), None, "model.chat_template")
        self._header = self.prompt(probe).removeprefix(self._render(probe, probe.prompt))
        self.ending = self._find_ending(self._around(probe)[1])

    def prompt(self, turn: Turn) -> str:
        """The rendering that a model continues when it generates."""
        if turn.prompt:
            return self._render(turn, turn.prompt, add_generation_prompt=True)
        opening, _ = self._around(turn._replace(reply=(Message("assistant", PROBE),)))
        head, header, _ = opening.rpartition(self._header) if self._header else ("", "", "")
        return head + header or opening

    def response(self, turn: Turn, prompt_text: str) -> str:
        """What is written after `prompt_text`, up to and including the end token."""
        _require_words(turn, self.ending)
        full = self._render(turn, turn.prompt + turn.reply)
        ending = self.ending if full.endswith(self.ending.tail) else self._ending_of(full, turn.name)
        body = full.removesuffix(ending.tail)
        if body.startswith(prompt_text):
            return _close(turn, body.removeprefix(prompt_text), ending)
        return _close(turn, self._behind_header(turn, prompt_text, body), ending)

    def _behind_header(self, turn: Turn, prompt_text: str, body: str) -> str:
        """The reply where the generation header holds more than the finished turn, such as `<think>`.

        The prompt stays what generation uses. A block that the header opens and closes is simply followed by the reply. One that it leaves
        open is followed by the reasoning, which such templates drop when they render a finished turn: the reply is then the content as given.
        """
        opening, _ = self._around(turn)
        if not (prompt_text.startswith(opening) and body.startswith(opening)):
            at = next((i for i, (given, asked) in enumerate(zip(body, prompt_text, strict=False)) if given != asked), len(body))
            raise ModelError(
                f"{turn.name}: after {body[max(0, at - 40) : at]!r} this chat template writes {prompt_text[at : at + 20]!r} to ask for a reply, but "
                f"{body[at : at + 20]!r} when it is given. Set model.chat_template to a Jinja file that writes both alike."
            )
        extra = prompt_text.removeprefix(opening)
        unclosed = [tag for tag in re.findall(r"<(\w+)>", extra) if f"</{tag}>" not in extra]
        if not unclosed:
            return body.removeprefix(opening)
        content = turn.reply[0].content
        if len(turn.reply) > 1 or f"</{unclosed[-1]}>" not in content:
            raise DataError(
                f"{turn.name}: this chat template has a reply begin inside <{unclosed[-1]}>, and this reply is not one message with its "
                f"reasoning closed by </{unclosed[-1]}>. Add the reasoning, or set model.chat_template to a Jinja file that does not ask for it."
            )
        return content.lstrip().removeprefix(extra.lstrip()).removeprefix(extra.strip())

    def _around(self, turn: Turn) -> tuple[str, str]:
        """What the template writes before the content of a reply's first message, and after it."""
        probed = (replace(turn.reply[0], content=PROBE), *turn.reply[1:])
        parts = self._render(turn, turn.prompt + probed).split(PROBE)
        if len(parts) != 2:
            raise ModelError(f"{turn.name}: this chat template writes a reply {len(parts) - 1} times, not once. Give model.chat_template another.")
        return parts[0], parts[1]

    def _find_ending(self, tail: str) -> Ending:
        added = _any_of(token.content for token in self._tokenizer.added_tokens_decoder.values())
        if found := self._special.search(tail) or added.search(tail):
            return Ending(tail, tail[: found.end()], found.group())
        eos = _eos(self._tokenizer)
        return Ending(tail, tail.rstrip() + eos, eos)

    def _ending_of(self, full: str, name: str) -> Ending:
        """The ending of a turn that ends otherwise than usual, such as one that calls a tool."""
        found = re.search(rf"({self._special.pattern})\s*\Z", full)
        if not found:
            raise ModelError(f"{name}: this chat template ends a reply with {full[-40:]!r}, not a special token. Give model.chat_template another.")
        return Ending(found.group(), found.group(1), found.group(1))

    def _render(self, turn: Turn, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [message.as_dict() for message in messages],
                tools=turn.tools or None,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as problem:
            roles = ", ".join(message.role for message in messages)
            raise ModelError(
                f"{turn.name}: the chat template cannot render this conversation ({roles}): {str(problem).removesuffix('.')}. "
                "Change the record's messages to what the template takes, or set model.chat_template to a Jinja file that takes them."
            ) from problem
        return str(text)


def _require_words(turn: Turn, ending: Ending) -> None:
    """An empty reply has nothing to compare but its end, and a mean over no tokens is 0/0."""
    if not any(message.extra or message.content.replace(ending.token, "").strip() for message in turn.reply):
        raise DataError(f"{turn.name}: the reply is empty. Remove the record.")


def _close(turn: Turn, body: str, ending: Ending) -> str:
    """The reply with its end token, once, also where the data already wrote it."""
    while body.rstrip().endswith(ending.token):
        body = body.rstrip().removesuffix(ending.token)
    if not body.strip():
        raise DataError(f"{turn.name}: the chat template leaves the whole reply out. Set model.chat_template to a Jinja file that writes it.")
    return body + ending.closing


def given_template(tokenizer: Tokenizer, chat_template: str) -> str | None:
    """The text of a template file; None for "own". Raises ModelError if there is none."""
    if chat_template == "own":
        if not tokenizer.chat_template:
            raise ModelError("this model has no chat template of its own. Set model.chat_template to none (plain text) or to a Jinja file.")
        return None
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ModelError(f"model.chat_template is own, none or a Jinja file, and {chat_template!r} cannot be read: {problem}.") from None


def _eos(tokenizer: Tokenizer) -> str:
    if not tokenizer.eos_token:
        raise ModelError("this tokenizer has no end-of-sequence token, and nothing else ends a reply. Set its eos_token.")
    return tokenizer.eos_token


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds the first of `tokens`, the longest at its place. Blank ones (runs of spaces that some vocabularies add) end nothing."""
    words = sorted({token for token in tokens if token.strip()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) or r"(?!)")
