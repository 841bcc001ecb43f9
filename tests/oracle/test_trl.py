"""Same pairs, same order, same settings as TRL: token ids, per-pair losses, gradients and ten training steps agree.

TRL's own trainers run here, with their own collator, model call, loss, optimizer and loop. The one thing taken from them is tokenisation: they
score what the template writes after the end token, too (see `test_token_ids`), so they are handed our ids.
"""

import copy
import os
import random
from dataclasses import replace

import pytest
import torch

from likelier.data.chat import Encoder
from likelier.examples import LabelledExample, PreferenceExample
from likelier.logprobs.examples import kl_point, log_ratios, mismatched, score_examples, sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.models import trainable
from likelier.objectives import TABLE, make_objective
from likelier.recipe import TrainSettings
from likelier.records import Message, Pair
from likelier.rundir import RunDir
from likelier.train.loop import fit
from likelier.train.order import ExampleOrder
from likelier.train.progress import Progress

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
trl = pytest.importorskip("trl", reason="TRL is not installed; `pip install -e '.[dev]'` brings it")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

from datasets import Dataset  # noqa: E402
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402
from trl.trainer.kto_trainer import KTOTrainer  # noqa: E402

STEPS, PAIRS_PER_STEP, RATE = 10, 4, 1e-3
VOCABULARY = "invoice refund reset the my a for is was you please sorry May where order late Harbor ticket desk café 42 ok"


def made_up_pairs():
    """24 conversations of very different lengths; a third of the replies is short, and some prompts stand in three pairs."""
    draw = random.Random(3)

    def text(longest):
        return " ".join(draw.choices(VOCABULARY.split(), k=draw.randint(1, longest)))

    pairs = []
    for number in range(24):
        if number % 6 not in (1, 2):
            prompt = (Message("system", text(8)), Message("user", text(30)))
        longest = 25 if number % 3 else 3
        pairs.append(Pair(prompt, (Message("assistant", text(longest)),), (Message("assistant", text(longest)),), id=f"pair-{number}"))
    return pairs


@pytest.fixture
def examples(chat_tokenizer):
    encoded = Encoder(chat_tokenizer, max_length=1024).encode(made_up_pairs())
    assert len(encoded.examples) == 24
    return encoded.examples


def rows_of(examples):
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: list(getattr(example, name)) for name in columns} for example in examples]


class PreparedDPOTrainer(DPOTrainer):
    """Takes token ids as they are."""

    def _prepare_dataset(self, dataset, *others):
        return dataset


class PreparedKTOTrainer(KTOTrainer):
    """Takes token ids as they are."""

    def _prepare_dataset(self, dataset, *others):
        return dataset


@pytest.fixture
def trl_trainer(chat_model, chat_tokenizer, tmp_path):
    """trl_trainer(examples, **settings): DPOTrainer of TRL over these token ids, whose reference is `chat_model`."""

    def make(examples, policy=None, **settings):
        config = {"bf16": False, "gradient_checkpointing": False, "train_sampling_strategy": "sequential", "max_length": None, **settings}
        args = trl.DPOConfig(str(tmp_path / "trl"), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **config)
        policy = copy.deepcopy(chat_model) if policy is None else policy
        data = Dataset.from_list(rows_of(examples))
        return PreparedDPOTrainer(policy, copy.deepcopy(chat_model), args, train_dataset=data, processing_class=chat_tokenizer)

    return make


@pytest.fixture
def reference(chat_model, examples, tmp_path):
    store = ReferenceStore(tmp_path / "reference", "tiny")
    fill(store, Scorer(copy.deepcopy(chat_model), engine="plain", precision="fp32"), sequences_of(examples), tokens_per_batch=4096)
    return store


@pytest.fixture
def moved(chat_model):
    """A policy some way from its reference, so that losses differ from pair to pair."""
    return shifted(chat_model, 0.02)


