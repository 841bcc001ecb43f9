"""Evaluation of tiny runs, against log-probabilities of the plain twin and numbers worked out by hand."""

import copy
import gc
import json
import re
import weakref
from dataclasses import replace

import pytest
import torch

from likelier.changes import list_changes
from likelier.data.chat import Encoder
from likelier.data.load import load_sides
from likelier.errors import ModelError, RecipeError, RunError
from likelier.evaluate import answers, compare, evaluate, exam
from likelier.evaluate import run as running
from likelier.evaluate.answers import Answers, ask
from likelier.evaluate.exam import make_exam
from likelier.evaluate.held_out import measure_held_out, measure_kl
from likelier.evaluate.probes import measure_probes
from likelier.evaluate.samples import side_by_side
from likelier.generation.sample import Reply, generate
from likelier.logprobs import reference
from likelier.logprobs.attention import standard_attention
from likelier.logprobs.plain import plain_token_logps
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.metrics import Interval
from likelier.models import add_adapter, as_reference, fingerprint, load_trained, save_trained
from likelier.objectives import make_objective
from likelier.probes import Asked, Item, Probe, Question
from likelier.probes.measures import MEASURES
from likelier.recipe import AdapterSettings, ModelSettings, parse_recipe
from likelier.records import Message
from likelier.report import write_report
from likelier.rundir import RunDir, read_jsonl, write_atomic, write_json

