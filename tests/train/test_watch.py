"""A run that is watched: the same run, with replies, a KL and symptoms beside it; and what real runs of a tiny model show."""

import json
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from likelier.data.chat import Encoder
from likelier.data.load import load_sides
from likelier.errors import Interrupted, TrainingStopped
from likelier.logprobs.attention import standard_attention
from likelier.logprobs.plain import plain_scores
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.report import write_report
from likelier.rundir import RunDir
from likelier.train import session
from likelier.train.progress import Bars, Progress
from likelier.train.session import train_recipe
from likelier.train.watch import diagnose
from likelier.train.watch import prompts as module
from likelier.train.watch.prompts import WatchedPrompts
from tests.train.conftest import changed, interrupted
from tests.train.test_session import same_bits, weights
from tests.train.test_stop import Asking

STEPS = 8


OTHERS = """
cook rice, mend a tyre, spell accommodation, plant tulips, clean suede shoes, tune a guitar, read a tide table, fold a fitted sheet, boil an egg,
sharpen a pencil, park on a hill, wash wool, find north, bleed a radiator, store garlic, hang a picture, thaw bread, whistle loudly, tie a bowline,
descale a kettle
"""


@pytest.fixture
def watched(recipe, tmp_path):
    """Eight steps, evaluations at 3, 6 and 8 on twenty pairs with prompts of their own, three of which are watched."""
    rows = [
        {
            "prompt": f"How do I {what.strip()}?",
            "chosen": f"First, {what.strip()}." + " Go on." * (n % 3),
            "rejected": "I am so sorry, I do not know.",
        }
        for n, what in enumerate(OTHERS.split(","))
    ]
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return changed(recipe, data={"eval": [str(held_out)]}, train={"max_steps": STEPS}, eval={"watch": 3, "max_new_tokens": 12})


def told(run: RunDir) -> list[str]:
    return [row["name"] for row in run.read_metrics("symptom")]


def rows(run: RunDir) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.read_metrics()]


@pytest.mark.parametrize("method, precision", [("lora", "bf16"), ("full", "fp32")])
def test_a_watched_run_is_the_same_run_bit_for_bit(watched, method, precision):
    watched = changed(watched, train={"method": method, "precision": precision})
    seen = train_recipe(watched)
    alone = train_recipe(changed(watched, eval={"watch": 0}, out=watched.out + "-alone"))
    assert same_bits(weights(seen), weights(alone))
    assert not alone.filmstrip.exists()
    without = [{name: value for name, value in row.items() if name != "kl"} for row in rows(seen)]
    assert without == [{name: value for name, value in row.items() if name != "kl"} for row in rows(alone)]
    assert [row["kl"] for row in alone.read_metrics("eval")] == [None] * 3
    kls = [row["kl"] for row in seen.read_metrics("eval")]
    assert all(isinstance(kl, float) for kl in kls)
    assert max(kls) > 0.01
    assert {row["prompts"] for row in seen.read_metrics("eval")} == {20}


def test_the_filmstrip_holds_the_same_prompts_at_each_look(watched):
    run = train_recipe(changed(watched, eval={"watch_every": 2}))
    film = run.read_filmstrip()
    assert [row["step"] for row in film] == [step for step in (0, 6, STEPS) for _ in range(3)]
    names = [row["id"] for row in film]
    assert names == names[:3] * 3
    assert len({*names}) == 3
    for row in film:
        assert {*row} - {"drawn"} == {"step", "id", "prompt", "reply", "ended", "length", "repetition", "apology", "refusal"}
        assert ("drawn" in row) == (row["step"] == 0)
        assert row["prompt"][0]["role"] == "user"
        assert 0 <= row["length"] <= 12
    assert len(run.read_metrics("eval")) == 3
    assert all(row["kl"] is not None for row in run.read_metrics("eval"))  # whether or not replies are written


