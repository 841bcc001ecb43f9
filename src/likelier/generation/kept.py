"""Replies of one model, written once and kept on disk: sweeps, repeated evaluations and comparisons ask the same model the same prompts.

A reply depends on the weights, the arithmetic, the prompt's ids, the end token and the limit, a drawn one on temperature, seed and place too, and
is found by exactly these. In bf16 it also depends, by rounding, on what shared its batch; the first one that was written stays.

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
from likelier.generation.requests import Replies, Request
from likelier.generation.sample import Reply, reply_of

Write = Callable[[Sequence[Request], Callable[[Replies], None]], object]
"""Writes a reply to each request, and hands them over to be kept as they come."""


class KeptReplies:
    """Replies of the model that `identity` names (`logprobs.reference.identity`)."""

    def __init__(self, root: Path, identity: str, *, end_token_id: int) -> None:
        self._chunks = Chunks(root / identity, "jsonl")
        self._end_token_id = end_token_id
        self._ids: dict[str, Ids] = {}
        for content in self._chunks.read():
            self._ids |= {row["key"]: tuple(row["ids"]) for row in map(json.loads, content.splitlines())}

    @property
    def damaged(self) -> list[Path]:
        """Chunks that opening has set aside."""
        return self._chunks.damaged

    def lacks(self, requests: Sequence[Request]) -> list[Request]:
        """The requests to which no reply is kept, each once."""
        return [request for request in dict.fromkeys(requests) if self._key(request) not in self._ids]

    def fill(self, requests: Sequence[Request], write: Write) -> None:
        """Have the replies that are lacking written, and keep them: a kill costs those of one batch. Raises RunError if the disk does not take
        them."""
        if lacking := self.lacks(requests):
            write(lacking, self._keep)

    def replies(self, requests: Sequence[Request], tokenizer: Any) -> dict[Request, Reply]:
        """The reply to each request. KeyError where one was never written."""
        return {request: reply_of(self._ids[self._key(request)], tokenizer, self._end_token_id) for request in requests}

    def _keep(self, replies: Replies) -> None:
        fresh = {self._key(request): reply.ids for request, reply in replies.items()}
        self._chunks.write("".join(json.dumps({"key": key, "ids": ids}) + "\n" for key, ids in fresh.items()).encode())
        self._ids |= fresh

    def _key(self, request: Request) -> str:
        digest = hashlib.sha256(array("q", (self._end_token_id, request.limit, *request.prompt)).tobytes())
        if request.temperature:
            digest.update(json.dumps([request.temperature, request.seed, request.place]).encode())
        return digest.hexdigest()