CHOSEN = ("is in the panel", "comes on the 3rd; we send it by mail.")
REJECTED = ("Sorry!", "Look for it yourself.", "WHO ARE YOU", "We never wrote one, I am afraid, and never will", "**July**: n/a")
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"Where is my invoice for {month}?"}],
        "chosen": [{"role": "assistant", "content": f"Your {month} invoice {CHOSEN[copy]}"}],
        "rejected": [{"role": "assistant", "content": REJECTED[number]}],
        "id": f"{month}-{copy}",
        **({"reason": "rude"} if month in ("March", "May") else {}),
    }
    for number, month in enumerate(("January", "March", "May", "June", "July"))
    for copy in range(2)
]
TRAIN = [{**PAIRS[0], "prompt": [{"role": "user", "content": "Who are you?"}]}]
EVAL = {"max_new_tokens": 8, "samples": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_run(tmp_path, chat_model, chat_tokenizer):
    """make_run(…): a finished run on the tiny model as training leaves it, and its recipe. `moved` is how far the policy went."""

    def made(*, method="lora", moved=0.5, pairs=PAIRS, **sections):
        base = tmp_path / "base"
        save_trained(copy.deepcopy(chat_model), chat_tokenizer, base, card="")
        for name, rows in (("train", TRAIN), ("eval", pairs)):
            write_atomic(tmp_path / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": [str(tmp_path / "train.jsonl")], "eval": [str(tmp_path / "eval.jsonl")] if pairs else [], "eval_fraction": 0.0}
        settings = {"model": {"name": str(base)}, "data": data, "train": {"method": method}, "eval": EVAL, "out": str(tmp_path / "run"), **sections}
        recipe = parse_recipe(settings, where="test")
        run = RunDir(recipe.out)
        write_atomic(run.recipe, recipe.to_yaml())
        encoder = Encoder(chat_tokenizer, max_length=recipe.data.max_length)
        sides = dict(zip(("train", "eval"), load_sides(recipe.data, encoder), strict=True))
        write_json(
            run.manifest,
            {
                "data": {name: side.summary() for name, side in sides.items()},
                "model": {"weights": fingerprint(chat_model)},
                "numerics": {"precision": "fp32", "weights_dtype": "float32", "engine": "nodes", "parity": {}},
                "outcome": {"steps": 1, "stopped": "all steps done"},
                "reference": {"computed": 22, "reused": 0},
            },
        )
        trained = copy.deepcopy(chat_model)
        model = add_adapter(trained, AdapterSettings(rank=4), seed=0) if method == "lora" else trained
        noise = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if method == "full" or "lora_B" in name:
                parameter.data += moved * (0.05 if method == "full" else 0.2) * torch.randn(parameter.shape, generator=noise)
        save_trained(model, chat_tokenizer, run.model, card="")
        return run, recipe, model, sides["eval"]

    return made


def sums(model, sequences):
    with torch.no_grad(), standard_attention(model):
        return torch.tensor([float(values.sum()) for values in plain_token_logps(model, sequences)], dtype=torch.float64)


def sides(held_out):
    chosen = [PromptResponse(e.prompt_ids, e.chosen_ids) for e in held_out.examples]
    return chosen, [PromptResponse(e.prompt_ids, e.rejected_ids) for e in held_out.examples]


def value_of(result, name):
    return result["held_out"][name]["value"]


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
    assert result["by_reason"].keys() == {"rude"}
    assert (result["by_reason"]["rude"]["accuracy"]["value"], result["by_reason"]["rude"]["pairs"]) == (sum(rude) / 4, 4)
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
    assert all(probe["difference"] == zero for probe in result["probes"])
    assert all(row["before"] == row["after"] for row in run.read_samples())
    changed, unchanged = list_changes(result, has_reference=True)
    assert changed == []
    assert len(unchanged) == 14
    rows = list(read_jsonl(run.probes))
    assert len(rows) == sum(probe["items"] for probe in result["probes"])
    assert all(row["before"] == row["after"] and row["before_hit"] is row["after_hit"] for row in rows)


def test_two_models_are_never_held_at_once(make_run, monkeypatch):
    run, *_ = make_run(method="full", pairs=PAIRS[:4])
    first = []
    load_policy, load_base = running.load_trained, running.load_model

    def loading_policy(*arguments, **options):
        loaded = load_policy(*arguments, **options)
        first.append(weakref.ref(loaded.model))
        return loaded

    def loading_base(*arguments, **options):
        gc.collect()
        assert first[0]() is None, "the policy must be gone before the reference comes"
        first.append("reference loaded")
        return load_base(*arguments, **options)

    monkeypatch.setattr(running, "load_trained", loading_policy)
    monkeypatch.setattr(running, "load_model", loading_base)
    evaluate(run)
    assert first[-1] == "reference loaded"


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


def test_without_probes_nothing_is_asked_beside_the_pairs(make_run, monkeypatch):
    run, *_ = make_run(eval={**EVAL, "probes": False})
    monkeypatch.setattr(exam, "in_tokens", lambda *_, **__: pytest.fail("not wanted"))
    result = evaluate(run)
    assert result["probes"] == []
    assert value_of(result, "kl") > 0
    assert len(run.read_samples()) == 3


def test_probes_that_the_template_cannot_say_are_left_out_and_named(make_run, chat_tokenizer):
    _, recipe, _, held_out = make_run()
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    said = []
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2, say=said.append)
    assert exam.choices == []
    assert "reply_length" in [asked.probe.name for asked in exam.probes]
    assert "left out" in said[0]
    assert "(qa_accuracy)" in said[0]
    assert "reasoning" in said[0]


def test_an_objective_without_reference_is_still_compared_with_the_model_before(make_run):
    run, _, model, held_out = make_run(objective={"name": "simpo", "beta": 2.0}, eval={**EVAL, "probes": False})
    result = evaluate(run)
    chosen, _ = sides(held_out)
    lengths = torch.tensor([len(sequence.response_ids) for sequence in chosen])
    assert value_of(result, "chosen_reward") == pytest.approx(float((2 * sums(model, chosen) / lengths).mean()), abs=1e-4)
    with as_reference(model):
        before = sums(model, chosen)
    assert value_of(result, "chosen_logp_change") == pytest.approx(float((sums(model, chosen) - before).mean()), abs=1e-3)


def test_pairs_alone_can_be_measured_without_a_reference(make_run):
    _, _, model, held_out = make_run()
    chosen, rejected = sides(held_out)
    with torch.no_grad():
        logps = dict(zip([*chosen, *rejected], plain_token_logps(model, [*chosen, *rejected]), strict=True))
    result = measure_held_out(held_out, make_objective("simpo", beta=1.0), policy=logps, reference=None)
    assert "chosen_logp_change" not in result["held_out"]
    assert value_of(result, "rejected_reward") == pytest.approx(float(torch.stack([logps[s].mean() for s in rejected]).mean()))
    with pytest.raises(ValueError, match="needs the reference"):
        measure_held_out(held_out, make_objective("dpo"), policy=logps, reference=None)


def test_pairs_of_one_prompt_are_one_cluster(make_run):
    _, _, _, held_out = make_run(pairs=PAIRS[:2])
    chosen, rejected = sides(held_out)
    logps = {sequence: torch.full((len(sequence.response_ids),), -1.0 - i) for i, sequence in enumerate([*chosen, *rejected])}
    result = measure_held_out(held_out, make_objective("simpo"), policy=logps, reference=None)
    assert result["held_out"]["accuracy"] == {"value": 1.0, "low": None, "high": None}


def test_kl_is_the_mean_log_ratio_of_the_sampled_replies():
    replies = [PromptResponse((1,), (5, 6)), PromptResponse((2,), (7,))]
    policy = dict(zip(replies, map(torch.tensor, ([-1.0, -2.0], [-0.5])), strict=True))
    reference = dict(zip(replies, map(torch.tensor, ([-2.0, -4.0], [-0.25])), strict=True))
    found = measure_kl(replies, policy=policy, reference=reference, limit=8)
    assert (found["value"], found["low"], found["high"]) == ((3.0 - 0.25) / 2, -0.25, 3.0)
    assert found["note"] == "per reply, estimated on 2 replies of the tuned model, sampled at temperature 1, up to 8 tokens"


def test_the_policys_samples_are_scored_by_both(make_run, chat_tokenizer):
    _, recipe, model, held_out = make_run(eval={**EVAL, "probes": False})
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2)
    scorer = Scorer(model, engine="nodes", precision="fp32")
    after = ask(exam, scorer)
    with as_reference(model):
        before = ask(exam, scorer, sampled=after.sampled)
    assert [sequence.prompt_ids for sequence in after.sampled] == exam.prompts
    assert before.sampled == after.sampled
    assert all(sequence.response_ids != greedy.ids for sequence, greedy in zip(after.sampled, after.held_out, strict=True))
    wanted = sums(model, after.sampled)
    assert torch.allclose(torch.stack([after.logps[s].sum() for s in after.sampled]).double(), wanted, atol=1e-3)
    with as_reference(model):
        wanted = wanted - sums(model, after.sampled)
    assert compare(exam, before, after)["held_out"]["kl"]["value"] == pytest.approx(float(wanted.mean()), abs=1e-3)


