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
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from likelier.data.ids import TextIds, plain_backend, settled
from likelier.data.kept_turns import EncodedTurn, KeptTurns
from likelier.data.rendering import ChatTemplate, PlainText, Tokenizer, Turn, given_template
from likelier.errors import DataError, ModelError
from likelier.examples import Example, Ids, LabelledExample, PreferenceExample
from likelier.records import Messages, Pair, Record

CHUNK = 1024  # records whose texts are held at once

PACKAGES = ("likelier", "transformers", "tokenizers", "jinja2")

REVISION = 1
"""Counts up when the ids of a turn change in a way that no version of a package tells: what was kept of an older one is then not read."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that is not trained on, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Records as examples, and what there is to report about the way there."""

    examples: list[Example]
    dropped: list[Dropped]
    boundary_mismatches: list[str]
    """Ids of records, kept, of which a response's tokens after its prompt's do not decode to the text that the template writes there."""


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
        self._text_ids = TextIds(tokenizer)
        given = "" if chat_template == "none" else given_template(tokenizer, chat_template)
        self._template = _text_of(given, tokenizer)
        self._writer = PlainText(tokenizer) if chat_template == "none" else ChatTemplate(tokenizer, given)
        self.end_token_id = int(tokenizer.convert_tokens_to_ids(self._writer.ending.token))
        self._end_ids = {self.end_token_id, *tokenizer.added_tokens_decoder}
        self._adds_bos = chat_template == "none" and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]

    @property
    def identity(self) -> str | None:
        """The name of all that a turn's ids depend on beside the turn (hex): tokenizer, template, packages. None where that cannot be told, because
        the tokenizer is Python code."""
        backend = plain_backend(self._tokenizer)
        if backend is None:
            return None
        tokenizer: Any = self._tokenizer
        rules = settled(backend, tokenizer).to_str(), tokenizer.special_tokens_map, tokenizer.split_special_tokens
        return _sha256(repr((REVISION, rules, self._template, [version(name) for name in PACKAGES])))[:32]

    def encode(self, records: Sequence[Record], kept: KeptTurns | None = None) -> Encoded:
        """All records that fit, and of pairs those whose replies differ, in their order; the others are named. What `kept` has of this encoder's
        `identity` is not tokenised again, and the rest is put there.

        Raises DataError for an empty reply, and whatever the template's rendering raises; the message names the record.
        """
        encoded = Encoded([], [], [])
        prompts: dict[str, _Prompt] = {}
        for first in range(0, len(records), CHUNK):
            chunk = [(record.id or f"number {number}", record) for number, record in enumerate(records[first : first + CHUNK], first + 1)]
            sequences = iter(self._encode([turn for name, record in chunk for turn in _turns(record, name)], prompts, kept))
            for name, record in chunk:
                replies = [next(sequences) for _ in range(2 if isinstance(record, Pair) else 1)]
                example = _example(record, replies)
                if reason := self._unusable(example):
                    encoded.dropped.append(Dropped(name, reason))
                    continue
                encoded.examples.append(example)
                if not all(reply.spelled for reply in replies):
                    encoded.boundary_mismatches.append(name)
        return encoded

    def lengths(self, pairs: Sequence[Pair]) -> list[tuple[int, int, int]]:
        """Tokens of each pair's prompt, chosen and rejected, whether it fits or not. Raises as `encode` does."""
        sequences = self._encode([turn for number, pair in enumerate(pairs, 1) for turn in _turns(pair, pair.id or str(number))], {})
        both = zip(sequences[::2], sequences[1::2], strict=True)
        return [(len(chosen.prompt_ids), len(chosen.response_ids), len(rejected.response_ids)) for chosen, rejected in both]

    def encode_one(self, record: Record) -> Example:
        """One record. Raises DataError where `encode` would drop it."""
        encoded = self.encode([record])
        for dropped in encoded.dropped:
            raise DataError(f"{_kind(record)} {dropped.id} cannot be used: {dropped.reason}.")
        return encoded.examples[0]

    def encode_prompt(self, messages: Messages, tools: Any = None) -> Ids:
        """What the model is given to generate a reply: the same ids as an example's `prompt_ids`."""
        return self._prompt_ids([self._writer.prompt(Turn(messages, (), tools, "the prompt"))])[0]

    def _encode(self, turns: Sequence[Turn], prompts: dict[str, "_Prompt"], kept: KeptTurns | None = None) -> list[EncodedTurn]:
        """Token ids of each turn, from `kept` where it has all of them. A reply that stands in several records is one turn."""
        keys = [_key(turn.prompt, turn.tools, turn.reply) for turn in turns]
        distinct: dict[str, Turn] = {}
        for key, turn in zip(keys, turns, strict=True):
            distinct.setdefault(key, turn)
        name = _sha256(" ".join(distinct))
        encoded = kept.read(name) if kept else None
        if encoded is None:
            encoded = self._tokenized([*distinct.values()], prompts)
            if kept:
                kept.write(name, encoded)
        found = dict(zip(distinct, encoded, strict=True))
        return [found[key] for key in keys]

    def _tokenized(self, turns: Sequence[Turn], prompts: dict[str, "_Prompt"]) -> list[EncodedTurn]:
        """Token ids of each turn; a prompt that is met again is neither rendered nor tokenised again."""
        keys = [_key(turn.prompt, turn.tools) for turn in turns]
        fresh: dict[str, Turn] = {}
        for key, turn in zip(keys, turns, strict=True):
            if key not in prompts:
                fresh.setdefault(key, turn)
        texts = [self._writer.prompt(turn) for turn in fresh.values()]
        ids = self._prompt_ids(texts)
        prompts.update(zip(fresh, map(_Prompt, texts, ids, self._text_ids.texts(ids)), strict=True))

        prompt_of = [prompts[key] for key in keys]
        responses = [self._writer.response(turn, prompt.text) for turn, prompt in zip(turns, prompt_of, strict=True)]
        sequences = self._check(prompt_of, responses, self._text_ids.ids(responses))
        self._mend(sequences, prompt_of, responses)
        for turn, sequence in zip(turns, sequences, strict=True):
            if sequence.response_ids[-1] not in self._end_ids:
                token = self._writer.ending.token
                raise ModelError(f"{turn.name}: this tokenizer does not read the end token {token!r} as one token. Add it as a special token.")
        return sequences

    def _check(self, prompts: Sequence["_Prompt"], responses: Sequence[str], ids: Sequence[Ids]) -> list[EncodedTurn]:
        """Decoded together, not the response alone: some tokenizers write a leading space only after something else."""
        whole = self._text_ids.texts([prompt.ids + response for prompt, response in zip(prompts, ids, strict=True)])
        return [
            EncodedTurn(prompt.ids, response_ids, spelled=not prompt.text or text == prompt.decoded + response)
            for prompt, response, response_ids, text in zip(prompts, responses, ids, whole, strict=True)
        ]

    def _mend(self, sequences: list[EncodedTurn], prompts: Sequence["_Prompt"], responses: Sequence[str]) -> None:
        """Retry responses that are spelled differently on their own: sentencepiece puts a space before the first word of any text.

        They are tokenised behind their prompt, which is right where, and only where, the prompt keeps exactly its own tokens.
        """
        wrong = [i for i, sequence in enumerate(sequences) if not sequence.spelled]
        together = self._prompt_ids([prompts[i].text + responses[i] for i in wrong])
        kept = [(i, ids[len(prompts[i].ids) :]) for i, ids in zip(wrong, together, strict=True) if ids[: len(prompts[i].ids)] == prompts[i].ids]
        retried = self._check([prompts[i] for i, _ in kept], [responses[i] for i, _ in kept], [ids for _, ids in kept])
        for (i, _), sequence in zip(kept, retried, strict=True):
            sequences[i] = sequence

    def _unusable(self, example: Example) -> str | None:
        if len(example.replies) > 1 and example.replies[0] == example.replies[1]:
            return "its two replies are the same tokens"
        if len(example) > self.max_length:
            sides = ("chosen", "rejected") if len(example.replies) > 1 else ("reply",)
            parts = ", ".join(f"{side} {len(reply)}" for side, reply in zip(sides, example.replies, strict=True))
            return f"{len(example)} tokens (prompt {len(example.prompt_ids)}, {parts}), data.max_length is {self.max_length}"
        return None

    def _prompt_ids(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts that begin a sequence: with the beginning-of-sequence token once, and never empty."""
        bos = self._tokenizer.bos_token_id
        all_ids = self._text_ids.ids(texts)
        for i, ids in enumerate(all_ids):
            if not ids and bos is None:
                raise ModelError("a prompt is empty, and this tokenizer has no bos_token to stand for it. Give every record a prompt.")
            if bos is not None and (not ids or (self._adds_bos and ids[0] != bos)):
                all_ids[i] = (bos, *ids)
        return all_ids


def template_hash(tokenizer: Tokenizer, chat_template: str = "own") -> str:
    """SHA-256 (hex) of the chat template in use; of the empty text for "none". Raises ModelError if there is no such template."""
    return _sha256(_text_of("" if chat_template == "none" else given_template(tokenizer, chat_template), tokenizer))


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 (hex) of the tokenizer's vocabulary and rules; of the sorted vocabulary where the rules are Python code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _sha256(json.dumps(sorted(tokenizer.get_vocab().items())))
    rules = {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("truncation", "padding")}  # every call changes these
    return _sha256(json.dumps(rules, sort_keys=True))


def _text_of(given: str | None, tokenizer: Tokenizer) -> str:
    """The template in use; None is the tokenizer's own, which may be several by name."""
    text = tokenizer.chat_template if given is None else given
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True)


class _Prompt(NamedTuple):
    text: str
    ids: Ids
    decoded: str


def _turns(record: Record, name: str) -> list[Turn]:
    sides = {", chosen": record.chosen, ", rejected": record.rejected} if isinstance(record, Pair) else {"": record.completion}
    return [Turn(record.prompt, reply, record.meta.get("tools"), f"{_kind(record)} {name}{side}") for side, reply in sides.items()]


def _key(*parts: Any) -> str:
    """A turn, or its prompt, in full: unlike JSON's, a mapping's order counts, because templates write tools in it."""
    return _sha256(repr(parts))


def _kind(record: Record) -> str:
    return "pair" if isinstance(record, Pair) else "record"


def _example(record: Record, replies: Sequence[EncodedTurn]) -> Example:
    prompt_ids, first = replies[0].prompt_ids, replies[0].response_ids
    if isinstance(record, Pair):
        return PreferenceExample(prompt_ids, first, replies[1].response_ids, record.id, record.weight, record.margin)
    return LabelledExample(prompt_ids, first, record.label, record.id, record.weight)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
