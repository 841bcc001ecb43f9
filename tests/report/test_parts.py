"""Parts of the report one by one: symptoms, filmstrip, calibration, probes, coloured tokens, the run's place in its sweep, how to reproduce it."""

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.report.made_up import INJECTION, made_up_filmstrip, made_up_run, put_in_sweep
from tests.report.markup import Tags

from likelier.metrics import Interval
from likelier.report import write_report
from likelier.report.calibration import meaning
from likelier.report.diagnosis import view_symptoms
from likelier.report.filmstrip import MOST_FRAMES, draw_filmstrip, marked, spread, view_filmstrip
from likelier.report.probes import MOST_FLIPS, view_flips
from likelier.report.samples import LEVELS, MOST_COLOURED, coloured, legend, view_samples
from likelier.rundir import RunDir, write_json, write_jsonl

MakeRun = Callable[..., RunDir]


@pytest.fixture(scope="module")
def page(run: RunDir) -> str:
    return run.report.read_text(encoding="utf-8")


def test_symptoms_stand_with_evidence_and_mend_and_are_marked_in_every_curve(run: RunDir, page: str) -> None:
    text = Tags(page).text["curves"]
    for row in run.read_metrics("symptom"):
        for field in ("title", "evidence", "mend"):
            assert row[field].replace("`", "") in text
        assert f"step {row['step']}" in text
    assert [len(re.findall(rf"<text[^>]*weight: 700[^>]*>{number}</text>", page)) for number in "123"] == [7, 7, 0]
    assert "held-out 3." in text  # the curve of KL


def test_a_symptom_told_twice_is_shown_where_it_was_first_seen() -> None:
    row = {"name": "x", "title": "X", "verdict": "warn", "evidence": "e", "mend": None}
    shown = view_symptoms([row | {"step": 90}, row | {"step": 30, "name": "y"}, row | {"step": 50}])
    assert [(symptom.number, symptom.step, symptom.mend) for symptom in shown] == [(1, 30, ""), (2, 50, "")]


def test_an_old_run_has_no_parts_that_it_knows_nothing_of(tmp_path: Path) -> None:
    page = write_report(made_up_run(tmp_path / "run", first_version=True)).read_text(encoding="utf-8")
    parsed = Tags(page)
    assert not {"filmstrip", "flips", "sweep"} & parsed.text.keys()
    assert 'href="#filmstrip"' not in page
    assert "No symptom was recorded" in parsed.text["curves"]
    assert "makes something up" in parsed.text["parts"]
    assert "Temperature" not in parsed.text["calibration"]
    assert "less likely" not in parsed.text["samples"]
    assert parsed.count("article", "sample") == 14


def test_a_strip_has_a_frame_a_step_and_its_first_one_is_untrained(page: str) -> None:
    strips = view_filmstrip(made_up_filmstrip(120))
    assert [strip.id for strip in strips] == ["watched-0", "watched-1", "watched-2"]
    first, second, *_, last = strips[0].frames
    assert [frame.title for frame in strips[0].frames] == ["Untrained", *(f"Step {step}" for step in range(20, 121, 20))]
    assert (first.news, first.tags) == ("", "110 tokens · 50.0% repeated · apology · cut off")
    assert second.news.endswith("gone, −33 tokens")
    assert (last.tags, last.same) == ("19 tokens", False)
    assert [frame.same for frame in strips[0].frames] == [False] * 5 + [True, False]
    assert strips[0].shown == ""
    assert Tags(page).count("div", "frame") == 21
    assert "110 untrained, 19 at step 120" in Tags(page).text["filmstrip"]
    [blank] = view_filmstrip([made_up_filmstrip(6)[0] | {"reply": " \n", "repetition": 0.0, "apology": False}])
    assert blank.frames[0].tags == "110 tokens · cut off · blank"
    assert INJECTION in Tags(page).text["filmstrip"]