def test_kl_is_0_at_first_and_then_the_mean_log_ratio_of_what_was_drawn(watched, chat_model, chat_tokenizer):
    recipe = watched
    encoder = Encoder(chat_tokenizer, max_length=1024)
    _, held_out = load_sides(recipe.data, encoder)
    policy = Scorer(chat_model, engine="nodes", precision="fp32", pad_id=encoder.end_token_id)
    prompts = WatchedPrompts(policy, chat_tokenizer, held_out, recipe, end_token_id=encoder.end_token_id)
    assert prompts.kl() is None
    first = prompts.first_replies()
    assert prompts.kl() == 0
    for row in first:
        assert 0 <= row["repetition"] <= 1
    by_id = {record.id: example.prompt_ids for record, example in zip(held_out.records, held_out.examples, strict=True)}
    drawn = [PromptResponse(by_id[row["id"]], tuple(row["drawn"]["ids"])) for row in first]

    def scored():
        with standard_attention(chat_model), torch.no_grad():
            return torch.stack([values.sum() for values in plain_scores(chat_model, drawn)[0]])

    truth = scored()
    with torch.no_grad():
        for weight in chat_model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    moved = scored()
    assert prompts.kl() == pytest.approx(float((truth - moved).mean()), abs=1e-4)
    assert prompts.kl() != 0
    again = WatchedPrompts(policy, chat_tokenizer, held_out, recipe, end_token_id=encoder.end_token_id)
    again.remember(json.loads(json.dumps(first)))
    assert again.kl() == prompts.kl()
    again.remember([row for row in first if row["id"] != first[0]["id"]])
    assert again.kl() == pytest.approx(float((truth - moved)[1:].mean()), abs=1e-4)


def test_a_run_that_goes_on_has_each_row_once(watched, monkeypatch):
    """Killed after the checkpoint of step 4: the replies of step 6 and what was seen there are forgotten and come again."""
    watched = changed(watched, train={"learning_rate": 1e-2, "checkpoint_every": 4}, eval={"kl_budget": 0.1})
    whole = train_recipe(changed(watched, out=watched.out + "-whole"))
    assert len(told(whole)) > 1
    run = interrupted(watched, monkeypatch, after=1)
    run.append_metrics({"kind": "eval", "step": 6, "accuracy": 0.1})
    with run.filmstrip.open("a") as file:
        file.write(json.dumps({**run.read_filmstrip()[0], "step": 6}) + '\n{"step": 6, "id": "cut sh')
    train_recipe(watched)
    assert rows(run) == rows(whole)
    assert run.read_filmstrip() == whole.read_filmstrip()


def test_a_run_that_was_stopped_before_its_evaluation_looks_when_it_goes_on(watched):
    watched = changed(watched, train={"max_steps": 6, "eval_every": 2})
    whole = train_recipe(changed(watched, out=watched.out + "-whole"))
    with pytest.raises(Interrupted):
        train_recipe(watched, show=Asking("train", 4, signal.SIGTERM))
    run = RunDir(watched.out)
    assert {row["step"] for row in run.read_filmstrip()} == {0, 2}
    train_recipe(watched)
    assert rows(run) == rows(whole)
    assert run.read_filmstrip() == whole.read_filmstrip()


def test_watching_more_prompts_from_the_middle_on_measures_what_was_drawn(watched, monkeypatch):
    run = interrupted(changed(watched, eval={"watch": 1}), monkeypatch, after=2)
    train_recipe(changed(watched, eval={"watch": 3}))
    by_step = {step: [row["id"] for row in run.read_filmstrip() if row["step"] == step] for step in (0, 3, STEPS)}
    assert [len(ids) for ids in by_step.values()] == [1, 1, 3]
    assert all(row["kl"] is not None for row in run.read_metrics("eval"))


def test_a_model_that_cannot_write_is_trained_all_the_same(watched, monkeypatch):
    def broken(*_, **__):
        raise TypeError("forward() got an unexpected keyword argument 'past_key_values'")

    monkeypatch.setattr(module, "generate", broken)
    lines = []

    class Said(Progress):
        def say(self, text):
            lines.append(text)

    run = train_recipe(watched, show=Said())
    assert run.read_manifest()["outcome"]["steps"] == STEPS
    assert not run.read_filmstrip()
    assert {row["kl"] for row in run.read_metrics("eval")} == {None}
    assert [line for line in lines if "past_key_values" in line] == [line for line in lines if line.startswith("Not watched any more")]


