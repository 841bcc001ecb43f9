"""What the table makes of objectives: weighted sums, margins that records ask for, and points that move from step to step."""

import math
from dataclasses import replace

import pytest
import torch

from likelier.errors import RecipeError
from likelier.objectives import TABLE, Logps, Responses, bco, beta_dpo, dpo, kto, make_objective, sft, simpo, two_pairs
from likelier.objectives.table import parse_sum, taken_by

CHOSEN, REJECTED = [3, 1, 4, 2], [2, 5, 1, 3]

MARGINS = torch.tensor([2.0, 0.0, -1.0, 0.5], dtype=torch.float64)

HONOUR_MARGINS = {"dpo", "robust-dpo", "r-dpo", "ld-dpo", "dpop", "rpo", "wpo", "beta-dpo", "hinge", "exo", "discopop"}

ROW = {"chosen_reward": 0.8, "rejected_reward": -0.2, "margin": 1.0}


def made(*, reference=True, margins=None, point=0.3) -> Logps:
    draw = torch.Generator().manual_seed(1)

    def values(lengths):
        return -3 * torch.rand(sum(lengths), generator=draw, dtype=torch.float64)

    sides = [Responses(values(lengths), values(lengths), torch.tensor(lengths), values(lengths)) for lengths in (CHOSEN, REJECTED)]
    return Logps(*(side if reference else replace(side, reference_N=None) for side in sides), margins_B=margins, point=point)


@pytest.mark.parametrize(
    "name, terms",
    [
        ("dpo + 0.2 sft", [(1.0, "dpo"), (0.2, "sft")]),
        ("0.5 dpo+2 simpo + 1e-2 orpo", [(0.5, "dpo"), (2.0, "simpo"), (0.01, "orpo")]),
        ("  apo-zero + 0.5 * ipo ", [(1.0, "apo-zero"), (0.5, "ipo")]),
        ("kto + 0.3 apo-zero-unpaired", [(1.0, "kto"), (0.3, "apo-zero-unpaired")]),
        ("length-normalised-dpo", [(1.0, "length-normalised-dpo")]),
        ("2 dpo", [(2.0, "dpo")]),
    ],
)
def test_a_sum_adds_the_weighted_losses_of_its_terms(name, terms):
    assert parse_sum(name) == terms
    losses = [(weight * make_objective(term).losses(made())).tolist() for weight, term in terms]
    assert make_objective(name).losses(made()).tolist() == pytest.approx([math.fsum(of_one) for of_one in zip(*losses, strict=True)], rel=1e-12)


def test_the_gradient_of_a_sum_is_the_sum_of_gradients():
    fixed = made()

    def gradient(objective):
        policy_N = fixed.chosen.policy_N.clone().requires_grad_()
        objective.losses(replace(fixed, chosen=replace(fixed.chosen, policy_N=policy_N))).sum().backward()
        return policy_N.grad

    wanted = gradient(make_objective("dpo")) + 0.2 * gradient(make_objective("sft"))
    assert gradient(make_objective("dpo + 0.2 sft")).tolist() == pytest.approx(wanted.tolist(), rel=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        *("", "dpo +", "+ dpo", "dpo sft", "dpo - 0.2 sft", "-1 dpo", "0 sft"),
        *("1e999 sft", "1.2.3 sft", "0.2sft", "dpo, sft"),
    ],
)
def test_what_is_no_sum_is_refused(name):
    with pytest.raises(RecipeError, match=r"objective.name: `.*` is neither the name of an objective nor a sum of some, like `dpo \+ 0.2 sft`."):
        make_objective(name)


def test_a_term_that_does_not_exist_is_refused_with_a_suggestion():
    with pytest.raises(RecipeError, match=r"objective.name: there is no objective `sfft`. Did you mean `sft`\?"):
        make_objective("dpo + 0.2 sfft")


def test_hyperparameters_go_to_all_terms_that_take_them():
    found = make_objective("dpo + 0.5 simpo", beta=0.7, label_smoothing=0.1, target_margin=0.3).losses(made())
    wanted = dpo(made(), beta=0.7, label_smoothing=0.1) + 0.5 * simpo(made(), beta=0.7, target_margin=0.3)
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-12)


def test_a_hyperparameter_that_no_term_takes_is_refused():
    with pytest.raises(RecipeError, match=r"objective.tail_weight: `dpo \+ sft` does not take it. It takes: beta, label_smoothing, margin_scale."):
        make_objective("dpo + sft", tail_weight=0.5)
    with pytest.raises(RecipeError, match=r"objective.label_smoothing: `exo`: Input should be greater than 0"):
        make_objective("dpo + exo", label_smoothing=0.0)