def test_watched_replies_that_stay_the_same_are_no_mountain() -> None:
    rows = [row | {"length": 64, "repetition": 0.0} for row in made_up_filmstrip(120)]
    length, repetition = (re.findall(r">([\d.%]+)</text>", drawing.svg) for drawing in draw_filmstrip(rows))
    assert "0" in length
    assert "0%" in repetition
    assert draw_filmstrip(rows[:3]) == []


def test_of_a_long_run_the_first_and_last_frames_are_kept() -> None:
    [strip, *_] = view_filmstrip(made_up_filmstrip(600) + [row | {"step": row["step"] + 600} for row in made_up_filmstrip(600)[3:]] * 3)
    assert len(strip.frames) == MOST_FRAMES
    assert (strip.frames[0].title, strip.frames[-1].title) == ("Untrained", "Step 1,200")
    assert strip.shown == "12 of 25 frames; all are in filmstrip.jsonl."
    assert (spread(1, 5), spread(5, 2)) == ([0], [0, 4])


@pytest.mark.parametrize(
    "before, after, shown, news",
    [
        (None, "New <b>.", "New &lt;b&gt;.", ""),
        ("Same.", "Same.", "Same.", "as before"),
        ("It is on its way.", "It is  <b>not</b> on\nits way.", "It is  <ins>&lt;b&gt;not&lt;/b&gt;</ins> on\nits way.", "1 word new, 0 gone"),
        ("It is on its way to you.", "It is on its way.", "It is on its <ins>way.</ins>", "1 word new, 3 gone"),
        ("I am so sorry to hear it.", "With the carrier since Monday.", "With the carrier since Monday.", "another reply"),
        ("Yes.", "", "", "another reply"),
        ("", " \n Yes.", " \n Yes.", "another reply"),
    ],
)
def test_new_words_are_marked_and_nothing_is_lost(before: str | None, after: str, shown: str, news: str) -> None:
    text, said = marked(after, before)
    assert (str(text), said) == (shown, news)
    assert html.unescape(re.sub(r"</?ins>", "", text)) == after


def test_every_token_has_the_colour_of_its_log_ratio() -> None:
    nats = [0.0, 0.09, -0.1, 0.5, -1.0, 1.99, 2.0, -7.0]
    text = coloured([(str(i), value) for i, value in enumerate(nats)])
    assert re.findall(r'class="(\w+)" title="([^"]+)">(\d)', text) == [
        ("n1", "−0.10", "2"),
        ("p2", "+0.50", "3"),
        ("n3", "−1.00", "4"),
        ("p3", "+1.99", "5"),
        ("p4", "+2.00", "6"),
        ("n4", "−7.00", "7"),
    ]
    assert text.startswith("01<i")
    assert str(coloured([("<b>", 0.0), ("&", 1.0)])) == '&lt;b&gt;<i class="p3" title="+1.00">&amp;</i>'
    assert {css for css, _ in legend()} == {"", *(f"{sign}{i}" for sign in "np" for i in range(1, len(LEVELS) + 1))}


def test_coloured_tokens_join_to_the_replies_of_all_four_sides(run: RunDir) -> None:
    rows = run.read_samples()
    for row, sample in zip(rows, view_samples(rows), strict=True):
        for reply in (*sample.sampled, *sample.given):
            assert html.unescape(re.sub(r"<i [^>]*>(∎)?|</i>", "", reply.html)) == row[reply.name]
            assert reply.tags.endswith(" nats")
    assert [reply.title for reply in view_samples(rows)[0].given] == ["Chosen", "Rejected"]
    assert [reply.title for reply in view_samples(rows)[1].given] == ["Rejected"]


