"""Evaluation of tiny runs, against log-probabilities of the plain twin and numbers worked out by hand."""

import gc
import json
import re
import weakref

import pytest
import torch

from likelier import subject
from likelier.changes import list_changes
from likelier.data.chat import Encoder
from likelier.errors import ModelError, RunError
from likelier.evaluate import answers, evaluate, evaluate_on, exam
from likelier.generation import requests
from likelier.generation.sample import generate
from likelier.logprobs import reference
from likelier.metrics import Interval
from likelier.models import as_reference, load_trained, save_trained
from likelier.recipe import ModelSettings
from likelier.report import write_report
from likelier.rundir import read_jsonl, write_atomic, write_json
from likelier.score import score
from likelier.subject import find_subject
from tests.evaluate.conftest import EVAL, PAIRS, sides, sums, value_of


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_is_evaluated_against_its_reference(make_run, chat_model, chat_tokenizer, method):
    run, _, model, held_out = make_run(method=method)
    result = evaluate(run)
    assert result == run.read_eval()
    assert json.dumps(result, allow_nan=False)

    (chosen, rejected), reference = sides(held_out), chat_model
    if method == "lora":
        with as_reference(model):
            before = [sums(model, chosen), sums(model, rejected)]
    else:
        before = [sums(reference, chosen), sums(reference, rejected)]
    after = [sums(model, chosen), sums(model, rejected)]
    rewards = [0.1 * (new - old) for new, old in zip(after, before, strict=True)]
    margins = rewards[0] - rewards[1]

    assert result["dataset"] == held_out.id
    assert result["pairs"] == 10
    assert margins.abs().min() > 0.005, "the model must have moved"
    assert 0 < value_of(result, "accuracy") < 1
    assert value_of(result, "accuracy") == (margins > 0).double().mean()
    assert value_of(result, "margin") == pytest.approx(float(margins.mean()), abs=1e-4)
    assert value_of(result, "chosen_reward") == pytest.approx(float(rewards[0].mean()), abs=1e-4)
    assert value_of(result, "rejected_reward") == pytest.approx(float(rewards[1].mean()), abs=1e-4)
    assert value_of(result, "chosen_logp_change") == pytest.approx(float((after[0] - before[0]).mean()), abs=1e-3)
    assert value_of(result, "kl") > 0
    assert result["held_out"]["kl"]["note"].endswith("3 replies of the tuned model, sampled at temperature 1, up to 8 tokens")
    rude = [float(margins[i] > 0) for i in range(2, 6)]
    assert result["by"].keys() == {"reason", "length"}
    assert result["by"]["reason"].keys() == {"rude"}
    found = result["by"]["reason"]["rude"]
    assert (found["accuracy"]["value"], found["pairs"]) == (sum(rude) / 4, 4)
    assert found["margin"]["value"] == pytest.approx(float(margins[2:6].mean()), abs=1e-4)
    assert value_of(result, "rejected_logp_change") == pytest.approx(float((after[1] - before[1]).mean()), abs=1e-3)
    assert sum(row["count"] for row in result["calibration"]["bins"]) == 10

    shown = run.read_samples()
    assert [row["id"] for row in shown] == ["January-0", "March-0", "June-0"]
    assert shown[1]["prompt"] == PAIRS[2]["prompt"]
    assert shown[1]["chosen"] == "Your March invoice is in the panel"
    prompt = Encoder(chat_tokenizer, max_length=100).encode_one(held_out.pairs[2]).prompt_ids
    [written] = generate(chat_model, chat_tokenizer, [prompt], end_token_id=2, max_new_tokens=8)
    assert shown[1]["before"] == written.text != shown[1]["after"]