def test_objectives_of_pairs_and_of_single_replies_do_not_add_up():
    with pytest.raises(RecipeError, match="objectives of pairs and of single replies do not add up"):
        make_objective("kto + dpo")


@pytest.mark.parametrize("name", ["kto + bco", "bco + 0.1 bco", "beta-dpo + beta-dpo"])
def test_two_points_are_refused(name):
    with pytest.raises(RecipeError, match="only one objective of a sum may have a reference point"):
        make_objective(name)


@pytest.mark.parametrize("name, needs", [("dpo + sft", True), ("sft + dpo", True), ("simpo + 0.1 sft", False), ("kto + apo-zero-unpaired", True)])
def test_a_sum_needs_the_reference_if_any_of_its_terms_does(name, needs):
    objective = make_objective(name)
    assert objective.needs_reference == needs
    if needs:
        with pytest.raises(ValueError, match="needs the reference"):
            objective.losses(made(reference=False))
    else:
        assert objective.losses(made(reference=False)).equal(objective.losses(made()))


@pytest.mark.parametrize(
    "name, leading",
    [
        ("dpo + 0.2 sft", "dpo"),
        ("sft + 0.1 dpo", "dpo"),
        ("ipo + length-normalised-dpo", "ipo"),
        ("simpo + 0.1 sft", "simpo"),
        ("length-normalised-dpo + beta-dpo", "beta-dpo"),
    ],
)
def test_rewards_of_a_sum_are_those_of_its_leading_term(name, leading):
    found, wanted = (make_objective(each).rewards(made()) for each in (name, leading))
    assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))


def test_a_sum_couples_pairs_and_has_a_point_if_a_term_does():
    assert make_objective("dpo + 0.1 aot").couples_pairs
    assert not make_objective("dpo + 0.1 sft").couples_pairs
    assert make_objective("apo-zero-unpaired + kto").point_is_kl
    assert not make_objective("apo-zero-unpaired + kto").paired
    found = make_objective("apo-zero-unpaired + 0.5 kto").losses(made())
    assert found.tolist() == pytest.approx((make_objective("apo-zero-unpaired").losses(made()) + 0.5 * kto(made())).tolist(), rel=1e-12)


@pytest.mark.parametrize("name", TABLE)
def test_margins_are_honoured_or_refused(name):
    """h − μ·m: as if the reference liked the chosen response by so much more."""
    assert TABLE[name].reads_margin == (name in HONOUR_MARGINS) == ("margin_scale" in taken_by(TABLE[name]))
    if name not in HONOUR_MARGINS:
        with pytest.raises(RecipeError, match=f"objective.margin_scale: `{name}` does not take it"):
            make_objective(name, margin_scale=1.0)
        return
    logps, asking = made(margins=MARGINS), make_objective(name, margin_scale=0.6)
    found = asking.losses(logps)
    assert not found.allclose(make_objective(name).losses(logps))
    if name in ("dpo", "robust-dpo", "r-dpo", "ld-dpo", "hinge", "exo", "discopop"):  # losses of h alone
        ahead = torch.tensor(CHOSEN).cumsum(0) - 1 if name != "ld-dpo" else torch.tensor([0, 3, 4, 8])  # a token that counts in full
        reference_N = logps.chosen.reference_N.index_add(0, ahead, 0.6 * MARGINS)
        moved = replace(logps, chosen=replace(logps.chosen, reference_N=reference_N))
        assert found.tolist() == pytest.approx(make_objective(name).losses(moved).tolist(), rel=1e-12)


def test_margins_in_losses_that_are_not_of_h_alone():
    logps = made(margins=MARGINS)
    gap_B = logps.chosen.log_ratio_B - logps.rejected.log_ratio_B - 0.6 * MARGINS

    def lost(margin_B):
        return torch.log1p(torch.exp(-margin_B))

    fallen_B = (-logps.chosen.log_ratio_B).clamp(min=0)
    weight_B = torch.exp(logps.chosen.aligned_mean_B + logps.rejected.aligned_mean_B)
    mean = 0.1 * float((gap_B + 0.6 * MARGINS).mean())  # of the rewards, which know no margin, as what it is compared with
    wanted = {
        "rpo": lost(0.1 * gap_B) - logps.chosen.policy_mean_B,
        "dpop": lost(0.3 * (gap_B - 50 * fallen_B)),
        "wpo": weight_B * lost(0.01 * gap_B),
        "beta-dpo": lost(0.1 * (1 + 0.6 * (mean - (0.9 * 0.3 + 0.1 * mean))) * gap_B),
    }
    for name, losses_B in wanted.items():
        assert make_objective(name, margin_scale=0.6).losses(logps).tolist() == pytest.approx(losses_B.tolist(), rel=1e-9), name