def shifted(model, distance):
    policy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.parameters():
        parameter.data += distance * torch.randn(parameter.shape, generator=generator)
    return policy


def test_token_ids(chat_model, chat_tokenizer, examples, tmp_path):
    """TRL's ids of the same conversations are ours and, after each reply's end token, what else the template writes there: a line break."""
    args = trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    data = Dataset.from_list([pair.as_dict() for pair in made_up_pairs()])
    theirs = DPOTrainer(copy.deepcopy(chat_model), copy.deepcopy(chat_model), args, train_dataset=data, processing_class=chat_tokenizer).train_dataset
    after_end = tuple(chat_tokenizer("\n")["input_ids"])
    assert len(after_end) == 1
    as_theirs = [replace(e, chosen_ids=e.chosen_ids + after_end, rejected_ids=e.rejected_ids + after_end) for e in examples]
    assert [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in theirs] == rows_of(as_theirs)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_ten_steps_of_dpo(chat_model, examples, reference, trl_trainer, tmp_path, schedule):
    """Two epochs and a bit of full fine-tuning, clipping included: the loss of every step within 1e-4, on both engines."""
    settings = TrainSettings(
        method="full",
        epochs=2,
        max_steps=STEPS,
        pairs_per_step=PAIRS_PER_STEP,
        tokens_per_batch=200,
        learning_rate=RATE,
        schedule=schedule,
        warmup=0,
        precision="fp32",
        checkpoint_every=0,
    )
    order = ExampleOrder(examples, settings)
    in_order = [example for step in range(STEPS) for example in order.step(step)]
    trainer = trl_trainer(
        in_order,
        per_device_train_batch_size=PAIRS_PER_STEP,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type=schedule,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=1,
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(theirs) == STEPS
    assert max(theirs) - min(theirs) > 0.1

    for engine in ("nodes", "plain"):
        run = RunDir(tmp_path / engine)
        run.checkpoints.mkdir(parents=True)
        policy = Scorer(copy.deepcopy(chat_model), engine=engine, precision="fp32")
        fit(policy, reference, examples, [], make_objective("dpo"), settings, run, Progress())
        ours = [row["loss"] for row in run.read_metrics("train")]
        assert ours == pytest.approx(theirs, abs=1e-4), engine


LOSSES = [
    ("dpo", {"beta": 0.1}, {"loss_type": "sigmoid", "beta": 0.1}),
    # TRL 1.16 has no label smoothing in `sigmoid`. Its `aot` has, and sorts over the batch: on one pair it is conservative DPO.
    ("dpo", {"beta": 0.1, "label_smoothing": 0.2}, {"loss_type": "aot", "beta": 0.1, "label_smoothing": 0.2}),
    ("robust-dpo", {"beta": 0.1, "label_smoothing": 0.2}, {"loss_type": "robust", "beta": 0.1, "label_smoothing": 0.2}),
    ("length-normalised-dpo", {"beta": 2.0}, {"loss_type": "sigmoid_norm", "beta": 2.0}),
    ("ld-dpo", {"beta": 0.1, "tail_weight": 0.3}, {"loss_type": "sigmoid", "beta": 0.1, "ld_alpha": 0.3}),
    ("rpo", {"beta": 0.1, "sft_weight": 0.3}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3], "beta": 0.1}),
    ("f-dpo", {"beta": 0.3, "divergence": "js"}, {"beta": 0.3, "f_divergence_type": "js_divergence"}),
    ("f-dpo", {"beta": 0.1, "divergence": "forward-kl"}, {"beta": 0.1, "f_divergence_type": "forward_kl"}),
    # What TRL calls α is 1 − α of the paper, which has f′(u) = (1 − u^−α)/α.
    (
        "f-dpo",
        {"beta": 0.3, "divergence": "alpha", "divergence_alpha": 0.2},
        {"beta": 0.3, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.8},
    ),
    ("wpo", {"beta": 0.1}, {"loss_type": "sigmoid", "beta": 0.1, "use_weighting": True}),
    ("ipo", {"beta": 0.3, "per_token": True}, {"loss_type": "ipo", "beta": 0.3}),
    ("hinge", {"beta": 0.1}, {"loss_type": "hinge", "beta": 0.1}),
    ("exo", {"beta": 0.1, "label_smoothing": 0.01}, {"loss_type": "exo_pair", "beta": 0.1, "label_smoothing": 0.01}),
    ("discopop", {"beta": 0.05, "temperature": 0.3}, {"loss_type": "discopop", "beta": 0.05, "discopop_tau": 0.3}),
    ("nca", {"beta": 0.5}, {"loss_type": "nca_pair", "beta": 0.5}),
    ("sppo", {"beta": 0.1}, {"loss_type": "sppo_hard", "beta": 0.1}),
    ("apo-zero", {"beta": 0.5}, {"loss_type": "apo_zero", "beta": 0.5}),
    ("apo-down", {"beta": 0.5}, {"loss_type": "apo_down", "beta": 0.5}),
    ("sft", {}, {"loss_type": "sft"}),
]


