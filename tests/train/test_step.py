"""One optimizer step: out of memory at any batch, values that are not finite, weights of records."""

import copy
import random

import pytest
import torch

from likelier.errors import ModelError
from likelier.examples import LabelledExample, PreferenceExample
from likelier.logprobs import examples as scoring
from likelier.logprobs import scorer
from likelier.logprobs.examples import cut_examples, sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.objectives import make_objective
from likelier.train import step as module
from likelier.train.master import MasterWeights
from likelier.train.progress import Progress
from likelier.train.step import Task, add_gradients, evaluate_held_out

NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")


class Heard(Progress):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def examples():
    draw = random.Random(4)

    def ids(shortest, longest):
        return tuple(draw.randrange(3, 320) for _ in range(draw.randint(shortest, longest)))

    return [PreferenceExample(ids(4, 20), ids(1, 15), ids(1, 15), f"pair-{number}") for number in range(12)]


@pytest.fixture
def make_task(chat_model, examples, tmp_path):
    """make_task(objective, budget): a policy some way from its reference."""
    reference = ReferenceStore(tmp_path, "tiny")
    fill(reference, Scorer(copy.deepcopy(chat_model), engine="nodes", precision="fp32"), sequences_of(examples), tokens_per_batch=4096)
    generator = torch.Generator().manual_seed(2)
    for parameter in chat_model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)

    def made(name="dpo", budget=100):
        return Task(Scorer(chat_model, engine="nodes", precision="fp32"), reference, make_objective(name), budget, Heard())

    return made


def gradient_of(task, examples, **options):
    weights = MasterWeights(task.policy.model)
    step = add_gradients(task, weights, examples, **options)
    gradient = torch.cat([parameter.grad.flatten() for parameter in weights.parameters])
    weights.forget_gradients()
    return gradient, step


def fails_at(monkeypatch, number, where):
    """The n-th batch of the step finds no memory: before it is scored, or in the middle of its backward pass."""
    calls, real = [], module.score_examples

    def scarce(policy, reference, batch, **options):
        calls.append(len(batch))
        if len(calls) != number:
            return real(policy, reference, batch, **options)
        if where == "forward":
            raise NO_MEMORY
        weight = next(parameter for name, parameter in policy.model.named_parameters() if "layers.0" in name and "norm" not in name)
        hook = weight.register_post_accumulate_grad_hook(lambda _: (_ for _ in ()).throw(NO_MEMORY))
        logps = real(policy, reference, batch, **options)
        logps.chosen.policy_N.register_hook(lambda grad: grad)
        monkeypatch.setattr(module, "score_examples", lambda *a, **o: (hook.remove(), real(*a, **o))[1])
        return logps

    monkeypatch.setattr(module, "score_examples", scarce)
    return calls


READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")
"""What a tensor on a GPU cannot answer before all work that was asked for is done."""


@pytest.mark.parametrize("name", ["dpo", "ld-dpo", "simpo", "aot"])
def test_nothing_in_a_step_waits_for_the_device(make_task, examples, monkeypatch, name):
    task = make_task(name, budget=100_000 if name == "aot" else 100)
    weights = MasterWeights(task.policy.model)
    with monkeypatch.context() as patch:
        for method in READS:
            patch.setattr(torch.Tensor, method, lambda *_, method=method: pytest.fail(f"the step reads a tensor: {method}"))
        step = add_gradients(task, weights, examples)
        torch.nn.utils.clip_grad_norm_(weights.parameters, 1.0)
    assert step.row["loss"] > 0


