"""The report of a made-up run directory: every part is there, nothing comes from outside, and data is text, never markup."""

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.report.made_up import made_up_symptoms
from tests.report.markup import Tags

from likelier import changes
from likelier.errors import RunError
from likelier.metrics import Interval
from likelier.report import plots, write_report
from likelier.report.summary import tiles
from likelier.rundir import RunDir, write_json, write_jsonl
from likelier.wording import change, count, duration, estimate, number, quantity

MakeRun = Callable[..., RunDir]


@pytest.fixture(scope="module")
def page(run: RunDir) -> str:
    return run.report.read_text(encoding="utf-8")


def test_every_part_is_there_and_the_markup_is_balanced(page: str) -> None:
    parsed = Tags(page)
    for part in ("summary", "data", "curves", "filmstrip", "evaluation", "calibration", "samples", "provenance", "reproduce"):
        assert len(parsed.text[part]) > 100, part
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 7 + 2 + 1 + 4
    assert parsed.count("article", "film") == 3
    assert parsed.count("article", "sample") == 14


def test_the_numbers_of_the_run_are_on_the_page(run: RunDir, page: str) -> None:
    text, evaluation = Tags(page).text, run.read_eval()
    assert evaluation is not None
    assert estimate(Interval.from_dict(evaluation["held_out"]["accuracy"]), "share").split(" (")[0] in text["summary"]
    assert "120 steps" in text["summary"]
    assert "960" in text["data"]
    assert "makes something up" in text["data"]
    assert "longer than max_length" in text["data"]
    last = run.read_metrics("eval")[-1]
    assert f"held-out {number(last['loss'])}" in text["curves"]
    assert f"held-out {number(last['rejected_reward'])}" in text["curves"]
    assert "log 2" in text["curves"]
    assert "best at step 100" in text["curves"]
    assert "Refusals of harmless requests" in text["evaluation"]
    assert "estimated on 118 sampled replies, k3" in text["evaluation"]
    for fingerprint in ("3f" * 32, "9c" * 32, "5a" * 32, run.read_manifest()["recipe"], "5.23.0", "first loss", "0.6931 (expected 0.6931)"):
        assert fingerprint in text["provenance"]