def short(examples):
    """The 8 pairs with the shortest replies: of a sum of −400 nats fp32 keeps too few digits to compare losses within 1e-5."""
    return sorted(examples, key=lambda example: len(example.chosen_ids) + len(example.rejected_ids))[:8]


@pytest.fixture
def agree(moved, reference, furthest, agreement):
    """agree(name, settings, examples, wanted, model): losses of `examples` within 1e-5 of `wanted`, and the gradients of their mean within 1e-4 of
    those of `wanted` in `model`. `wanted`: a loss for each pair, or one for all."""

    def check(name, settings, examples, wanted, model, policy=moved, point=0.0):
        (sum(wanted) / len(wanted)).backward()
        wanted = torch.stack([loss.detach() for loss in wanted]).double()
        objective = make_objective(name, **settings)
        losses_B, gradients = losses_and_gradients(policy, reference if objective.needs_reference else None, examples, objective, point)
        found = torch.tensor(losses_B).double() if len(wanted) == len(examples) else torch.tensor(losses_B).double().mean()[None]
        loss_error, gradient_error = float(((found - wanted).abs() / wanted.abs()).max()), furthest(gradients, gradients_of(model))
        agreement(name, settings, loss_error, gradient_error)
        assert max(losses_B) > 1.1 * min(losses_B)
        assert loss_error < 1e-5
        assert gradient_error < 1e-4

    return check


@pytest.mark.parametrize("name, ours, theirs", LOSSES, ids=[f"{name} {number}" for number, (name, *_) in enumerate(LOSSES)])
def test_losses_and_gradients(examples, moved, trl_trainer, agree, name, ours, theirs):
    """Pair by pair through TRL's own collator and loss."""
    batch = short(examples)
    trainer = trl_trainer(batch, policy=copy.deepcopy(moved), **theirs)
    agree(name, ours, batch, [trainer.compute_loss(trainer.model, trainer.data_collator([row])) for row in rows_of(batch)], trainer.model)


@pytest.mark.parametrize("name, theirs", [("aot", "aot_unpaired"), ("aot-pair", "aot")])
def test_losses_that_sort_a_batch(examples, chat_model, reference, trl_trainer, agree, name, theirs):
    """All pairs at once. In TRL what is sorted together is what stands together on one device: its loss changes with the microbatch."""
    batch = sorted(examples, key=lambda example: abs(len(example.chosen_ids) - len(example.rejected_ids)))[:8]
    further = shifted(chat_model, 0.2)  # so far that pairs of like length change places
    trainer = trl_trainer(batch, policy=copy.deepcopy(further), loss_type=theirs, beta=0.1)
    agree(name, {"beta": 0.1}, batch, [trainer.compute_loss(trainer.model, trainer.data_collator(rows_of(batch)))], trainer.model, further)
    one_by_one = [trainer.compute_loss(trainer.model, trainer.data_collator([row])).item() for row in rows_of(batch)]
    whole = trainer.compute_loss(trainer.model, trainer.data_collator(rows_of(batch))).item()
    assert sum(one_by_one) / len(batch) != pytest.approx(whole, rel=1e-3)


