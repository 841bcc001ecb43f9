"""Exports of Argilla: records with `fields`, and answers of several people to the questions about them.

    Argilla 2, nested   fields {…}   responses {question: [{value, user_id}]}            suggestions {question: {value, agent}}
    Argilla 2, flat     one column a field   question.responses […]  question.responses.users […]  question.suggestion
    FeedbackDataset     fields {…}   responses [{values {question: {value}}, user_id}]   suggestions [{question_name, value, agent}]
    its Hub data sets   one column a field   question [{user_id, value, status}]         question-suggestion

A ranking, a label or ratings say which field holds the better reply. Every person's answer becomes a record; suggestions, which models make,
count only where no person has answered.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from likelier.data.fields import Fields, kind_of, listed, without
from likelier.data.messages import PROMPTS, take_prompt
from likelier.data.plain import parsed
from likelier.data.shapes.lists import Candidates, number
from likelier.data.shapes.sides import is_first, letters, names_side, same_name, two_replies
from likelier.errors import DataError

ABOUT = ("id", "external_id", "_server_id", "status", "inserted_at", "updated_at", "metadata", "vectors")
"""Columns of a flat export that are neither fields nor questions."""


class Answers(NamedTuple):
    """One annotator's answers: question → value. Annotators without a name are told apart by their place in the list of answers."""

    annotator: Any
    values: Fields
    place: int = 0


def has_fields(row: Fields) -> bool:
    return isinstance(row.get("fields"), dict) and ("responses" in row or "suggestions" in row)


def has_flat_answers(row: Fields) -> bool:
    return any(
        name.endswith((".responses", ".suggestion")) or (name.endswith("-suggestion") and name.removesuffix("-suggestion") in row) for name in row
    )


def nested(fields: Fields) -> Iterator[Candidates | DataError]:
    """Records as `to_list` and `to_json` write them, and those of a FeedbackDataset."""
    texts = {name: value for name, value in fields["fields"].items() if value is not None}
    about = without(fields, "fields", "responses", "suggestions", "metadata")
    given = fields.get("responses") or {}
    answers = list(_by_person(given) if isinstance(given, list) else _by_question(given))
    suggested = _suggested(fields.get("suggestions") or {})
    yield from _judged(texts, {**about, **_metadata(fields.get("metadata"))}, answers, suggested)


def flat(fields: Fields) -> Iterator[Candidates | DataError]:
    """Records as `to_list(flatten=True)` and `to_datasets` write them, and FeedbackDatasets on the Hub."""
    questions = {name.rpartition(".")[0] for name in fields if name.endswith((".responses", ".suggestion"))}
    questions |= {name.removesuffix("-suggestion") for name in fields if name.endswith("-suggestion")}
    columns = {name: value for name, value in fields.items() if any(name == each or name.startswith((f"{each}.", f"{each}-")) for each in questions)}
    texts = {name: value for name, value in fields.items() if name not in columns and name not in ABOUT}
    answers = [each for question in sorted(questions) for each in _column_answers(question, columns)]
    suggestions = {each: columns.get(f"{each}.suggestion", columns.get(f"{each}-suggestion")) for each in questions}
    agents = [columns[name] for each in sorted(questions) if (name := f"{each}.suggestion.agent") in columns]
    suggested = Answers(agents[0] if agents else None, {name: value for name, value in suggestions.items() if value is not None})
    about = {name: fields[name] for name in ABOUT if name in fields and name != "metadata"}
    yield from _judged(texts, {**about, **_metadata(fields.get("metadata"))}, answers, suggested)


def _judged(texts: Fields, about: Fields, answers: list[Answers], suggested: Answers) -> Iterator[Candidates | DataError]:
    about = {name: value for name, value in about.items() if value not in (None, {}, [])}
    if "external_id" in about and "id" not in about:
        about = {**without(about, "external_id"), "id": about["external_id"]}
    people: dict[tuple[str, int], Answers] = {}
    for answer in answers:  # the answers to several questions, one person's together
        person = (str(answer.annotator), 0 if answer.annotator is not None else answer.place)
        people.setdefault(person, Answers(answer.annotator, {})).values.update(answer.values)
    judges = [each for each in people.values() if each.values] or ([suggested] if suggested.values else [])
    if not judges:
        raise DataError("this record has no submitted response and no suggestion: nobody judged it. Drop the row.", kind="unlabelled")
    for judge in judges:
        try:
            yield _candidates(texts, about, judge)
        except DataError as problem:
            yield problem


def _candidates(texts: Fields, about: Fields, judge: Answers) -> Candidates:
    rated: dict[str, str] = {}
    for question, value in judge.values.items():
        ranks = _ranking(value, question)
        if ranks and all(_field(name, texts) for name in ranks):
            scores = {_field(name, texts): None if rank is None else -rank for name, rank in ranks.items()}
            break
        if isinstance(value, str) and (names_side(value) or _field(value, texts)):
            scores = _choice(value, texts)
            break
    else:
        question = ""
        rated = {name: each for each in judge.values if (name := _rated(each, texts)) and type(judge.values[each]) in (int, float)}
        scores = _ratings(rated, judge.values, texts)
    names = [name for name in scores if name]
    prompt, rest = take_prompt(without(texts, *names))
    others = without(judge.values, question, *rated.values())
    shared = {**rest, **others, **about, "prompt": prompt, **({} if judge.annotator is None else {"annotator": judge.annotator})}
    return Candidates(shared, [{"reply": texts[name]} for name in names], [scores[name] for name in names], scored=bool(rated))