def test_the_report_reads_what_evaluation_wrote(make_run):
    run, *_ = make_run()
    result = evaluate(run)
    page = write_report(run).read_text()
    assert [probe["name"] for probe in result["probes"]] == [
        "qa_accuracy",
        "reply_length",
        "apology_rate",
        "refusal_rate",
        "loop_rate",
        "ended_rate",
        "over_refusal_rate",
        "red_team_refusal_rate",
        "injection_rate",
        "short_answers",
        "held_out_reply_length",
        "held_out_loop_rate",
    ]
    for probe in result["probes"]:
        assert probe["title"] in page
        assert re.fullmatch(r"[\w-]+@\w+", probe["set"])
        assert probe.keys() == {"name", "set", "title", "unit", "better", "items", "before", "after", "difference"}
        assert (probe["unit"], probe["better"]) in {(unit, better) for unit in ("share", "tokens") for better in ("higher", "lower", "none")}
        for side in ("before", "after", "difference"):
            interval = Interval.from_dict(probe[side])
            assert interval.low <= interval.value <= interval.high
    assert "Where is my invoice for March?" in page


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_compared_with_itself_shows_no_change(make_run, method):
    run, *_ = make_run(method=method, moved=0)
    result = evaluate(run)
    zero = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert value_of(result, "accuracy") == 0.5
    for name in ("margin", "chosen_reward", "rejected_reward", "chosen_logp_change"):
        assert result["held_out"][name] == zero
    assert {name: result["held_out"]["kl"][name] for name in zero} == zero
    for probe in result["probes"]:
        difference = Interval.from_dict(probe["difference"])
        assert difference.value == 0
        assert (probe["difference"] == zero) == (probe["unit"] != "share"), "no flip among a few prompts does not prove that none would"
    assert all(row["before"] == row["after"] for row in run.read_samples())
    changed, unchanged = list_changes(result, has_reference=True)
    assert changed == []
    assert len(unchanged) == 14
    rows = list(read_jsonl(run.probes))
    assert len(rows) == sum(probe["items"] for probe in result["probes"])
    assert all(row["before"] == row["after"] and row["before_hit"] is row["after_hit"] for row in rows)


def test_two_models_are_never_held_at_once(make_run, monkeypatch):
    run, *_ = make_run(method="full", pairs=PAIRS[:4])
    models, order = [], []

    def watched(name):
        load = getattr(subject, name)

        def loading(*arguments, **options):
            gc.collect()
            assert all(model() is None for model in models), "what was loaded before must be gone"
            loaded = load(*arguments, **options)
            models.append(weakref.ref(loaded.model))
            order.append(name)
            return loaded

        monkeypatch.setattr(subject, name, loading)

    watched("load_trained")
    watched("load_model")
    evaluate(run)
    assert order == ["load_model", "load_trained", "load_model"], "the reference writes, the policy answers, the reference answers"
    order.clear()
    evaluate(run)
    assert order == ["load_trained", "load_model"], "what the reference wrote was kept"


def test_the_reference_store_saves_the_second_pass(make_run, monkeypatch):
    run, *_ = make_run(eval={**EVAL, "probes": False})
    computed = []
    fill = answers.fill
    monkeypatch.setattr(answers, "fill", lambda *arguments, **options: computed.append(fill(*arguments, **options)))
    first = evaluate(run)
    assert evaluate(run) == first
    assert computed == [15, 0], "ten chosen replies, and five rejected ones that stand in two pairs each"


def test_pitfall_15_another_version_of_what_computes_shares_no_values(make_run, monkeypatch):
    run, *_ = make_run(eval={**EVAL, "probes": False})
    computed = []
    fill = answers.fill
    monkeypatch.setattr(answers, "fill", lambda *arguments, **options: computed.append(fill(*arguments, **options)))
    evaluate(run)
    monkeypatch.setattr(reference, "version", lambda _: "99.0")
    evaluate(run)
    assert computed == [15, 15]


def test_a_second_evaluation_has_the_reference_write_nothing(make_run, monkeypatch):
    run, *_ = make_run(eval={**EVAL, "probes": False})
    written = []
    generate = requests.generate
    monkeypatch.setattr(
        requests, "generate", lambda model, tokenizer, prompts, **o: written.append(len(prompts)) or generate(model, tokenizer, prompts, **o)
    )
    first = evaluate(run)
    samples = run.read_samples()
    assert written == [3, 3, 3], "the reference, the policy greedily, the policy at temperature 1"
    assert evaluate(run) == first
    assert written[3:] == [3, 3]
    assert run.read_samples() == samples


