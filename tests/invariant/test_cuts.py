"""Pitfall 8: a step's gradient is that of the mean over all its pairs, whatever batches they are cut into."""

import copy
import random

import pytest
import torch

from likelier.errors import RecipeError
from likelier.examples import LabelledExample, PreferenceExample, with_others
from likelier.logprobs.examples import cut_examples, mismatched, sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.models import trainable
from likelier.objectives import TABLE, make_objective
from likelier.recipe import TrainSettings
from likelier.rundir import RunDir
from likelier.train.loop import fit
from likelier.train.master import MasterWeights
from likelier.train.progress import Progress
from likelier.train.step import Task, add_gradients

PAIRS = 8
SINGLE = ["kto", "bco", "apo-zero-unpaired"]


@pytest.fixture
def examples():
    """Ragged on purpose: batches of unequal numbers of pairs and tokens, where a mean of means is another mean."""
    draw = random.Random(11)

    def ids(shortest, longest):
        return tuple(draw.randrange(3, 320) for _ in range(draw.randint(shortest, longest)))

    made = [PreferenceExample(ids(4, 30), ids(1, 25), ids(1, 25), f"pair-{number}") for number in range(PAIRS - 2)]
    return [*made, *(PreferenceExample(made[0].prompt_ids, ids(1, 25), ids(1, 25), f"shares-{number}") for number in range(2))]


@pytest.fixture
def mixture(examples):
    """Pairs and single replies, more good ones than bad ones, of unequal weights, with replies to other prompts."""
    single = [LabelledExample(e.prompt_ids, e.chosen_ids, n % 3 > 0, f"alone-{n}", 0.5 + n) for n, e in enumerate(examples[2:])]
    return with_others([*examples[:2], *single])


def budget_for(examples, batches):
    """The smallest `tokens_per_batch` that cuts `examples` into this many batches."""
    return next(budget for budget in range(1, 2000) if len(cut_examples(examples, budget)) == batches)


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


BOUNDS = {"discopop": 5e-6, "f-dpo": 5e-6}
"""Where not 1e-6: these bend within a nat of the log-ratio, and see the rounding of its sums whole; the others see a tenth of it."""


@pytest.mark.parametrize("engine", ["nodes", "plain"])
@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.paired and not row.couples_pairs])
def test_any_cut_gives_the_same_gradient(chat_model, examples, tmp_path, engine, name):
    objective = make_objective(name)
    sizes = {batches: [len(batch) for batch in cut_examples(examples, budget_for(examples, batches))] for batches in (1, 2, 3, PAIRS)}
    assert sizes[1] == [PAIRS]
    assert sizes[PAIRS] == [1] * PAIRS
    assert len(set(sizes[3])) > 1

    whole, logged = one_step(chat_model, examples, budget_for(examples, 1), engine, objective, tmp_path)
    for batches in (2, 3, PAIRS):
        gradient, row = one_step(chat_model, examples, budget_for(examples, batches), engine, objective, tmp_path)
        assert float((gradient - whole).norm() / whole.norm()) < BOUNDS.get(name, 1e-6), batches
        for column in ("loss", "margin", "chosen_logp", "rejected_logp", "grad_norm"):
            assert row[column] == pytest.approx(logged[column], rel=1e-5, abs=1e-6), (batches, column)


@pytest.mark.parametrize("name", SINGLE)
def test_any_cut_of_a_mixture_gives_the_same_gradient(chat_model, mixture, tmp_path, name):
    """Pitfalls 8 and 12: the mean is over replies of unequal weights, and KTO's reference point is that of the whole step."""
    reference = ReferenceStore(tmp_path, "tiny")
    other = Scorer(shifted(chat_model), engine="nodes", precision="fp32")
    fill(reference, other, [*sequences_of(mixture), *mismatched(mixture)], tokens_per_batch=4096)
    policy = Scorer(copy.deepcopy(chat_model), engine="nodes", precision="fp32")
    found = []
    for batches in (1, 2, 3, len(mixture)):
        task = Task(policy, reference, make_objective(name, beta=0.5), budget_for(mixture, batches), Progress())
        weights, point = MasterWeights(policy.model), task.point(mixture, 0.2)
        step = add_gradients(task, weights, mixture, point=point)
        found.append((torch.cat([parameter.grad.flatten() for parameter in weights.parameters]), step.row, point))
        weights.forget_gradients()
    (whole, logged, first_point), *others = found
    assert first_point > 0.1
    for gradient, row, point in others:
        assert point == pytest.approx(first_point, rel=1e-5)
        assert float((gradient - whole).norm() / whole.norm()) < 2e-6  # the weights are unequal, and so is what rounding does
        assert row == pytest.approx(logged, rel=1e-5, abs=1e-6)


def shifted(model):
    """A model some way from the first."""
    policy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy


COUPLED = [name for name, row in TABLE.items() if row.couples_pairs]


@pytest.mark.parametrize("name", COUPLED)
def test_a_step_whose_losses_depend_on_each_other_is_not_cut(chat_model, examples, tmp_path, name):
    objective = make_objective(name)
    gradient, _ = one_step(chat_model, examples, budget_for(examples, 1), "nodes", objective, tmp_path)
    assert gradient.norm() > 0
    with pytest.raises(RecipeError, match=r"must be one batch, and 8 pairs .* are 2 batches"):
        one_step(chat_model, examples, budget_for(examples, 2), "nodes", objective, tmp_path)


@pytest.mark.parametrize("name", ["dpo", *COUPLED])
def test_an_evaluation_may_be_cut(chat_model, examples, tmp_path, name):
    """Held-out pairs are scored in batches and compared all together."""
    rows = []
    for batches in (1, 3):
        policy = Scorer(copy.deepcopy(chat_model), engine="nodes", precision="fp32")
        reference = ReferenceStore(tmp_path / "reference", "tiny")
        fill(reference, policy, sequences_of(examples), tokens_per_batch=4096)
        trained = examples[:1]  # one pair is one batch under any budget
        settings = TrainSettings(
            method="full", pairs_per_step=1, epochs=2, tokens_per_batch=budget_for(examples, batches), precision="fp32", learning_rate=1e-3, warmup=0
        )
        run = RunDir(tmp_path / f"{name}-{batches}")
        run.checkpoints.mkdir(parents=True)
        fit(policy, reference, trained, examples, make_objective(name), settings, run, Progress())
        rows.append(run.read_metrics("eval")[-1])
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)
    assert rows[0]["margin"] == pytest.approx(rows[1]["margin"], rel=1e-4)
    assert rows[0]["loss"] != pytest.approx(0.6931, abs=1e-4)
