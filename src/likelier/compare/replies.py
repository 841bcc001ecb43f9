"""Replies on disk: OUT/replies/NAME.jsonl, one row a prompt, which says what it was made by.

    {"id", "prompt": [messages], "reply": text, "ended": by itself, "tokens": length, "made_by": hash of model, prompts and settings}

Of a file of replies that was given, `ended` and `tokens` are null.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likelier.compare.contestants import Contestant, Sampling, named, opened
from likelier.data.cells import from_cells
from likelier.data.files import read_rows
from likelier.data.messages import prompt_messages
from likelier.data.prompts import Prompt
from likelier.data.shapes.judged import REPLIES
from likelier.errors import DataError, RequestError
from likelier.hashing import file_hash
from likelier.rundir import read_jsonl, write_jsonl
from likelier.wording import count


@dataclass(frozen=True, slots=True)
class Written:
    """One contestant's reply to one prompt."""

    text: str
    ended: bool | None = None
    tokens: int | None = None


def replies_of(contestant: Contestant, prompts: Sequence[Prompt], sampling: Sampling, folder: Path, say: Callable[[str], None]) -> list[Written]:
    """One reply a prompt, read or written, and kept in `folder`. Replies that the same model wrote to the same prompts by the same settings stay."""
    path = folder / contestant.file
    if contestant.replies:
        replies = _read_given(contestant.replies, prompts)
        _keep(path, prompts, replies, file_hash(contestant.replies))
        return replies
    say(f"{contestant.name}: loading")

    def show(done: int, total: int) -> None:
        say(f"{contestant.name}: {done} of {count(total, 'reply', 'replies')}")

    try:
        with opened(contestant) as writer:
            key, ids, options = writer.asked(prompts, contestant.system, sampling)
            if (kept := _read_kept(path, prompts, key)) is not None:
                say(f"{contestant.name}: {count(len(kept), 'reply', 'replies')} kept from before")
                return kept
            replies = [Written(reply.text, reply.ended, reply.length) for reply in writer.write(ids, options, show)]
    except RequestError as problem:
        raise named(contestant, problem) from problem
    _keep(path, prompts, replies, key)
    return replies


def _keep(path: Path, prompts: Sequence[Prompt], replies: Sequence[Written], made_by: str) -> None:
    rows = [
        {
            "id": prompt.id,
            "prompt": [message.as_dict() for message in prompt.messages],
            "reply": reply.text,
            "ended": reply.ended,
            "tokens": reply.tokens,
            "made_by": made_by,
        }
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    write_jsonl(path, rows)


def _read_kept(path: Path, prompts: Sequence[Prompt], key: str) -> list[Written] | None:
    rows = list(read_jsonl(path))
    if [row.get("id") for row in rows] != [prompt.id for prompt in prompts] or {row.get("made_by") for row in rows} != {key}:
        return None
    return [Written(row["reply"], row["ended"], row["tokens"]) for row in rows]


def _read_given(path: Path, prompts: Sequence[Prompt]) -> list[Written]:
    """Replies by their prompt; by its id where their rows have no prompt, as ids of lines are only their places: another file has the same ones.

    Raises DataError for a row without a reply, and where a prompt has none.
    """
    texts: dict[tuple[str | None, str | None], str] = {}  # by (id, prompt), either of which a row may lack
    for row in read_rows(path):
        if isinstance(row.value, DataError):
            raise row.value
        fields = from_cells(row.value) if row.table and isinstance(row.value, dict) else row.value
        text = _reply_in(fields, row.where)
        name = None if fields.get("id") is None else str(fields["id"])
        prompt = repr(prompt_messages(fields["prompt"])) if fields.get("prompt") else None
        texts[name, prompt] = text
        if prompt:
            texts[None, prompt] = text
    ways = [((prompt.id, repr(prompt.messages)), (None, repr(prompt.messages)), (prompt.id, None)) for prompt in prompts]
    found = [next((texts[way] for way in each if way in texts), None) for each in ways]
    missing = [prompt.id for prompt, text in zip(prompts, found, strict=True) if text is None]
    if missing:
        raise DataError(
            f"{path}: {count(len(missing), 'prompt')} of {len(prompts)} {'has' if len(missing) == 1 else 'have'} no reply here, among them "
            f"{missing[0]}. A row has `reply` and the same `prompt`, word for word, or no `prompt` but its `id`."
        )
    return [Written(text) for text in found if text is not None]


def _reply_in(fields: Any, where: str) -> str:
    if isinstance(fields, dict):
        for name in ("reply", *REPLIES):
            if isinstance(fields.get(name), str):
                return str(fields[name])
    raise DataError("there is no reply in this row: a text called `reply` (or `response`, `completion`, `output`, `answer`).", where=where)
