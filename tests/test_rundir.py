import json
import math
import stat

import pytest

from likelier import atomic
from likelier.errors import RunError
from likelier.rundir import RunDir, append_jsonl, read_json, read_jsonl, write_atomic, write_json, write_jsonl

ROWS = [
    {"kind": "train", "step": 1, "loss": 0.6931471805599453},
    {"kind": "train", "step": 2, "loss": 0.5},
    {"kind": "eval", "step": 2, "loss": 0.61},
    {"kind": "train", "step": 3, "loss": 0.4},
]


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path)
    for row in ROWS:
        made.append_metrics(row)
    return made


def test_naming_a_run_touches_nothing(tmp_path):
    made = RunDir(str(tmp_path / "not" / "there"))
    paths = {name: value for name, value in vars(made).items() if name != "path"}
    files = {"recipe", "manifest", "metrics", "filmstrip", "eval", "samples", "probes", "report"}
    assert set(paths) == files | {"checkpoints", "trackers", "model", "lock"}
    assert {path.parent for path in paths.values()} == {made.path}
    assert not made.path.parent.exists()


def test_a_folder_without_recipe_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"not a run directory \(no recipe.yaml in it\). `likelier train RECIPE` makes one"):
        RunDir(tmp_path).require()
    (tmp_path / "recipe.yaml").touch()
    assert RunDir(tmp_path).require().path == tmp_path


def test_metrics_are_read_by_kind_as_they_were_written(run):
    assert run.read_metrics() == ROWS
    assert run.read_metrics("eval") == [ROWS[2]]
    assert run.read_metrics("train") == [ROWS[0], ROWS[1], ROWS[3]]


def test_a_run_without_metrics_has_none(tmp_path):
    assert RunDir(tmp_path).read_metrics() == []
    assert RunDir(tmp_path).read_samples() == []
    assert RunDir(tmp_path).read_eval() is None


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_last_line_cut_short_by_a_kill_is_left_out(cut, run):
    content = run.metrics.read_bytes()
    run.metrics.write_bytes(content[:-cut])
    wanted = ROWS if cut == 1 else ROWS[:3]  # without its line break the row is whole
    assert run.read_metrics() == wanted


def test_a_resumed_run_forgets_what_it_will_write_again(run):
    run.metrics.write_bytes(run.metrics.read_bytes()[:-5])
    run.cut_metrics(2)
    assert run.read_metrics() == ROWS[:3]
    run.append_metrics({"kind": "train", "step": 3, "loss": 0.41})
    assert [row["loss"] for row in run.read_metrics("train")] == [ROWS[0]["loss"], 0.5, 0.41]
    run.cut_metrics(0)
    assert run.read_metrics() == []


def test_what_was_seen_in_an_evaluation_goes_with_it_and_step_0_of_the_filmstrip_stays(run):
    run.append_metrics({"kind": "symptom", "step": 1, "name": "beta"})
    run.append_metrics({"kind": "symptom", "step": 2, "name": "kl-budget"})
    append_jsonl(run.filmstrip, [{"step": step, "reply": "é"} for step in (0, 1, 2, 3)])
    run.cut_metrics(2, evaluated=False)
    assert [(row["kind"], row["step"]) for row in run.read_metrics()] == [("train", 1), ("train", 2), ("symptom", 1)]
    assert [row["step"] for row in run.read_filmstrip()] == [0, 1]
    run.cut_metrics(0, evaluated=False)
    assert [row["step"] for row in run.read_filmstrip()] == [0]


def test_how_an_earlier_start_ended_is_forgotten_at_any_step(run):
    run.append_metrics({"kind": "symptom", "step": 2, "name": "kl-budget"})
    run.append_metrics({"kind": "symptom", "step": 2, "name": "reference-changed"})
    run.cut_metrics(3)
    assert [row["name"] for row in run.read_metrics("symptom")] == ["kl-budget"]


def test_values_that_are_not_finite_survive(run):
    run.append_metrics({"kind": "train", "step": 4, "loss": math.inf, "grad_norm": math.nan})
    assert run.read_metrics()[-1]["loss"] == math.inf
    assert math.isnan(run.read_metrics()[-1]["grad_norm"])


def test_a_missing_or_damaged_file_is_named(run):
    with pytest.raises(RunError, match=r"manifest.json: this file of the run is missing"):
        run.read_manifest()
    for text in ('{"data": ', "3", '"text"', "[1, 2]"):
        run.manifest.write_text(text)
        with pytest.raises(RunError, match=r"manifest.json: this file of the run is damaged"):
            run.read_manifest()
    run.manifest.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(RunError, match="damaged"):
        run.read_manifest()


def test_json_is_written_for_people_and_read_back(run):
    value = {"accuracy": {"value": 0.5, "low": 0.25}, "text": "é ✓\u2028", "none": None}
    write_json(run.eval, value)
    assert run.read_eval() == read_json(run.eval) == value
    assert "é ✓" in run.eval.read_text(encoding="utf-8")


def test_lines_hold_any_text(run):
    rows = [{"reply": "two\nlines\r\n\u2028\u0085 and é"}, {"reply": ""}]
    write_jsonl(run.samples, rows)
    assert run.read_samples() == list(read_jsonl(run.samples)) == rows
    assert run.samples.read_bytes().count(b"\n") == 2


def test_a_writer_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    write_atomic(path, "old")
    monkeypatch.setattr(atomic.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(RunError, match=r"file.json: this could not be written \(disk full\)"):
        write_atomic(path, "new and longer")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_rows_that_cannot_be_written_leave_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 1}, {"a": object()}])
    assert list(read_jsonl(path)) == ROWS


def test_files_can_be_read_by_others(tmp_path):
    write_json(tmp_path / "a.json", {})
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
    assert json.loads((tmp_path / "a.json").read_text()) == {}
