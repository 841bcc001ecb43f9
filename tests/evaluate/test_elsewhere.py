"""Runs, adapters and models evaluated on data that is not their own."""

import json
from pathlib import Path

import pytest
import torch

from likelier import subject
from likelier.cli import main
from likelier.errors import RequestError
from likelier.evaluate import evaluate, evaluate_on, evaluation_path
from likelier.subject import find_subject
from tests.evaluate.conftest import EVAL, PAIRS, sides, sums, value_of


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch):
    monkeypatch.setattr(subject, "pick_precision", lambda *_: "fp32")


@pytest.fixture
def bench(tmp_path):
    """A RewardBench file with the same pairs as the held-out ones, in two subsets."""
    path = tmp_path / "bench.jsonl"
    rows = [
        {
            "id": number,
            "prompt": pair["prompt"][0]["content"],
            "chosen": pair["chosen"][0]["content"],
            "chosen_model": "a",
            "rejected": pair["rejected"][0]["content"],
            "rejected_model": "b",
            "subset": "easy" if number % 2 else "hard",
        }
        for number, pair in enumerate(PAIRS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_run_on_other_data_says_what_its_own_evaluation_says(make_run, bench):
    run, *_ = make_run(eval={**EVAL, "probes": False})
    own = evaluate(run)
    found = evaluate_on(find_subject(str(run.path)), [bench])
    assert json.dumps(found, allow_nan=False)
    assert found["pairs"] == 10
    assert set(found["held_out"]) == set(own["held_out"]) - {"kl"}
    for name in found["held_out"]:
        assert value_of(found, name) == pytest.approx(value_of(own, name), abs=1e-5)
    assert {name: part["pairs"] for name, part in found["by"]["group"].items()} == {"hard": 5, "easy": 5}
    assert "reason" not in found["by"]
    accuracies = [part["accuracy"]["value"] for part in found["by"]["group"].values()]
    assert sum(accuracies) / 2 == pytest.approx(value_of(found, "accuracy"))


@pytest.mark.parametrize("by", ["mean", "sum"])
def test_a_model_ranks_by_log_probability(make_run, chat_model, bench, tmp_path, by):
    _, _, _, held_out = make_run()
    found = evaluate_on(find_subject(str(tmp_path / "base")), [bench], by=by)
    chosen, rejected = (
        sums(chat_model, side) / (torch.tensor([len(s.response_ids) for s in side]) if by == "mean" else 1) for side in sides(held_out)
    )
    assert value_of(found, "chosen_reward") == pytest.approx(float(chosen.mean()), abs=1e-3)
    assert value_of(found, "accuracy") == float((chosen > rejected).double().mean())
    assert set(found["held_out"]) == {"accuracy", "margin", "chosen_reward", "rejected_reward"}
    assert set(found["by"]) == {"group", "length"}


def test_single_replies_need_a_reference(make_run, tmp_path):
    run, *_ = make_run()
    path = tmp_path / "singles.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Where?", "completion": text, "label": text == "Here."}) + "\n" for text in ("Here.", "No!")))
    found = evaluate_on(find_subject(str(run.path)), [str(path)])
    assert (found["pairs"], found["replies"], found["by"]) == (0, 2, {})
    assert {"accuracy", "chosen_logp_change", "rejected_logp_change", "kl_on_data"} <= set(found["held_out"])
    with pytest.raises(RequestError, match="judged by how far they moved"):
        evaluate_on(find_subject(str(tmp_path / "base")), [str(path)])


def test_the_command_shows_tables_and_writes_beside_the_runs_own_evaluation(make_run, bench, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run, *_ = make_run(eval={**EVAL, "probes": False})
    assert main(["eval", str(run.path)]) == 0
    said = capsys.readouterr().out
    assert all(words in said for words in ("Accuracy", "KL from the reference, on the data", "by reason", "rude", "calibration", "Brier"))
    before = run.eval.read_text()
    assert main(["eval", str(run.path), bench]) == 0
    said = capsys.readouterr().out
    assert all(words in said for words in ("by group", "easy", "hard", "by length", "implicit reward"))
    assert json.loads((run.path / "eval-bench.json").read_text())["data"] == [bench]
    assert run.eval.read_text() == before
    assert main(["eval", str(run.path), bench, "--out", str(run.eval)]) == 2
    assert main(["eval", str(run.path), "--beta", "0.3"]) == 2
    assert main(["eval", str(run.path), "--by", "mean"]) == 2
    assert main(["eval", str(run.path.parent / "base")]) == 2
    assert "name the data" in capsys.readouterr().err
    assert main(["eval", str(run.path.parent / "base"), bench, "--by", "sum"]) == 0
    assert "log-probability of the reply" in capsys.readouterr().out


def test_an_evaluation_on_other_records_is_not_replaced(make_run, bench, capsys):
    run, *_ = make_run(pairs=[])
    other = run.path.parent / "other" / "bench.jsonl"
    other.parent.mkdir()
    other.write_text("".join(Path(bench).read_text().splitlines(keepends=True)[1:]))
    assert main(["eval", str(run.path), bench]) == 0
    kept = (run.path / "eval-bench.json").read_text()
    capsys.readouterr()
    assert main(["eval", str(run.path), str(other)]) == 2
    said = capsys.readouterr()
    assert "this is an evaluation on other records" in said.err
    assert "scoring" not in said.out, "nothing is asked first"
    assert (run.path / "eval-bench.json").read_text() == kept
    assert main(["eval", str(run.path), bench]) == 0, "the same records again"
    assert main(["eval", str(run.path), str(other), "--out", str(run.path / "eval-bench.json")]) == 0


def test_options_that_nothing_would_read_are_refused(make_run, bench):
    run, *_ = make_run(pairs=[])
    with pytest.raises(RequestError, match=r"--by sum: .* has a reference"):
        evaluate_on(find_subject(str(run.path)), [bench], by="sum")
    base = str(run.path.parent / "base")
    compared = find_subject(base, reference=base)
    with pytest.raises(RequestError, match=r"--by mean: .* has a reference"):
        evaluate_on(compared, [bench], by="mean")
    with pytest.raises(RequestError, match=r"--chat-template none: .* trained with"):
        find_subject(str(run.path), chat_template="none")


def test_names_of_evaluations(tmp_path):
    from likelier.rundir import RunDir

    run = RunDir(tmp_path)
    names = {
        "data/v1.2": "eval-v1.2.json",
        "bench.v3.JSONL": "eval-bench.v3.json",
        "a/bench.jsonl.gz": "eval-bench.json",
        "embedded:support": "eval-embedded-support.json",
        "hf:allenai/reward-bench:filtered": "eval-reward-bench-filtered.json",
    }
    assert {source: evaluation_path(run, [source]).name for source in names} == names
