"""Plans: what is counted is what training then counts, what is estimated is near what is measured, and trying leaves no trace."""

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from likelier.cli import main
from likelier.data.chat import Dropped
from likelier.logprobs.scorer import Scorer
from likelier.models import fingerprint, trainable
from likelier.recipe import TrainSettings
from likelier.rundir import RunDir
from likelier.train import checkpoint, session, trial
from likelier.train import plan as plan_module
from likelier.train.master import MasterWeights
from likelier.train.memory import BatchSize, Peak, estimate, free, no_more_than, resident
from likelier.train.optimizer import make_optimizer, state_bytes
from likelier.train.outlook import announce, batch_tokens, essence, outlook
from likelier.train.plan import plan_recipe
from likelier.train.plan_terminal import duration, show_plan
from likelier.train.progress import Progress
from likelier.train.session import open_store, prepare, train_recipe
from likelier.train.step import Task, add_gradients
from likelier.train.trial import Spread, try_out
from tests.train.conftest import changed
from tests.train.test_ways import WAYS, Way, recipe_of, starts  # noqa: F401

WAYS = {
    "lora": Way({"precision": "fp32"}),
    "lora-bf16": Way({"precision": "bf16"}),
    "full": Way({"method": "full", "precision": "fp32"}),
    "masters": Way({"method": "full", "precision": "bf16"}),
    **WAYS,
}


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


@pytest.mark.parametrize("name", WAYS)
def test_trying_leaves_every_bit_as_it_was(name, recipe, starts, tmp_path, monkeypatch):  # noqa: F811
    recipe = changed(recipe_of(WAYS[name], recipe, starts), train={"tokens_per_batch": 200, "weight_decay": 0.1, "learning_rate": 0.5})
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


@pytest.mark.parametrize("name", WAYS)
def test_what_a_run_holds_is_what_the_arithmetic_says(name, recipe, starts):  # noqa: F811
    """Tensors counted after one step, to a hundredth: tables of 8-bit values and step counts are left out."""
    recipe = changed(recipe_of(WAYS[name], recipe, starts), objective={"name": "orpo"})
    prepared = prepare(recipe, Progress())
    seen, batches = outlook(prepared, None)
    policy, model = prepared.policy, prepared.policy.model
    weights = MasterWeights.of(model, recipe.model, recipe.train.bf16_weights)
    optimizer = make_optimizer(weights.parameters, recipe.train)
    passed(prepared, weights, batches[0])
    held_narrow = [p for p in trainable(model).values() if all(p is not master for master in weights.parameters)]
    held = {
        "weights": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "masters": 4 * sum(p.numel() for p in held_narrow),
        "gradients": sum(master.grad.nbytes for master in weights.parameters) + sum(p.nbytes for p in held_narrow),
    }
    optimizer.step()
    held["optimizer"] = state_bytes(optimizer)
    parts = {part.name: part.bytes for part in seen.memory}
    for what, size in held.items():
        tables = 4096 if what == "optimizer" else 12_000 if what == "weights" and "qlora" in name else 0
        assert parts.get(what, 0) == pytest.approx(size, rel=0.01, abs=tables), what
    assert seen.facts.parameters == prepared_parameters(recipe)
    assert policy.engine == "nodes"


def prepared_parameters(recipe) -> int:
    """Of the base alone, by its files."""
    [file] = (Path(recipe.model.name)).glob("*.safetensors")
    return sum(tensor.numel() for tensor in load_file(file).values())


def passed(prepared, weights: MasterWeights, batch) -> None:
    """One forward and backward pass, without a reference."""
    task = Task(prepared.policy, None, prepared.objective, 1024, Progress())
    add_gradients(task, weights, batch, point=0.0)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that come and go; `peak` is the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key)
        return results

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


PASSES = {
    "lora": {},
    "lora-fp32": {"train": {"precision": "fp32"}},
    "dora": {"adapter": {"dora": True}},
    "qlora": {"train": {"method": "qlora"}},
    "qlora-dora-recomputed": {"train": {"method": "qlora", "gradient_checkpointing": True}, "adapter": {"dora": True}},
    "head": {"adapter": {"targets": "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head"}},
}


@pytest.mark.parametrize("name", PASSES)
def test_what_a_pass_takes_is_near_what_the_arithmetic_says(name, recipe, middling_folder):
    """Tensors counted at their most: a fifth less to two fifths more; with recomputed activations to three quarters more."""
    sections = {"model": {"name": str(middling_folder)}, "objective": {"name": "orpo"}, **PASSES[name]}
    recipe = changed(recipe, **{**sections, "train": {"pairs_per_step": 12, "max_steps": 1, "precision": "bf16", **sections.get("train", {})}})
    prepared = prepare(recipe, Progress())
    seen, batches = outlook(prepared, None)
    weights = MasterWeights.of(prepared.policy.model, recipe.model)
    worst = max(batches, key=lambda batch: batch_tokens(batch, pads=False))
    with Live() as live:
        passed(prepared, weights, worst)
    estimated = sum(part.bytes for part in seen.memory if part.name in ("gradients", "activations", "one weight", "head"))
    assert live.peak > 8e6
    assert 0.8 < estimated / live.peak < (1.75 if recipe.train.gradient_checkpointing else 1.4)