def provoked(recipe, **sections) -> RunDir:
    """A run with something wrong; live and afterwards the same is seen in it."""
    run = train_recipe(changed(recipe, **sections))
    found = diagnose(run.read_metrics(), run.read_filmstrip(), changed(recipe, **sections))
    assert [symptom.row() for symptom in found] == run.read_metrics("symptom")
    return run


def with_pairs(recipe, change):
    """The recipe with its pairs changed one by one, by number and row."""
    for path in map(Path, (*recipe.data.train, *recipe.data.eval)):
        made = [change(n, json.loads(line)) for n, line in enumerate(path.read_text().splitlines())]
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return recipe


def test_a_healthy_run_of_a_tiny_model_shows_nothing(watched):
    assert told(provoked(watched)) == []


def test_a_rate_far_too_high_and_a_kl_past_its_budget(watched):
    run = provoked(watched, train={"learning_rate": 1e-2}, eval={"kl_budget": 0.1})
    assert {"learning-rate", "kl-budget"} <= {*told(run)}


def test_steps_that_are_left_out_are_told_once(watched):
    run = provoked(watched, train={"learning_rate": 1e30, "warmup": 0.0, "max_skipped_steps": 9})
    assert len(run.read_metrics("skipped")) > 1
    assert told(run).count("not-finite") == 1
    assert run.read_metrics("eval")[-1]["kl"] is None


def test_a_rate_far_too_low_and_sides_that_are_the_same_do_not_move_the_policy(watched):
    low = provoked(watched, train={"learning_rate": 1e-9}, out=watched.out + "-low")
    assert told(low) == ["learning-rate", "not-moving"]
    assert "within 0.2 nats" in low.read_metrics("symptom")[-1]["evidence"]
    still = provoked(watched, train={"learning_rate": 1e-6, "method": "full", "max_grad_norm": 1e-9}, out=watched.out + "-still")
    assert "not-moving" in told(still)


def test_labels_drawn_by_lot_stay_at_chance_or_are_learnt_by_heart(watched):
    def swap(n, row):
        return row if n * 7 % 4 < 2 else {**row, "chosen": row["rejected"], "rejected": row["chosen"]}

    run = provoked(with_pairs(watched, swap), train={"epochs": 10, "max_steps": 36, "learning_rate": 1e-2, "eval_every": 12})
    assert "epochs" in told(run)
    assert "overfitting" in told(run)


def test_a_changed_reference_is_written_down(watched, monkeypatch):
    fit = session.fit

    def tampering_fit(policy, *arguments):
        result = fit(policy, *arguments)
        next(p for n, p in policy.model.named_parameters() if "lora_" not in n).data += 1e-3
        return result

    run = RunDir(watched.out)
    with monkeypatch.context() as patch:
        patch.setattr(session, "fit", tampering_fit)
        with pytest.raises(TrainingStopped, match="the reference changed"):
            train_recipe(watched)
    [row] = run.read_metrics("symptom")
    assert (row["name"], row["step"]) == ("reference-changed", STEPS)
    manifest = run.read_manifest()
    assert (manifest["outcome"], manifest["reference"]["unchanged"]) == (None, False)
    page = write_report(run).read_text()
    assert "Do not ship it: its reference changed during the run" in page
    assert "no model was saved" in page
    assert "Training has not ended" not in page
    train_recipe(watched)
    assert run.read_manifest()["reference"]["unchanged"] is True
    assert told(run) == [], "the end was good, this time"


def test_a_symptom_is_a_line_on_the_screen(watched, capsys):
    bars = Bars(Console(width=400))
    train_recipe(changed(watched, train={"learning_rate": 1e-9, "max_steps": 2}), show=bars)
    shown = capsys.readouterr().out
    assert shown.count("step 1: Unusual learning rate. 1e-09 is outside") == 1
    assert "Mend: train.learning_rate: 5e-06." in shown