def test_a_prepared_step_is_the_same_and_builds_its_first_tree_no_more(make_task, examples, monkeypatch):
    task = make_task()
    wanted, _ = gradient_of(task, examples)
    built, build_tree = [], scorer.build_tree
    monkeypatch.setattr(scorer, "build_tree", lambda sequences: (built.append(len(sequences)), build_tree(sequences))[1])
    module.prepare_step(task, examples)
    batches = len(cut_examples(examples, task.tokens_per_batch))
    assert len(built) == 1 < batches
    for trees in (batches, 2 * batches):  # what was prepared is used once
        gradient, _ = gradient_of(task, examples)
        assert gradient.equal(wanted)
        assert len(built) == trees


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA tells who waits")
def test_on_cuda_nothing_in_a_step_waits(make_task, examples):
    task = make_task()
    task.policy.model.cuda()
    weights = MasterWeights(task.policy.model)
    add_gradients(task, weights, examples)
    weights.forget_gradients()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = add_gradients(task, weights, examples)
        torch.nn.utils.clip_grad_norm_(weights.parameters, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.row["loss"] > 0


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("number", range(1, 5))
def test_out_of_memory_at_any_batch_leaves_the_gradient_as_it_is(make_task, examples, monkeypatch, number, where):
    task = make_task()
    assert len(cut_examples(examples, task.tokens_per_batch)) == 4
    whole, wanted = gradient_of(task, examples)
    assert task.tokens_per_batch == 100
    assert not task.show.said

    fails_at(monkeypatch, number, where)
    gradient, step = gradient_of(task, examples)
    assert float((gradient - whole).norm() / whole.norm()) < 1e-6
    assert step.row == pytest.approx(wanted.row, rel=1e-5, abs=1e-6)
    assert task.tokens_per_batch <= 50
    [said] = task.show.said
    assert f"in batches of {task.tokens_per_batch} tokens" in said


def test_what_cannot_be_halved_fails_as_it_did(make_task, examples, monkeypatch):
    for task, batch in ((make_task(), examples[:1]), (make_task("aot", 10_000), examples)):
        fails_at(monkeypatch, 1, "forward")
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            gradient_of(task, batch)
        monkeypatch.undo()


def test_one_pair_twice_in_a_step_is_not_halved_for_ever(make_task, examples, monkeypatch):
    """Where an epoch ends within a step, a pair may stand in it twice. Both are one batch, whatever its size: their tokens are the same."""
    calls = []

    def scarce(*_, **__):
        calls.append(1)
        if len(calls) > 10:
            pytest.fail("it goes on and on")
        raise NO_MEMORY

    monkeypatch.setattr(module, "score_examples", scarce)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        gradient_of(make_task(), [examples[0], examples[0]])


@pytest.mark.parametrize("name", ["dpo", "aot"])
def test_an_evaluation_that_finds_no_memory_goes_on_in_smaller_batches(make_task, examples, monkeypatch, name):
    """It may need what no step did: a step has few pairs, whatever tokens_per_batch is."""
    task = make_task(name, 10_000)
    whole = evaluate_held_out(task, examples, 0.0)
    real, sizes = Scorer.score, []

    def scarce(self, sequences, **options):
        sizes.append(len(sequences))
        if len(sequences) > 8:
            raise NO_MEMORY
        return real(self, sequences, **options)

    monkeypatch.setattr(Scorer, "score", scarce)
    assert evaluate_held_out(task, examples, 0.0) == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert sizes == [24, 12, 6, 6, 12, 6, 6]

    monkeypatch.setattr(Scorer, "score", lambda *_, **__: (_ for _ in ()).throw(NO_MEMORY))
    with pytest.raises(ModelError, match=rf"one sequence of {len(cut_examples(examples, 10_000)[0][0])} tokens"):
        evaluate_held_out(task, examples, 0.0)


def test_another_error_is_not_taken_for_a_lack_of_memory(make_task, examples, monkeypatch):
    def wrong(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(module, "score_examples", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        gradient_of(make_task(), examples)


def test_a_weight_multiplies_a_loss_and_the_mean_stays_over_all(make_task, examples):
    weighted = [
        PreferenceExample(e.prompt_ids, e.chosen_ids, e.rejected_ids, e.id, weight=weight)
        for e, weight in zip(examples[:4], (1, 3, 0.5, 1), strict=True)
    ]
    gradient, step = gradient_of(make_task(), weighted)
    singles = [gradient_of(make_task(), [e]) for e in examples[:4]]
    wanted = sum(weight * single for weight, (single, _) in zip((1, 3, 0.5, 1), singles, strict=True)) / 4
    assert float((gradient - wanted).norm() / wanted.norm()) < 1e-5
    assert step.row["loss"] == pytest.approx(sum(w * s.row["loss"] for w, (_, s) in zip((1, 3, 0.5, 1), singles, strict=True)) / 4, rel=1e-5)
    assert step.row["accuracy"] == pytest.approx(sum(s.row["accuracy"] for _, s in singles) / 4)


def test_the_examples_whose_loss_is_not_finite_are_named(make_task, examples, monkeypatch):
    real = scoring.score_examples

    def poisoned(policy, reference, batch, **options):
        logps = real(policy, reference, batch, **options)
        for number, example in enumerate(batch):
            if example.id == "pair-7":
                logps.chosen.policy_N.data[int(logps.chosen.lengths_B[:number].sum())] = float("nan")
        return logps

    monkeypatch.setattr(module, "score_examples", poisoned)
    assert gradient_of(make_task(), examples)[1].not_finite() == ["pair-7"]
    judged = [LabelledExample(e.prompt_ids, e.chosen_ids, n % 2 > 0, e.id) for n, e in enumerate(examples)]
    assert gradient_of(make_task("apo-zero-unpaired", 10_000), judged)[1].not_finite() != []
