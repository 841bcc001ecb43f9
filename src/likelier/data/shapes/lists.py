"""Rows that hold several replies to one prompt, each with a score or a rank, and the pairs that such a list gives.

prompt, replies, scores ──pairing──▶ best and worst, or every two that differ; a score gap that is asked for is kept
"""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Literal, NamedTuple

from likelier.data.checks import tie
from likelier.data.fields import Fields, first_of, kind_of, shown, without
from likelier.data.messages import take_prompt
from likelier.errors import DataError

REPLY_LISTS = ("completions", "responses", "generations", "candidates", "answers", "outputs", "replies")
SCORE_LISTS = ("scores", "ratings", "rewards", "overall_scores")
RANK_LISTS = ("ranks", "ranking", "order")
REPLIES = ("response", "completion", "text", "answer", "output", "generation", "reply", "message")
SCORES = ("overall_score", "score", "rating", "reward", "fine-grained_score")
NO_SCORE = ("", "n/a", "na", "none", "null", "nan")


class Pairing(NamedTuple):
    """Which pairs a list of replies gives: `pairs` of the best and the worst reply, or of all that differ, at least `min_gap` apart."""

    pairs: Literal["best-worst", "all"] = "best-worst"
    min_gap: float = 0.0


class Candidates(NamedTuple):
    """Several replies to one prompt, judged by one judge."""

    shared: Fields
    """The prompt, and what else the row says of all replies."""
    replies: list[Fields]
    """Each with its text or messages as `reply`, and what else the row says of it alone."""
    scores: list[float | None]
    """Higher is better; None was not judged."""
    scored: bool
    """False for ranks, whose differences say nothing about how much better."""


def pairs_of(candidates: Candidates, pairing: Pairing) -> Iterator[Fields]:
    """Rows with `chosen` and `rejected`; `margin` is the difference of the scores. Replies that were not judged are in no pair.

    Of several best (or worst) the first is taken. Raises DataError if no two replies were judged, or none lie far enough apart.
    """
    score = {at: value for at, value in enumerate(candidates.scores) if value is not None}
    if len(score) < 2:
        raise DataError(f"{len(score)} of {len(candidates.scores)} replies are judged, and a pair needs two. Drop the row.", kind="unlabelled")
    extremes = (max(score, key=score.__getitem__), min(score, key=score.__getitem__))
    couples = combinations(score, 2) if pairing.pairs == "all" else [extremes]
    ordered = [(one, two) if score[one] > score[two] else (two, one) for one, two in couples if score[one] != score[two]]
    if not ordered:
        raise tie("all replies are judged alike")
    far = [(better, worse) for better, worse in ordered if score[better] - score[worse] >= pairing.min_gap]
    if not far:
        raise DataError(f"no two replies lie {pairing.min_gap:g} or more apart, the gap that is asked for. Drop the row or ask for less.", kind="tie")
    for better, worse in far:
        yield _pair(candidates, better, worse, score[better] - score[worse])


def _pair(candidates: Candidates, better: int, worse: int, gap: float) -> Fields:
    fields = dict(candidates.shared)
    for side, at in (("chosen", better), ("rejected", worse)):
        own = candidates.replies[at]
        fields.update({f"{side}_{name}": value for name, value in own.items() if name != "reply"})
        fields[side] = own["reply"]
        if candidates.scored:
            fields[f"{side}_score"] = candidates.scores[at]
    return {**fields, "margin": gap} if candidates.scored else fields


def has_ultrafeedback(row: Fields) -> bool:
    return "instruction" in row and isinstance(row.get("completions"), list) and _holds(row["completions"], "response")


def has_scores(row: Fields) -> bool:
    replies = first_of(REPLY_LISTS, row)
    if replies is None or not isinstance(row[replies], list):
        return False
    return first_of(SCORE_LISTS, row) is not None or any(_holds(row[replies], name) for name in SCORES)


def has_ranks(row: Fields) -> bool:
    replies = first_of(REPLY_LISTS, row)
    if replies is None or not isinstance(row[replies], list):
        return False
    return first_of(RANK_LISTS, row) is not None or _holds(row[replies], "rank")


def _holds(items: list[Any], name: str) -> bool:
    return any(isinstance(item, dict) and name in item for item in items)


def scored_list(fields: Fields) -> Iterator[Candidates]:
    """Replies with scores: in a list beside them, or each in its reply's object, as UltraFeedback has them.

    A completion of UltraFeedback without `overall_score` has the mean of the ratings in its `annotations`.
    """
    replies, rest = _take_replies(fields)
    beside = first_of(SCORE_LISTS, rest)
    if beside is not None:
        scores = [number(value, beside) for value in _as_long(rest.pop(beside), beside, replies)]
    else:
        scores = [_own_score(reply) for reply in replies]
    prompt, rest = take_prompt(rest)
    yield Candidates({**rest, "prompt": prompt}, replies, scores, scored=True)


