"""Who a specification names, and what each of them writes."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from likelier.compare.contestants import Sampling, parse_contestants, with_system
from likelier.compare.replies import replies_of
from likelier.data.chat import Encoder
from likelier.data.prompts import Prompt
from likelier.errors import DataError, ModelError, RequestError, RunError
from likelier.generation.sample import generate
from likelier.models import load_model, load_trained
from likelier.recipe import ModelSettings
from likelier.records import Message
from likelier.train.session import train_recipe
from tests.train.conftest import changed, model_folder, recipe  # noqa: F401  (fixtures)

PROMPTS = [Prompt(f"p{n}", (Message("user", text),)) for n, text in enumerate(["Where is my invoice?", "Who are you?", "Why?"])]
SYSTEM = Prompt("s", (Message("system", "Be brief."), Message("user", "Why?")))


def written(spec, folder, prompts=PROMPTS, sampling=None, say=lambda text: None):
    [contestant, _] = parse_contestants([spec, "another"])
    return replies_of(contestant, prompts, sampling or Sampling(max_new_tokens=8), folder, say)


def directly(loaded, prompts, temperature=0.0):
    encoder = Encoder(loaded.tokenizer, max_length=1)
    ids = [encoder.encode_prompt(messages) for messages in prompts]
    replies = generate(loaded.model, loaded.tokenizer, ids, end_token_id=encoder.end_token_id, max_new_tokens=8, temperature=temperature)
    return [reply.text for reply in replies]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fp32(monkeypatch):
    monkeypatch.setattr("likelier.subject.pick_precision", lambda wanted, device: "fp32")


# Specifications


@pytest.mark.parametrize(
    "spec, name, where, reference",
    [
        ("embedded", "embedded", "embedded", False),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B", "Qwen/Qwen3-0.6B", False),
        ("runs/mine", "mine", "runs/mine", False),
        ("runs/mine@reference", "mine@reference", "runs/mine", True),
        ("runs/mine@reference+system={system}", "mine@reference+system", "runs/mine", True),
        ("better=embedded+system={system}", "better", "embedded", False),
        ("old.jsonl", "old", "old.jsonl", False),
        ("mine=old.jsonl", "mine", "old.jsonl", False),
        ("a=b.jsonl", "a=b", "a=b.jsonl", False),
        ("sweep/beta=0.1@reference", "beta=0.1@reference", "sweep/beta=0.1", True),
        ("mine=sweep/beta=0.1@reference", "mine", "sweep/beta=0.1", True),
    ],
)
def test_what_a_specification_names(spec, name, where, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/mine", "sweep/beta=0.1"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.yaml").touch()
    (tmp_path / "system.txt").write_text("Be kind.\n")
    for file in ("old.jsonl", "a=b.jsonl"):
        (tmp_path / file).touch()
    contestant, _ = parse_contestants([spec.format(system="system.txt"), "other"])
    assert (contestant.name, contestant.where, contestant.reference) == (name, where, reference)
    assert contestant.system == ("Be kind." if "+system" in spec else None)
    assert bool(contestant.replies) == ("jsonl" in where)


@pytest.mark.parametrize(
    "specs, fault",
    [
        (["embedded"], "of two contestants or more"),
        (["embedded", "embedded"], "two contestants are called `embedded`. Give one a name of its own: NAME=embedded"),
        (["a b=embedded", "a-b=other"], "are called `a b`"),
        (["x=", "embedded"], "`x=` names no contestant"),
        (["none.jsonl", "embedded"], "there is no such file of replies"),
        (["embedded@reference", "embedded"], "embedded is not a run directory .* only runs have a reference"),
        (["empty/beta=0.9@reference", "embedded"], "empty/beta=0.9 is not a run directory"),
        (["embedded+system=none.txt", "embedded"], "the system prompt none.txt cannot be read"),
        (["here.jsonl+system=here.jsonl", "embedded"], "have neither a reference nor a system prompt"),
        (["empty", "embedded"], "the folder empty holds no run"),
    ],
)
def test_what_names_nobody_is_said(specs, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=fault):
        parse_contestants(specs)


@pytest.mark.parametrize("settings, fault", [({"max_new_tokens": 0}, "--max-new-tokens is 0"), ({"temperature": -1}, "--temperature is -1")])
def test_settings_that_mean_nothing(settings, fault):
    with pytest.raises(RequestError, match=fault):
        Sampling(**settings)


def test_a_system_prompt_of_its_own_takes_the_place_of_the_prompts_or_goes_around_it():
    assert with_system(PROMPTS[0].messages, "Be kind.") == (Message("system", "Be kind."), *PROMPTS[0].messages)
    assert with_system(SYSTEM.messages, "Be kind.") == (Message("system", "Be kind."), SYSTEM.messages[1])
    assert with_system(SYSTEM.messages, "{system} And kind.")[0].content == "Be brief. And kind."
    assert with_system(PROMPTS[0].messages, "{system} Be kind.")[0].content == "Be kind."


# Replies


def test_a_model_writes_what_generate_writes(model_folder, tmp_path, fp32):  # noqa: F811
    loaded = load_model(ModelSettings(name=str(model_folder)), dtype=torch.float32)
    replies = written(str(model_folder), tmp_path)
    assert [reply.text for reply in replies] == directly(loaded, [prompt.messages for prompt in PROMPTS])
    (tmp_path / "system.txt").write_text("Be kind.")
    kind = written(f"{model_folder}+system={tmp_path / 'system.txt'}", tmp_path, [*PROMPTS, SYSTEM])
    assert [reply.text for reply in kind] == directly(loaded, [with_system(prompt.messages, "Be kind.") for prompt in [*PROMPTS, SYSTEM]])
    assert kind[:3] != replies
    rows = [json.loads(line) for line in (tmp_path / f"{model_folder.name}+system.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows][-1] == [message.as_dict() for message in SYSTEM.messages], "judges see the prompt as it was asked"


def test_a_runs_model_and_its_reference(recipe, tmp_path, fp32):  # noqa: F811
    run = train_recipe(changed(recipe, train={"max_steps": 4, "learning_rate": 3e-2}))
    tuned = load_trained(run.model, recipe.model, dtype=torch.float32)
    base = load_model(recipe.model, dtype=torch.float32)
    asked = [prompt.messages for prompt in PROMPTS]
    after, before = written(str(run.path), tmp_path), written(f"{run.path}@reference", tmp_path)
    assert [reply.text for reply in after] == directly(tuned, asked)
    assert [reply.text for reply in before] == directly(base, asked)
    assert after != before, "a run that changes nothing would show nothing"
    assert written(str(run.model), tmp_path) == after, "its adapter alone is the same model"
    manifest = run.read_manifest()
    run.manifest.write_text(json.dumps({**manifest, "model": {**manifest["model"], "weights": "0"}}))
    with pytest.raises(RunError, match="no longer has the weights that this run began with"):
        written(str(run.path), tmp_path)
    run.manifest.write_text(json.dumps({**manifest, "outcome": {}}))
    with pytest.raises(RunError, match="has not ended"):
        written(str(run.path), tmp_path)


def test_a_run_of_all_weights_and_its_reference(recipe, tmp_path, fp32):  # noqa: F811
    run = train_recipe(changed(recipe, train={"max_steps": 4, "learning_rate": 1e-2, "method": "full"}))
    asked = [prompt.messages for prompt in PROMPTS]
    after, before = written(str(run.path), tmp_path), written(f"{run.path}@reference", tmp_path)
    assert [reply.text for reply in after] == directly(load_trained(run.model, recipe.model, dtype=torch.float32), asked)
    assert [reply.text for reply in before] == directly(load_model(recipe.model, dtype=torch.float32), asked)
    assert after != before


def test_replies_are_kept_until_model_prompts_or_settings_change(model_folder, tmp_path, monkeypatch, fp32):  # noqa: F811
    wrote = []

    def counted(model, tokenizer, prompts, **options):
        wrote.append(len(prompts))
        return generate(model, tokenizer, prompts, **options)

    monkeypatch.setattr("likelier.generation.requests.generate", counted)
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    spec, folder, said = f"it={model}", tmp_path / "replies", []
    first = written(spec, folder)
    assert written(spec, folder, say=said.append) == first
    assert (wrote, said[-1]) == ([3], "it: 3 replies kept from before")
    assert written(f"same={model}", tmp_path / "elsewhere", PROMPTS[1:]) == first[1:], "another comparison finds them, too"
    written(spec, folder, [*PROMPTS, SYSTEM])
    assert wrote == [3, 1], "only the new prompt"
    drawn = Sampling(max_new_tokens=8, temperature=1.0)
    written(spec, folder, PROMPTS[:2], drawn)
    written(spec, folder, PROMPTS[:2], replace(drawn, seed=1))
    written(spec, folder, PROMPTS[:2], replace(drawn, temperature=0.5))
    written(spec, folder, PROMPTS[:2], drawn)
    assert wrote == [3, 1, 2, 2, 2]
    weights = load_model(ModelSettings(name=str(model)), dtype=torch.float32).model
    weights.model.norm.weight.data *= 0.5
    weights.save_pretrained(model)
    written(spec, folder, PROMPTS[:2], drawn)
    assert wrote == [3, 1, 2, 2, 2, 2]


def test_replies_of_a_model_that_was_interrupted_are_not_written_again(model_folder, tmp_path, cache, monkeypatch, fp32):  # noqa: F811
    whole, spec = written(f"whole={model_folder}", tmp_path, PROMPTS), f"it={model_folder}"
    shutil.rmtree(cache)
    asked = []

    def interrupted(model, tokenizer, prompts, *, on_batch, **options):
        def dies(batch):
            on_batch(batch)
            asked.append(len(prompts))
            if len(asked) == 2:
                raise KeyboardInterrupt

        return generate(model, tokenizer, prompts, on_batch=dies, tokens_per_batch=1, **options)

    monkeypatch.setattr("likelier.generation.requests.generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written(spec, tmp_path)
    assert written(spec, tmp_path) == whole
    assert asked == [3, 3, 1]


def test_a_prompt_that_leaves_no_room_names_the_contestant_and_this_commands_setting(model_folder, tmp_path, fp32):  # noqa: F811
    with pytest.raises(ModelError, match=r"^tiny: this model has 1024 positions.*Lower --max-new-tokens"):
        written(f"tiny={model_folder}", tmp_path, sampling=Sampling(max_new_tokens=2000))


def test_replies_that_exist_are_found_by_id_or_prompt(tmp_path):
    path = tmp_path / "old.jsonl"
    rows = [{"id": "p2", "reply": "Because."}, {"prompt": "Where is my invoice?", "response": "Here."}, {"prompt": "Who are you?", "output": "Me."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    replies = written(str(path), tmp_path / "replies")
    assert [reply.text for reply in replies] == ["Here.", "Me.", "Because."]
    again = written(f"copy={tmp_path / 'replies/old.jsonl'}", tmp_path / "replies")
    assert again == replies, "what was kept can be given"


def test_an_id_of_another_file_does_not_bring_the_reply_to_another_prompt(tmp_path):
    """Ids of lines are their places: the same prompts in another order have the same ids."""
    path = tmp_path / "old.jsonl"
    others = ["p1", "p2", "p0"]
    rows = [{"id": other, "prompt": prompt.messages[0].content, "reply": f"to {prompt.id}"} for other, prompt in zip(others, PROMPTS, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [reply.text for reply in written(str(path), tmp_path / "replies")] == ["to p0", "to p1", "to p2"]
    path.write_text(json.dumps({"id": "p0", "prompt": "Something else?", "reply": "x"}) + "\n")
    with pytest.raises(DataError, match="1 prompt of 1 has no reply here, among them p0"):
        written(str(path), tmp_path / "replies", PROMPTS[:1])


def test_two_prompts_of_the_same_words_are_told_apart_by_their_ids(tmp_path):
    twice = [PROMPTS[0], Prompt("with tools", PROMPTS[0].messages, [{"name": "search"}])]
    path = tmp_path / "old.jsonl"
    rows = [{"id": prompt.id, "prompt": PROMPTS[0].messages[0].content, "reply": prompt.id} for prompt in twice]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [reply.text for reply in written(str(path), tmp_path / "replies", twice)] == ["p0", "with tools"]


@pytest.mark.parametrize("named", [{}, {"id": "p0"}])
def test_two_replies_to_one_prompt_are_none(named, tmp_path):
    path = tmp_path / "old.jsonl"
    rows = [{"prompt": prompt.messages[0].content, "reply": "x"} | named for prompt in PROMPTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    assert [reply.text for reply in written(str(path), tmp_path)] == ["x"] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "reply": "y"}]))
    with pytest.raises(DataError, match="the prompt p0 has 2 replies here that differ"):
        written(str(path), tmp_path)


@pytest.mark.parametrize(
    "rows, fault",
    [
        ([{"id": "p0", "reply": "x"}], "2 prompts of 3 have no reply here, among them p1"),
        ([{"id": "p0"}], "line 1: there is no reply in this row"),
        ([{"id": "p0", "reply": 3}], "line 1: there is no reply in this row"),
        ([["p0"]], "line 1: there is no reply in this row"),
    ],
)
def test_replies_that_are_missing_are_said(rows, fault, tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=fault):
        written(str(path), tmp_path)
