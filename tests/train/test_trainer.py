"""Any module that maps ids to logits: a GPT and an LSTM as a course writes them, and what is no such module."""

import copy
import math
import random
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from likelier import LabelledExample, PreferenceExample, Trainer, make_objective
from likelier.errors import DataError, ModelError, RecipeError, RunError, TrainingStopped
from likelier.examples import with_others
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.plain import compute_log_probs, dpo_loss
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.recipe import TrainSettings
from likelier.rundir import RunDir
from likelier.train.loop import fit
from likelier.train.progress import Progress

VOCABULARY, CONTEXT = 13, 16
GOOD, BAD, END = 1, 2, 3
TIMES = {"seconds"}


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.first, self.second, self.dropout = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(0.2)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.into(self.first(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.mlp(self.second(x)))


class TinyGPT(nn.Module):
    """Two layers, learned positions, dropout."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids):
        return self.head(self.blocks(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))))


class TinyLSTM(nn.Module):
    def __init__(self, width: int = 16, *, both_ways: bool = False):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.3, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(width * (1 + both_ways), VOCABULARY)

    def forward(self, ids):
        return self.head(self.lstm(self.tokens(ids))[0])


def drawn(make, **options):
    """A module whose weights are the same at every collection, and large enough to matter."""
    torch.manual_seed(1)
    model = make(**options)
    for parameter in model.parameters():
        parameter.data *= 2
    return model


class Returns(nn.Module):
    """A model whose output is made into something else."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = TinyLSTM(), change

    def forward(self, ids):
        return self.change(self.inner(ids))


MODULES = {"gpt": TinyGPT, "lstm": TinyLSTM}


def made(name: str = "lstm", seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODULES[name]()


def pairs(count: int, seed: int = 0) -> list[PreferenceExample]:
    """The better reply says GOOD somewhere, the worse one BAD."""
    draw = random.Random(seed)

    def ids(longest):
        return tuple(draw.randrange(4, VOCABULARY) for _ in range(draw.randint(1, longest)))

    return [PreferenceExample(ids(4), (*ids(3), GOOD, END), (*ids(3), BAD, END), f"pair-{seed}-{n}") for n in range(count)]


def replies(examples: list[PreferenceExample]) -> list[LabelledExample]:
    both = [((e.chosen_ids, True), (e.rejected_ids, False)) for e in examples]
    return [LabelledExample(e.prompt_ids, ids, label, e.id) for e, judged in zip(examples, both, strict=True) for ids, label in judged]


EASY = {"learning_rate": 1e-2, "pairs_per_step": 8, "eval_every": 5}


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", MODULES)
def test_a_hand_written_model_learns_what_is_preferred(name):
    model = made(name)
    trainer = Trainer(model, None, pairs(64), max_steps=12, epochs=3, **EASY)
    before = trainer.evaluate(pairs(24, seed=1))
    history = trainer.train(pairs(24, seed=1))
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    evaluations = [row for row in history if row["kind"] == "eval"]
    assert [row["step"] for row in evaluations] == [5, 10, 12]
    assert evaluations[-1]["accuracy"] > 0.95
    assert trainer.evaluate(pairs(24, seed=1))["loss"] == min(row["loss"] for row in evaluations if row["accuracy"] == evaluations[-1]["accuracy"])
    assert (trainer.step, trainer.steps) == (12, 12)
    with pytest.raises(RunError, match="all 12 steps are done"):
        trainer.train_step()


@pytest.mark.parametrize("name", MODULES)
def test_it_is_the_loop_of_a_run(name, tmp_path):
    """`fit` with the plain engine and a store on disk: the same numbers at every step and evaluation, bit for bit, and the same best weights."""
    examples, held_out = pairs(20), pairs(6, seed=1)
    given = {"epochs": 2, "pairs_per_step": 6, "learning_rate": 3e-3, "tokens_per_batch": 30, "seed": 5, "eval_every": 3}
    twin, model = made(name), made(name)
    policy = Scorer(twin, engine="plain", precision="fp32")
    store = ReferenceStore(tmp_path, "tiny")
    for side in (examples, held_out):
        fill(store, policy, sequences_of(side), tokens_per_batch=30)
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    fit(policy, store, examples, held_out, make_objective("dpo", beta=0.3), TrainSettings(method="full", **given), run, Progress())

    trainer = Trainer(model, None, examples, beta=0.3, **given)
    history = trainer.train(held_out)
    assert without_times(history) == without_times(run.read_metrics())
    assert [row["kind"] for row in history].count("eval") == 3
    [folder] = run.checkpoints.glob("best-*")
    best = load_file(folder / "weights.safetensors")
    assert all(best[key].equal(weight) for key, weight in model.named_parameters())

    stepped = Trainer(made(name), None, examples, beta=0.3, **given)
    rows = [stepped.train_step() for _ in range(stepped.steps)]
    assert without_times(rows) == without_times(run.read_metrics("train"))
    assert [row["learning_rate"] for row in rows] == [stepped.lr(step) for step in range(stepped.steps)]
    assert weights_of(stepped.model).equal(weights_of(twin))


def padded(prompts_and_replies):
    longest = max(len(prompt + reply) for prompt, reply in prompts_and_replies)
    ids = torch.tensor([[*prompt, *reply, *[0] * (longest - len(prompt + reply))] for prompt, reply in prompts_and_replies])
    labels = torch.full_like(ids, -100)
    for row, (prompt, reply) in enumerate(prompts_and_replies):
        labels[row, len(prompt) : len(prompt + reply)] = torch.tensor(reply)
    return ids, labels


@pytest.mark.parametrize("name", MODULES)
def test_the_gradient_is_that_of_the_textbook_formula(name):
    """Against another reference, so that the margins are not zero."""
    examples, reference = pairs(7), made(name, seed=9).eval()
    model, textbook = made(name), made(name).eval()
    sides = [
        padded([(e.prompt_ids, ids) for e, ids in zip(examples, column, strict=True)]) for column in zip(*(e.replies for e in examples), strict=True)
    ]
    logps = [compute_log_probs(textbook, ids, None, labels) for ids, labels in sides]
    with torch.no_grad():
        known = [compute_log_probs(reference, ids, None, labels) for ids, labels in sides]
    loss, metrics = dpo_loss(*logps, *known, beta=0.5)
    loss.backward()

    gradients = {}
    for key, parameter in model.named_parameters():  # called after every backward pass: what stays is the sum over all
        parameter.register_post_accumulate_grad_hook(lambda p, key=key: gradients.update({key: p.grad.clone()}))
    row = Trainer(model, reference, examples, beta=0.5, pairs_per_step=7, tokens_per_batch=40).train_step()
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert row["loss"] != pytest.approx(math.log(2), abs=1e-3)
    assert row["margin"] == pytest.approx(metrics["margin"].item(), rel=1e-4)
    for key, parameter in textbook.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-7)


def test_without_a_reference_none_is_scored():
    trainer = Trainer(made(), None, pairs(48), objective="orpo", epochs=2, **EASY)
    trainer.train_step()
    assert trainer.evaluate(pairs(8, seed=3))["accuracy"] is not None  # new examples at any time
    assert trainer.state_dict()["reference"] == {}
    trainer.train()
    assert trainer.evaluate(pairs(24, seed=1))["accuracy"] > 0.95


@pytest.mark.parametrize("objective", ["kto", "bco"])
def test_single_replies(objective):
    """Trained on replies that are judged alone, and right about pairs."""
    trainer = Trainer(made("gpt"), None, replies(pairs(32)), objective=objective, epochs=2, **EASY)
    alone = trainer.evaluate(replies(pairs(12, seed=1)))
    history = trainer.train(pairs(12, seed=1))
    assert [alone["loss"], history[0]["loss"]] == pytest.approx([0.5 if objective == "kto" else math.log(2)] * 2, abs=1e-6)
    assert history[-1]["accuracy"] > 0.95
    assert history[-1]["margin"] > 1
    assert trainer.evaluate(replies(pairs(12, seed=1)))["loss"] < 0.8 * alone["loss"]


def test_the_point_of_kto_is_estimated_on_replies_to_other_prompts():
    """Where most replies are good, all of that kind become likelier: the point is above 0, and the loss is that of the formula."""
    examples = replies(pairs(24))[::2] + replies(pairs(4, seed=2))
    model, reference = made(), made()
    trainer = Trainer(model, reference, examples, objective="kto", beta=0.3, epochs=4, **EASY)
    trainer.train()
    ratios = [log_ratio(model, reference, e.prompt_ids, e.completion_ids) for e in examples]
    point = sum(log_ratio(model, reference, e.prompt_ids, e.others[0]) for e in with_others(examples)) / len(examples)
    assert point > 0.1
    losses = [1 / (1 + math.exp(0.3 * (1 if e.label else -1) * (ratio - point))) for e, ratio in zip(examples, ratios, strict=True)]
    assert trainer.evaluate(examples)["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_sums_weights_and_objectives_that_are_made():
    """A pair of weight 0 is as good as none, and counts in the mean."""
    examples = pairs(8)
    one_sided = [PreferenceExample(e.prompt_ids, e.chosen_ids, e.rejected_ids, weight=2.0 * (n < 4)) for n, e in enumerate(examples)]
    models = made(), made()
    Trainer(models[0], None, examples[:4], objective="dpo + 0.2 sft", epochs=3, pairs_per_step=4, max_steps=1, learning_rate=1e-2).train()
    Trainer(models[1], None, one_sided, objective=make_objective("dpo + 0.2 sft"), pairs_per_step=8, learning_rate=1e-2).train()
    torch.testing.assert_close(weights_of(models[0]), weights_of(models[1]), rtol=0, atol=1e-5)


def test_an_evaluation_changes_nothing():
    model = made("gpt")
    model.blocks[0].eval()
    trainer = Trainer(model, None, pairs(16), **EASY)
    trainer.train_step()
    state, flags, weights, random_state = trainer.state_dict(), [m.training for m in model.modules()], weights_of(model), torch.get_rng_state()
    assert trainer.evaluate(pairs(16)) == trainer.evaluate(pairs(16))
    assert flags == [m.training for m in model.modules()]
    assert sorted(set(flags)) == [False, True]
    assert weights.equal(weights_of(model))
    assert random_state.equal(torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert str(state) == str(trainer.state_dict())


def test_dropout_is_off_in_training_and_as_it_was_afterwards():
    """An LSTM keeps its training flag, without which cuDNN has no gradient of it, but drops nothing."""
    model, seen = made("lstm").train(), []
    model.lstm.register_forward_pre_hook(lambda lstm, _: seen.append((model.training, lstm.training, lstm.dropout)))
    Trainer(model, None, pairs(16), **EASY).train_step()
    assert set(seen) == {(False, True, 0.0)}
    assert (model.training, model.lstm.training, model.lstm.dropout) == (True, True, 0.3)


def test_gradients_left_by_the_caller_do_not_count():
    clean, littered = made(), made()
    littered(torch.ones(1, 3, dtype=torch.int64)).sum().backward()
    for model in (clean, littered):
        Trainer(model, None, pairs(8), **EASY).train_step()
    assert weights_of(clean).equal(weights_of(littered))


def test_the_reference_is_the_model_as_it_was():
    """Held-out examples that it did not see then are refused, unless there is a reference that stays."""
    model, held_out = made(), pairs(8, seed=1)
    stays = copy.deepcopy(model)
    trainer, other = Trainer(model, None, pairs(16), **EASY), Trainer(copy.deepcopy(model), stays, pairs(16), **EASY)
    trainer.evaluate(held_out[:4])
    for each in (trainer, other):
        each.train()
    assert trainer.evaluate(held_out[:4]) == other.evaluate(held_out[:4])
    with pytest.raises(RunError, match=r"not scored then.*copy\.deepcopy\(model\)"):
        trainer.evaluate(held_out)
    assert other.evaluate(held_out)["chosen_reward"] == pytest.approx(
        0.1 * sum(log_ratio(other.model, stays, e.prompt_ids, e.chosen_ids) for e in held_out) / 8, rel=1e-4
    )


def log_ratio(model, reference, prompt, reply):
    ids, labels = padded([(prompt, reply)])
    with torch.no_grad():
        return (compute_log_probs(model.eval(), ids, None, labels) - compute_log_probs(reference.eval(), ids, None, labels)).item()


def test_a_reference_that_training_would_change_is_refused():
    model = made()
    with pytest.raises(ModelError, match="Give None for the model as it is now"):
        Trainer(model, model, pairs(4))


def test_the_first_loss_is_checked_where_it_is_known():
    """A reference with the same weights is the same as none; weights that changed behind its back are noticed."""
    model = made()
    trainer = Trainer(model, copy.deepcopy(model), pairs(8), **EASY)
    with torch.no_grad():
        model.head.bias[GOOD] += 1.0
    with pytest.raises(TrainingStopped, match=r"the first loss is .* and must be 0\.6931"):
        trainer.train_step()


@pytest.mark.parametrize("name, breaks_at, dtype", [("gpt", 3, torch.float32), ("lstm", 1, torch.float32), ("gpt", 4, torch.bfloat16)])
def test_a_run_that_goes_on_from_a_state_ends_with_the_same_bits(name, breaks_at, dtype, tmp_path):
    options = {"epochs": 2, "pairs_per_step": 8, "learning_rate": 1e-2, "objective": "bco"}
    whole = Trainer(made(name).to(dtype), None, pairs(20), **options)
    held_out = pairs(6, seed=1)
    whole.evaluate(held_out)
    for _ in range(breaks_at):
        whole.train_step()
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    other = made(name, seed=7).to(dtype)  # not even the weights that it was begun with
    whole.train()

    again = Trainer(other, None, pairs(20), **options)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.step == breaks_at
    assert weights_of(other).equal(torch.cat([weight.flatten() for weight in again.state_dict()["weights"].values()]).to(dtype))
    again.train()
    assert without_times(again.history) == without_times(whole.history)
    assert weights_of(again.model).equal(weights_of(whole.model))
    assert again.evaluate(held_out) == whole.evaluate(held_out)


def test_what_the_curves_say_stands_in_the_history_once():
    """docs/diagnosis.md; a rate that moves nothing is seen at the eighth of ten steps."""
    options = {"epochs": 5, "pairs_per_step": 8, "learning_rate": 1e-12}
    trainer = Trainer(made(), None, pairs(16), **options)
    rows = [trainer.train_step() for _ in range(9)]
    assert [(row["kind"], row["step"]) for row in rows] == [("train", step) for step in range(1, 10)]
    again = Trainer(made(), None, pairs(16), **options)
    again.load_state_dict(trainer.state_dict())
    assert [(row["name"], row["step"]) for row in again.train() if row["kind"] == "symptom"] == [("not-moving", 8)]


def test_a_state_of_something_else_is_refused():
    state = Trainer(made(), None, pairs(8)).state_dict()
    for what, other in {
        "settings": Trainer(made(), None, pairs(8), seed=1),
        "examples": Trainer(made(), None, pairs(9)),
        "weights": Trainer(made("gpt"), None, pairs(8)),
    }.items():
        with pytest.raises(RunError, match=f"with other {what}"):
            other.load_state_dict(state)


@pytest.mark.parametrize("other", [{"objective": "ipo"}, {"beta": 0.2}, {"objective": make_objective("dpo + 0.2 sft")}])
def test_a_state_of_another_objective_is_refused(other):
    state = Trainer(made(), None, pairs(8)).state_dict()
    with pytest.raises(RunError, match="with other objective"):
        Trainer(made(), None, pairs(8), **other).load_state_dict(state)
    Trainer(made(), None, pairs(8), objective=make_objective("dpo")).load_state_dict(state)


def test_the_best_weights_stay_and_patience_ends_training():
    held_out = [PreferenceExample(e.prompt_ids, e.rejected_ids, e.chosen_ids) for e in pairs(8, seed=1)]  # the other way round: it only gets worse
    settings = {**EASY, "eval_every": 1, "patience": 3, "epochs": 20}
    trainer = Trainer(made(), None, pairs(16), **settings)
    history = trainer.train(held_out)
    assert trainer.step < trainer.steps
    best = min((row for row in history if row["kind"] == "eval"), key=lambda row: (-row["accuracy"], row["loss"]))
    assert best["step"] < trainer.step
    assert trainer.evaluate(held_out)["loss"] == best["loss"]


def test_bf16_modules_are_trained_through_fp32_masters():
    model = made("gpt").bfloat16()
    trainer = Trainer(model, None, pairs(32), epochs=3, **EASY)
    history = trainer.train(pairs(16, seed=1))
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=0.02)
    assert history[-1]["accuracy"] > 0.95
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert all(weight.dtype == torch.float32 for weight in trainer.state_dict()["weights"].values())


def test_who_watches_is_told():
    class Watcher(Progress):
        def __init__(self):
            self.seen = []

        def reference_scored(self, done, total):
            self.seen.append(("reference", done == total))

        def begin_training(self, step, steps):
            self.seen.append((step, steps))

        def logged(self, row):
            self.seen.append(row["kind"])

        def close(self):
            self.seen.append("end")

    show = Watcher()
    Trainer(made(), None, pairs(16), show=show, **EASY).train(pairs(2, seed=1))
    assert show.seen == [("reference", True), ("reference", True), (0, 2), "train", "train", "eval", "end"]


def test_a_transformers_model_works_too(chat_model):
    trainer = Trainer(chat_model, None, pairs(16), pairs_per_step=8, learning_rate=1e-2)
    assert trainer.train()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert trainer.evaluate(pairs(16))["accuracy"] > 0.9


def test_ids_may_be_lists_and_tensors():
    plain = pairs(4)
    other = [PreferenceExample(list(e.prompt_ids), torch.tensor(e.chosen_ids), e.rejected_ids) for e in plain]
    assert Trainer(made(), None, plain, **EASY).train_step()["loss"] == Trainer(made(), None, other, **EASY).train_step()["loss"]


@pytest.mark.parametrize(
    "model, says",
    [
        (
            Returns(lambda logits: logits[:, -1:]),
            r"\(B, T\) = \(\d+, \d+\) Returns returns shape \(\d+, 1, 13\); expected are logits of shape \(B, T, V\)",
        ),
        (Returns(lambda logits: (logits, None)), r"returns a tuple; expected .* Wrap the module"),
        (Returns(lambda logits: logits.flatten(0, 1)), r"expected are logits of shape \(B, T, V\)"),
        (Returns(lambda logits: logits[..., :2]), r"Returns fails on these examples .* the largest id is 12"),
        (drawn(TinyLSTM, both_ways=True), "looks ahead"),
        (Returns(lambda logits: F.dropout(logits, 0.5)), "says one thing and then another"),
        (TinyLSTM().double(), r"`tokens.weight` is torch.float64; float32 and bfloat16 can be trained"),
        (TinyLSTM().requires_grad_(False), "nothing to train"),
    ],
)
def test_modules_that_cannot_be_trained_say_why(model, says):
    with pytest.raises(ModelError, match=says):
        Trainer(model, None, pairs(6))


def test_logits_may_be_an_attribute():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    row = Trainer(Returns(Output), None, pairs(6), **EASY).train_step()
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_examples_longer_than_the_model_takes():
    long = PreferenceExample((5,) * CONTEXT, (GOOD, END), (BAD, END))
    with pytest.raises(ModelError, match=r"TinyGPT fails on these examples \(IndexError: .*The longest puts 17 tokens into it.*Drop or shorten"):
        Trainer(made("gpt"), None, [*pairs(3), long])
    trainer = Trainer(made("gpt"), None, pairs(3))
    with pytest.raises(ModelError, match="Drop or shorten"):
        trainer.evaluate([long])


@pytest.mark.parametrize(
    "examples, options, says",
    [
        ([], {}, "there are no examples"),
        (replies(pairs(2)), {}, r"example 0 \(`pair-0-0`\): this objective compares pairs"),
        ([*pairs(1), PreferenceExample((4,), (), (5,))], {}, "example 1: its prompt or a reply has no tokens"),
        ([{"prompt": "Hi"}], {}, "not a dict"),
        (pairs(2), {"learning_rte": 1}, r"`learning_rte` is not a setting of a Trainer. Did you mean `learning_rate`\?"),
        (pairs(2), {"method": "lora"}, "`method` is not a setting of a Trainer"),
        (pairs(2), {"epochs": -1}, r"`epochs`: Input should be greater than 0 \(given: -1\)"),
        (pairs(2), {"objective": "simpoo"}, "Did you mean `simpo`"),
        (pairs(2), {"objective": make_objective("dpo"), "beta": 0.2}, "this objective has its settings already"),
        (pairs(8), {"objective": "aot", "tokens_per_batch": 10}, "must be one batch"),
        ([PreferenceExample((4,), (5,), (6,), weight=2.0)], {"objective": "aot"}, "cannot heed the records' `weight`"),
        (pairs(2), {"objective": make_objective("dpo", margin_scale=1.0)}, "no training record has a `margin`"),
    ],
)
def test_requests_that_cannot_be_met(examples, options, says):
    with pytest.raises((DataError, RecipeError), match=says):
        Trainer(made(), None, examples, **options)


def test_the_page_about_plain_modules_runs_as_it_stands(capsys):
    page = (Path(__file__).parents[2] / "docs/plain-modules.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names = {}
    exec(first, names)
    assert names["history"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert names["row"]["accuracy"] > 0.9
    assert len(others) == 3
    for block in others:
        exec(block, names)
    assert capsys.readouterr().out
