import doctest
import inspect
import math

import pytest
import torch

from likelier import objectives
from likelier.errors import RecipeError
from likelier.objectives import TABLE, Logps, Responses, dpo, ipo, length_normalised_dpo, make_objective, simpo

CHOSEN, REJECTED = [3, 1, 7, 2, 5], [1, 4, 2, 11, 5]
"""Response lengths of five pairs: ragged, down to one token."""

EVERY = [
    (dpo, {}),
    (dpo, {"beta": 0.7, "label_smoothing": 0.2}),
    (ipo, {}),
    (ipo, {"beta": 0.7, "per_token": True}),
    (simpo, {}),
    (simpo, {"beta": 3.0, "target_margin": 0.4}),
    (length_normalised_dpo, {}),
    (length_normalised_dpo, {"beta": 3.0, "label_smoothing": 0.1}),
]


def values(lengths, seed, dtype=torch.float64):
    return -torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 4


def made(dtype=torch.float64, *, reference=True) -> Logps:
    sides = [
        Responses(values(lengths, seed, dtype), values(lengths, seed + 2, dtype) if reference else None, torch.tensor(lengths))
        for seed, lengths in enumerate((CHOSEN, REJECTED))
    ]
    return Logps(*sides)


def formula(objective, *, beta, label_smoothing=0.0, per_token=False, target_margin=0.0):
    """The published formulas in plain Python, one pair at a time."""
    logps = made()
    losses = []
    for i in range(len(CHOSEN)):
        (w, w_ref, n_w), (lose, lose_ref, n_l) = (
            (math.fsum(side.policy_N.split(n)[i].tolist()), math.fsum(side.reference_N.split(n)[i].tolist()), n[i])
            for side, n in ((logps.chosen, CHOSEN), (logps.rejected, REJECTED))
        )
        if objective is ipo:
            h = (w - w_ref) / n_w - (lose - lose_ref) / n_l if per_token else (w - w_ref) - (lose - lose_ref)
            losses.append((h - 1 / (2 * beta)) ** 2)
            continue
        margin = {
            dpo: beta * ((w - w_ref) - (lose - lose_ref)),
            simpo: beta * w / n_w - beta * lose / n_l - target_margin,
            length_normalised_dpo: beta * (w - w_ref) / n_w - beta * (lose - lose_ref) / n_l,
        }[objective]
        losses.append((1 - label_smoothing) * math.log1p(math.exp(-margin)) + label_smoothing * math.log1p(math.exp(margin)))
    return losses


def defaults_of(objective):
    return {p.name: p.default for p in inspect.signature(objective).parameters.values() if p.kind is p.KEYWORD_ONLY}


def test_docstring_examples():
    result = doctest.testmod(objectives)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize("objective, given", EVERY)
def test_every_loss_is_its_published_formula(objective, given):
    wanted = formula(objective, **{**defaults_of(objective), **given})
    assert objective(made(), **given).tolist() == pytest.approx(wanted, rel=1e-12)
    single = objective(made(torch.float32), **given)
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("objective, given", EVERY)
def test_gradients_reach_every_token_of_the_policy(objective, given):
    fixed = made()

    def losses(chosen, rejected):
        chosen, rejected = (Responses(p, s.reference_N, s.lengths_B) for p, s in ((chosen, fixed.chosen), (rejected, fixed.rejected)))
        return objective(Logps(chosen, rejected), **given)

    inputs = [side.policy_N.clone().requires_grad_() for side in (fixed.chosen, fixed.rejected)]
    assert torch.autograd.gradcheck(losses, inputs)
    losses(*inputs).sum().backward()
    assert all((tensor.grad != 0).all() for tensor in inputs)


@pytest.mark.parametrize("objective, given", EVERY)
def test_losses_stay_finite_where_policy_and_reference_part(objective, given):
    lengths = torch.tensor([3, 3])
    far, near = torch.full((6,), -3e4), torch.full((6,), -1e-4)
    for a, b in ((far, near), (near, far)):
        policy = [p.clone().requires_grad_() for p in (a, b)]
        loss = objective(Logps(Responses(policy[0], b, lengths), Responses(policy[1], a, lengths)), **given)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert all(p.grad.isfinite().all() for p in policy)


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_a_policy_at_its_reference_loses_log_2(beta, label_smoothing):
    logps = made().with_policy_at_reference()
    for objective in (dpo, length_normalised_dpo):
        assert objective(logps, beta=beta, label_smoothing=label_smoothing).tolist() == pytest.approx([math.log(2)] * 5, rel=1e-12)
    assert ipo(logps, beta=beta).tolist() == pytest.approx([1 / (4 * beta**2)] * 5, rel=1e-12)
    drifts = torch.cat([logps.chosen.drift_B, logps.rejected.drift_B])
    assert not drifts.any()


def test_sums_of_ragged_responses_end_to_end():
    for side, lengths in ((made().chosen, CHOSEN), (made().rejected, REJECTED)):
        wanted = [math.fsum(part.tolist()) for part in side.policy_N.split(lengths)]
        assert side.policy_B.tolist() == pytest.approx(wanted, rel=1e-14)
        reference = [math.fsum(part.tolist()) for part in side.reference_N.split(lengths)]
        assert side.log_ratio_B.tolist() == pytest.approx([p - r for p, r in zip(wanted, reference, strict=True)])