def reply(text, *, tokens, ended=True):
    return Reply((9,) * tokens + ((2,) if ended else ()), text, ended)


def asked(name, *, measure=None, questions=(), replies=0):
    """A probe as it is asked: `measure` of as many prompts as there are replies, or questions."""
    items = tuple(Item(f"{name}-{i}", (Message("user", f"prompt {i}"),), choices=("yes", "no")) for i in range(replies or len(questions)))
    probe = Probe(name, name.title(), f"{name}@1", "lower", items, None, measure=measure)
    return Asked(probe, tuple(questions), tuple((i,) for i in range(replies)), 8)


def test_probes_count_what_they_say(make_run, chat_tokenizer):
    _, recipe, _, held_out = make_run()
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2)
    right, wrong = PromptResponse((1,), (5,)), PromptResponse((1,), (6,))
    questions = [Question((right, wrong), 0)] * 3 + [Question((wrong, right), 0)]
    measures = [asked(name, measure=measure, replies=4) for name, measure in MEASURES.items()]
    exam = replace(exam, probes=[asked("questions", questions=questions), *measures])
    logps = {right: torch.tensor([-1.0]), wrong: torch.tensor([-2.0])}
    swapped = {right: torch.tensor([-2.0]), wrong: torch.tensor([-1.0])}
    loop = "I will check that. " * 4
    old = [reply("Sorry!", tokens=1), reply(loop, tokens=30, ended=False), reply("Yes.", tokens=2), reply("I apologize, I cannot help.", tokens=7)]
    new = [reply("Yes.", tokens=2), reply("No.", tokens=2), reply("Yes.", tokens=2), reply("Sorry.", tokens=2)]
    before = Answers(
        logps,
        held_out=[reply("a", tokens=3), reply(loop, tokens=9), reply("b", tokens=4)],
        probed={((i,), 8): old[i] for i in range(4)},
        sampled=[],
    )
    after = Answers(
        swapped,
        held_out=[reply("a", tokens=3), reply("c", tokens=5), reply("b", tokens=6)],
        probed={((i,), 8): new[i] for i in range(4)},
        sampled=[],
    )
    measured = measure_probes(exam, before, after)
    rows = {probe.name: probe.summary() for probe in measured}
    values = {name: tuple(row[side]["value"] for side in ("before", "after", "difference")) for name, row in rows.items()}
    assert values == {
        "questions": (0.75, 0.25, -0.5),
        "length": (4.5, 2.0, -2.5),
        "apology": (0.5, 0.25, -0.25),
        "refusal": (0.25, 0.0, -0.25),
        "loop": (0.25, 0.0, -0.25),
        "ended": (0.75, 1.0, 0.25),
        "held_out_reply_length": (4.0, 5.0, 1.0),
        "held_out_loop_rate": (pytest.approx(1 / 3), 0.0, pytest.approx(-1 / 3)),
    }
    assert [row["items"] for row in rows.values()] == [4] * 6 + [3, 3]
    assert {name for name, row in rows.items() if row["unit"] == "tokens"} == {"length", "held_out_reply_length"}
    assert rows["held_out_loop_rate"]["set"] == f"held-out@{held_out.id[:12]}"

    listed = {probe.name: probe.rows() for probe in measured}
    prompt = [{"role": "user", "content": "prompt 3"}]
    sides = {"before": "I apologize, I cannot help.", "after": "Sorry."}
    assert listed["refusal"][3] == {"probe": "refusal", "id": "refusal-3", "prompt": prompt, **sides, "before_hit": True, "after_hit": False}
    assert listed["length"][3] == {"probe": "length", "id": "length-3", "prompt": prompt, **sides, "before_hit": None, "after_hit": None}
    assert [(row["before"], row["before_hit"], row["after"], row["after_hit"]) for row in listed["questions"][2:]] == [
        ("yes", True, "no", False),
        ("no", False, "yes", True),
    ]
    assert listed["held_out_loop_rate"][1]["prompt"] == PAIRS[2]["prompt"]


