"""Rows that hold both replies: `chosen` and `rejected`, with the prompt beside them or in front of them."""

from collections.abc import Iterator
from typing import Any

from likelier.data.fields import Fields, without
from likelier.data.messages import is_conversation, is_transcript, messages, prompt_messages, take_prompt
from likelier.errors import DataError
from likelier.records import Messages


def is_paired(row: Fields) -> bool:
    return "chosen" in row and "rejected" in row


def has_prompt(row: Fields) -> bool:
    return is_paired(row) and "prompt" in row


def has_subset(row: Fields) -> bool:
    return has_prompt(row) and isinstance(row.get("subset"), str) and "group" not in row


def has_conversations(row: Fields) -> bool:
    return has_prompt(row) and (is_conversation(row["chosen"]) or is_conversation(row["rejected"]))


def has_transcripts(row: Fields) -> bool:
    return is_paired(row) and "prompt" not in row and (is_transcript(row["chosen"]) or is_transcript(row["rejected"]))


def has_lists(row: Fields) -> bool:
    return is_paired(row) and "prompt" not in row and (isinstance(row["chosen"], list) or isinstance(row["rejected"], list))


def has_texts(row: Fields) -> bool:
    return is_paired(row) and "prompt" not in row and isinstance(row["chosen"], str) and isinstance(row["rejected"], str)


def has_edit(row: Fields) -> bool:
    return any(draft in row and sent in row for draft, sent in EDITS)


def explicit_prompt(fields: Fields) -> Iterator[Fields]:
    """`prompt` beside the two replies, each a string or messages: the canonical shape, and TRL's."""
    yield fields


def subset(fields: Fields) -> Iterator[Fields]:
    """RewardBench: a pair with the `subset` that it belongs to, by which its accuracy is told apart. It becomes the group."""
    yield {**without(fields, "subset"), "group": fields["subset"]}


def repeated_prompt(fields: Fields) -> Iterator[Fields]:
    """`prompt` beside two whole conversations that repeat it, as UltraFeedback-binarized has them: the conversations are believed."""
    for whole in implicit_prompt(fields):
        if not _texts(prompt_messages(fields["prompt"])) <= _texts(whole["prompt"]):
            raise DataError(
                "`chosen` and `rejected` are whole conversations, but they do not begin with what `prompt` says. "
                "Mend `prompt`, remove it, or leave only the replies in `chosen` and `rejected`.",
                kind="prompts-differ",
            )
        yield whole


def implicit_prompt(fields: Fields) -> Iterator[Fields]:
    """`chosen` and `rejected` as whole conversations: what they share is the prompt."""
    chosen, rejected = (messages(fields[side], side, "assistant") for side in ("chosen", "rejected"))
    fork = _fork(chosen, rejected)
    yield {**fields, "prompt": chosen[:fork], "chosen": chosen[fork:], "rejected": rejected[fork:]}


def transcripts(fields: Fields) -> Iterator[Fields]:
    """HH-RLHF: two texts of "\\n\\nHuman: …\\n\\nAssistant: …" turns. The last turn is the reply, all before it the prompt."""
    chosen, rejected = (messages(fields[side], side, "assistant") for side in ("chosen", "rejected"))
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1].role != "assistant":
            raise DataError(f"`{side}` does not end with an Assistant turn, so it holds no reply. Add the reply or drop the row.", kind="empty")
    if chosen[:-1] != rejected[:-1]:
        raise DataError(
            "`chosen` and `rejected` differ before their last Assistant turn: they answer different prompts. Make the prompts equal or drop the row.",
            kind="prompts-differ",
        )
    yield {**fields, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def shared_beginning(fields: Fields) -> Iterator[Fields]:
    """TRL's implicit prompt in plain text: what both texts begin with, up to its last white space, is the prompt.

    Two replies to a forgotten prompt that happen to begin alike look the same, so this is never guessed from a row.
    """
    chosen, rejected = fields["chosen"], fields["rejected"]
    letters = enumerate(zip(chosen, rejected, strict=False))
    fork = next((at for at, (one, other) in letters if one != other), min(len(chosen), len(rejected)))
    cut = next((at for at in range(fork - 1, 0, -1) if chosen[at].isspace()), 0)
    yield {**fields, "prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}


def edits(fields: Fields) -> Iterator[Fields]:
    """An agent's correction: what was sent is preferred to the draft. A draft that was sent as it stood prefers nothing."""
    draft, sent = next(names for names in EDITS if names[0] in fields and names[1] in fields)
    prompt, rest = take_prompt(without(fields, draft, sent))
    chosen, rejected = messages(fields[sent], sent, "assistant"), messages(fields[draft], draft, "assistant")
    if _without_spacing(chosen) == _without_spacing(rejected):
        raise DataError(f"`{sent}` says what `{draft}` says: a draft that was not changed prefers nothing. Drop the row.", kind="identical")
    yield {**rest, "prompt": prompt, "chosen": chosen, "rejected": rejected}


EDITS = (("draft", "sent"), ("draft", "final"), ("draft", "edited"), ("original", "edited"), ("response", "edited_response"))
"""Fields that hold a draft and what became of it."""


def _fork(chosen: Messages, rejected: Messages) -> int:
    """Where the replies of two conversations begin: at the fork, or at the assistant's turn that leads up to it. The last message is never prompt."""
    shorter = min(len(chosen), len(rejected))
    if not shorter:
        side = "rejected" if chosen else "chosen"
        raise DataError(f"`{side}` is an empty response: a list without a message. Write the reply or drop the row.", kind="empty")
    fork = next((i for i in range(shorter - 1) if chosen[i] != rejected[i]), shorter - 1)
    roles = {chosen[fork].role, rejected[fork].role}
    if roles != {"assistant"}:
        raise DataError(
            f"the conversations in `chosen` and `rejected` part at message {fork + 1}, which is not the assistant's on both sides "
            f"({' and '.join(sorted(roles))}): they answer different prompts, or one holds no reply. Make the prompts equal or drop the row.",
            kind="prompts-differ",
        )
    while fork and chosen[fork - 1].role == "assistant":
        fork -= 1
    return fork


def _texts(turns: Messages) -> set[str]:
    """What the messages say, whatever its white space."""
    return {" ".join(message.content.split()) for message in turns}


def _without_spacing(turns: Messages) -> list[Any]:
    """Messages to be compared: a space or a line break more is no correction."""
    return [(message.role, message.content.split(), message.extra) for message in turns]
