"""A model's tokenizer and chat template from its files alone: what the audit needs to count tokens, at a tenth of the start-up time.

`FileTokenizer` answers what `rendering.Tokenizer` asks as a tokenizer of `transformers` would, with the same two libraries below: tokenizers, Jinja.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from likelier.data.chat import Encoder
from likelier.errors import ModelError, RequestError
from likelier.records import Pair

ENDLESS = 2**31
"""A length limit that nothing reaches: the caller counts, and decides itself."""


class _Generation(Extension):
    """`{% generation %}`, with which some templates mark replies for training: what it encloses is written as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 has it so)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class FileTokenizer:
    """The tokenizer in `folder` (tokenizer.json, tokenizer_config.json). Raises ModelError where there is none, or one that is Python code."""

    def __init__(self, folder: Path) -> None:
        rules = folder / "tokenizer.json"
        if not rules.is_file():
            raise ModelError(f"{folder}: there is no tokenizer.json in it, which the audit counts tokens with. Save the model with a fast tokenizer.")
        config = folder / "tokenizer_config.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(rules))
            self._config: dict[str, Any] = dict(json.loads(config.read_text(encoding="utf-8"))) if config.is_file() else {}
        except Exception as problem:  # the library raises nothing more special
            raise ModelError(f"{folder}: its tokenizer cannot be read ({' '.join(str(problem).split())[:200]}).") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        template = folder / "chat_template.jinja"
        self.chat_template: Any = template.read_text(encoding="utf-8") if template.is_file() else _one(self._config.get("chat_template"))

    @property
    def eos_token(self) -> str | None:
        return self._special("eos_token")

    @property
    def bos_token_id(self) -> int | None:
        bos = self._special("bos_token")
        return None if bos is None else self._tokenizer.token_to_id(bos)

    @cached_property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        return self._tokenizer.get_added_tokens_decoder()

    def __call__(self, text: Any, add_special_tokens: bool = True, **options: Any) -> dict[str, Any]:
        if isinstance(text, str):
            return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}
        return {"input_ids": [e.ids for e in self._tokenizer.encode_batch_fast(text, add_special_tokens=add_special_tokens)]}

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        return self._tokenizer.decode_batch(sequences, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        return self._tokenizer.token_to_id(tokens)

    def apply_chat_template(self, conversation: Any, *, tools: Any = None, chat_template: str | None = None, **options: Any) -> str:
        options.pop("tokenize", None)
        special = {name: self._special(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token") if self._special(name)}
        template = self._compiled(chat_template or self.chat_template)
        return str(template.render(messages=conversation, tools=tools, documents=None, **special, **options))

    def _special(self, name: str) -> str | None:
        token = self._config.get(name)
        return token["content"] if isinstance(token, dict) else token

    @cached_property
    def _compiled(self) -> Callable[[str], Template]:
        """A template from its text, compiled once: that takes some forty times as long as rendering a conversation with it."""
        return cache(self._environment.from_string)

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        return environment


class TokenCounter:
    """Counts the tokens of pairs as the model in `folder` reads them. Picklable: each process loads its own tokenizer, once."""

    def __init__(self, folder: Path, chat_template: str = "own") -> None:
        self._folder, self._chat_template = folder, chat_template
        self._encoder: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_chat_template": self._chat_template, "_encoder": None}

    def __call__(self, pairs: Sequence[Pair]) -> np.ndarray:
        """(N, 3) int32: tokens of prompt, chosen and rejected. A pair that the template cannot render has none; training will name it.

        Raises ModelError where the template renders no pair at all.
        """
        if self._encoder is None:
            self._encoder = Encoder(FileTokenizer(self._folder), chat_template=self._chat_template, max_length=ENDLESS)
        try:
            lengths = self._encoder.lengths(pairs)
        except RequestError:
            lengths = [self._length(self._encoder, pair) for pair in pairs]
            if not any(map(any, lengths)):
                raise
        return np.array(lengths, np.int32).reshape(-1, 3)

    @staticmethod
    def _length(encoder: Encoder, pair: Pair) -> tuple[int, int, int]:
        try:
            return encoder.lengths([pair])[0]
        except RequestError:
            return 0, 0, 0


def _one(template: Any) -> Any:
    """Older files hold several templates by name; `default` is the one for a conversation."""
    return {each["name"]: each["template"] for each in template}.get("default") if isinstance(template, list) else template


def _refuse(message: str) -> None:
    raise TemplateError(message)