OWN = """
- name: offers_help
  title: Replies with an h
  want: higher
  prompts: ["Can you help me?", [{role: system, content: Be brief.}, {role: user, content: Help!}]]
  pattern: "(?i)h"
- name: letters
  want: none
  prompts: ["Can you help me?", "Who is there?"]
  function: own.py:letters
- name: starts_with_capital
  want: higher
  prompts: ["Can you help me?"]
  function: own.py:capital
- name: knows_may
  want: higher
  choices: [May, June]
  prompts: [{prompt: "Which month comes after April?", answer: May}]
"""
CODE = """
def letters(reply, prompt):
    assert prompt == [{"role": "user", "content": prompt[0]["content"]}]
    return len(reply) / 2
def capital(reply, prompt):
    return reply[:1].isupper()
def broken(reply, prompt):
    return reply.nowhere
"""


def test_a_users_probes_are_asked_too(make_run, tmp_path, chat_model, chat_tokenizer):
    write_atomic(tmp_path / "own.yaml", OWN)
    write_atomic(tmp_path / "own.py", CODE)
    run, *_ = make_run(eval={**EVAL, "probes": False})
    recipe = run.recipe.read_text()
    rows = {row["name"]: row for row in evaluate(run, probe_files=[str(tmp_path / "own.yaml")])["probes"]}
    assert {name: (row["unit"], row["better"], row["items"], row["title"]) for name, row in rows.items()} == {
        "offers_help": ("share", "higher", 2, "Replies with an h"),
        "letters": ("", "none", 2, "letters"),
        "starts_with_capital": ("share", "higher", 1, "starts_with_capital"),
        "knows_may": ("share", "higher", 1, "knows_may"),
    }
    prompt = Encoder(chat_tokenizer, max_length=100).encode_prompt((Message("user", "Can you help me?"),))
    [before] = generate(chat_model, chat_tokenizer, [prompt], end_token_id=2, max_new_tokens=8)
    listed = list(read_jsonl(run.probes))
    assert [row["probe"] for row in listed] == ["offers_help"] * 2 + ["letters"] * 2 + ["starts_with_capital", "knows_may"]
    assert listed[0]["before"] == listed[2]["before"] == before.text != listed[0]["after"]
    assert listed[0]["before_hit"] is ("h" in before.text.lower())
    assert rows["letters"]["before"]["value"] == pytest.approx((len(listed[2]["before"]) + len(listed[3]["before"])) / 4)
    assert listed[5]["before"] in ("May", "June")
    assert run.recipe.read_text() == recipe, "what is asked later is no part of the run"


