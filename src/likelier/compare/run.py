"""A whole comparison: prompts → replies → verdicts → numbers, on disk as

OUT/replies/NAME.jsonl    what each contestant wrote
OUT/verdicts.jsonl        {"id", "a", "b" (names), "verdict": "a" | "b" | "tie" | null, "why", "orders": [choices], "reasons": [texts]}
OUT/compare.json          judge, contestants with the `file` of their replies in OUT, win rates with intervals, cost
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from likelier.compare.contestants import Contestant, Sampling, parse_contestants
from likelier.compare.replies import Written, replies_of
from likelier.data.prompts import Prompt, read_prompts
from likelier.errors import RequestError
from likelier.judge import EndpointSettings, is_endpoint, open_judge
from likelier.judge.asking import Match, Verdict, judge_matches, spent_as_dict
from likelier.judge.store import VerdictStore
from likelier.metrics import bootstrap
from likelier.model_files import cache_dir
from likelier.rundir import COMPARISON, COMPARISON_PAGE, VERDICTS, read_json, write_json, write_jsonl
from likelier.win_rates import bradley_terry, extrapolates, length_controlled, win_rate
from likelier.wording import count

OUTCOMES = {"a": 1.0, "b": 0.0, "tie": 0.5, None: math.nan}

REPLIES = "replies"

STORE = "verdicts.sqlite"
"""In the cache, so that every comparison finds what another one asked."""


def quiet(text: str) -> None:
    """Says nothing."""


def compare_models(
    contestants: Sequence[str],
    prompts: str | Path,
    *,
    judge: str,
    out: str | Path = "runs/compare",
    sampling: Sampling | None = None,
    endpoint: EndpointSettings | None = None,
    prices: tuple[float, float] | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = quiet,
) -> dict[str, Any]:
    """Have contestants reply to prompts and a judge compare the replies, every two of them. Writes OUT and returns what compare.json holds.

    `contestants` as in `compare.contestants`, `judge` as in `judge.open_judge`, `prices` of a million tokens in and out. What an earlier run left is
    used: replies as long as model, prompts and settings are the same, verdicts wherever judge, prompt and replies are. Raises RequestError
    (JudgeError of the judge) where something is missing; what was done until then is kept.
    """
    out, sides = Path(out), parse_contestants(contestants)
    if prices and (min(prices) < 0 or not is_endpoint(judge)):
        raise RequestError(f"--prices {prices[0]:g} {prices[1]:g}: prices are of an endpoint's tokens (--judge openai:MODEL), and 0 or more.")
    found = read_prompts(prompts, limit=limit)
    if found.unusable:
        say(f"{count(len(found.unusable), 'row')} of {prompts} left out. The first: {found.unusable[0]}")
    asked = found.prompts
    judging = open_judge(judge, endpoint or EndpointSettings())
    _forget(out, sides)
    written = [replies_of(side, asked, sampling or Sampling(), out / REPLIES, say) for side in sides]
    pairs = list(combinations(range(len(sides)), 2))
    matches = [Match(prompt.messages, a.text, b.text) for i, j in pairs for prompt, a, b in zip(asked, written[i], written[j], strict=True)]
    with VerdictStore(cache_dir() / STORE) as store:
        verdicts, spent = judge_matches(judging, matches, store, _telling(say))
    of_pair = [verdicts[row : row + len(asked)] for row in range(0, len(verdicts), len(asked))]
    names = [side.name for side in sides]
    outcomes_PM = np.array([[OUTCOMES[verdict.side] for verdict in some] for some in of_pair]).T
    strengths = [strength and strength.as_dict() for strength in bradley_terry(outcomes_PM, pairs)]
    result = {
        "judge": {"name": judging.name, **judging.identity},
        "prompts": len(asked),
        "contestants": [
            {"name": side.name, "spec": side.spec, "file": f"{REPLIES}/{side.file}", **_lengths(replies), "strength": strength}
            for side, replies, strength in zip(sides, written, strengths, strict=True)
        ],
        "pairs": [{"a": names[i], "b": names[j], **_numbers(some, written[i], written[j])} for (i, j), some in zip(pairs, of_pair, strict=True)],
        "cost": spent_as_dict(spent, prices),
    }
    named = [(names[i], names[j], asked, some) for (i, j), some in zip(pairs, of_pair, strict=True)]
    write_jsonl(out / VERDICTS, [row for each in named for row in _rows(*each)])
    write_json(out / COMPARISON, result)
    return result


def _forget(out: Path, sides: Sequence[Contestant]) -> None:
    """Remove what an earlier comparison left, which would stand beside this one's: it is in the cache, and what is read now stays. Raises
    RequestError if compare.json is not of a comparison."""
    if not (out / COMPARISON).is_file():
        return
    earlier = read_json(out / COMPARISON)
    if not {"judge", "contestants", "pairs"} <= earlier.keys():
        raise RequestError(f"{out / COMPARISON} is not of a comparison and would be overwritten. Choose another folder with --out.")
    read = {side.replies.resolve() for side in sides if side.replies}
    replies = [out / REPLIES / Path(each["file"]).name for each in earlier["contestants"]]
    for path in (out / COMPARISON, out / VERDICTS, out / COMPARISON_PAGE, *(path for path in replies if path.resolve() not in read)):
        path.unlink(missing_ok=True)


def _lengths(replies: Sequence[Written]) -> dict[str, Any]:
    """`length` is in characters: tokens of different models are different units."""
    ended = [reply.ended for reply in replies if reply.ended is not None]
    lengths = bootstrap([len(reply.text) for reply in replies], range(len(replies)))
    return {"length": lengths.as_dict(), "length_unit": "characters", "cut": 1 - sum(ended) / len(ended) if ended else None}


def _numbers(verdicts: Sequence[Verdict], a: Sequence[Written], b: Sequence[Written]) -> dict[str, Any]:
    """One entry of `pairs` in compare.json. `prompts` counts those with a verdict, `equal` those whose replies are the same word for word; `flips` is
    the share of the others whose two orders gave different verdicts."""
    outcomes = [OUTCOMES[verdict.side] for verdict in verdicts]
    lengths = [[len(reply.text) for reply in replies] for replies in (a, b)]
    judged = sum(verdict.side is not None for verdict in verdicts)
    asked = sum(bool(verdict.answers) for verdict in verdicts if verdict.side)
    return {
        "prompts": judged,
        "win_rate": win_rate(outcomes).as_dict() if judged else None,
        "length_controlled": length_controlled(outcomes, *lengths).as_dict() if judged else None,
        "extrapolated": extrapolates(outcomes, *lengths),
        "wins": sum(verdict.side == "a" for verdict in verdicts),
        "ties": sum(verdict.side == "tie" for verdict in verdicts),
        "losses": sum(verdict.side == "b" for verdict in verdicts),
        "equal": judged - asked,
        "flips": sum(verdict.flipped for verdict in verdicts) / asked if asked else None,
        "failed": len(verdicts) - judged,
    }


def _rows(a: str, b: str, prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [
        {
            "id": prompt.id,
            "a": a,
            "b": b,
            "verdict": verdict.side,
            "why": _why(verdict),
            "orders": [answer.choice for answer in verdict.answers],
            "reasons": [answer.reason for answer in verdict.answers],
        }
        for prompt, verdict in zip(prompts, verdicts, strict=True)
    ]


def _why(verdict: Verdict) -> str:
    if not verdict.answers:
        return "equal word for word"
    if verdict.side is None:
        return verdict.fault
    return "the two orders disagree" if verdict.flipped else "both orders agree"


def _telling(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Says every tenth of the way."""
    said = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal said
        if (tenth := 10 * done // total) > said:
            said = tenth
            say(f"judged {done} of {count(total, 'question')}")

    return on_progress
