"""Plans: what is counted is what training then counts, what is estimated is near what is measured, and trying leaves no trace."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from likelier.cli import main
from likelier.data.chat import Dropped
from likelier.logprobs.scorer import Scorer
from likelier.models import fingerprint, trainable
from likelier.recipe import TrainSettings
from likelier.rundir import RunDir
from likelier.train import plan as plan_module
from likelier.train import session, trial
from likelier.train.memory import takes_less
from likelier.train.outlook import announce, essence, outlook
from likelier.train.plan import plan_recipe
from likelier.train.plan_terminal import duration, show_plan
from likelier.train.progress import Progress
from likelier.train.session import open_store, prepare, train_recipe
from likelier.train.trial import Spread, try_out
from tests.train.conftest import changed
from tests.train.test_memory import EVERY_WAY
from tests.train.test_ways import recipe_of, starts  # noqa: F401


class Listener(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def bits(model: torch.nn.Module) -> dict[str, bytes]:
    """Every weight as bytes: −0 is not 0."""
    return {name: tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.fixture
def alone(recipe, tmp_path):
    """The recipe with KTO on replies judged alone, three good ones to a bad one."""
    path = tmp_path / "alone.jsonl"
    rows = [{"prompt": f"Where is house {n}?", "completion": f"Behind house {n + 1}, go on.", "label": n % 4 > 0} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return changed(recipe, data={"train": [str(path)]}, objective={"name": "kto"})


@pytest.mark.parametrize("objective", ["dpo", "kto", "simpo"])
def test_what_is_counted_is_what_training_counts(recipe, objective):
    recipe = changed(recipe, objective={"name": objective}, train={"tokens_per_batch": 200, "epochs": 1.5})
    plan = plan_recipe(recipe)
    run = train_recipe(recipe)
    rows, schedule = run.read_metrics("train"), plan.outlook.schedule
    assert schedule.steps == len(rows)
    assert schedule.evaluations == len(run.read_metrics("eval"))
    assert schedule.epochs == pytest.approx(rows[-1]["epoch"])
    leaves = schedule.tokens - sum(row["tokens"] for row in rows)  # the model is not run on a reply's last token
    assert 0 < leaves <= 2 * sum(row["pairs"] for row in rows)
    assert plan.outlook.lengths == run.read_manifest()["data"]["train"]["tokens"]
    if reference := run.read_manifest()["reference"]:
        assert plan.outlook.reference.sequences == reference["computed"]
        assert plan.outlook.reference.in_store == 0
    else:
        assert plan.outlook.reference is None
    assert plan.outlook.disk["model"] == pytest.approx((run.model / "adapter_model.safetensors").stat().st_size, rel=0.15)


def test_the_store_is_asked_what_it_has(recipe):
    train_recipe(changed(recipe, train={"max_steps": 1}))
    reference = plan_recipe(recipe).outlook.reference
    assert reference.in_store == reference.sequences > 0
    assert (reference.tokens, reference.bytes) == (0, 0)
    assert plan_recipe(recipe).seconds["reference"].high == 0


@pytest.mark.parametrize("name", EVERY_WAY)
def test_trying_leaves_every_bit_as_it_was(name, recipe, starts, tmp_path, monkeypatch):  # noqa: F811
    recipe = changed(recipe_of(EVERY_WAY[name], recipe, starts), train={"tokens_per_batch": 200, "weight_decay": 0.1, "learning_rate": 0.5})
    stepped = []
    make = trial.make_optimizer
    monkeypatch.setattr(trial, "make_optimizer", lambda group, settings: stepped.append(make(group, settings)) or stepped[-1])
    prepared = prepare(recipe, Progress())
    if recipe.train.method == "full":
        next(iter(trainable(prepared.policy.model).values())).data[0, 0] = -0.0
    before, weights = bits(prepared.policy.model), fingerprint(prepared.policy.model)
    _, batches = outlook(prepared, None)
    tried = try_out(prepared.policy, prepared.objective, recipe, batches, accumulates=True)
    assert tried.fits
    assert tried.step > 0
    assert bits(prepared.policy.model) == before
    assert fingerprint(prepared.policy.model) == weights
    assert all(parameter.grad is None for parameter in prepared.policy.model.parameters())
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache" / "reference").exists()
    assert {type(optimizer).__name__ for optimizer in stepped} == {OPTIMIZERS.get(name, "AdamW")}


OPTIMIZERS = {"8bit-lora": "AdamW8bit", "8bit-masters": "AdamW8bit", "rounded": "RoundedAdamW", "rounded-8bit": "RoundedAdamW8bit"}


def test_a_run_after_a_plan_is_the_run_without_one(recipe):
    plain = train_recipe(recipe)
    plan_recipe(recipe)
    again = train_recipe(changed(recipe, out=recipe.out + "-2"))
    same = ("loss", "grad_norm")
    assert [[row[key] for key in same] for row in plain.read_metrics("train")] == [[row[key] for key in same] for row in again.read_metrics("train")]


def test_the_worst_batch_is_the_one_with_most_unique_tokens_of_all_steps(recipe, monkeypatch):
    scored = []
    gradients = trial._gradients
    monkeypatch.setattr(trial, "_gradients", lambda task, weights, batch: (scored.append(batch), gradients(task, weights, batch)))
    recipe = changed(recipe, train={"tokens_per_batch": 150, "epochs": 3})
    prepared = prepare(recipe, Progress())
    seen, batches = outlook(prepared, None)
    tried = try_out(prepared.policy, prepared.objective, recipe, batches, accumulates=False)
    sizes = [trial.batch_tokens(batch, pads=False) for batch in batches]
    assert tried.worst_tokens == seen.schedule.largest_batch == max(sizes) == trial.batch_tokens(scored[-1], pads=False)
    assert all(batch in batches for batch in scored)
    assert tried.batches == trial.BATCHES == len(scored) - 2
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    assert try_out(prepared.policy, prepared.objective, recipe, batches, accumulates=False).batches == trial.FEWEST


def test_a_plain_engine_pads(recipe, monkeypatch):
    monkeypatch.setattr(session, "choose_engine", lambda *a, **k: session.Parity("plain", 0.0))
    plan = plan_recipe(recipe)
    rows = train_recipe(recipe).read_metrics("train")
    assert plan.fits
    assert plan.outlook.schedule.tokens >= sum(row["tokens"] for row in rows)
    assert "logits" in [part.name for part in plan.outlook.memory]


def test_what_does_not_fit_is_said_with_what_takes_less(recipe, monkeypatch):
    """What fails is a real allocation, of a petabyte."""
    gradients, calls = trial.add_gradients, []

    def greedy(*arguments, **options):
        calls.append(1)
        return gradients(*arguments, **options) if len(calls) < 7 else torch.empty(2**50)

    monkeypatch.setattr(trial, "add_gradients", greedy)
    plan = plan_recipe(recipe)
    assert not plan.fits
    assert plan.seconds["training"].middle > 0
    assert plan.advice[0].rule == "memory"
    assert "train.tokens_per_batch smaller" in plan.advice[0].change


def test_no_memory_to_score_one_sequence_is_no_fit(recipe, monkeypatch):
    prepared = prepare(recipe, Progress())
    _, batches = outlook(prepared, None)
    monkeypatch.setattr(Scorer, "token_logps", lambda *_: torch.empty(2**50))
    tried = try_out(prepared.policy, prepared.objective, recipe, batches, accumulates=False)
    assert (tried.fits, tried.training) == (False, None)


def test_what_fits_in_smaller_batches_says_so(recipe, monkeypatch, capsys):
    collect, calls = trial.MasterWeights.collect_gradients, []
    batches = trial.BATCHES + 1

    def greedy(self):
        calls.append(1)
        collect(self) if len(calls) != batches + 1 else torch.empty(2**50)

    monkeypatch.setattr(trial.MasterWeights, "collect_gradients", greedy)
    plan = plan_recipe(recipe)
    assert not plan.fits
    assert plan.trial.tokens_per_batch < plan.trial.worst_tokens
    show_plan(plan, recipe, Console(width=80, force_terminal=False))
    assert "did not fit; batches of" in " ".join(capsys.readouterr().out.split())


def test_other_errors_are_not_called_a_lack_of_memory(recipe, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trial, "add_gradients", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        plan_recipe(recipe)


def test_training_says_the_essence_in_five_lines_and_scores_nothing_for_it(recipe, monkeypatch):
    told = Listener()
    prepared = prepare(recipe, told)
    told.said.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "token_logps", lambda *_: pytest.fail("the model was run"))
        announce(prepared, open_store(prepared, told), told)
    assert 3 <= len(told.said) <= 5
    first, memory, reference, *_ = told.said
    assert first.startswith(f"Plan: {len(prepared.train.records)} records in 17 steps of 4; mean tokens prompt ")
    assert memory.startswith("Memory, by arithmetic: ")
    assert reference.startswith("Reference: already in store: 0 of ")
    run = Listener()
    train_recipe(changed(recipe, train={"max_steps": 2}), show=run)
    assert sum(line.startswith(("Plan: ", "Memory", "Reference: ", "Advice: ")) for line in run.said) <= 5
    assert any(line.startswith("Plan: 34 records in 2 steps of 4") for line in run.said)


def test_the_essence_keeps_to_five_lines_with_much_advice(recipe):
    seen, _ = outlook(prepare(recipe, Progress()), None)
    noisy = replace(seen.facts, has_template=False, findings={"label-noise": "warn"}, steps=2, margins=4, epochs=9.0)
    lines = essence(replace(seen, facts=noisy))
    assert len(lines) == 5
    assert lines[2].startswith("Advice: Its tokenizer brings no chat template")
    assert lines[-1].endswith("more: likelier plan)")


def test_facts_come_from_recipe_data_and_audit(alone, recipe):
    plan = plan_recipe(alone)
    facts = plan.outlook.facts
    assert (facts.pairs, facts.good + facts.bad, facts.paired) == (0, plan.outlook.records, False)
    assert facts.good > 2 * facts.bad
    assert facts.settings == {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    assert [advice.change.split(":")[0] for advice in plan.advice if advice.rule == "kto-balance"] == ["objective.undesirable_weight"]
    assert "p50" in plan.outlook.lengths["chosen"]
    summed = changed(recipe, objective={"name": "sft + 0.2 ipo", "beta": 0.3}, data={"max_length": 105}, train={"method": "full"})
    prepared = prepare(summed, Progress())
    facts = outlook(prepared, None)[0].facts
    assert (facts.terms, facts.usual_beta, facts.settings["beta"], facts.method) == (("sft", "ipo"), 0.1, 0.3, "full")
    assert facts.too_long == len(prepared.train.encoded.dropped) > 0
    assert facts.longest >= max(len(example) for example in prepared.train.examples)
    assert not facts.end_logp


def test_what_takes_less_is_said_with_what_it_takes(recipe):
    """Cheapest first, and only what is not done yet; offloading is for a GPU."""
    facts = {
        how: outlook(prepare(changed(recipe, train={"gradient_checkpointing": how}), Progress()), None)[0].facts for how in (False, "selective", True)
    }
    assert facts[False].memory_recomputing == {how: facts[how].memory_needed for how in ("selective", True)}
    assert facts["selective"].memory_recomputing == {True: facts[True].memory_needed}
    assert facts[True].memory_recomputing == {}
    assert facts[False].memory_needed > facts["selective"].memory_needed > facts[True].memory_needed
    assert takes_less(TrainSettings(), torch.device("cuda")) == ["selective", True, "offload"]
    assert takes_less(TrainSettings(gradient_checkpointing="offload"), torch.device("cpu")) == []


def test_a_base_model_is_warned_about(recipe):
    """T11: one without a template; and one that hardly ever ends a reply."""
    bare = changed(recipe, model={"chat_template": "none"})
    prepared = prepare(bare, Progress())
    prepared.loaded.tokenizer.chat_template = None
    assert [advice.rule for advice in outlook(prepared, None)[0].advice].count("base-model") == 1
    seen = plan_recipe(recipe).outlook
    assert -20 < seen.facts.end_logp < 0
    assert [a.rule for a in replace(seen, facts=replace(seen.facts, end_logp=-8.0)).advice].count("base-model") == 1


def test_in_the_terminal_eighty_columns_are_enough(recipe, capsys, monkeypatch):
    recipe = changed(recipe, train={"fsdp": True})
    plan = plan_recipe(changed(recipe, objective={"name": "ipo"}))
    dropped = {f"pair-{n}": Dropped(f"pair-{n}", "2000 tokens, data.max_length is 1024").reason for n in range(5)}
    show_plan(replace(plan, outlook=replace(plan.outlook, dropped=dropped)), recipe, Console(width=80, force_terminal=False))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for word in (
        "train.gradient_checkpointing: selective",
        "train.gradient_checkpointing: true",
        "each of N",
        "prompt",
        "17 of 4 records",
        "5 records",
        "pair-2",
        "optimizer",
        "by arithmetic",
        "already in store: 0 of",
        "checkpoint",
        "in all",
    ):
        assert word in out, word
    assert "pair-3" not in out


def test_durations():
    assert duration(Spread(1, 2, 3)) == "2 s (1 to 3)"
    assert duration(Spread(300, 360, 540)) == "6 min (5 to 9)"
    assert duration(Spread(36000, 72000, 72000)) == "20 h (10 to 20)"
    assert duration(Spread(0.25, 0.25, 0.25)) == "0.25 s"


def test_from_the_command_line(recipe, tmp_path, capsys, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert main(["plan", str(path), "--objective.beta", "0.9", "--json", str(tmp_path / "plan.json")]) == 0
    assert "objective.beta: 0.1" in capsys.readouterr().out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["fits"] is True
    assert written["advice"][0].keys() == {"rule", "weight", "reason", "change"}
    assert written["schedule"]["steps"] == 17
    assert written["facts"]["settings"]["beta"] == 0.9
    assert not RunDir(recipe.out).path.exists()
    monkeypatch.setattr(plan_module, "try_out", lambda *a, **k: trial.Trial(100, 1024, 10, 20))
    assert main(["plan", str(path)]) == 1
    told = capsys.readouterr()
    assert "does not fit into memory" in told.err
    assert "nothing could be measured" in told.out
    assert main(["plan", str(path), "--json", str(path)]) == 2
    assert recipe.to_yaml() == path.read_text()
    capsys.readouterr()
    assert main(["plan"]) == 2
    assert "likelier plan RECIPE [--json FILE] [--section.name VALUE …]" in capsys.readouterr().err
    assert main(["plan", str(path), "--objective.target-margin", "1"]) == 2
    assert "target_margin" in capsys.readouterr().err