def test_a_page_of_many_long_replies_stays_small(make_run: MakeRun) -> None:
    run = make_run(samples=48)
    many = [[f" word{i % 7}", (-1) ** i * 1.5] for i in range(500)]
    write_jsonl(run.samples, [row | {"tokens": dict.fromkeys(("before", "after", "chosen", "rejected"), many)} for row in run.read_samples()])
    views = view_samples(run.read_samples())
    assert [("<i" in sample.sampled[0].html) for sample in views] == [i < MOST_COLOURED // 2000 for i in range(48)]
    assert write_report(run).stat().st_size < 1_500_000


def test_the_temperature_says_what_confidence_is_worth(page: str) -> None:
    assert "surer than it is right. Divide its margins by 1.84 before" in meaning(Interval(1.84, 1.4, 2.5))
    assert "right more often than it is sure. Divide its margins by 0.500" in meaning(Interval(0.5, 0.4, 0.6))
    assert "holds 1" in meaning(Interval(1.2, 0.9, 1.6))
    assert "dashed line" in meaning(None)
    text = Tags(page).text["calibration"]
    for said in ("12.1%", "5.8%", "0.187", "0.166", "T = 1.84 (1.41 to 2.55)", "five folds", "118 pairs in 8 bins"):
        assert said in text


def test_probes_stand_by_their_sets_and_parts_with_their_intervals(page: str) -> None:
    parsed = Tags(page)
    assert parsed.count("tr", "set") == 4 + 3
    assert re.search(r">look-alikes <span[^>]*>91c5</span></th>", page)
    text = parsed.text["parts"]
    assert text.index("too long") < text.index("makes something up") < text.index("rude")
    assert text.index("consumer") < text.index("business")
    assert text.index("rejected longer by half") < text.index("about as long") < text.index("chosen longer by half")


def test_flips_are_listed_worst_first_and_cut(run: RunDir, page: str) -> None:
    evaluation = run.read_eval()
    row = {"id": "a", "prompt": "p", "before": "b", "after": "a"}
    rows = [row | {"probe": "facts", "before_hit": i % 2 == 0, "after_hit": i % 2 == 1} for i in range(20)]
    rows += [row | {"probe": "facts", "before_hit": True, "after_hit": True}, row | {"probe": "unknown", "before_hit": False, "after_hit": True}]
    facts, unknown = view_flips(rows, evaluation or {})
    assert facts.said == "20 items flipped: 10 now count, 10 no longer do"
    assert [item.now for item in facts.items] == ["worse"] * 10 + ["better"] * 2
    assert (len(facts.items), facts.more) == (MOST_FLIPS, 8)
    assert (unknown.title, unknown.items[0].now) == ("unknown", "different")
    refusals = view_flips([rows[1] | {"probe": "refusals"}], evaluation or {})[0]
    assert refusals.items[0].now == "worse"  # a refusal more, where fewer are better
    assert "Refusals of harmless requests 15 items flipped" in " ".join(Tags(page).text["flips"].split())


def test_a_run_of_a_sweep_shows_where_it_stands(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "sweep" / "beta=0.1", steps=3, samples=1)
    put_in_sweep(run)
    page = write_report(run).read_text(encoding="utf-8")
    text = Tags(page).text["sweep"]
    assert "this run, on the frontier" in text
    assert "of 3 runs" in text
    assert "The sweep recommends another run, beta=0.3. It reaches 75% for half of the KL." in text
    assert 'href="../sweep.html"' in page
    for label, times in (("this run", 1), ("0.3", 1), ("0.9", 1), ("2.7", 0)):
        assert len(re.findall(f"fill: var\\(--ink\\)[^>]*>{label}</text>", page)) == times


def test_a_sweep_that_knows_nothing_of_the_run_is_passed_over(make_run: MakeRun) -> None:
    run = make_run(steps=3)
    put_in_sweep(run)
    sweep = run.path.parent / "sweep.json"
    write_json(
        sweep, {"runs": [{"name": "other", "folder": "other", "kl": {"value": 1}, "accuracy": {"value": 1}}] * 2, "frontier": [], "recommended": None}
    )
    assert 'id="sweep"' not in write_report(run).read_text(encoding="utf-8")


def test_the_commands_that_make_the_run_again_are_there(run: RunDir, page: str) -> None:
    text = Tags(page).text["reproduce"]
    for said in (
        "pip install torch==2.13.0 transformers==5.23.0 peft==0.19.0",
        "Likelier 0.1.0 on Python 3.12.4",
        "likelier train recipes/support.yaml --objective.beta 0.1",
        f"likelier verify {run.path}",
    ):
        assert said in text