def _ranking(value: Any, question: str) -> dict[str, float | None] | None:
    """{field's name: rank} of a ranking in any of Argilla's spellings, or None for another answer."""
    if isinstance(value, dict) and isinstance(value.get("rank"), list) and isinstance(value.get("value"), list):
        value = [{"rank": rank, "value": name} for rank, name in zip(value["rank"], value["value"], strict=False)]
    if not isinstance(value, list) or len(value) < 2:
        return None
    if all(isinstance(each, str) for each in value):
        value = [{"rank": rank, "value": name} for rank, name in enumerate(value, 1)]
    if not all(isinstance(each, dict) and isinstance(each.get("value"), str) for each in value):
        return None
    return {each["value"]: number(each.get("rank"), question) for each in value}


def _choice(said: str, texts: Fields) -> dict[str | None, float | None]:
    """Scores that say no more than which reply was chosen."""
    first, second = two_replies(list(texts))
    chosen = is_first(said, first, second)
    return {first: float(chosen), second: float(not chosen)}


def _ratings(rated: dict[str, str], values: Fields, texts: Fields) -> dict[str | None, float | None]:
    if len(rated) < 2:
        raise DataError(
            "no answer says which reply is better: no ranking or label that names a field, no ratings of two fields. The questions are "
            f"{listed(values)}, the fields {listed(texts)}. Name the values of the question after the fields.",
            kind="unlabelled",
        )
    return {name: number(values[question], question) for name, question in rated.items()}


def _rated(question: str, texts: Fields) -> str | None:
    """The field that a rating question is about: `generations-0-rating` rates `generations-0`, `rating_1` rates `response_1`."""
    asked = letters(question)
    replies = {name: letters(name) for name in texts if name not in PROMPTS}
    named = [name for name, spelled in replies.items() if spelled and (asked.startswith(spelled) or asked.endswith(spelled))]
    digits = asked[len(asked.rstrip("0123456789")) :]
    named = named or [name for name, spelled in replies.items() if digits and spelled[len(spelled.rstrip("0123456789")) :] == digits]
    return max(named, key=len) if named else None


def _field(said: Any, texts: Fields) -> str | None:
    return next((name for name in texts if same_name(said, name)), None)


def _by_question(responses: Any) -> Iterator[Answers]:
    if not isinstance(responses, dict):
        raise DataError(f"`responses` is {kind_of(responses)}; it must hold the answers to each question.")
    for question, answers in responses.items():
        yield from _submitted(question, answers)


def _by_person(responses: list[Any]) -> Iterator[Answers]:
    for place, response in enumerate(responses):
        values = response.get("values") if isinstance(response, dict) else None
        if isinstance(values, dict) and response.get("status", "submitted") in ("submitted", None):
            known = {name: answer["value"] for name, answer in values.items() if isinstance(answer, dict) and answer.get("value") is not None}
            yield Answers(response.get("user_id"), known, place)


def _column_answers(question: str, columns: Fields) -> Iterator[Answers]:
    values = columns.get(f"{question}.responses")
    if isinstance(values, list):
        users, status = (_as_long(columns.get(f"{question}.responses.{name}"), len(values)) for name in ("users", "status"))
        answers = [dict(zip(("value", "user_id", "status"), answer, strict=True)) for answer in zip(values, users, status, strict=True)]
        yield from _submitted(question, answers)
    yield from _submitted(question, columns.get(question))


def _as_long(values: Any, length: int) -> list[Any]:
    return values if isinstance(values, list) and len(values) == length else [None] * length


def _submitted(question: str, answers: Any) -> Iterator[Answers]:
    """Answers that were sent in: drafts and discarded ones are not."""
    for place, answer in enumerate(answers if isinstance(answers, list) else []):
        if isinstance(answer, dict) and answer.get("value") is not None and answer.get("status") in ("submitted", None):
            yield Answers(answer.get("user_id"), {question: answer["value"]}, place)


def _suggested(suggestions: Any) -> Answers:
    if isinstance(suggestions, list):
        suggestions = {each["question_name"]: each for each in suggestions if isinstance(each, dict) and isinstance(each.get("question_name"), str)}
    if not isinstance(suggestions, dict):
        raise DataError(f"`suggestions` is {kind_of(suggestions)}; it must hold a suggestion for each question.")
    given = {name: each for name, each in suggestions.items() if isinstance(each, dict) and each.get("value") is not None}
    agents = [each["agent"] for each in given.values() if each.get("agent") is not None]
    return Answers(agents[0] if agents else None, {name: each["value"] for name, each in given.items()})


def _metadata(value: Any) -> Fields:
    """A record's metadata, which Hub data sets hold as JSON text, as the record's `meta`."""
    if isinstance(value, str):
        try:
            value = parsed(value)
        except ValueError:
            raise DataError("`metadata` is text that is not JSON.") from None
    return {"meta": value} if value else {}
