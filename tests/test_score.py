"""Any records scored: against the plain twin, in chunks, by every kind of model."""

import gzip
import json

import pyarrow.parquet as pq
import pytest
import torch

from likelier import score as scoring
from likelier import subject
from likelier.cli import main
from likelier.data.formats import read_all
from likelier.data.shapes.lists import Pairing
from likelier.errors import DataError, ModelError, RequestError
from likelier.models import as_reference
from likelier.objectives import Logps, Responses, make_objective
from likelier.score import hardest_path, score
from likelier.subject import find_subject
from tests.evaluate.conftest import PAIRS, make_run, own_cache, sides, sums  # noqa: F401

LABELLED = [{"prompt": p["prompt"], "completion": p["chosen"], "label": True, "id": f"single-{p['id']}"} for p in PAIRS[:2]]
RANKED = [{"prompt": "Where?", "responses": ["Here.", "There, I think.", "Sorry!"], "ranks": [2, 1, 3], "id": "ranked"}]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*PAIRS, *LABELLED, *RANKED]))
    return str(path)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def small_chunks_in_fp32(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 4)
    monkeypatch.setattr(subject, "pick_precision", lambda *_: "fp32")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_scores_records_against_its_reference(make_run, chat_model, data, tmp_path, method):  # noqa: F811
    run, _, model, held_out = make_run(method=method)
    account = score(find_subject(str(run.path)), [data], tmp_path / "out.jsonl", tokens=True)
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [*(pair["id"] for pair in PAIRS), "single-January-0", "single-January-1", "ranked"]
    assert (account.pairs, account.replies, account.dropped) == (11, 2, [])
    for side, sequences in zip(("chosen", "rejected"), sides(held_out), strict=True):
        policy = sums(model, sequences)
        if method == "lora":
            with as_reference(model):
                reference = sums(model, sequences)
        else:
            reference = sums(chat_model, sequences)
        for row, sequence, new, old in zip(rows, sequences, policy, reference, strict=False):
            assert row[f"{side}_logp"] == pytest.approx(float(new), abs=1e-3)
            assert row[f"{side}_reference_logp"] == pytest.approx(float(old), abs=1e-3)
            assert row[f"{side}_reward"] == pytest.approx(0.1 * float(new - old), abs=1e-4)
            assert row[f"{side}_tokens"] == len(sequence.response_ids) == len(row[f"{side}_token_logps"])
            assert row[f"{side}_mean"] == pytest.approx(row[f"{side}_logp"] / row[f"{side}_tokens"])
            assert row[f"{side}_ids"] == list(sequence.response_ids)
            assert sum(row[f"{side}_reference_token_logps"]) == pytest.approx(row[f"{side}_reference_logp"], abs=1e-3)
    for row in rows[:10]:
        assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"])
    assert rows[10]["label"] is True
    assert rows[10]["completion_reward"] == pytest.approx(rows[0]["chosen_reward"], abs=1e-6)
    assert "margin" not in rows[10]
    assert account.right == sum(row["margin"] > 0 for row in rows if "margin" in row)
    assert not list(tmp_path.glob(".out*")), "what was spooled is gone"


def test_reference_values_are_reused_and_not_held(make_run, data, tmp_path, monkeypatch):  # noqa: F811
    run, *_ = make_run()
    held, computed = [], []
    rows, fill = scoring._of_side, scoring.fill
    monkeypatch.setattr(scoring, "_of_side", lambda *arguments: held.append(len(arguments[3]._values)) or rows(*arguments))
    monkeypatch.setattr(scoring, "fill", lambda *arguments, **options: computed.append(fill(*arguments, **options)))
    score(find_subject(str(run.path)), [data], tmp_path / "first.jsonl")
    assert max(held) <= 8, "four records at once"
    policy = len(computed) // 2
    assert sum(computed[policy:]) > 0
    computed.clear()
    score(find_subject(str(run.path)), [data], tmp_path / "second.jsonl")
    assert sum(computed[policy:]) == 0
    first, second = rows_of(tmp_path / "first.jsonl"), rows_of(tmp_path / "second.jsonl")
    assert [row.get("margin", 0) for row in first] == pytest.approx([row.get("margin", 0) for row in second], abs=1e-5)


def test_the_hardest_pairs_are_a_file_to_train_on(make_run, data, tmp_path):  # noqa: F811
    run, *_ = make_run()
    out = tmp_path / "out.parquet"
    score(find_subject(str(run.path)), [data], out, hardest=3)
    table = pq.read_table(out).to_pylist()
    assert (len(table), table[0]["label"], table[10]["label"], table[10]["margin"]) == (13, None, True, None)
    nearest = sorted((row for row in table if row["margin"] is not None), key=lambda row: abs(row["margin"]))[:3]
    assert hardest_path(out) == tmp_path / "out.hardest.jsonl"
    pairs = read_all([hardest_path(out)])
    assert [pair.id for pair in pairs] == [row["id"] for row in nearest]
    assert {pair.id: pair for pair in read_all([run.path.parent / "eval.jsonl"])}[pairs[0].id] == pairs[0]