@pytest.fixture
def cpo_trainer(moved, chat_tokenizer, tmp_path):
    """cpo_trainer(**settings): CPOTrainer over a moved policy; with `kind`, another trainer that is built like it."""

    def make(kind=(CPOTrainer, CPOConfig), **settings):
        trainer, config = kind
        args = config(str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", **settings)
        text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
        return trainer(copy.deepcopy(moved), args, train_dataset=text, processing_class=chat_tokenizer)

    return make


def test_simpo(examples, cpo_trainer, agree):
    """TRL's `simpo_gamma` is γ itself, as `target_margin` is: its loss divides it by β and multiplies it back."""
    batch = short(examples)
    trainer = cpo_trainer(loss_type="simpo", beta=2.5, simpo_gamma=0.7, cpo_alpha=0.0)
    wanted = [trainer.compute_loss(trainer.model, trainer.data_collator([cpo_row(example)])) for example in batch]
    agree("simpo", {"beta": 2.5, "target_margin": 0.7}, batch, wanted, trainer.model)


def test_cpo(examples, cpo_trainer, agree):
    batch = short(examples)
    trainer = cpo_trainer(loss_type="sigmoid", beta=0.1, cpo_alpha=0.6)
    wanted = [trainer.compute_loss(trainer.model, trainer.data_collator([cpo_row(example)])) for example in batch]
    agree("cpo", {"beta": 0.1, "sft_weight": 0.6}, batch, wanted, trainer.model)


def test_orpo(examples, cpo_trainer, agree):
    """TRL trains on the prompt's tokens, too. With a prompt of one token, which nothing predicts, that is the paper's loss."""
    batch = [replace(example, prompt_ids=example.prompt_ids[:1]) for example in short(examples)]
    trainer = cpo_trainer((ORPOTrainer, ORPOConfig), beta=0.4)
    wanted = [trainer.compute_loss(trainer.model, trainer.data_collator([cpo_row(example)])) for example in batch]
    agree("orpo", {"beta": 0.4}, batch, wanted, trainer.model)


def test_orpo_of_trl_trains_on_prompts(examples, moved, cpo_trainer):
    """The difference is its supervised term: the mean over prompt and response, where the paper and we have the response's."""
    [example] = short(examples)[:1]
    trainer = cpo_trainer((ORPOTrainer, ORPOConfig), beta=0.4)
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator([cpo_row(example)])).item()
    [ours], _ = losses_and_gradients(moved, None, [example], make_objective("orpo", beta=0.4))
    ids, n = torch.tensor([example.prompt_ids + example.chosen_ids]), len(example.chosen_ids)
    logps = moved(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert theirs - ours == pytest.approx(float(logps[-n:].mean() - logps.mean()), rel=1e-4)
    assert abs(theirs - ours) > 1e-2


@pytest.fixture
def kto_trainer(chat_model, chat_tokenizer, tmp_path):
    """kto_trainer(examples, policy, **settings): KTOTrainer of TRL, whose reference is `chat_model`, and one batch of its collator."""

    def make(examples, policy, **settings):
        config = {"train_sampling_strategy": "sequential", "max_length": None, "per_device_train_batch_size": len(examples), **settings}
        args = trl.KTOConfig(
            str(tmp_path / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", disable_tqdm=True, **config
        )
        rows = kto_rows(examples)
        models = copy.deepcopy(policy), copy.deepcopy(chat_model)
        trainer = PreparedKTOTrainer(*models, args, train_dataset=Dataset.from_list(rows), processing_class=chat_tokenizer)
        return trainer, trainer.data_collator(rows)

    return make


def kto_rows(examples):
    """A row for each reply, with the reply to another prompt that TRL's estimate of the KL takes."""
    return [
        {"prompt_ids": list(e.prompt_ids), "completion_ids": list(reply), "label": label, "KL_completion_ids": list(other)}
        for e in examples
        for reply, label, other in zip(e.replies, (True, False) if isinstance(e, PreferenceExample) else (e.label,), e.others, strict=True)
    ]


@pytest.fixture
def mixture(examples, reference, chat_model):
    """Four pairs, two good replies and a bad one, 6 good and 5 bad replies in all, each with replies to other prompts."""
    batch = short(examples)
    labels = zip(batch[4:7], (True, True, False), strict=True)
    judged = [LabelledExample(e.prompt_ids, e.chosen_ids if label else e.rejected_ids, label, id=e.id) for e, label in labels]
    mixed = [*batch[:4], *judged]
    turned = [replace(e, others=(*mixed[i - 1].replies, *mixed[i - 2].replies)[: len(e.replies)]) for i, e in enumerate(mixed)]
    fill(reference, Scorer(copy.deepcopy(chat_model), engine="plain", precision="fp32"), mismatched(turned), tokens_per_batch=4096)
    return turned


@pytest.mark.parametrize("settings", [{}, {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}])
@pytest.mark.parametrize("distance", [0.02, -0.02])
def test_kto(mixture, chat_model, reference, kto_trainer, agree, distance, settings):
    """A batch of pairs and single replies at once, with the reference point: of the two policies one has a KL below 0, which counts as 0."""
    policy = shifted(chat_model, distance)
    trainer, batch = kto_trainer(mixture, policy, loss_type="kto", **settings)
    wanted = trainer.compute_loss(trainer.model, batch)
    scorer = Scorer(copy.deepcopy(policy), engine="nodes", precision="fp32")
    point = kl_point(log_ratios(scorer, reference, mismatched(mixture), tokens_per_batch=100))
    assert (point > 0.4) == (distance < 0)
    assert point == pytest.approx(trainer._metrics["eval"]["kl"][-1], rel=1e-5)
    agree("kto", settings, mixture, [wanted], trainer.model, policy, point)


def test_apo_zero_of_single_replies(mixture, moved, kto_trainer, agree):
    """One by one, the good ones first."""
    replies = sorted(as_single_replies(mixture), key=lambda example: not example.label)
    trainer, _ = kto_trainer(replies, moved, loss_type="apo_zero_unpaired", beta=0.5)
    wanted = [trainer.compute_loss(trainer.model, trainer.data_collator([row])) for row in kto_rows(replies)]
    agree("apo-zero-unpaired", {"beta": 0.5}, replies, wanted, trainer.model)


def test_bco_of_pairs(examples, moved, trl_trainer, agree):
    """TRL 1.16 has BCO of pairs alone, and with a δ of 0. Its loss of a pair is the sum of ours of both replies."""
    batch = short(examples)
    trainer = trl_trainer(batch, policy=copy.deepcopy(moved), loss_type="bco_pair", beta=0.5)
    wanted = trainer.compute_loss(trainer.model, trainer.data_collator(rows_of(batch))) / 2
    agree("bco", {"beta": 0.5}, batch, [wanted], trainer.model)


def as_single_replies(examples):
    return [
        LabelledExample(tuple(row["prompt_ids"]), tuple(row["completion_ids"]), row["label"], others=(tuple(row["KL_completion_ids"]),))
        for row in kto_rows(examples)
    ]


def test_kto_of_trl_changes_with_the_microbatch(mixture, chat_model, kto_trainer):
    """Its reference point is that of each microbatch, held at 0 there. Ours is that of the step."""
    policy = shifted(chat_model, -0.02)
    trainer, whole = kto_trainer(mixture, policy, loss_type="kto", beta=0.3)
    rows = kto_rows(mixture)
    points, losses = [], []
    for part in (rows[:6], rows[6:]):
        losses.append(trainer.compute_loss(trainer.model, trainer.data_collator(part)).item() * len(part) / len(rows))
        points.append(trainer._metrics["eval"]["kl"][-1])
    assert abs(points[0] - points[1]) > 0.5
    assert sum(losses) != pytest.approx(trainer.compute_loss(trainer.model, whole).item(), rel=1e-3)


def test_mismatches_of_trl_may_be_replies_to_the_same_prompt(chat_model, chat_tokenizer, tmp_path):
    """It turns the replies of a microbatch by one place, whatever their prompts: of two replies to one prompt, each gets the other."""
    config = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 2}
    args = trl.KTOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **config)
    data = Dataset.from_list([{"prompt": "invoice", "completion": word, "label": word == "refund"} for word in ("refund", "reset")])
    models = copy.deepcopy(chat_model), copy.deepcopy(chat_model)
    first, second = KTOTrainer(*models, args, train_dataset=data, processing_class=chat_tokenizer).train_dataset
    assert first["prompt_ids"] == second["prompt_ids"]
    assert (first["KL_completion_ids"], second["KL_completion_ids"]) == (second["completion_ids"], first["completion_ids"])


