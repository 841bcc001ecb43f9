"""Replies before and after, side by side, with what the policy makes of each of their tokens: rows of samples.jsonl."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from likelier.evaluate.answers import Answers
from likelier.evaluate.exam import Exam
from likelier.examples import Example, Ids, LabelledExample
from likelier.logprobs.tree import PromptResponse

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoding shows for bytes that are not yet, or not, a character."""


def side_by_side(exam: Exam, before: Answers, after: Answers) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: held-out prompts with the reply of each model and those of the record, as its template writes them. `tokens` has for
    each reply its pieces of text with log π − log π_ref in nats; joined they are the reply."""
    rows = []
    for i, old, new in zip(exam.shown, before.held_out(exam), after.held_out(exam), strict=True):
        record, example = exam.held_out.records[i], exam.held_out.examples[i]
        sides = {"before": (old.ids, old.ended), "after": (new.ids, new.ended), **_of_data(example)}
        tokens = {}
        for side, (ids, ended) in sides.items():
            sequence = PromptResponse(example.prompt_ids, ids)
            parts = pieces(exam.tokenizer, ids, after.logps[sequence] - before.logps[sequence], ended=ended)
            tokens[side] = [[text, round(nats, 4)] for text, nats in parts]
        texts = {side: "".join(text for text, _ in parts) for side, parts in tokens.items()}
        prompt = [message.as_dict() for message in record.prompt]
        rows.append({"id": record.id, "prompt": prompt, "chosen": None, "rejected": None, **texts, "tokens": tokens})
    return rows


def _of_data(example: Example) -> dict[str, tuple[Ids, bool]]:
    """The replies of an example by side, of which each ends with its end token."""
    if isinstance(example, LabelledExample):
        return {"chosen" if example.label else "rejected": (example.completion_ids, True)}
    return {"chosen": (example.chosen_ids, True), "rejected": (example.rejected_ids, True)}


def pieces(tokenizer: Any, ids: Ids, nats_L: Tensor, *, ended: bool) -> list[list[Any]]:
    """[[text, nats], …] of a reply: one piece a token, or a token and those that it takes to write whole characters, whose nats add up. The texts
    joined are the decoded reply. Of one that `ended` the last token is the end token, which says nothing: its text is "".

    A piece ends where what is decoded so far is a beginning of the whole text: no tokenizer's rules about spaces and bytes have to be known.
    """
    words = ids[:-1] if ended else ids
    so_far = _decoded(tokenizer, [words[:stop] for stop in range(1, len(words) + 1)])
    whole = so_far[-1] if so_far else ""
    found: list[list[Any]] = []
    begun, waiting = 0, 0.0
    for text, nats in zip(so_far, nats_L.tolist(), strict=False):
        waiting += nats
        if len(text) > begun and whole.startswith(text) and not text.endswith(REPLACEMENT):
            found.append([text[begun:], waiting])
            begun, waiting = len(text), 0.0
    if begun < len(whole):  # it ends with bytes that are no character
        found.append([whole[begun:], waiting])
    elif found:  # with tokens that decode to nothing
        found[-1][1] += waiting
    return [*found, ["", float(nats_L[-1])]] if ended else found


def _decoded(tokenizer: Any, prefixes: Sequence[Ids]) -> list[str]:
    if not prefixes:
        return []
    return list(tokenizer.batch_decode([*map(list, prefixes)], skip_special_tokens=False, clean_up_tokenization_spaces=False))