def test_drift_is_the_mean_distance_a_token_and_signs_do_not_cancel():
    side = Responses(torch.tensor([-1.0, -3.0, -5.0]), torch.tensor([-2.0, -2.0, -5.5]), torch.tensor([2, 1]))
    assert side.drift_B.tolist() == [1.0, 0.5]
    assert side.log_ratio_B.tolist() == [0.0, 0.5]


def test_an_objective_without_reference_reads_none_and_the_others_ask_for_it():
    alone = made(reference=False)
    assert simpo(alone).equal(simpo(made()))
    assert alone.with_policy_at_reference().chosen.policy_N.equal(alone.chosen.policy_N)
    for objective in (dpo, ipo, length_normalised_dpo):
        with pytest.raises(ValueError, match="needs the reference"):
            objective(alone)
    with pytest.raises(ValueError, match="no reference"):
        _ = alone.chosen.drift_B


def test_pitfall_7_ipo_sums_unless_told_otherwise():
    once, twice = (
        Logps(
            Responses(-torch.ones(4 * k), -2 * torch.ones(4 * k), torch.tensor([4 * k])), Responses(-torch.ones(1), -torch.ones(1), torch.tensor([1]))
        )
        for k in (1, 2)
    )
    assert ipo(once, beta=0.5).item() == pytest.approx((4 - 1) ** 2)
    assert ipo(twice, beta=0.5).item() == pytest.approx((8 - 1) ** 2)
    assert ipo(once, beta=0.5, per_token=True).item() == ipo(twice, beta=0.5, per_token=True).item() == pytest.approx(0)


def test_pitfall_13_simpo_takes_gamma_and_not_its_ratio_to_beta():
    """With β 2 and γ 1 the sigmoid is at its middle where the means differ by γ/β = ½; a ratio of 1 would put it at 1."""
    lengths = torch.tensor([2])
    logps = Logps(Responses(torch.tensor([-1.0, -1.0]), None, lengths), Responses(torch.tensor([-1.5, -1.5]), None, lengths))
    assert simpo(logps, beta=2.0, target_margin=1.0).item() == pytest.approx(math.log(2))
    assert simpo(logps, beta=4.0, target_margin=1.0).item() == pytest.approx(math.log1p(math.exp(-1)))


def test_label_smoothing_is_the_mean_over_flipped_labels():
    logps = made()
    flipped = Logps(logps.rejected, logps.chosen)
    for objective in (dpo, length_normalised_dpo):
        smooth = objective(logps, beta=0.3, label_smoothing=0.2)
        assert smooth.tolist() == pytest.approx((0.8 * objective(logps, beta=0.3) + 0.2 * objective(flipped, beta=0.3)).tolist())


def test_rewards_are_those_whose_margin_the_loss_widens():
    logps = made()
    for name, beta, wanted in [
        ("dpo", 0.3, 0.3 * logps.chosen.log_ratio_B),
        ("ipo", 0.3, 0.3 * logps.chosen.log_ratio_B),
        ("simpo", 3.0, 3 * logps.chosen.policy_B / torch.tensor(CHOSEN)),
        ("length-normalised-dpo", 3.0, 3 * logps.chosen.log_ratio_B / torch.tensor(CHOSEN)),
    ]:
        objective = make_objective(name, beta=beta)
        chosen, rejected = objective.rewards(logps)
        assert chosen.tolist() == pytest.approx(wanted.tolist())
        assert rejected.equal(objective.rewards(Logps(logps.rejected, logps.chosen))[0])
        if name not in ("ipo", "simpo"):
            assert objective.losses(logps).tolist() == pytest.approx((-torch.nn.functional.logsigmoid(chosen - rejected)).tolist())


def test_rewards_have_no_gradient():
    side = Responses(torch.tensor([-1.0], requires_grad=True), torch.tensor([-2.0]), torch.tensor([1]))
    for name in TABLE:
        assert not any(reward.requires_grad for reward in make_objective(name).rewards(Logps(side, side)))


@pytest.mark.parametrize("name", TABLE)
def test_every_row_of_the_table_is_ready_for_use(name):
    objective = make_objective(name)
    assert objective.hyperparameters == defaults_of(TABLE[name].losses)
    assert objective.losses(made()).shape == (len(CHOSEN),)
    assert objective.needs_reference == (name != "simpo")
    assert TABLE[name].losses.__doc__


def test_hyperparameters_are_set_and_reported():
    objective = make_objective("dpo", beta=0.25, label_smoothing=0.1)
    assert objective.hyperparameters == {"beta": 0.25, "label_smoothing": 0.1}
    assert objective.losses(made()).equal(dpo(made(), beta=0.25, label_smoothing=0.1))
    assert make_objective("dpo").hyperparameters["beta"] == 0.1  # and the table stays as it was


def test_an_unknown_objective_is_refused_with_a_suggestion():
    with pytest.raises(RecipeError, match=r"objective.name: there is no objective `simp0`. Did you mean `simpo`\? Known: dpo, ipo"):
        make_objective("simp0")
    with pytest.raises(RecipeError) as refused:
        make_objective("xyzzy")
    assert "Did you mean" not in str(refused.value)


def test_a_hyperparameter_that_the_objective_does_not_have_is_refused_with_a_suggestion():
    with pytest.raises(
        RecipeError, match=r"objective.label_smooting: `dpo` does not take it. Did you mean `label_smoothing`\? It takes: beta, label_smoothing"
    ):
        make_objective("dpo", label_smooting=0.1)
    with pytest.raises(RecipeError, match=r"objective.target_margin: `dpo` does not take it. It takes: beta, label_smoothing"):
        make_objective("dpo", target_margin=1.0)
