"""Replies before and after, side by side: rows of samples.jsonl."""

from typing import Any

from likelier.evaluate.answers import Answers
from likelier.evaluate.exam import Exam
from likelier.records import Labelled, Record


def side_by_side(exam: Exam, before: Answers, after: Answers) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: held-out prompts with the reply of each model and the chosen one."""
    return [
        {
            "id": record.id,
            "prompt": [message.as_dict() for message in record.prompt],
            "before": old.text,
            "after": new.text,
            "chosen": _good_reply(record),
        }
        for record, old, new in zip([exam.held_out.records[i] for i in exam.shown], before.held_out, after.held_out, strict=True)
    ]


def _good_reply(record: Record) -> str | None:
    """The text of the reply that was preferred, or judged good."""
    if isinstance(record, Labelled) and not record.label:
        return None
    reply = record.completion if isinstance(record, Labelled) else record.chosen
    return "\n\n".join(message.content for message in reply if message.content)
