"""What run trackers hold is what stands in metrics.jsonl: read back with each tool's own reader, after kills and resumes too."""

import json
import struct
import sys
import time
from pathlib import Path

import pytest

from likelier.cli import main
from likelier.errors import RecipeError, RunError
from likelier.recipe import load_recipe
from likelier.rundir import RunDir
from likelier.train import session, tracker_tools, trackers
from likelier.train.progress import Progress
from likelier.train.session import train_recipe
from likelier.train.trackers import scalars
from tests.train.conftest import changed, interrupted

Row = tuple[int, str, float]
KEY = "0123456789abcdef" * 2 + "secretly"


class Heard(Progress):
    """Keeps what is said; dies, like by a person's Ctrl-C, when step `dies_at` is shown."""

    def __init__(self, dies_at: int = 0) -> None:
        self.said: list[str] = []
        self.rows: list[dict] = []
        self.dies_at = dies_at
        self.scored = self.closed = False

    def say(self, text: str) -> None:
        self.said.append(text)

    def reference_scored(self, done: int, total: int) -> None:
        self.scored = True

    def logged(self, row: dict) -> None:
        self.rows.append(row)
        if row["kind"] == "train" and row["step"] == self.dies_at:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


def from_tensorboard(run: RunDir) -> tuple[list[Row], str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.trackers / "tensorboard")).Reload()
    rows = [(event.step, tag, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    texts = [event.tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"] for event in events.Tensors(tag)]
    return rows, "\n".join(texts)


def from_trackio(run: RunDir) -> tuple[list[Row], str]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    assert run.trackers / "trackio" == trackio.utils.TRACKIO_DIR
    [kept] = trackio.Api().runs("likelier")
    assert kept.name.startswith("run-")
    logs = SQLiteStorage.get_logs("likelier", kept.name, run_id=kept.id)
    return [(log["step"], name, value) for log in logs for name, value in log.items() if "/" in name], json.dumps(kept.config)


def from_wandb(run: RunDir) -> tuple[list[Row], str]:
    [path] = run.trackers.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while "exit" not in (kinds := {record.WhichOneof("record_type") for record in wandb_log(path)}):
        assert time.monotonic() < deadline, f"W&B's service did not end the file: {kinds}"
        time.sleep(0.05)
    records = wandb_log(path)
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows += [(values["_step"], name, value) for name, value in values.items() if "/" in name]
    [config] = [record.run.config for record in records if record.WhichOneof("record_type") == "run"]
    return rows, "\n".join(f"{update.key}: {update.value_json}" for update in config.update)


def wandb_log(path: Path) -> list:
    """Records of an offline run: protocol buffers in LevelDB's framing (blocks of 32 KiB; a checksum, a length and a kind before each piece)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            records.append(Record.FromString(whole))
            whole = b""
    return records


def from_mlflow(run: RunDir) -> tuple[list[Row], str]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{run.trackers}/mlflow/mlflow.db")
    [kept] = client.search_runs([client.get_experiment_by_name("likelier").experiment_id])
    outcome = run.manifest.is_file() and run.read_manifest()["outcome"]
    assert (kept.info.status, kept.info.run_name) == ("FINISHED" if outcome else "FAILED", "run")
    rows = [(point.step, name, point.value) for name in kept.data.metrics for point in client.get_metric_history(kept.info.run_id, name)]
    return rows, json.dumps({**kept.data.params, **kept.data.tags})


READERS = {"tensorboard": from_tensorboard, "trackio": from_trackio, "wandb": from_wandb, "mlflow": from_mlflow}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No settings, keys or folders of the person who runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / f"no-{name}"))


@pytest.fixture(params=READERS)
def tool(request, alone) -> str:
    pytest.importorskip(request.param)
    if request.param == "mlflow":
        pytest.importorskip("sqlalchemy")
    return request.param


def wanted(run: RunDir) -> list[Row]:
    kinds = ("train", "eval")
    named = [(row["step"], row["kind"], row) for row in run.read_metrics() if row["kind"] in kinds]
    return sorted((step, f"{kind}/{name}", value) for step, kind, row in named for name, value in row.items() if name not in ("kind", "step"))


def held(tool: str, run: RunDir) -> list[Row]:
    rows = sorted(READERS[tool](run)[0])
    return [(step, name, pytest.approx(value, rel=1e-6, abs=1e-12)) for step, name, value in rows]  # TensorBoard keeps 32 bits


def test_a_tracker_holds_the_recipe_the_ids_and_every_row_once(recipe, tool):
    heard = Heard()
    run = train_recipe(changed(recipe, log={"trackers": [tool]}, train={"max_steps": 4}), show=heard)
    assert wanted(run) == held(tool, run)
    assert any(name == "eval/accuracy" for _, name, _ in wanted(run))
    config = READERS[tool](run)[1]
    [header] = run.read_metrics("run")
    for known in (header["dataset"], header["held_out"], header["recipe"], header["base"], "pairs_per_step"):
        assert known in config
    assert heard.scored
    assert heard.closed
    assert [row["kind"] for row in heard.rows] == [row["kind"] for row in run.read_metrics()[1:]]
    assert any(str(run.trackers / tool) in text for text in heard.said), heard.said


def test_a_run_goes_on_in_the_same_tracker_without_gap_or_double(recipe, tool, monkeypatch):
    """First it dies with the tracker behind its checkpoint, then with the tracker ahead of it."""
    recipe = changed(recipe, log={"trackers": [tool]}, train={"checkpoint_every": 4, "eval_every": 2})
    run = interrupted(recipe, monkeypatch)
    assert {step for step, _, _ in held(tool, run)} == {1, 2, 3}, "whole steps only"
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, show=Heard(dies_at=7))
    assert [row for row in wanted(run) if row[0] <= 5] == held(tool, run)
    run = train_recipe(recipe)
    timeless = [[row for row in rows if row[1] != "train/seconds"] for rows in (wanted(run), held(tool, run))]
    assert timeless[0] == timeless[1]
    assert [row[:2] for row in wanted(run)] == [row[:2] for row in held(tool, run)]


def test_a_tracker_named_later_gets_all_from_the_start(recipe, alone):
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, show=Heard(dies_at=5))
    run = train_recipe(changed(recipe, log={"trackers": ["tensorboard"]}))
    assert wanted(run) == held("tensorboard", run)


def test_a_fresh_run_has_a_fresh_tracker(recipe, alone):
    pytest.importorskip("tensorboard")
    recipe = changed(recipe, log={"trackers": ["tensorboard"]}, train={"max_steps": 4})
    train_recipe(recipe)
    run = train_recipe(changed(recipe, train={"max_steps": 2}), fresh=True)
    assert wanted(run) == held("tensorboard", run)
    assert {step for step, _, _ in held("tensorboard", run)} == {1, 2}
    assert len(list((run.trackers / "tensorboard").iterdir())) == 1


def test_two_runs_of_one_process_have_a_trackio_each(recipe, alone):
    pytest.importorskip("trackio")
    recipe = changed(recipe, log={"trackers": ["trackio"]}, train={"max_steps": 2})
    train_recipe(recipe)
    run = train_recipe(changed(recipe, out=recipe.out + "-2"))
    assert wanted(run) == held("trackio", run)


def test_no_key_of_wandb_is_written_anywhere(recipe, alone, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    heard = Heard()
    run = train_recipe(changed(recipe, log={"trackers": ["wandb"]}, train={"max_steps": 2}), show=heard)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not [text for text in heard.said if KEY in text]


def test_a_missing_package_is_said_before_anything_is_done(recipe, monkeypatch):
    for tool in ("wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, tool, None)
        monkeypatch.setattr(session, "prepare", None)
        with pytest.raises(RecipeError, match=rf"log.trackers: `{tool}` lacks the package {tool}. Mend: `pip install {tool}`"):
            train_recipe(changed(recipe, log={"trackers": [tool]}))
        assert not Path(recipe.out).exists()


def test_a_folder_that_is_called_like_a_package_is_none(recipe, monkeypatch, tmp_path):
    """`wandb` leaves a folder of its own name where it ran."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(RecipeError, match="pip install wandb"):
        trackers.require_trackers(changed(recipe, log={"trackers": ["wandb"]}).log)


def test_mlflow_without_a_server_takes_its_store(recipe, monkeypatch, tmp_path):
    """mlflow-skinny has none."""
    pytest.importorskip("mlflow")
    log = changed(recipe, log={"trackers": ["mlflow"]}).log
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RecipeError, match=r"`mlflow` lacks the package sqlalchemy. Mend: `pip install mlflow`"):
        trackers.require_trackers(log)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    trackers.require_trackers(log)


def test_a_tracker_that_fails_on_the_way_is_let_go_with_a_word(recipe, alone, monkeypatch):
    pytest.importorskip("tensorboard")
    log = tracker_tools.TensorBoard.log

    def fail_at_3(self, step, values):
        if step == 3:
            raise OSError("postgresql://me:hunter2@host/db: No space left")
        log(self, step, values)

    recipe = changed(recipe, log={"trackers": ["tensorboard"]}, train={"max_steps": 5})
    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(tracker_tools.TensorBoard, "log", fail_at_3)
        run = train_recipe(recipe, show=heard)
    assert [row["step"] for row in run.read_metrics("train")] == [1, 2, 3, 4, 5]
    [text] = [text for text in heard.said if "no longer follows" in text]
    assert "tensorboard no longer follows this run (postgresql://…@host/db: No space left). Training goes on" in text


def test_a_tracker_that_does_not_start_stops_the_run_before_it_trains(recipe, alone, monkeypatch):
    pytest.importorskip("tensorboard")
    ended = []
    monkeypatch.setattr(tracker_tools.TensorBoard, "finish", lambda self, *, failed: ended.append(failed))
    recipe = changed(recipe, log={"trackers": ["tensorboard", "mlflow"]})

    def no_server(subject, say):
        raise ConnectionError("the server is down")

    monkeypatch.setitem(trackers.TOOLS, "mlflow", no_server)
    monkeypatch.setattr(session, "require_trackers", lambda log: None)
    with pytest.raises(RunError, match=r"`mlflow` did not start \(the server is down\). .* or leave it out of log.trackers"):
        train_recipe(recipe)
    assert ended == [True]
    assert RunDir(recipe.out).read_metrics("train") == []
    train_recipe(changed(recipe, log={"trackers": []}))


def test_scalars_are_a_rows_numbers():
    assert scalars({"kind": "train", "step": 3, "loss": 0.5, "pairs": 4, "note": "x", "kept": True, "ids": [1]}) == {
        "train/loss": 0.5,
        "train/pairs": 4.0,
    }
    assert scalars({"kind": "skipped", "step": 3, "why": "the loss is nan", "pairs": ["a"]}) == {}


def test_rows_of_other_kinds_pass(recipe, tmp_path):
    taken = []

    class Kept:
        def begin(self, step):
            return 0

        def log(self, step, values):
            taken.append((step, dict(values)))

        def finish(self, *, failed):
            taken.append(failed)

    observer = trackers.Tracked(Heard(), RunDir(tmp_path))
    observer.trackers["kept"] = Kept()
    observer.begin_training(0, 3)
    for row in (
        {"kind": "train", "step": 1, "loss": 1.0},
        {"kind": "skipped", "step": 2, "why": "nan"},
        {"kind": "train", "step": 3, "loss": 2.0},
        {"kind": "symptom", "step": 2, "name": "beta"},
        {"kind": "eval", "step": 3, "loss": 3.0, "kl": None},
    ):
        observer.logged(row)
    observer.finish(failed=False)
    assert taken == [(1, {"train/loss": 1.0}), (3, {"train/loss": 2.0, "eval/loss": 3.0}), False]


def test_trackers_are_named_on_the_command_line_too(recipe, alone, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    options = ["--log.trackers", "tensorboard", "--log.name", "mine", "--train.max-steps", "2", "--no-report"]
    assert main(["train", str(path), *options]) == 0, capsys.readouterr().err
    run = RunDir(recipe.out)
    assert load_recipe(run.recipe).log.name == "mine"
    assert wanted(run) == held("tensorboard", run)
    with pytest.raises(SystemExit):
        main(["train", str(path), "--log.trackers", "neptune"])
    assert "tensorboard" in capsys.readouterr().err
