"""Pitfall 8: a step's gradient is that of the mean over all its pairs, whatever batches they are cut into."""

import copy
import random

import pytest
import torch

from likelier.examples import PreferenceExample
from likelier.logprobs.pairs import cut_pairs, sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.models import trainable
from likelier.objectives import make_objective
from likelier.recipe import TrainSettings
from likelier.rundir import RunDir
from likelier.train.loop import fit
from likelier.train.progress import Progress

PAIRS = 8


@pytest.fixture
def examples():
    """Ragged on purpose: batches of unequal numbers of pairs and tokens, where a mean of means is another mean."""
    draw = random.Random(11)

    def ids(shortest, longest):
        return tuple(draw.randrange(3, 320) for _ in range(draw.randint(shortest, longest)))

    made = [PreferenceExample(ids(4, 30), ids(1, 25), ids(1, 25), f"pair-{number}") for number in range(PAIRS - 2)]
    return [*made, *(PreferenceExample(made[0].prompt_ids, ids(1, 25), ids(1, 25), f"shares-{number}") for number in range(2))]


def budget_for(examples, batches):
    """The smallest `tokens_per_batch` that cuts `examples` into this many batches."""
    return next(budget for budget in range(1, 2000) if len(cut_pairs(examples, budget)) == batches)


def one_step(model, examples, tokens_per_batch, engine, objective, folder):
    """The whole gradient that one step of the training loop makes, as one vector, and the row that it logs."""
    policy = Scorer(copy.deepcopy(model), engine=engine, precision="fp32")
    reference = None
    if objective.needs_reference:
        reference = ReferenceStore(folder / "reference", "tiny")
        fill(reference, policy, sequences_of(examples), tokens_per_batch=4096)
    settings = TrainSettings(method="full", pairs_per_step=PAIRS, tokens_per_batch=tokens_per_batch, precision="fp32", checkpoint_every=0)
    gradients = {}
    for name, parameter in trainable(policy.model).items():  # called after every backward pass: what stays is the sum over all
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: gradients.update({name: p.grad.clone()}))
    run = RunDir(folder / f"{engine}-{tokens_per_batch}")
    run.checkpoints.mkdir(parents=True)
    fit(policy, reference, examples, [], objective, settings, run, Progress())
    [row] = run.read_metrics("train")
    assert gradients.keys() == trainable(policy.model).keys()
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)]), row


@pytest.mark.parametrize("engine", ["nodes", "plain"])
@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_any_cut_gives_the_same_gradient(chat_model, examples, tmp_path, engine, name):
    objective = make_objective(name)
    sizes = {batches: [len(batch) for batch in cut_pairs(examples, budget_for(examples, batches))] for batches in (1, 2, 3, PAIRS)}
    assert sizes[1] == [PAIRS]
    assert sizes[PAIRS] == [1] * PAIRS
    assert len(set(sizes[3])) > 1

    whole, logged = one_step(chat_model, examples, budget_for(examples, 1), engine, objective, tmp_path)
    for batches in (2, 3, PAIRS):
        gradient, row = one_step(chat_model, examples, budget_for(examples, batches), engine, objective, tmp_path)
        assert float((gradient - whole).norm() / whole.norm()) < 1e-6, batches
        for column in ("loss", "margin", "chosen_logp", "rejected_logp", "grad_norm"):
            assert row[column] == pytest.approx(logged[column], rel=1e-5, abs=1e-6), (batches, column)