def test_nothing_comes_from_outside(page: str) -> None:
    for tag, attributes in Tags(page).tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "img")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?://|@import|@font-face", page)
    assert not re.search(r"url\((?!#)", page)


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    tags = Tags(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {attributes["href"][1:] for _, attributes in tags if (attributes.get("href") or "").startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert len(used) > 20
    assert used <= set(ids)


def test_headings_skip_no_level_and_tables_name_their_columns(page: str) -> None:
    tags = Tags(page).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    assert all(attributes.get("scope") in ("row", "col", "rowgroup") for tag, attributes in tags if tag == "th")
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg" or ("tabindex" in attributes and tag != "pre"))


def test_data_is_text_never_markup(page: str, injection: str) -> None:
    assert injection not in page
    assert "&lt;script&gt;alert(" in page
    assert injection in Tags(page).text["samples"]


def test_names_from_the_data_are_escaped_everywhere(make_run: MakeRun, injection: str) -> None:
    run = make_run(steps=3, samples=1)
    manifest, evaluation = run.read_manifest(), run.read_eval()
    assert evaluation is not None
    manifest["model"]["name"] = manifest["command"] = manifest["outcome"]["stopped"] = injection
    manifest["data"]["train"] |= {"sources": [injection], "reasons": {injection: 3}, "dropped": [{"id": injection, "reason": injection}]}
    evaluation["by"]["reason"] = {injection: evaluation["by"]["reason"]["rude"]}
    evaluation["probes"][0]["set"] = evaluation["calibration"]["note"] = injection
    write_jsonl(run.metrics, [*run.read_metrics(), made_up_symptoms(3)[0] | dict.fromkeys(["name", "title", "evidence", "mend"], injection)])
    evaluation["probes"][0]["title"] = evaluation["probes"][0]["unit"] = injection
    write_json(run.manifest, manifest)
    write_json(run.eval, evaluation)
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;") > 10
    assert not re.search(r"<script|<img", page)


def test_what_changed_lists_only_what_excludes_zero(run: RunDir, page: str) -> None:
    text, evaluation = Tags(page).text, run.read_eval()
    assert evaluation is not None
    seen = set()
    for probe in evaluation["probes"]:
        excludes_zero = not probe["difference"]["low"] <= 0 <= probe["difference"]["high"]
        assert (probe["title"] in text["changed"]) == excludes_zero
        assert (probe["title"] in text["unchanged"]) == (not excludes_zero)
        seen.add(excludes_zero)
    assert seen == {True, False}
    assert "Held-out accuracy" in text["changed"]
    assert "Log-probability of held-out chosen replies" in text["unchanged"]


def test_without_reference_the_lists_hold_probes_only(run: RunDir) -> None:
    evaluation = run.read_eval()
    assert evaluation is not None
    changed, unchanged = changes.list_changes(evaluation, has_reference=False)
    assert {finding.title for finding in changed + unchanged} == {probe["title"] for probe in evaluation["probes"]}


@pytest.mark.parametrize(
    "low, high, better, verdict",
    [
        (0.1, 0.3, "higher", "better"),
        (0.1, 0.3, "lower", "worse"),
        (-0.3, -0.1, "higher", "worse"),
        (-0.3, -0.1, "lower", "better"),
        (-0.3, -0.1, "none", "different"),
        (0.0, 0.3, "higher", changes.SAME),
        (-0.1, 0.3, "lower", changes.SAME),
        (-math.inf, math.inf, "higher", changes.SAME),
    ],
)
def test_verdicts(low: float, high: float, better: str, verdict: str) -> None:
    assert changes.verdict(Interval((low + high) / 2 if math.isfinite(low) else 0.2, low, high), better) == verdict


def test_a_strip_has_zero_in_its_middle_and_stays_on_its_line() -> None:
    strip = changes.strip_around(Interval(2.0, 1.0, 4.0))
    assert strip is not None
    assert (strip.point, strip.value) == (50.0, pytest.approx(50 + 50 * 2 / 4.6, abs=0.01))
    assert 50 < strip.low < strip.value < strip.high < 100
    assert changes.strip_around(Interval(0.0, 0.0, 0.0)) == changes.Strip(50.0, 50.0, 50.0, 50.0)
    assert changes.strip_around(Interval(1.0, -math.inf, math.inf)) is None


def test_a_run_without_evaluation_samples_or_curves_says_so(make_run: MakeRun) -> None:
    run = make_run()
    for path in (run.eval, run.samples, run.metrics):
        path.unlink()
    manifest = run.read_manifest() | {"outcome": None, "reference": None}
    del manifest["data"]["eval"]
    manifest["numerics"]["parity"] = None
    write_json(run.manifest, manifest)
    text = Tags(write_report(run).read_text(encoding="utf-8")).text
    assert "Training has not ended" in text["summary"]
    assert "Not known yet" in text["changed"]
    assert "Not known yet" in text["unchanged"]
    assert "No training step" in text["curves"]
    assert "not been evaluated" in text["evaluation"]
    assert "No replies have been sampled" in text["samples"]
    assert "Held-out" not in text["data"]
    assert "not measured" in text["provenance"]


def test_training_rows_alone_make_curves_and_say_what_is_missing(make_run: MakeRun) -> None:
    run = make_run(steps=9)
    run.eval.unlink()
    write_json(run.manifest, run.read_manifest() | {"outcome": None})
    text = Tags(write_report(run).read_text(encoding="utf-8")).text
    assert "the curves show training alone" in text["curves"]
    assert "log 2" in text["curves"]
    assert "held-out" not in text["curves"].replace("held-out pairs", "")


def test_before_the_final_evaluation_the_last_row_speaks(make_run: MakeRun) -> None:
    run = make_run(steps=20)
    run.eval.unlink()
    text = Tags(write_report(run).read_text(encoding="utf-8")).text["summary"]
    assert "At the last evaluation, step 20" in text


def test_an_evaluation_with_unknown_ends_and_missing_parts(make_run: MakeRun) -> None:
    run = make_run(steps=3)
    unknown = {"value": 0.5, "low": None, "high": None}
    write_json(run.eval, {"pairs": 1, "held_out": {"accuracy": unknown, "kl": None}, "by": {}, "probes": []})
    text = Tags(write_report(run).read_text(encoding="utf-8")).text
    assert "no interval: too few prompts" in text["evaluation"]
    assert "No probes were asked" in text["evaluation"]
    assert "Held-out accuracy" in text["unchanged"]
    assert "Nothing changed" in text["changed"]


def test_cautions_stand_at_the_top(make_run: MakeRun) -> None:
    run = make_run(steps=3)
    manifest = run.read_manifest()
    manifest["reference"]["unchanged"] = False
    manifest["data"]["train"]["boundary_mismatches"] = 2
    write_json(run.manifest, manifest)
    text = Tags(write_report(run).read_text(encoding="utf-8")).text["summary"]
    assert "reference scores changed" in text
    assert "In 2 training pairs prompt and reply" in text
    assert "3 training pairs of 963 could not be used" in text


@pytest.mark.parametrize(
    "reference, said",
    [({"computed": 3}, "71 s more for the reference"), ({"computed": 0}, "had been scored before"), (None, "")],
)
def test_the_time_says_what_the_reference_took(run: RunDir, reference: dict[str, int] | None, said: str) -> None:
    shown = {tile.label: tile for tile in tiles(run.read_manifest() | {"reference": reference}, None)}
    assert said in shown["Training time"].note
    assert bool(said) == bool(shown["Training time"].note)


def test_many_samples_are_cut_and_counted(make_run: MakeRun) -> None:
    parsed = Tags(write_report(make_run(steps=3, samples=60)).read_text(encoding="utf-8"))
    assert parsed.count("article", "sample") == 48
    assert "12 more are in samples.jsonl" in parsed.text["samples"]


def test_a_long_run_makes_no_heavy_page(make_run: MakeRun) -> None:
    page = write_report(make_run(steps=20_000)).read_text(encoding="utf-8")
    assert len(page) < 700_000


def test_the_same_run_gives_the_same_page(run: RunDir, page: str) -> None:
    assert write_report(run).read_text(encoding="utf-8") == page


def test_what_is_no_run_directory_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        write_report(RunDir(tmp_path))
    run = make_run(steps=3)
    run.manifest.unlink()
    with pytest.raises(RunError, match=r"manifest\.json"):
        write_report(run)
    assert not run.report.exists()


def test_running_mean_and_thinning_by_hand() -> None:
    assert plots.running_mean([1, 2, 3, 6], 2).tolist() == [1.5, 2.5, 4.5]
    assert plots.thin([1, 3, 5, 7, 10], most=2).tolist() == [3.0, 8.5]
    assert plots.thin([1, 2], most=2).tolist() == [1.0, 2.0]


def test_a_drawing_follows_the_page_in_colour() -> None:
    svg = plots.curves("x", 'a "label" <b>', [plots.Line([1, 2], [0.1, 0.2], plots.ACCENT, True)], level=0.15, level_label="here")
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert {"var(--accent)", "var(--faint)", "var(--rule)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert ">here</text>" in svg
    assert "<b>" not in svg
    assert "DejaVu" not in svg


def test_numbers_read_well() -> None:
    assert [number(x) for x in (0.69315, -1.5, 12345.6, 1000, 0.00123456, 0, None, math.nan)] == [
        "0.693",
        "−1.50",
        "12,346",
        "1,000",
        "0.00123",
        "0",
        "–",
        "–",
    ]
    assert (quantity(0.625, "share"), quantity(57.31, "tokens"), quantity(2.0, "")) == ("62.5%", "57.3 tokens", "2")
    assert (change(0.031, "share"), change(-4.5, "nats"), change(-0.0001, "share")) == ("+3.1 points", "−4.50 nats", "0.0 points")
    assert estimate(Interval(0.5, 0.25, 0.75), "share") == "50.0% (25.0 to 75.0)"
    assert (count(1, "pair"), count(1200, "pair"), count(2, "reply", "replies")) == ("1 pair", "1,200 pairs", "2 replies")
    assert [duration(x) for x in (0.1, 48, 720, 11_100, None)] == ["under 1 s", "48 s", "12 min", "3 h 5 min", "–"]