def test_the_hardest_pairs_never_overwrite_what_is_read(make_run, data, tmp_path):  # noqa: F811
    run, *_ = make_run()
    source = tmp_path / "out.hardest.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    with pytest.raises(RequestError, match=r"out\.hardest\.jsonl: this is what is read"):
        score(find_subject(str(run.path)), [str(source)], tmp_path / "out.jsonl", hardest=3)
    assert len(rows_of(source)) == len(PAIRS)


def test_adapters_and_models_are_scored_too(make_run, data, tmp_path, chat_model):  # noqa: F811
    run, _, _, held_out = make_run()
    own, alone, against = (tmp_path / name for name in ("own.jsonl", "alone.jsonl.gz", "against.jsonl"))
    base = str(tmp_path / "base")
    score(find_subject(str(run.path), beta=0.4), [data], tmp_path / "run.jsonl")
    config = run.model / "adapter_config.json"
    named = json.loads(config.read_text())
    with pytest.raises(ModelError, match="does not say which model it belongs to"):
        find_subject(str(run.model))
    config.write_text(json.dumps({**named, "base_model_name_or_path": base}))
    score(find_subject(str(run.model), beta=0.4), [data], own)
    of_run, of_adapter = rows_of(tmp_path / "run.jsonl"), rows_of(own)
    assert [row["margin"] for row in of_adapter[:10]] == pytest.approx([row["margin"] for row in of_run[:10]], abs=1e-4)
    score(find_subject(base), [data], alone)
    rows = [json.loads(line) for line in gzip.decompress(alone.read_bytes()).splitlines()]
    assert set(rows[0]) == {"id", *(f"{side}_{name}" for side in ("chosen", "rejected") for name in ("logp", "tokens", "mean"))}
    assert rows[0]["chosen_logp"] == pytest.approx(float(sums(chat_model, sides(held_out)[0][:1])), abs=1e-3)
    score(find_subject(base, reference=base), [data], against)
    assert {row["margin"] for row in rows_of(against) if "margin" in row} == {0.0}
    with pytest.raises(RequestError, match="has no reference, so pairs have no margin"):
        score(find_subject(base), [data], alone, hardest=1)
    with pytest.raises(RequestError, match="compared with the model that it was trained from"):
        find_subject(str(run.path), reference=base)
    with pytest.raises(RequestError, match="it has no reward"):
        find_subject(base, beta=0.1)


def test_lists_give_the_pairs_that_are_asked_for_and_what_is_too_long_is_named(make_run, data, tmp_path):  # noqa: F811
    run, *_ = make_run()
    account = score(find_subject(str(run.path)), [data], tmp_path / "out.jsonl", pairing=Pairing("all"))
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")][-3:] == ["ranked", "ranked#2", "ranked#3"]
    assert account.pairs == 13
    account = score(find_subject(str(run.path), max_length=40), [data], tmp_path / "out.jsonl")
    kept = {row["id"] for row in rows_of(tmp_path / "out.jsonl")}
    assert account.dropped
    assert not kept & {dropped.id for dropped in account.dropped}
    assert len(kept) + len(account.dropped) == 13
    with pytest.raises(DataError, match=r"no record to score. 13 records left out; the first: January-0: 42 tokens"):
        score(find_subject(str(run.path), max_length=3), [data], tmp_path / "out.jsonl")
    with pytest.raises(RequestError, match="--hardest -3"):
        score(find_subject(str(run.path)), [data], tmp_path / "out.jsonl", hardest=-3)


def test_a_reply_judged_alone_is_its_own_counterpart():
    """LD-DPO counts tokens beyond the other side's length less; a reply without another side counts whole."""
    ratio = Responses(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -4.0]), torch.tensor([2]))
    objective = make_objective("ld-dpo", beta=0.1, tail_weight=0.5)
    assert objective.rewards(Logps(ratio, ratio))[0].item() == pytest.approx(0.25)


def test_the_command_says_what_it_did(make_run, data, tmp_path, capsys):  # noqa: F811
    run, *_ = make_run()
    assert main(["score", str(run.path), data, "--out", str(tmp_path / "out.jsonl"), "--hardest", "2"]) == 0
    said = capsys.readouterr().out
    assert "11 pairs and 2 single replies" in said
    assert "accuracy" in said
    assert "out.hardest.jsonl: 2 pairs with the margins nearest to 0" in said
    assert main(["score", str(run.path), data, "--out", str(tmp_path / "out.txt")]) == 2
    assert "name the file so" in capsys.readouterr().err
    assert main(["score", str(run.path), data, "--out", data]) == 2
    assert main(["score", str(run.path), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "no data was named" in capsys.readouterr().err
