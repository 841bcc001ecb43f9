"""What a person sees of a sweep: the table in the terminal, the page, the command's errors."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from likelier.cli import main
from likelier.metrics import Interval
from likelier.report.frontier import Point, draw_frontier, label_of
from likelier.report.sweep_page import write_sweep_page
from likelier.rundir import read_json, write_json
from likelier.sweep.terminal import show_sweep
from tests.report.test_report_in_browser import GROUND, OVERFLOWING, UNREADABLE, browser, open_at  # noqa: F401  (a fixture)
from tests.sweep.made_up import made_up_sweep

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return made_up_sweep(tmp_path_factory.mktemp("sweeps") / "support-sweep", hostile=HOSTILE)


def test_the_table_fits_a_terminal_and_says_why(page):
    console = Console(file=io.StringIO(), width=80)
    show_sweep(read_json(page.parent / "sweep.json"), console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"beta=0\.3 +87\.5% \(81\.5 to 92\.5\) +7\.20? +2\.16 +72\.5 → 30 +0 +recommended", text), text
    assert re.search(r"beta=0\.03 .* 2 *$", text, re.MULTILINE), "a symptom and a worse probe speak against it"
    assert re.search(r"beta=0\.01 +–.* given up", text)
    joined = " ".join(text.split())
    for words in (
        "Recommended: beta=0.3. It is within",
        "2,156 replies scored, 8,624 read",
        "cannot tell beta=0.1",
        "beta=0.01: given up at step 40 of 120",
    ):
        assert words in joined, words


def test_brackets_in_a_name_are_no_markup(page):
    sweep = read_json(page.parent / "sweep.json")
    sweep["runs"][0]["name"] = "train=[/bold][red]x"
    console = Console(file=io.StringIO(), width=160)
    show_sweep(sweep | {"notes": ["Of [/bold] and [red]"]}, console)
    assert console.file.getvalue().count("[/bold]") == 3  # in the table, in the notes, and why it ended
    assert "Of [/bold] and [red]" in console.file.getvalue()


def test_a_label_is_a_bare_value_only_where_it_says_enough():
    runs = [{"name": "beta=0.1", "settings": {"objective.beta": 0.1}}, {"name": "beta=0.3", "settings": {"objective.beta": 0.3}}]
    assert [label_of(run, runs) for run in runs] == ["0.1", "0.3"]
    runs.append({"name": "epochs=2", "settings": {"train.epochs": 2}})
    assert [label_of(run, runs) for run in runs] == ["beta=0.1", "beta=0.3", "epochs=2"]
    assert label_of({"name": "the-recipe", "settings": {}}, [{"name": "the-recipe", "settings": {}}]) == "the-recipe"


def test_the_page_has_the_choice_the_runs_and_their_reports(page):
    text = page.read_text()
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "6 runs: 4 ended, 1 given up, 1 failed. Recommended: beta=0.3." in text
    assert re.findall(r'href="([^#"]*report\.html)"', text) == ["beta%3D0.1/report.html"], "only where there is one"
    assert "worse: Factual questions answered" in text
    assert text.count("<svg") == 4
    assert "#ab00" not in text, "each run has its colour"
    assert all(f"var(--run-{n})" in text for n in range(6))
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)


def test_a_sweep_that_has_just_begun_has_a_page(page, tmp_path):
    sweep = read_json(page.parent / "sweep.json")
    nothing = {"accuracy": None, "margin": None, "kl": None, "length": None, "state": "waiting", "why": "", "steps": 0, "seconds": 0.0}
    begun = sweep | {"runs": [run | nothing for run in sweep["runs"]], "recommended": None, "frontier": [], "notes": ["No run has ended yet."]}
    write_json(tmp_path / "sweep.json", begun)
    text = write_sweep_page(tmp_path).read_text()
    assert "6 runs: 6 still to come." in text
    assert text.count('class="missing"') == 2


def test_every_point_has_its_name_once():
    """Points that lie on each other too."""
    same = Interval(20, 15, 25), Interval(0.9, 0.8, 0.95)
    points = [Point(n, f"beta=0.{n}", *same, on_frontier=True, recommended=n == 2) for n in range(5)]
    svg = draw_frontier("x", points, 5)
    assert [svg.count(f">{point.label}<") for point in points] == [1] * 5
    places = re.findall(r"translate\(([\d.]+) ([\d.]+)\)[^>]*>beta", svg) or re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>beta', svg)
    assert len(set(places)) >= 4


@pytest.mark.browser
@pytest.mark.parametrize(
    "width, media, scheme", [(390, "screen", "light"), (390, "screen", "dark"), (1280, "screen", "dark"), (672, "print", "light")]
)
def test_the_page_fits_and_is_readable(page: Path, browser, width, media, scheme):  # noqa: F811
    open_at(browser, page, width, scheme, media)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(OVERFLOWING) == []
    assert browser.execute_script(UNREADABLE) == []
    is_dark = scheme == "dark" and media == "screen"
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == ("rgb(22, 24, 27)" if is_dark else GROUND[media])
    colors = browser.execute_script("return [...document.querySelectorAll('.runs .dot')].map(each => getComputedStyle(each).backgroundColor)")
    assert len(set(colors)) == 6
    assert browser.get_log("browser") == []


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {train: [embedded:support]}\nout: runs/mine\n")
    return str(path)


def refused(capsys, *words):
    assert main(["sweep", *words]) == 2
    return capsys.readouterr().err


def test_the_command_refuses_what_is_wrong_before_it_begins(capsys, recipe_file, tmp_path):
    assert "`objective.bta` is not a setting. Did you mean `beta`?" in refused(capsys, recipe_file, "--grid", "objective.bta=0.1")
    assert "one of the two" in refused(capsys, recipe_file)
    assert "runs.yaml" in refused(capsys, recipe_file, "--list", "runs.yaml")
    twice = refused(capsys, recipe_file, "--grid", "objective.beta=0.1", "--grid", "train.epochs=-1,2")
    assert "train.epochs=-1" in twice
    assert not (tmp_path / "runs").exists()


def test_the_folder_is_the_recipes_own_beside_its_run_unless_it_is_named(capsys, recipe_file, tmp_path):
    for folder in ("runs/mine-sweep", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "recipe.yaml").touch()
    assert "runs/mine-sweep: this folder holds a run" in refused(capsys, recipe_file, "--grid", "objective.beta=0.1")
    assert "other: this folder holds a run" in refused(capsys, recipe_file, "--grid", "objective.beta=0.1", "--out", "other")
    assert "other: this folder holds a run" in refused(capsys, recipe_file, "--grid", "objective.beta=0.1", "--out=other")
