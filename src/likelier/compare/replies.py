"""Replies of contestants: read from the file that was given, or written by a model, which is asked once for each and kept in the cache.

They stand in OUT/replies/NAME.jsonl, a row a prompt; of a file that was given, `ended` and `tokens` are null:

    {"id", "prompt": [messages], "reply": text, "ended": by itself, "tokens": length}
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from likelier.chunks import say_damaged
from likelier.compare.contestants import Contestant, Sampling, named, with_system
from likelier.data.cells import from_cells
from likelier.data.files import read_rows
from likelier.data.messages import prompt_messages
from likelier.data.prompts import Prompt
from likelier.data.shapes.judged import REPLIES
from likelier.errors import DataError, RequestError
from likelier.generation.kept import KeptReplies
from likelier.generation.requests import Replies, Request, requests_for, write_replies
from likelier.model_files import cache_dir
from likelier.rundir import write_jsonl
from likelier.subject import Subject, Who, find_subject
from likelier.wording import count


@dataclass(frozen=True, slots=True)
class Written:
    """One contestant's reply to one prompt."""

    text: str
    ended: bool | None = None
    tokens: int | None = None


def replies_of(contestant: Contestant, prompts: Sequence[Prompt], sampling: Sampling, folder: Path, say: Callable[[str], None]) -> list[Written]:
    """One reply a prompt, put into `folder`. What the same model wrote to the same prompt by the same settings is not written again."""
    if contestant.replies:
        replies = _read_given(contestant.replies, prompts)
    else:
        try:
            replies = _written(contestant, prompts, sampling, say)
        except RequestError as problem:
            raise named(contestant, problem) from problem
    rows = [
        {
            "id": prompt.id,
            "prompt": [message.as_dict() for message in prompt.messages],
            "reply": reply.text,
            "ended": reply.ended,
            "tokens": reply.tokens,
        }
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    write_jsonl(folder / contestant.file, rows)
    return replies


def _written(contestant: Contestant, prompts: Sequence[Prompt], sampling: Sampling, say: Callable[[str], None]) -> list[Written]:
    def tell(text: str) -> None:
        say(f"{contestant.name}: {text}")

    tell("loading")
    subject = find_subject(contestant.where)
    who: Who = "reference" if contestant.reference else "policy"
    asked = [prompt.messages if contestant.system is None else with_system(prompt.messages, contestant.system) for prompt in prompts]
    ids = [subject.encoder.encode_prompt(messages, prompt.tools) for messages, prompt in zip(asked, prompts, strict=True)]
    requests = requests_for(ids, limit=sampling.max_new_tokens, temperature=sampling.temperature, seed=sampling.seed)
    kept = KeptReplies(cache_dir() / "replies", subject.writer_name(who), end_token_id=subject.encoder.end_token_id)
    say_damaged(kept.damaged, say)
    if there := len({*requests}) - len(kept.lacks(requests)):
        tell(f"{count(there, 'reply', 'replies')} kept from before")
    kept.fill(requests, partial(_write, subject, who, tell))
    replies = kept.replies(requests, subject.tokenizer)
    return [Written(reply.text, reply.ended, reply.length) for reply in map(replies.__getitem__, requests)]


def _write(subject: Subject, who: Who, tell: Callable[[str], None], requests: Sequence[Request], keep: Callable[[Replies], None]) -> None:
    with subject.held(who) as model:
        write_replies(
            model,
            subject.tokenizer,
            requests,
            end_token_id=subject.encoder.end_token_id,
            precision=subject.precision,
            on_batch=keep,
            on_progress=lambda done, total: tell(f"{done} of {count(total, 'reply', 'replies')}"),
        )


def _read_given(path: Path, prompts: Sequence[Prompt]) -> list[Written]:
    """Replies by their prompt; by its id where their rows have no prompt, as ids of lines are only their places: another file has the same ones.

    Raises DataError for a row without a reply, and where a prompt has none or several that differ.
    """
    texts: dict[tuple[str | None, str | None], set[str]] = {}  # by (id, prompt), either of which a row may lack
    for row in read_rows(path):
        if isinstance(row.value, DataError):
            raise row.value
        fields = from_cells(row.value) if row.table and isinstance(row.value, dict) else row.value
        text = _reply_in(fields, row.where)
        name = None if fields.get("id") is None else str(fields["id"])
        prompt = repr(prompt_messages(fields["prompt"])) if fields.get("prompt") else None
        for way in {(name, prompt), (None, prompt)} if prompt else {(name, prompt)}:
            texts.setdefault(way, set()).add(text)
    ways = [((prompt.id, repr(prompt.messages)), (None, repr(prompt.messages)), (prompt.id, None)) for prompt in prompts]
    found = [next((texts[way] for way in each if way in texts), None) for each in ways]
    missing = [prompt.id for prompt, text in zip(prompts, found, strict=True) if text is None]
    if missing:
        raise DataError(
            f"{path}: {count(len(missing), 'prompt')} of {len(prompts)} {'has' if len(missing) == 1 else 'have'} no reply here, among them "
            f"{missing[0]}. A row has `reply` and the same `prompt`, word for word, or no `prompt` but its `id`."
        )
    for asked, some in zip(prompts, found, strict=True):
        if some and len(some) > 1:
            raise DataError(f"{path}: the prompt {asked.id} has {len(some)} replies here that differ. Leave one a prompt.")
    return [Written(text) for some in found for text in some or ()]


def _reply_in(fields: Any, where: str) -> str:
    if isinstance(fields, dict):
        for name in ("reply", *REPLIES):
            if isinstance(fields.get(name), str):
                return str(fields[name])
    raise DataError("there is no reply in this row: a text called `reply` (or `response`, `completion`, `output`, `answer`).", where=where)
