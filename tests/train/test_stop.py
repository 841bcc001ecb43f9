"""SIGTERM and Ctrl-C: a run leaves in good order, says where it stands, and ends later as if nobody had asked."""

import json
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from likelier.errors import Interrupted, LikelierError
from likelier.logprobs.scorer import Scorer
from likelier.rundir import RunDir
from likelier.train import session
from likelier.train import step as module
from likelier.train.progress import Progress
from likelier.train.session import train_recipe
from likelier.train.stop import heed_signals
from tests.train.children import ended, hold_after_step, said, start, wait_for
from tests.train.conftest import PLACES, changed, pair_rows

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """Started in the background, a process ignores Ctrl-C, and so would these runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ask(number: signal.Signals) -> None:
    """Send a signal to this process, which must heed it: otherwise the tests would end with it."""
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    os.kill(os.getpid(), number)


class Asking(Progress):
    """Asks the run to stop when a row is logged."""

    def __init__(self, kind: str, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.when, self.number = (kind, step), number

    def logged(self, row) -> None:
        if (row["kind"], row["step"]) == self.when:
            ask(self.number)


@pytest.fixture
def short(recipe):
    """Six steps, an evaluation in several batches every two, and no checkpoint but those that a stop asks for."""
    return changed(recipe, train={"max_steps": 6, "eval_every": 2, "checkpoint_every": 0, "tokens_per_batch": 100})


@pytest.fixture
def truth(short):
    return train_recipe(changed(short, out=short.out + "-truth"))


def assert_ends_as(recipe, truth: RunDir) -> None:
    run = train_recipe(recipe)
    ours, theirs = (load_file(next(r.model.glob("*.safetensors"))) for r in (run, truth))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    rows = [[{name: value for name, value in row.items() if name != "seconds"} for row in r.read_metrics()] for r in (run, truth)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_step_at_hand_is_finished_and_the_run_goes_on_from_there(short, truth, number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted, match=rf"stopped by {number.name} at step 3 of 6. The same command, without --fresh, goes on") as caught:
        train_recipe(short, show=Asking("train", 3, number))
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == before
    run = RunDir(short.out)
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-000003"]
    assert run.read_metrics("train")[-1]["step"] == 3
    assert not run.lock.exists()
    assert_ends_as(short, truth)


@pytest.mark.parametrize("step", [2, 6], ids=["in the middle", "after the last step"])
def test_an_evaluation_is_left_at_its_next_batch_and_made_up_for(short, truth, monkeypatch, step):
    """No half evaluation is recorded, and the resumed run begins with it."""
    score, batches = module.score_all_examples, []

    def score_and_ask(*arguments, **options):
        for batch in score(*arguments, **options):
            batches.append(batch)
            yield batch
            if len(RunDir(short.out).read_metrics("train")) == step:
                ask(signal.SIGTERM) if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL else pytest.fail("a batch was scored after it")

    with monkeypatch.context() as patch:
        patch.setattr(module, "score_all_examples", score_and_ask)
        with pytest.raises(Interrupted, match=rf"at step {step} of 6"):
            train_recipe(short, show=Progress())
    run = RunDir(short.out)
    assert [row["step"] for row in run.read_metrics("eval")] == list(range(2, step, 2))
    assert len(batches) > step // 2
    with pytest.raises(Interrupted, match=rf"at step {step} of 6"):  # and once more, when it was recorded and no checkpoint says so
        train_recipe(short, show=Asking("eval", step))
    assert_ends_as(short, truth)


def test_the_estimate_of_a_kl_of_held_out_replies_is_left_at_its_next_batch(short, tmp_path, monkeypatch):
    held_out = [{**row, "prompt": f"Please name {n} sights near the {PLACES[n]}."} for n, row in enumerate(pair_rows(6))]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    kto = changed(short, objective={"name": "kto"}, data={"eval": [str(tmp_path / "eval.jsonl")]}, train={"max_steps": 3})
    score, batches = Scorer.score_all, []

    def score_and_ask(self, sequences, **options):
        for batch in score(self, sequences, **options):
            if len(RunDir(short.out).read_metrics("train")) == 2:
                batches.append(batch)
                ask(signal.SIGTERM) if len(batches) == 1 else pytest.fail("a batch was scored after it")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score_all", score_and_ask)
        with pytest.raises(Interrupted, match="at step 2 of 3"):
            train_recipe(kto)
    assert len(batches) == 1
    assert not RunDir(short.out).read_metrics("eval")


def test_what_is_scored_under_the_reference_stays(short, truth, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "other-cache"))
    scored = []

    class AskingEarly(Progress):
        def reference_scored(self, done, total) -> None:
            scored.append((done, total))
            if len(scored) == 2:
                ask(signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"when \d+ of \d+ sequences had been scored under the reference") as caught:
        train_recipe(short, show=AskingEarly())
    done, total = scored[-1]
    assert 0 < done < total
    assert f"when {done} of {total}" in str(caught.value)
    assert RunDir(short.out).read_manifest()["reference"] is None
    assert_ends_as(short, truth)
    assert RunDir(short.out).read_manifest()["reference"] == {"computed": total - done, "reused": done, "unchanged": True}


def test_what_each_start_scored_under_the_reference_is_added_up(short, truth, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "other-cache"))
    run = RunDir(short.out)
    with pytest.raises(Interrupted):
        train_recipe(short, show=Asking("train", 4, signal.SIGTERM))
    begun = run.read_manifest()["reference"]
    assert begun["computed"] > 0
    assert begun == {"computed": begun["computed"], "reused": 0, "unchanged": None}
    assert_ends_as(short, truth)
    assert run.read_manifest()["reference"] == begun | {"unchanged": True}


def test_a_stop_while_the_model_is_saved_comes_after_it(short, monkeypatch):
    save = session.save_trained

    def ask_and_save(*arguments, **options):
        ask(signal.SIGTERM)
        return save(*arguments, **options)

    monkeypatch.setattr(session, "save_trained", ask_and_save)
    with pytest.raises(Interrupted, match="when the model had been saved"):
        train_recipe(short)
    assert RunDir(short.out).read_manifest()["outcome"]["steps"] == 6


def test_a_second_ctrl_c_stops_at_once(short):
    class Impatient(Progress):
        def logged(self, row) -> None:
            ask(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_recipe(short, show=Impatient())
    assert not list(RunDir(short.out).checkpoints.glob("step-*"))


COMMANDED = [([signal.SIGTERM], 143), pytest.param([signal.SIGINT], 130, marks=pytest.mark.slow), ([signal.SIGTERM] * 2, -15)]


@pytest.mark.parametrize("signals, code", COMMANDED)
def test_the_command_says_where_it_stands(short, signals, code):
    child, run = start(short, before=partial(hold_after_step, short.out, 1)), RunDir(short.out)
    wait_for(lambda: len(run.read_metrics("train")) == 1, child)
    for number in signals:
        os.kill(child.pid, number)
        if len(signals) > 1:
            wait_for(lambda: "again to stop at once" in said(short), child)
    Path(f"{short.out}.go").touch()
    assert ended(child) == code
    told = said(short)
    assert f"likelier: {signals[0].name}: the step at hand is finished" in told
    assert "Traceback" not in told
    if code > 0:
        assert f"likelier: stopped by {signals[0].name} at step 1 of 6." in told
    assert len(list(run.checkpoints.glob("step-*"))) == (code > 0)


def test_what_is_ignored_stays_ignored_and_other_threads_set_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heed_signals() as stop:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.requested
            stop.leave("nowhere")
    finally:
        signal.signal(signal.SIGINT, before)
    found = []

    def elsewhere() -> None:
        with heed_signals() as stop:
            found.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGTERM))]


def test_it_stands_in_the_tree_of_errors():
    assert issubclass(Interrupted, LikelierError)
    assert Interrupted("x", signal.SIGTERM).exit_code == 143