def ranked_list(fields: Fields) -> Iterator[Candidates]:
    """Replies with ranks, 1 the best (`ranks`, or `rank` in each), or with their order, best first (`order`, as positions from 0).

    `ranking` is used for both. It is taken where both readings agree or where it names the replies themselves, and refused elsewhere.
    """
    replies, rest = _take_replies(fields)
    beside = first_of(RANK_LISTS, rest)
    if beside is None:
        ranks = [number(reply.pop("rank", None), "rank") for reply in replies]
    else:
        ranks = _ranks(_as_long(rest.pop(beside), beside, replies), beside, replies)
    prompt, rest = take_prompt(rest)
    yield Candidates({**rest, "prompt": prompt}, replies, [None if rank is None else -rank for rank in ranks], scored=False)


def _take_replies(fields: Fields) -> tuple[list[Fields], Fields]:
    name = next(name for name in REPLY_LISTS if name in fields)
    return [_reply(item, f"`{name}`, reply {number}") for number, item in enumerate(fields[name], 1)], without(fields, name)


def _reply(item: Any, where: str) -> Fields:
    if isinstance(item, str | list):
        return {"reply": item}
    if isinstance(item, dict):
        item = {name: value for name, value in item.items() if value is not None}
        if "role" in item and "content" in item:
            return {"reply": [item]}
        name = first_of(REPLIES, item)
        if name is not None:
            return {**without(item, name, "reply"), "reply": item[name]}
    raise DataError(f"{where} is {kind_of(item)} without text. It is text, a list of messages, or an object with `response`.")


def _as_long(values: Any, field: str, replies: list[Fields]) -> list[Any]:
    if not isinstance(values, list) or len(values) != len(replies):
        has = f"{len(values)} values" if isinstance(values, list) else kind_of(values)
        raise DataError(f"`{field}` has {has} for {len(replies)} replies. Each reply needs one.")
    return values


def _own_score(reply: Fields) -> float | None:
    name = first_of(SCORES, reply)
    if name is not None:
        return number(reply.pop(name), name)
    annotations = reply.get("annotations")
    if not isinstance(annotations, dict):
        return None
    ratings = [number(aspect["Rating"], "Rating") for aspect in annotations.values() if isinstance(aspect, dict) and "Rating" in aspect]
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else None


def number(value: Any, field: str) -> float | None:
    """A score or rank as a number; None where none was given."""
    if value is None or (isinstance(value, str) and value.strip().lower() in NO_SCORE):
        return None
    try:
        number = math.nan if isinstance(value, bool | list | dict) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"`{field}` holds {shown(value)}, which is no finite number. Mend it, or write null where there is no judgement.")
    return number


def _ranks(values: list[Any], field: str, replies: list[Fields]) -> list[float | None]:
    """The rank of each reply, in the order of the replies."""
    if all(isinstance(value, str) for value in values) and field != "ranks":
        return _ranks_by_name(values, field, replies)
    numbers = [number(value, field) for value in values]
    if field == "ranks":
        return numbers
    places = [int(number) for number in numbers if number is not None and number.is_integer()]
    counted_from = 0 if field == "order" or 0 in places else 1
    if sorted(places) != list(range(counted_from, counted_from + len(replies))):
        raise DataError(f"`{field}` does not list every reply once, best first. If it gives each reply's rank (1 is best), name it `ranks`.")
    positions = [places.index(at + counted_from) for at in range(len(places))]
    if field == "ranking" and [position + counted_from for position in positions] != places:
        raise DataError(
            "`ranking` can be read in two ways that disagree. Name it `ranks` if it gives each reply's rank (1 is best), "
            "or `order` if it lists the replies' positions, best first, counted from 0."
        )
    return [float(position + 1) for position in positions]


def _ranks_by_name(values: list[str], field: str, replies: list[Fields]) -> list[float | None]:
    names = [next((reply[name] for name in ("id", "model") if name in reply), reply["reply"]) for reply in replies]
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"`{field}` names replies that have no `id` or `model` and are no plain text. Give positions in `order`, counted from 0.")
    if sorted(values) != sorted(names) or len(set(names)) < len(names):
        raise DataError(f"`{field}` does not name every reply once, best first, by its `id`, its `model` or its text.")
    return [float(values.index(name) + 1) for name in names]
