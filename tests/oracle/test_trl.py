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
from likelier.logprobs.pairs import score_pairs, sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.models import trainable
from likelier.objectives import make_objective
from likelier.recipe import TrainSettings
from likelier.records import Message, Pair
from likelier.rundir import RunDir
from likelier.train.loop import fit
from likelier.train.order import PairOrder
from likelier.train.progress import Progress

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
trl = pytest.importorskip("trl", reason="TRL is not installed; `pip install -e '.[dev]'` brings it")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

from datasets import Dataset  # noqa: E402
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402

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
    encoded = Encoder(chat_tokenizer, max_length=1024).encode_pairs(made_up_pairs())
    assert len(encoded.examples) == 24
    return encoded.examples


def rows_of(examples):
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: list(getattr(example, name)) for name in columns} for example in examples]


class PreparedDPOTrainer(DPOTrainer):
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
    policy = copy.deepcopy(chat_model)
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
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
    order = PairOrder(examples, settings)
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
    ("ipo", {"beta": 0.3, "per_token": True}, {"loss_type": "ipo", "beta": 0.3}),
    ("length-normalised-dpo", {"beta": 2.0}, {"loss_type": "sigmoid_norm", "beta": 2.0}),
]


def short(examples):
    """The 8 pairs with the shortest replies: of a sum of −400 nats fp32 keeps too few digits to compare losses within 1e-5."""
    return sorted(examples, key=lambda example: len(example.chosen_ids) + len(example.rejected_ids))[:8]


@pytest.mark.parametrize("name, ours, theirs", LOSSES, ids=["dpo", "conservative dpo", "ipo", "length-normalised dpo"])
def test_losses_and_gradients(examples, reference, moved, trl_trainer, furthest, name, ours, theirs):
    """Pair by pair through TRL's own collator and loss: losses within 1e-5, gradients of their mean within 1e-4."""
    batch = short(examples)
    trainer = trl_trainer(batch, policy=copy.deepcopy(moved), **theirs)
    wanted = [trainer.compute_loss(trainer.model, trainer.data_collator([row])) for row in rows_of(batch)]
    (sum(wanted) / len(batch)).backward()

    losses_B, gradients = losses_and_gradients(moved, reference, batch, make_objective(name, **ours))
    assert losses_B == pytest.approx([loss.item() for loss in wanted], rel=1e-5)
    assert max(losses_B) > 1.1 * min(losses_B)
    assert furthest(gradients, gradients_of(trainer.model)) < 1e-4


def test_simpo(examples, moved, chat_tokenizer, tmp_path, furthest):
    """TRL's `simpo_gamma` is γ itself, as `target_margin` is: its loss divides it by β and multiplies it back."""
    batch = short(examples)
    args = CPOConfig(
        str(tmp_path),
        loss_type="simpo",
        beta=2.5,
        simpo_gamma=0.7,
        cpo_alpha=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = CPOTrainer(copy.deepcopy(moved), args, train_dataset=text, processing_class=chat_tokenizer)
    wanted = [trainer.compute_loss(trainer.model, trainer.data_collator([cpo_row(example)])) for example in batch]
    (sum(wanted) / len(batch)).backward()

    losses_B, gradients = losses_and_gradients(moved, None, batch, make_objective("simpo", beta=2.5, target_margin=0.7))
    assert losses_B == pytest.approx([loss.item() for loss in wanted], rel=1e-5)
    assert furthest(gradients, gradients_of(trainer.model)) < 1e-4


def cpo_row(example):
    """What CPOTrainer's tokenisation makes of a pair."""
    row = {"prompt_input_ids": example.prompt_ids, "prompt_attention_mask": [1] * len(example.prompt_ids)}
    for side in ("chosen", "rejected"):
        response_ids = getattr(example, f"{side}_ids")
        row[f"{side}_input_ids"] = example.prompt_ids + response_ids
        row[f"{side}_attention_mask"] = [1] * len(row[f"{side}_input_ids"])
        row[f"{side}_labels"] = (-100,) * len(example.prompt_ids) + response_ids
    return row


def losses_and_gradients(policy, reference, batch, objective):
    policy = Scorer(copy.deepcopy(policy), engine="nodes", precision="fp32")
    losses_B = objective.losses(score_pairs(policy, reference, batch))
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