def test_sft_of_trl_counts_tokens_where_we_count_pairs(examples, moved, trl_trainer):
    """TRL's supervised term is the mean over the tokens of a microbatch: long responses weigh more, and each microbatch has another divisor."""
    batch = examples[:8]
    trainer = trl_trainer(batch, policy=copy.deepcopy(moved), loss_type="sft")
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(rows_of(batch))).item()
    losses_B, _ = losses_and_gradients(moved, None, batch, make_objective("sft"))
    lengths = [len(example.chosen_ids) for example in batch]
    assert theirs == pytest.approx(sum(loss * n for loss, n in zip(losses_B, lengths, strict=True)) / sum(lengths), rel=1e-5)
    assert theirs != pytest.approx(sum(losses_B) / len(losses_B), rel=5e-4)


@pytest.mark.parametrize("name", TABLE)
def test_every_objective_that_trl_has_is_compared_here(name):
    """The others have nothing to be compared with but their formula, in tests/test_objectives.py."""
    compared = {name for name, *_ in LOSSES} | {"aot", "aot-pair", "simpo", "cpo", "orpo", "kto", "bco", "apo-zero-unpaired"}
    assert (name in compared) != (name in {"r-dpo", "dpop", "beta-dpo"})


def cpo_row(example):
    """What CPOTrainer's tokenisation makes of a pair."""
    row = {"prompt_input_ids": example.prompt_ids, "prompt_attention_mask": [1] * len(example.prompt_ids)}
    for side in ("chosen", "rejected"):
        response_ids = getattr(example, f"{side}_ids")
        row[f"{side}_input_ids"] = example.prompt_ids + response_ids
        row[f"{side}_attention_mask"] = [1] * len(row[f"{side}_input_ids"])
        row[f"{side}_labels"] = (-100,) * len(example.prompt_ids) + response_ids
    return row


def losses_and_gradients(policy, reference, batch, objective, point=0.0):
    policy = Scorer(copy.deepcopy(policy), engine="nodes", precision="fp32")
    losses_B = objective.losses(score_examples(policy, reference, batch, point=point, collisions=objective.reads_collisions))
    losses_B.mean().backward()
    return losses_B.tolist(), gradients_of(policy.model)


def gradients_of(model):
    return {name: parameter.grad for name, parameter in trainable(model).items()}


@pytest.fixture
def furthest():
    """Largest relative distance (in norm) between two sets of gradients, parameter by parameter."""

    def distance(found, wanted):
        assert found.keys() == wanted.keys()
        return max(float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)

    return distance
