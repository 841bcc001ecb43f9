"""Records → examples: text becomes token ids here, and only here is it decided where a prompt ends and which tokens count.

A conversation is rendered as text first, and the text is cut before anything is tokenised:

    <s>[user] What is 2+2? [/user][assistant]    4.</end>    \\n
    └──────────────── prompt ───────────────┘└─ response ─┘└─ the next turn's, left out

The prompt is what the model is given to generate from; the response is all that the template writes after that, up to and including the
token that ends the turn. It is tokenised on its own: a token that merges over the boundary is one that the model could never have produced.
Every token of the response counts, no token of the prompt does, and nothing is cut short.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError

from likelier.errors import DataError, ModelError
from likelier.examples import Ids, LabelledExample, PreferenceExample
from likelier.records import Labelled, Message, Messages, Pair

CHUNK = 1024  # pairs whose texts are held at once
PROBE = "0PROBE0REPLY0"  # stands for a reply when a template is asked what it writes around one


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


@dataclass(frozen=True, slots=True)
class Dropped:
    """A pair that is not trained on, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Pairs as examples, and what there is to report about the way there."""

    examples: list[PreferenceExample]
    dropped: list[Dropped]
    boundary_mismatches: list[str]
    """Ids of pairs, kept, of which a response's tokens after its prompt's do not decode to the text that the template writes there."""


class Encoder:
    """Tokenises records with one tokenizer and one chat template.

    `chat_template`: "own" (the tokenizer's), "none" (prompt text and response text end to end, closed by the end-of-sequence token), or the
    path of a Jinja file. `max_length`: longest prompt + response, in tokens. `end_token_id` is the token that ends a reply, where generation
    stops. Raises ModelError for a template that is missing, fails, or does not say where a reply begins.

    A template that wants a beginning-of-sequence token writes it, so none is added (as in `transformers`). Plain text gets one if the
    tokenizer is of the kind that adds it.
    """

    def __init__(self, tokenizer: Tokenizer, *, chat_template: str = "own", max_length: int) -> None:
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._writer = _PlainText(tokenizer) if chat_template == "none" else _ChatTemplate(tokenizer, _given_template(tokenizer, chat_template))
        self.end_token_id = int(tokenizer.convert_tokens_to_ids(self._writer.ending.token))
        self._end_ids = {self.end_token_id, *tokenizer.added_tokens_decoder}
        self._adds_bos = chat_template == "none" and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]

    def encode_pairs(self, pairs: Sequence[Pair]) -> Encoded:
        """All pairs that fit and whose replies differ, in their order; the others are named.

        Raises DataError for an empty reply, and whatever the template's rendering raises; the message names the pair.
        """
        encoded = Encoded([], [], [])
        prompts: dict[str, _Prompt] = {}
        for first in range(0, len(pairs), CHUNK):
            chunk = [(pair.id or f"number {number}", pair) for number, pair in enumerate(pairs[first : first + CHUNK], first + 1)]
            sequences = self._encode([turn for name, pair in chunk for turn in _turns(pair, f"pair {name}")], prompts)
            for (name, pair), chosen, rejected in zip(chunk, sequences[::2], sequences[1::2], strict=True):
                example = PreferenceExample(chosen.prompt_ids, chosen.response_ids, rejected.response_ids, pair.id)
                if reason := self._unusable(example):
                    encoded.dropped.append(Dropped(name, reason))
                    continue
                encoded.examples.append(example)
                if not (chosen.spelled and rejected.spelled):
                    encoded.boundary_mismatches.append(name)
        return encoded

    def lengths(self, pairs: Sequence[Pair]) -> list[tuple[int, int, int]]:
        """Tokens of each pair's prompt, chosen and rejected, whether it fits or not. Raises as `encode_pairs` does."""
        sequences = self._encode([turn for number, pair in enumerate(pairs, 1) for turn in _turns(pair, f"pair {pair.id or number}")], {})
        both = zip(sequences[::2], sequences[1::2], strict=True)
        return [(len(chosen.prompt_ids), len(chosen.response_ids), len(rejected.response_ids)) for chosen, rejected in both]

    def encode_pair(self, pair: Pair) -> PreferenceExample:
        """One pair. Raises DataError where `encode_pairs` would drop it."""
        encoded = self.encode_pairs([pair])
        for dropped in encoded.dropped:
            raise DataError(f"pair {dropped.id} cannot be used: {dropped.reason}.")
        return encoded.examples[0]

    def encode_labelled(self, record: Labelled) -> LabelledExample:
        """One unpaired record. Raises DataError for an empty completion and for one that does not fit."""
        name = f"record {record.id or '(without id)'}"
        [sequence] = self._encode([_Turn(record.prompt, record.completion, record.meta.get("tools"), name)], {})
        example = LabelledExample(sequence.prompt_ids, sequence.response_ids, record.label, record.id)
        if len(example) > self.max_length:
            raise DataError(f"{name} has {len(example)} tokens, more than data.max_length = {self.max_length}. Raise it or leave the record out.")
        return example

    def encode_prompt(self, messages: Messages, tools: Any = None) -> Ids:
        """What the model is given to generate a reply: the same ids as an example's `prompt_ids`."""
        return self._prompt_ids([self._writer.prompt(_Turn(messages, (), tools, "the prompt"))])[0]

    def _encode(self, turns: Sequence["_Turn"], prompts: dict[str, "_Prompt"]) -> list["_Sequence"]:
        """Token ids of each turn; a prompt that is met again is neither rendered nor tokenised again."""
        keys = [repr((turn.prompt, turn.tools)) for turn in turns]
        fresh: dict[str, _Turn] = {}
        for key, turn in zip(keys, turns, strict=True):
            if key not in prompts:
                fresh.setdefault(key, turn)
        texts = [self._writer.prompt(turn) for turn in fresh.values()]
        ids = self._prompt_ids(texts)
        prompts.update(zip(fresh, map(_Prompt, texts, ids, self._decode(ids)), strict=True))

        prompt_of = [prompts[key] for key in keys]
        responses = [self._writer.response(turn, prompt.text) for turn, prompt in zip(turns, prompt_of, strict=True)]
        sequences = self._check(prompt_of, responses, self._ids(responses))
        self._mend(sequences, prompt_of, responses)
        for turn, sequence in zip(turns, sequences, strict=True):
            if sequence.response_ids[-1] not in self._end_ids:
                token = self._writer.ending.token
                raise ModelError(f"{turn.name}: this tokenizer does not read the end token {token!r} as one token. Add it as a special token.")
        return sequences

    def _check(self, prompts: Sequence["_Prompt"], responses: Sequence[str], ids: Sequence[Ids]) -> list["_Sequence"]:
        """Decoded together, not the response alone: some tokenizers write a leading space only after something else."""
        whole = self._decode([prompt.ids + response for prompt, response in zip(prompts, ids, strict=True)])
        return [
            _Sequence(prompt.ids, response_ids, spelled=not prompt.text or text == prompt.decoded + response)
            for prompt, response, response_ids, text in zip(prompts, responses, ids, whole, strict=True)
        ]

    def _mend(self, sequences: list["_Sequence"], prompts: Sequence["_Prompt"], responses: Sequence[str]) -> None:
        """Retry responses that are spelled differently on their own: sentencepiece puts a space before the first word of any text.

        They are tokenised behind their prompt, which is right where, and only where, the prompt keeps exactly its own tokens.
        """
        wrong = [i for i, sequence in enumerate(sequences) if not sequence.spelled]
        together = self._prompt_ids([prompts[i].text + responses[i] for i in wrong])
        kept = [(i, ids[len(prompts[i].ids) :]) for i, ids in zip(wrong, together, strict=True) if ids[: len(prompts[i].ids)] == prompts[i].ids]
        retried = self._check([prompts[i] for i, _ in kept], [responses[i] for i, _ in kept], [ids for _, ids in kept])
        for (i, _), sequence in zip(kept, retried, strict=True):
            sequences[i] = sequence

    def _unusable(self, example: PreferenceExample) -> str | None:
        if example.chosen_ids == example.rejected_ids:
            return "its two replies are the same tokens"
        if len(example) > self.max_length:
            prompt, chosen, rejected = len(example.prompt_ids), len(example.chosen_ids), len(example.rejected_ids)
            return f"{len(example)} tokens (prompt {prompt}, chosen {chosen}, rejected {rejected}), data.max_length is {self.max_length}"
        return None

    def _prompt_ids(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts that begin a sequence: with the beginning-of-sequence token once, and never empty."""
        bos = self._tokenizer.bos_token_id
        all_ids = self._ids(texts)
        for i, ids in enumerate(all_ids):
            if not ids and bos is None:
                raise ModelError("a prompt is empty, and this tokenizer has no bos_token to stand for it. Give every record a prompt.")
            if bos is not None and (not ids or (self._adds_bos and ids[0] != bos)):
                all_ids[i] = (bos, *ids)
        return all_ids

    def _ids(self, texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        return list(map(tuple, self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]))

    def _decode(self, sequences: Sequence[Ids]) -> list[str]:
        if not sequences:
            return []
        return list(self._tokenizer.batch_decode([*map(list, sequences)], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def template_hash(tokenizer: Tokenizer, chat_template: str = "own") -> str:
    """SHA-256 (hex) of the chat template in use; of the empty text for "none". Raises ModelError if there is no such template."""
    text = "" if chat_template == "none" else _given_template(tokenizer, chat_template) or tokenizer.chat_template
    return _sha256(text if isinstance(text, str) else json.dumps(text, sort_keys=True))


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 (hex) of the tokenizer's vocabulary and rules; of the sorted vocabulary where the rules are Python code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _sha256(json.dumps(sorted(tokenizer.get_vocab().items())))
    rules = {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("truncation", "padding")}  # every call changes these
    return _sha256(json.dumps(rules, sort_keys=True))


class _Turn(NamedTuple):
    """One reply to encode. `name` tells errors whose it is."""

    prompt: Messages
    reply: Messages
    tools: Any
    name: str


class _Prompt(NamedTuple):
    text: str
    ids: Ids
    decoded: str


class _Sequence(NamedTuple):
    prompt_ids: Ids
    response_ids: Ids
    spelled: bool  # the ids decode to the text


class _Ending(NamedTuple):
    """How a template ends a turn."""

    tail: str  # all that it writes after a reply's content
    closing: str  # the scored part of that, up to and including …
    token: str  # … the end token


class _PlainText:
    """Prompt and reply are one message each, written as they are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ending = _Ending("", *[_eos(tokenizer)] * 2)

    def prompt(self, turn: _Turn) -> str:
        return self._only(turn.prompt, turn.name) if turn.prompt else ""

    def response(self, turn: _Turn, prompt_text: str) -> str:
        _require_words(turn, self.ending)
        return _close(turn, self._only(turn.reply, turn.name), self.ending)

    def _only(self, messages: Messages, name: str) -> str:
        if len(messages) > 1:
            raise DataError(f"{name}: {len(messages)} messages, and plain text takes one. Set model.chat_template to own or to a Jinja file.")
        return messages[0].content


class _ChatTemplate:
    """Renders prompts, and cuts replies out of rendered conversations. `template` None is the tokenizer's own."""

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._special = _any_of([token.content for token in tokenizer.added_tokens_decoder.values() if token.special] + [tokenizer.eos_token or ""])
        probe = _Turn((Message("user", "Hello."),), (Message("assistant", PROBE),), None, "model.chat_template")
        self._header = self.prompt(probe).removeprefix(self._render(probe, probe.prompt))
        self.ending = self._find_ending(self._around(probe)[1])

    def prompt(self, turn: _Turn) -> str:
        """The rendering that a model continues when it generates."""
        if turn.prompt:
            return self._render(turn, turn.prompt, add_generation_prompt=True)
        opening, _ = self._around(turn._replace(reply=(Message("assistant", PROBE),)))
        head, header, _ = opening.rpartition(self._header) if self._header else ("", "", "")
        return head + header or opening

    def response(self, turn: _Turn, prompt_text: str) -> str:
        """What is written after `prompt_text`, up to and including the end token."""
        _require_words(turn, self.ending)
        full = self._render(turn, turn.prompt + turn.reply)
        ending = self.ending if full.endswith(self.ending.tail) else self._ending_of(full, turn.name)
        body = full.removesuffix(ending.tail)
        if body.startswith(prompt_text):
            return _close(turn, body.removeprefix(prompt_text), ending)
        return _close(turn, self._behind_header(turn, prompt_text, body), ending)

    def _behind_header(self, turn: _Turn, prompt_text: str, body: str) -> str:
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

    def _around(self, turn: _Turn) -> tuple[str, str]:
        """What the template writes before the content of a reply's first message, and after it."""
        probed = (replace(turn.reply[0], content=PROBE), *turn.reply[1:])
        parts = self._render(turn, turn.prompt + probed).split(PROBE)
        if len(parts) != 2:
            raise ModelError(f"{turn.name}: this chat template writes a reply {len(parts) - 1} times, not once. Give model.chat_template another.")
        return parts[0], parts[1]

    def _find_ending(self, tail: str) -> _Ending:
        added = _any_of(token.content for token in self._tokenizer.added_tokens_decoder.values())
        if found := self._special.search(tail) or added.search(tail):
            return _Ending(tail, tail[: found.end()], found.group())
        eos = _eos(self._tokenizer)
        return _Ending(tail, tail.rstrip() + eos, eos)

    def _ending_of(self, full: str, name: str) -> _Ending:
        """The ending of a turn that ends otherwise than usual, such as one that calls a tool."""
        found = re.search(rf"({self._special.pattern})\s*\Z", full)
        if not found:
            raise ModelError(f"{name}: this chat template ends a reply with {full[-40:]!r}, not a special token. Give model.chat_template another.")
        return _Ending(found.group(), found.group(1), found.group(1))

    def _render(self, turn: _Turn, messages: Messages, *, add_generation_prompt: bool = False) -> str:
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


def _turns(pair: Pair, name: str) -> list[_Turn]:
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    return [_Turn(pair.prompt, reply, pair.meta.get("tools"), f"{name}, {side}") for side, reply in sides.items()]


def _require_words(turn: _Turn, ending: _Ending) -> None:
    """An empty reply has nothing to compare but its end, and a mean over no tokens is 0/0."""
    if not any(message.extra or message.content.replace(ending.token, "").strip() for message in turn.reply):
        raise DataError(f"{turn.name}: the reply is empty. Remove the record.")


def _close(turn: _Turn, body: str, ending: _Ending) -> str:
    """The reply with its end token, once, also where the data already wrote it."""
    while body.rstrip().endswith(ending.token):
        body = body.rstrip().removesuffix(ending.token)
    if not body.strip():
        raise DataError(f"{turn.name}: the chat template leaves the whole reply out. Set model.chat_template to a Jinja file that writes it.")
    return body + ending.closing


def _given_template(tokenizer: Tokenizer, chat_template: str) -> str | None:
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


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