def test_a_users_function_that_fails_is_named(make_run, tmp_path):
    write_atomic(tmp_path / "own.py", CODE)
    write_atomic(tmp_path / "own.yaml", "- {name: mine, want: none, prompts: [Hello], function: 'own.py:broken'}")
    run, *_ = make_run(eval={**EVAL, "probes": False, "probe_files": [str(tmp_path / "own.yaml")]})
    with pytest.raises(RecipeError, match=r"probe `mine`, prompt mine-1: its function raised AttributeError: .*nowhere"):
        evaluate(run)
    write_atomic(tmp_path / "own.yaml", "- {name: mine, want: none, prompts: [Hello], function: 'own.py:brocken'}")
    with pytest.raises(RecipeError, match=r"own.py has no function `brocken`. Did you mean `broken`"):
        evaluate(run)
    assert not run.eval.exists()


def test_sets_are_asked_by_name(make_run):
    run, *_ = make_run(eval={**EVAL, "probes": ["injections"]})
    assert [row["name"] for row in evaluate(run)["probes"]] == ["injection_rate", "held_out_reply_length", "held_out_loop_rate"]


def test_shown_prompts_are_spread_over_the_held_out_ones_and_shown_once(make_run, chat_tokenizer):
    _, recipe, _, held_out = make_run(eval={**EVAL, "samples": 99, "probes": False})
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2)
    assert exam.shown == [0, 2, 4, 6, 8]
    replies = [reply(str(i), tokens=1) for i in range(5)]
    rows = side_by_side(exam, Answers({}, replies, {}, []), Answers({}, replies[::-1], {}, []))
    assert [(row["id"], row["before"], row["after"]) for row in rows][1] == ("March-0", "1", "3")


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


def test_progress_is_told(make_run):
    run, *_ = make_run()
    said = []
    evaluate(run, said.append)
    assert [text for text in said if text.endswith("replies")] == [
        "Tuned model: writing 166 replies",
        "Tuned model: writing 3 replies",
        "Reference: writing 166 replies",
    ]
    assert sum("scoring" in text for text in said) == 2