def test_damage_of_what_was_kept_is_said_wherever_it_is_read(make_run, tmp_path, capsys):
    run, *_ = make_run(eval={**EVAL, "probes": False})
    cache, data = tmp_path / "cache", str(tmp_path / "eval.jsonl")
    said = []

    def damaged():
        kept = [path for folder in ("tokens", "replies", "reference") for path in (cache / folder).rglob("*.*") if path.suffix != ".damaged"]
        for path in kept:
            path.write_bytes(b"damage")
        said.clear()
        return [f"{path}: this kept file was damaged" for path in kept]

    first = evaluate(run)
    expected = damaged()
    assert len(expected) == 4
    assert evaluate(run, said.append) == first
    assert all(any(words in text for text in said) for words in expected)
    subject_of = find_subject(str(run.path))
    *_, of_values = damaged()
    evaluate_on(subject_of, [data], say=said.append)
    assert any(of_values in text for text in said)
    *_, of_values = damaged()
    score(subject_of, [data], tmp_path / "scores.jsonl", say=said.append)
    assert any(of_values in text for text in said)


def test_without_probes_nothing_is_asked_beside_the_pairs(make_run, monkeypatch):
    run, *_ = make_run(eval={**EVAL, "probes": False})
    monkeypatch.setattr(exam, "in_tokens", lambda *_, **__: pytest.fail("not wanted"))
    result = evaluate(run)
    assert result["probes"] == []
    assert value_of(result, "kl") > 0
    assert len(run.read_samples()) == 3


def test_an_objective_without_reference_is_still_compared_with_the_model_before(make_run):
    run, _, model, held_out = make_run(objective={"name": "simpo", "beta": 2.0}, eval={**EVAL, "probes": False})
    result = evaluate(run)
    chosen, _ = sides(held_out)
    lengths = torch.tensor([len(sequence.response_ids) for sequence in chosen])
    assert value_of(result, "chosen_reward") == pytest.approx(float((2 * sums(model, chosen) / lengths).mean()), abs=1e-4)
    with as_reference(model):
        before = sums(model, chosen)
    assert value_of(result, "chosen_logp_change") == pytest.approx(float((sums(model, chosen) - before).mean()), abs=1e-3)


def test_a_run_without_held_out_pairs_is_not_evaluated(make_run):
    run, *_ = make_run(pairs=[])
    said = []
    assert evaluate(run, said.append) is None
    assert "data.eval_fraction" in said[0]
    assert not run.eval.exists()


def test_what_is_not_that_run_any_more_is_refused(make_run, tmp_path, chat_model, chat_tokenizer):
    run, *_ = make_run()
    manifest = run.read_manifest()
    write_json(run.manifest, manifest | {"outcome": None})
    with pytest.raises(RunError, match="has not ended"):
        evaluate(run)
    write_json(run.manifest, manifest)
    written = (tmp_path / "eval.jsonl").read_text()
    write_atomic(tmp_path / "eval.jsonl", "".join(written.splitlines(keepends=True)[1:]))
    with pytest.raises(RunError, match=r"held-out pairs of .* are not those of this run any more"):
        evaluate(run)
    write_atomic(tmp_path / "eval.jsonl", written)
    chat_model.lm_head.weight.data += 1e-3
    save_trained(chat_model, chat_tokenizer, tmp_path / "base", card="")
    with pytest.raises(RunError, match="no longer has the weights that this run began with"):
        evaluate(run)
    assert not run.eval.exists()


def test_progress_is_told(make_run):
    run, *_ = make_run()
    said = []
    evaluate(run, said.append)
    writing = ["Reference: writing 166 replies", "Tuned model: writing 166 replies", "Tuned model: drawing 3 replies"]
    assert [text for text in said if text.endswith("replies")] == writing
    assert sum("scoring" in text for text in said) == 2


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_saved_model_loads_as_it_was(make_run, method):
    run, recipe, model, held_out = make_run(method=method)
    loaded = load_trained(run.model, recipe.model, dtype=torch.float32)
    chosen, _ = sides(held_out)
    assert torch.equal(sums(loaded.model, chosen), sums(model, chosen))
    assert loaded.tokenizer.chat_template
    assert not loaded.model.training


def test_adapters_that_cannot_be_loaded_are_named(make_run, tmp_path):
    run, recipe, *_ = make_run()
    (run.model / "adapter_model.safetensors").rename(run.model / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"this adapter has no adapter_model\.safetensors"):
        load_trained(run.model, recipe.model, dtype=torch.float32)
    with pytest.raises(ModelError, match="nowhere"):
        load_trained(tmp_path / "nowhere", ModelSettings(), dtype=torch.float32)