@pytest.mark.parametrize("name", ["qlora", "masters", "rounded-8bit"])
def test_what_is_written_is_what_the_plan_says(name, recipe, starts, monkeypatch):  # noqa: F811
    recipe = changed(recipe_of(WAYS[name], recipe, starts), train={"eval_every": 2, "checkpoint_every": 4})
    disk = outlook(prepare(recipe, Progress()), None)[0].disk
    save, written = checkpoint.save, {}

    def watched(folder, *arguments):
        save(folder, *arguments)
        written["checkpoint"], written["best"] = (sum(map(tensors_in, folder.glob(f"{kind}-*/*.safetensors"))) for kind in ("step", "best"))

    monkeypatch.setattr(checkpoint, "save", watched)
    written["model"] = sum(map(tensors_in, train_recipe(recipe).model.glob("*.safetensors")))
    for what, size in written.items():
        assert disk[what] == pytest.approx(size, abs=16_000 if what == "checkpoint" else 0), what


def tensors_in(file) -> int:
    return sum(tensor.nbytes for tensor in load_file(file).values())


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere allocations are not held back")
def test_an_allocation_beyond_what_is_free_fails():
    with no_more_than(50 * 2**20):
        torch.ones(2**20)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.ones(2**30)
    torch.ones(2**26)


def test_a_peak_is_seen():
    with Peak(torch.device("cpu")) as peak:
        before = resident(torch.device("cpu"))
        torch.ones(2**25)
    assert before + 2**26 < peak.bytes < before + 2**29
    assert free(torch.device("cpu")) > 2**27


MEASURE = """
import sys, torch
from likelier.recipe import load_recipe
from likelier.train.plan import plan_recipe
torch.set_num_threads(1)
for path in sys.argv[1:]:
    plan = plan_recipe(load_recipe(path))
    peak, before = plan.trial.memory_peak, plan.trial.memory_before
    print(plan.outlook.memory_total, peak, plan.outlook.facts.memory_needed, peak - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "masters", "rounded", "rounded-8bit", "qlora"])
def test_the_estimate_is_near_what_is_measured(name, recipe, starts, tmp_path):  # noqa: F811
    """In a process of its own, within a factor of 1.4 in all, which for the tiny model is the program alone; of what a step adds to all weights,
    within 2."""
    tiny, middling = tmp_path / "tiny.yaml", tmp_path / "middling.yaml"
    tiny.write_text(recipe.to_yaml())
    folder = random_model(tmp_path / "middling", vocab_size=4096, hidden_size=512, intermediate_size=1024)
    larger = changed(recipe_of(WAYS[name], recipe, starts), model={"name": str(folder)}, train={"pairs_per_step": 8, "max_steps": 3})
    middling.write_text(larger.to_yaml())
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tiny), str(middling)], capture_output=True, text=True, check=True)
    (estimated, measured, *_), (larger_estimated, larger_measured, adds, added) = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert 1 / 1.4 < estimated / measured < 1.4
    assert 1 / 1.4 < larger_estimated / larger_measured < 1.4
    assert name == "qlora" or 0.5 < adds / added < 2


@pytest.fixture(scope="session")
def middling_folder(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("middling"), vocab_size=512, hidden_size=128, intermediate_size=256)


def random_model(folder, **sizes):
    import transformers

    from tests.conftest import built_tokenizer

    config = transformers.LlamaConfig(**sizes, num_hidden_layers=4, num_attention_heads=8, bos_token_id=None, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    built_tokenizer().save_pretrained(folder)
    return folder


def test_the_arithmetic_of_the_estimate(chat_model):
    """2 layers of width 32, 4 heads of 8 and 2 of keys, inner width 48; head of 320 × 32, untied."""

    def estimated(**settings):
        precision = settings.get("precision", "fp32")
        sums = {"precision": precision, "engine": "nodes", "batch": BatchSize(100, 50)}
        return {part.name: part.bytes for part in estimate(chat_model, TrainSettings(**settings), **sums)}

    parts = estimated()
    parameters = sum(parameter.numel() for parameter in chat_model.parameters())
    a_layer = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 48) + (48 + 32)
    logits = 4 * 50 * 320
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert parts["activations"] == 100 * 4 * (2 * a_layer + a_layer)
    assert parts["head"] == logits + 4 * logits + 4 * 320 * 32
    frugal = estimated(gradient_checkpointing=True)
    assert frugal["activations"] == 100 * 4 * (2 * 32 + 2 * a_layer)
    chat_model.bfloat16()
    half = estimated(precision="bf16")
    assert (half["weights"], half["masters"], half["gradients"]) == (2 * parameters, 4 * parameters, 6 * parameters)
    assert half["activations"] == 100 * 3 * a_layer * 2 + 100 * (2 * 5 * 32 + 5 * 32)
    rounded = estimated(precision="bf16", method="full", bf16_weights="stochastic-rounding")
    assert ("masters" in rounded, rounded["gradients"]) == (False, 4 * parameters)


def test_a_step_that_needs_more_than_a_pass_is_in_the_sum(chat_model):
    """The largest weight has 320 × 32 numbers; one token is a small pass."""
    settings = TrainSettings(method="full", bf16_weights="stochastic-rounding")
    small = {"precision": "bf16", "engine": "nodes", "batch": BatchSize(1, 1)}
    parts = {part.name: part.bytes for part in estimate(chat_model.bfloat16(), settings, **small)}
    assert sum(parts[name] for name in ("activations", "head", "step")) == 16 * 320 * 32


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
    plan = plan_recipe(changed(recipe, objective={"name": "ipo"}))
    dropped = {f"pair-{n}": Dropped(f"pair-{n}", "2000 tokens, data.max_length is 1024").reason for n in range(5)}
    show_plan(replace(plan, outlook=replace(plan.outlook, dropped=dropped)), recipe, Console(width=80, force_terminal=False))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for word in ("prompt", "17 of 4 records", "5 records", "pair-2", "optimizer", "by arithmetic", "already in store: 0 of", "checkpoint", "in all"):
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
