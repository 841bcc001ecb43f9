"""Greedy replies of one model, written once and kept on disk: sweeps and repeated evaluations ask the same reference the same prompts.

A reply depends on the weights, the arithmetic, the prompt's ids, the end token and the limit, and is found by exactly these. In bf16 it also
depends, by rounding, on what shared its batch; the first one that was written stays.

    <root>/<identity>/<sha256 of the file>.jsonl      {"key": hex, "ids": [token ids, end token included]}
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from likelier.chunks import Chunks
from likelier.examples import Ids
from likelier.generation.sample import Reply, reply_of

Generate = Callable[[Sequence[Ids]], list[Reply]]
"""Writes one greedy reply to each prompt, in their order."""


class KeptReplies:
    """Greedy replies of the model that `identity` names (`logprobs.reference.identity`), of up to `max_new_tokens` tokens."""

    def __init__(self, root: Path, identity: str, *, end_token_id: int, max_new_tokens: int) -> None:
        self._chunks = Chunks(root / identity, "jsonl")
        self._end_token_id = end_token_id
        self._max_new_tokens = max_new_tokens
        self._ids: dict[str, Ids] = {}
        for content in self._chunks.read():
            self._ids |= {row["key"]: tuple(row["ids"]) for row in map(json.loads, content.splitlines())}

    def lacks(self, prompts: Sequence[Ids]) -> list[Ids]:
        """The prompts to which no reply is kept, each once."""
        return [prompt for prompt in dict.fromkeys(prompts) if self._key(prompt) not in self._ids]

    def fill(self, prompts: Sequence[Ids], write: Generate) -> None:
        """Have the replies that are lacking written, and keep them. Raises RunError if the disk does not take them."""
        lacking = self.lacks(prompts)
        if not lacking:
            return
        fresh = {self._key(prompt): reply.ids for prompt, reply in zip(lacking, write(lacking), strict=True)}
        self._chunks.write("".join(json.dumps({"key": key, "ids": ids}) + "\n" for key, ids in fresh.items()).encode())
        self._ids |= fresh

    def replies(self, prompts: Sequence[Ids], tokenizer: Any) -> list[Reply]:
        """The reply to each prompt, in their order. KeyError where one was never written."""
        return [reply_of(self._ids[self._key(prompt)], tokenizer, self._end_token_id) for prompt in prompts]

    def _key(self, prompt: Ids) -> str:
        return hashlib.sha256(array("q", (self._end_token_id, self._max_new_tokens, *prompt)).tobytes()).hexdigest()
