"""The audit's page: what it says, that it holds nothing foreign, and how bars are placed."""

import json
import re
from html.parser import HTMLParser

import pytest

from likelier.audit.findings import Audit, Bars, Finding, Verdict
from likelier.errors import DataError
from likelier.report.audit_page import headline, plot_of, write_audit_page


def an_audit(*findings):
    return Audit("d" * 64, 1200, 1000, findings, sources=("data/pairs.jsonl",))


def test_the_page_is_one_file_that_asks_for_nothing(audit_page, injection):
    page = audit_page.read_text()
    assert injection not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "<script" not in page
    HTMLParser().feed(page)


def test_every_finding_that_matters_has_its_section_and_examples(audit_page):
    page = audit_page.read_text()
    for check in ("length-ratio", "duplicates", "contradictions", "secrets", "empty-sides", "annotators", "one-sided-artefacts"):
        assert f'id="{check}"' in page, check
    assert "[credential]" in page
    assert "a1B2c3D4" not in page
    assert page.count('class="replies"') >= 10


def test_the_headline_says_whether_training_may_begin():
    fatal, warn = Finding("ties", "Ties", Verdict.FATAL, "3 ties."), Finding("refusals", "Refusals", Verdict.WARN, "Many.")
    assert headline(an_audit()) == ["1,200 pairs over 1,000 prompts.", "Nothing in this data keeps it from being trained on.", "No check warns."]
    assert headline(an_audit(fatal, warn))[1:] == ["Training refuses this data: ties.", "Worth a look first: refusals."]


def test_rates_are_drawn_from_their_level_on_an_axis_from_0_to_1():
    [bar] = plot_of(Bars("", ("a",), (0.75,), (0.7,), (0.8,), level=0.5)).bars
    assert (bar.start, bar.width, bar.low, bar.high, bar.text) == (50, 25, 70, 80, "75.0%")
    [bar] = plot_of(Bars("", ("a",), (0.25,), level=0.5)).bars
    assert (bar.start, bar.width, bar.low) == (25, 25, None)


@pytest.mark.parametrize("values", [(3.0, 0.0, 12.0), (-2.0, 5.0), (-1.0, -3.0), (0.0,)])
def test_bars_stay_on_their_track(values):
    plot = plot_of(Bars("", tuple("abc"[: len(values)]), values))
    assert all(bar.start >= 0 and bar.start + bar.width <= 100.01 for bar in plot.bars)
    if any(values):
        longest = max(range(len(values)), key=lambda i: abs(values[i]))
        assert plot.bars[longest].width == max(bar.width for bar in plot.bars) > 0


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_audit_page(an_audit(), tmp_path / "file" / "audit.html")


def test_json_holds_all_findings_and_no_infinity():
    finding = Finding("x", "X", Verdict.NOTE, "s", plots=(Bars("t", ("a",), (1.0,)),))
    told = json.loads(an_audit(finding).to_json(), parse_constant=lambda name: pytest.fail(name))
    assert told["verdict"] == "note"
    assert told["findings"][0]["plots"][0]["values"] == [1.0]