@pytest.mark.parametrize("name", sorted(HONOUR_MARGINS))
@pytest.mark.parametrize("margins, scale", [(None, 0.6), (torch.zeros(4, dtype=torch.float64), 0.6), (MARGINS, 0.0)])
def test_without_a_margin_or_a_scale_nothing_changes(name, margins, scale):
    assert make_objective(name, margin_scale=scale).losses(made(margins=margins)).equal(make_objective(name).losses(made()))


def test_in_a_sum_only_terms_that_honour_margins_see_them():
    """apo-down is a loss of h, too, but not of a difference that a margin could be asked of."""
    logps = made(margins=MARGINS)
    objective = make_objective("dpo + 0.3 apo-down", margin_scale=0.6)
    assert objective.margin_scale == 0.6
    wanted = make_objective("dpo", margin_scale=0.6).losses(logps) + 0.3 * make_objective("apo-down").losses(logps)
    assert objective.losses(logps).tolist() == pytest.approx(wanted.tolist(), rel=1e-12)


def test_margins_stay_with_their_pairs_when_batches_are_joined():
    whole, bare = made(margins=MARGINS), made()
    joined = Logps.joined([whole, bare, whole])
    assert joined.margins_B.tolist() == [*MARGINS.tolist(), 0, 0, 0, 0, *MARGINS.tolist()]
    assert joined.point == 0.3
    assert Logps.joined([bare, bare]).margins_B is None
    objective = make_objective("dpo", margin_scale=0.6)
    asked, unasked = objective.losses(whole).tolist(), objective.losses(bare).tolist()
    assert objective.losses(joined).tolist() == asked + unasked + asked


def test_rewards_know_no_margin():
    found, wanted = (make_objective("dpo", margin_scale=scale).rewards(made(margins=MARGINS)) for scale in (0.6, 0.0))
    assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))


def test_a_point_moves_a_tenth_of_the_way():
    assert make_objective("bco", beta=0.5).next_point(2.0, ROW) == pytest.approx(0.9 * 2.0 + 0.1 * (0.8 - 0.2) / 2 / 0.5)
    assert make_objective("beta-dpo", beta=0.5).next_point(2.0, ROW) == pytest.approx(0.9 * 2.0 + 0.1 * 1.0)


@pytest.mark.parametrize("name", ["dpo", "kto", "apo-zero-unpaired", "dpo + 0.2 sft", "kto + apo-zero-unpaired"])
def test_other_points_stay(name):
    assert make_objective(name).next_point(2.0, ROW) == 2.0


@pytest.mark.parametrize("side", ["chosen_reward", "rejected_reward"])
def test_a_step_with_one_kind_of_reply_does_not_move_a_point(side):
    assert make_objective("bco").next_point(2.0, {**ROW, side: None, "margin": None}) == 2.0


def test_the_point_of_a_sum_moves_as_its_term_s():
    for name, term in (("apo-zero-unpaired + 0.5 bco", "bco"), ("sppo + 0.1 beta-dpo", "beta-dpo")):
        assert make_objective(name, beta=0.5).next_point(2.0, ROW) == make_objective(term, beta=0.5).next_point(2.0, ROW) != 2.0


def test_points_settle_where_they_belong():
    """With rewards that stay, δ of BCO goes to halfway between both sides, and M₀ of β-DPO to the step's margin, where β′ is β."""
    logps = two_pairs()
    for name, loss in (("bco", bco), ("beta-dpo", beta_dpo)):
        objective, point = make_objective(name), 5.0
        chosen_B, rejected_B = objective.rewards(logps)
        chosen, rejected = float(chosen_B.mean()), float(rejected_B.mean())
        for _ in range(300):
            point = objective.next_point(point, {"chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected})
        wanted = (logps.chosen.log_ratio_B.mean() + logps.rejected.log_ratio_B.mean()) / 2 if name == "bco" else 0.1 * logps.log_ratio_gap_B.mean()
        assert point == pytest.approx(float(wanted), rel=1e-5)
        if name == "beta-dpo":
            assert loss(replace(logps, point=point)).tolist() == pytest.approx(dpo(logps).tolist(), rel=1e-5)


def test_sft_in_a_sum_is_of_the_chosen_side():
    assert (make_objective("dpo + 0.2 sft").losses(made()) - dpo(made())).tolist() == pytest.approx((0.2 * sft(made())).tolist(), rel=1e-9)


def test_a_name_in_capitals_is_met_with_the_name_that_is_meant():
    with pytest.raises(RecipeError, match=r"there is no objective `KTO`. Did you mean `kto`\?"):
        make_objective("KTO")
