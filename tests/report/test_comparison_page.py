"""The page of a comparison: who wins, as far as the intervals can tell, with examples, and data as text."""

import re
from pathlib import Path

import pytest
from tests.report.made_up import INJECTION, made_up_comparison
from tests.report.markup import Tags

from likelier.errors import RunError
from likelier.report.comparison_page import headline, write_comparison_page
from likelier.rundir import read_json, write_json


def a_pair(rate: tuple[float, float, float], equal: tuple[float, float, float]) -> dict[str, object]:
    keys = ("value", "low", "high")
    return {
        "a": "A",
        "b": "B",
        "prompts": 60,
        "win_rate": dict(zip(keys, rate, strict=True)),
        "length_controlled": dict(zip(keys, equal, strict=True)),
    }


@pytest.mark.parametrize(
    "rate, equal, begins, doubted",
    [
        ((0.67, 0.57, 0.77), (0.63, 0.53, 0.73), "A beats B: it wins in 67.0% (57.0 to 77.0) of 60 prompts", False),
        ((0.67, 0.57, 0.77), (0.55, 0.45, 0.65), "A beats B", True),
        ((0.67, 0.57, 0.77), (0.35, 0.25, 0.45), "A beats B", True),
        ((0.33, 0.23, 0.43), (0.35, 0.25, 0.45), "A loses to B", False),
        ((0.55, 0.45, 0.65), (0.65, 0.55, 0.75), "A and B cannot be told apart", False),
    ],
)
def test_the_headline_says_no_more_than_the_intervals(rate, equal, begins, doubted) -> None:
    said = headline(a_pair(rate, equal))
    assert said.startswith(begins)
    assert ("length may be all there is to it" in said) == doubted


def test_the_page_has_rates_contestants_and_examples_of_every_outcome(tmp_path: Path) -> None:
    page = write_comparison_page(made_up_comparison(tmp_path)).read_text(encoding="utf-8")
    parsed = Tags(page)
    assert INJECTION not in page
    assert not re.search(r"<script|<img|https?://", page)
    assert parsed.count("article", "sample") == 3 * 5
    assert "66.7%" in parsed.text["summary"]
    assert "34 won, 12 tied, 14 lost, 1 without a verdict" in parsed.text["summary"]
    assert "reference against reference+system: one is longer at every prompt" in parsed.text["summary"]
    assert "300 questions asked of the judge, 60 known from before, cost 0.42" in parsed.text["summary"]
    assert "−0.90" in parsed.text["contestants"]
    for said in (
        "runs/mine tuned wins, both orders agree",
        "a tie, the two orders disagree",
        "runs/mine tuned shown first: It is shorter.",
        "tuned says 0.",
    ):
        assert said in parsed.text["examples"]


def test_two_contestants_need_no_strengths_and_a_silent_judge_is_told(tmp_path: Path) -> None:
    folder = made_up_comparison(tmp_path)
    comparison = read_json(folder / "compare.json")
    unread = comparison["pairs"][0] | {"win_rate": None, "length_controlled": None, "flips": None}
    write_json(folder / "compare.json", comparison | {"contestants": comparison["contestants"][:2], "pairs": [unread]})
    (folder / "verdicts.jsonl").unlink()
    parsed = Tags(write_comparison_page(folder).read_text(encoding="utf-8"))
    assert "Strength" not in parsed.text["contestants"]
    assert "were not judged" in parsed.text["summary"]
    assert "No verdict with both replies is on disk" in parsed.text["examples"]


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"compare\.json"):
        write_comparison_page(tmp_path)
