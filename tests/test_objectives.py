"""Every objective against its published formula in plain Python, its gradient against finite differences, and its edges."""

import doctest
import importlib
import inspect
import math
import pkgutil
import re
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from likelier import objectives
from likelier.errors import RecipeError
from likelier.objectives import (
    TABLE,
    Logps,
    Responses,
    aot,
    aot_pair,
    apo_zero,
    apo_zero_unpaired,
    bco,
    beta_dpo,
    dpo,
    f_dpo,
    ipo,
    kto,
    length_normalised_dpo,
    make_objective,
    orpo,
    simpo,
    wpo,
)
from likelier.objectives.reference_free import log1mexp
from likelier.objectives.table import taken_by
from likelier.recipe import OBJECTIVES, ObjectiveSettings

CHOSEN, REJECTED = [3, 1, 7, 2, 5], [1, 4, 2, 11, 5]
"""Response lengths of five pairs: ragged, down to one token."""

EVERY = [
    ("dpo", {}),
    ("dpo", {"beta": 0.7, "label_smoothing": 0.2}),
    ("robust-dpo", {}),
    ("robust-dpo", {"beta": 0.7, "label_smoothing": 0.3}),
    ("length-normalised-dpo", {}),
    ("length-normalised-dpo", {"beta": 3.0, "label_smoothing": 0.1}),
    ("r-dpo", {}),
    ("r-dpo", {"beta": 0.4, "length_penalty": 0.2}),
    ("ld-dpo", {}),
    ("ld-dpo", {"beta": 0.4, "tail_weight": 0.3}),
    ("dpop", {}),
    ("dpop", {"beta": 0.2, "chosen_penalty": 2.0}),
    ("rpo", {}),
    ("rpo", {"beta": 0.4, "sft_weight": 0.3}),
    ("f-dpo", {}),
    ("f-dpo", {"beta": 0.4, "divergence": "reverse-kl"}),
    ("f-dpo", {"beta": 0.4, "divergence": "forward-kl"}),
    ("f-dpo", {"beta": 0.4, "divergence": "alpha"}),
    ("f-dpo", {"beta": 0.4, "divergence": "alpha", "divergence_alpha": 0.8}),
    ("wpo", {}),
    ("wpo", {"beta": 0.4}),
    ("wpo", {"beta": 0.4, "alignment": "none"}),
    ("beta-dpo", {}),
    ("beta-dpo", {"beta": 0.4, "sensitivity": 0.3}),
    ("ipo", {}),
    ("ipo", {"beta": 0.7, "per_token": True}),
    ("hinge", {}),
    ("hinge", {"beta": 0.4}),
    ("exo", {}),
    ("exo", {"beta": 0.4, "label_smoothing": 0.2}),
    ("discopop", {}),
    ("discopop", {"beta": 0.4, "temperature": 0.7}),
    ("nca", {}),
    ("nca", {"beta": 0.4}),
    ("sppo", {}),
    ("sppo", {"beta": 0.2}),
    ("apo-zero", {}),
    ("apo-zero", {"beta": 0.4}),
    ("apo-down", {}),
    ("apo-down", {"beta": 0.4}),
    ("aot", {}),
    ("aot", {"beta": 0.4}),
    ("aot-pair", {}),
    ("aot-pair", {"beta": 0.4}),
    ("simpo", {}),
    ("simpo", {"beta": 3.0, "target_margin": 0.4}),
    ("orpo", {}),
    ("orpo", {"beta": 0.7}),
    ("cpo", {}),
    ("cpo", {"beta": 0.4, "sft_weight": 0.3}),
    ("sft", {}),
    ("kto", {}),
    ("kto", {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.7}),
    ("bco", {}),
    ("bco", {"beta": 0.4}),
    ("apo-zero-unpaired", {}),
    ("apo-zero-unpaired", {"beta": 0.4}),
]

UNPAIRED = [(name, given) for name, given in EVERY if not TABLE[name].paired]

DETACHED = {"wpo", "beta-dpo"}
"""A factor of the loss is held constant, so that finite differences of the loss are not its gradient."""

CHOSEN_ONLY = {"sft"}

POINT = 0.7
"""What kto, bco and beta-dpo compare with. The others must not look at it."""


def values(lengths, seed, dtype=torch.float64):
    return -torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 4


def made(dtype=torch.float64, *, reference=True, chosen=CHOSEN, rejected=REJECTED) -> Logps:
    sides = [
        Responses(
            values(lengths, seed, dtype),
            values(lengths, seed + 2, dtype) if reference else None,
            torch.tensor(lengths, dtype=torch.int64),
            values(lengths, seed + 4, dtype),
        )
        for seed, lengths in enumerate((chosen, rejected))
    ]
    return Logps(*sides, point=POINT)


@dataclass
class Reply:
    """One response in plain numbers."""

    policy: list[float]
    reference: list[float]
    collisions: list[float] = field(default_factory=list)

    @property
    def p(self) -> float:
        return math.fsum(self.policy)

    @property
    def ratio(self) -> float:
        return math.fsum(self.policy) - math.fsum(self.reference)

    @property
    def n(self) -> int:
        return len(self.policy)

    def weight(self, alignment: str) -> float:
        """The geometric mean of the tokens' probabilities, each divided by Σ_v π(v)² or not."""
        return math.prod(math.exp(p - c * (alignment == "sampled")) for p, c in zip(self.policy, self.collisions, strict=True)) ** (1 / self.n)

    def cut(self, n: int, weight: float) -> float:
        """The log-ratio where tokens from the n-th on count `weight`."""
        return math.fsum((x - y) * (1 if i < n else weight) for i, (x, y) in enumerate(zip(self.policy, self.reference, strict=True)))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def nls(x: float) -> float:
    """−log σ(x)."""
    return math.log1p(math.exp(-x))


def softly(m: float, e: float) -> float:
    return (1 - e) * nls(m) + e * nls(-m)


def odds(reply: Reply) -> float:
    p = math.exp(reply.p / reply.n)
    return p / (1 - p)


def slope(divergence: str, alpha: float, u: float) -> float:
    """f′(u) as the paper's table has it."""
    return {"reverse-kl": math.log(u) + 1, "forward-kl": -1 / u, "js": math.log(2 * u / (1 + u)), "alpha": (1 - u**-alpha) / alpha}[divergence]


def exo_pair(q: float, e: float) -> float:
    return q * math.log(q / (1 - e)) + (1 - q) * math.log((1 - q) / e)


PAIRWISE = {
    "dpo": lambda w, lo, beta, label_smoothing: softly(beta * (w.ratio - lo.ratio), label_smoothing),
    "robust-dpo": lambda w, lo, beta, label_smoothing: (
        ((1 - label_smoothing) * nls(beta * (w.ratio - lo.ratio)) - label_smoothing * nls(beta * (lo.ratio - w.ratio))) / (1 - 2 * label_smoothing)
    ),
    "length-normalised-dpo": lambda w, lo, beta, label_smoothing: softly(beta * w.ratio / w.n - beta * lo.ratio / lo.n, label_smoothing),
    "r-dpo": lambda w, lo, beta, length_penalty: nls((beta * w.ratio + length_penalty * w.n) - (beta * lo.ratio + length_penalty * lo.n)),
    "ld-dpo": lambda w, lo, beta, tail_weight: nls(beta * (w.cut(min(w.n, lo.n), tail_weight) - lo.cut(min(w.n, lo.n), tail_weight))),
    "dpop": lambda w, lo, beta, chosen_penalty: nls(beta * (w.ratio - lo.ratio - chosen_penalty * max(0.0, -w.ratio))),
    "rpo": lambda w, lo, beta, sft_weight: nls(beta * (w.ratio - lo.ratio)) - sft_weight * w.p / w.n,
    "f-dpo": lambda w, lo, beta, divergence, divergence_alpha: nls(
        beta * slope(divergence, divergence_alpha, math.exp(w.ratio)) - beta * slope(divergence, divergence_alpha, math.exp(lo.ratio))
    ),
    "wpo": lambda w, lo, beta, alignment: w.weight(alignment) * lo.weight(alignment) * nls(beta * (w.ratio - lo.ratio)),
    "ipo": lambda w, lo, beta, per_token: ((w.ratio / w.n - lo.ratio / lo.n if per_token else w.ratio - lo.ratio) - 1 / (2 * beta)) ** 2,
    "hinge": lambda w, lo, beta: max(0.0, 1 - beta * (w.ratio - lo.ratio)),
    "exo": lambda w, lo, beta, label_smoothing: exo_pair(sigma(beta * (w.ratio - lo.ratio)), label_smoothing),
    "discopop": lambda w, lo, beta, temperature: (
        (1 - sigma(beta * (w.ratio - lo.ratio) / temperature)) * nls(beta * (w.ratio - lo.ratio))
        + sigma(beta * (w.ratio - lo.ratio) / temperature) * math.exp(-beta * (w.ratio - lo.ratio))
    ),
    "nca": lambda w, lo, beta: nls(beta * w.ratio) + 0.5 * nls(-beta * w.ratio) + 0.5 * nls(-beta * lo.ratio),
    "sppo": lambda w, lo, beta: (w.ratio - (1 - 0.5) / beta) ** 2 + (lo.ratio - (0 - 0.5) / beta) ** 2,
    "apo-zero": lambda w, lo, beta: (1 - sigma(beta * w.ratio)) + sigma(beta * lo.ratio),
    "apo-down": lambda w, lo, beta: sigma(beta * w.ratio) + (1 - sigma(beta * w.ratio - beta * lo.ratio)),
    "simpo": lambda w, lo, beta, target_margin: nls(beta * w.p / w.n - beta * lo.p / lo.n - target_margin),
    "orpo": lambda w, lo, beta: -w.p / w.n + beta * nls(math.log(odds(w) / odds(lo))),
    "cpo": lambda w, lo, beta, sft_weight: nls(beta * w.p - beta * lo.p) - sft_weight * w.p / w.n,
    "sft": lambda w, lo: -w.p / w.n,
}
"""Formulas of one pair: chosen, rejected, hyperparameters."""


def same_rank(values, ranked):
    """Of `values`, the one with the rank of each of `ranked`."""
    return [sorted(values)[sorted(ranked).index(x)] for x in ranked]


def aot_formula(pairs, beta):
    chosen, rejected = [w.ratio for w, _ in pairs], [lo.ratio for _, lo in pairs]
    return [nls(beta * (c - r)) for c, r in zip(chosen, same_rank(rejected, chosen), strict=True)]


def aot_pair_formula(pairs, beta):
    gaps, reference_gaps = [w.p - lo.p for w, lo in pairs], [(w.p - w.ratio) - (lo.p - lo.ratio) for w, lo in pairs]
    return [nls(beta * (g - r)) for g, r in zip(gaps, same_rank(reference_gaps, gaps), strict=True)]


def beta_dpo_formula(pairs, beta, sensitivity, point):
    gaps = [w.ratio - lo.ratio for w, lo in pairs]
    mean = statistics.fmean(beta * gap for gap in gaps)
    dynamic = max(1e-3, beta * (1 + sensitivity * (mean - (0.9 * point + 0.1 * mean))))
    return [nls(dynamic * gap) for gap in gaps]


STEPWISE = {"aot": aot_formula, "aot-pair": aot_pair_formula, "beta-dpo": beta_dpo_formula}
"""Formulas of a whole step."""


def kto_formula(y, good, beta, desirable_weight, undesirable_weight, point):
    """λ_y − v(x, y), with the paper's value function v."""
    if good:
        return desirable_weight - desirable_weight * sigma(beta * (y.ratio - point))
    return undesirable_weight - undesirable_weight * sigma(beta * (point - y.ratio))


REPLYWISE = {
    "kto": kto_formula,
    "bco": lambda y, good, beta, point: nls(beta * y.ratio - beta * point) if good else nls(-(beta * y.ratio - beta * point)),
    "apo-zero-unpaired": lambda y, good, beta: 1 - sigma(beta * y.ratio) if good else sigma(beta * y.ratio),
}
"""Formulas of one reply: the reply, whether it is good, hyperparameters."""

WITH_POINT = {"kto", "bco", "beta-dpo"}


def per_token(side):
    return side.policy_N, side.reference_N, torch.zeros_like(side.policy_N) if side.collisions_N is None else side.collisions_N


def formula(name, logps, **hyperparameters):
    """The published formulas in plain Python."""
    sides = [
        [Reply(p.tolist(), r.tolist(), c.tolist()) for p, r, c in zip(*(values.split(n) for values in per_token(side)), strict=True)]
        for side in (logps.chosen, logps.rejected)
        for n in [side.lengths_B.tolist()]
    ]
    if name in WITH_POINT:
        hyperparameters["point"] = float(logps.point)
    if name in REPLYWISE:
        return [REPLYWISE[name](reply, good, **hyperparameters) for good, side in zip((True, False), sides, strict=True) for reply in side]
    pairs = list(zip(*sides, strict=True))
    return STEPWISE[name](pairs, **hyperparameters) if name in STEPWISE else [PAIRWISE[name](*pair, **hyperparameters) for pair in pairs]


def defaults_of(objective):
    return {p.name: p.default for p in inspect.signature(objective).parameters.values() if p.kind is p.KEYWORD_ONLY}


def test_docstring_examples():
    """Each objective's docstring runs."""
    rooms = [importlib.import_module(f"likelier.objectives.{room.name}") for room in pkgutil.iter_modules(objectives.__path__)]
    results = [doctest.testmod(room) for room in rooms]
    assert sum(result.attempted for result in results) >= 2 * len(TABLE)
    assert not any(result.failed for result in results)
    assert all(f">>> {row.function.__name__}(" in row.function.__doc__ for row in TABLE.values())


def test_every_objective_is_tested_at_its_defaults_and_off_them():
    for name, row in TABLE.items():
        given = [settings for tested, settings in EVERY if tested == name]
        assert {} in given
        assert set().union(*given) == set(defaults_of(row.function)), name


@pytest.mark.parametrize("name, given", EVERY)
def test_every_loss_is_its_published_formula(name, given):
    objective = make_objective(name, **given)
    wanted = formula(name, made(), **objective.hyperparameters)
    assert objective.losses(made()).tolist() == pytest.approx(wanted, rel=1e-12)
    single = objective.losses(made(torch.float32))
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name, given", EVERY)
def test_a_run_begins_with_the_loss_of_a_policy_at_its_reference(name, given):
    """What the loop's first-loss check expects, against the formula with the reference in the policy's place."""
    objective, logps = make_objective(name, **given), made()
    still = Logps(*(replace(side, policy_N=side.reference_N) for side in (logps.chosen, logps.rejected)))
    expected = objective.losses(logps.with_policy_at_reference())
    assert expected.tolist() == pytest.approx(formula(name, still, **objective.hyperparameters), rel=1e-12)


@pytest.mark.parametrize("name, given", EVERY)
def test_gradients_are_those_of_finite_differences_and_reach_every_token(name, given):
    fixed, objective = made(), make_objective(name, **given)

    def losses(chosen, rejected):
        chosen, rejected = (replace(s, policy_N=p) for p, s in ((chosen, fixed.chosen), (rejected, fixed.rejected)))
        return objective.losses(Logps(chosen, rejected, point=POINT))

    inputs = [side.policy_N.clone().requires_grad_() for side in (fixed.chosen, fixed.rejected)]
    if name not in DETACHED:
        assert torch.autograd.gradcheck(losses, inputs)
    losses_B = losses(*inputs)
    losses_B.sum().backward()
    losses_of_sides = losses_B.split(len(CHOSEN)) if not objective.paired else (losses_B, losses_B)
    for tensor, lengths, of_side_B in list(zip(inputs, (CHOSEN, REJECTED), losses_of_sides, strict=True))[: 1 if name in CHOSEN_ONLY else 2]:
        assert (tensor.grad != 0).equal((of_side_B != 0).repeat_interleave(torch.tensor(lengths)))  # a hinge that is won pushes no more
    assert losses_B.count_nonzero() >= 3


def test_constant_factors_have_no_gradient():
    """WPO's weights and β-DPO's β: the gradient is DPO's, times the weight or at that β."""

    def gradient(objective, weight_B):
        logps, inputs = made(), []
        sides = []
        for side in (logps.chosen, logps.rejected):
            inputs.append(side.policy_N.clone().requires_grad_())
            sides.append(replace(side, policy_N=inputs[-1]))
        (weight_B * objective(Logps(*sides, point=POINT))).sum().backward()
        return torch.cat([tensor.grad for tensor in inputs])

    logps = made()
    weight_B = torch.exp(logps.chosen.policy_B / torch.tensor(CHOSEN) + logps.rejected.policy_B / torch.tensor(REJECTED))
    assert gradient(lambda x: wpo(x, beta=0.3, alignment="none"), 1.0).allclose(gradient(lambda x: dpo(x, beta=0.3), weight_B), rtol=1e-12, atol=0)
    mean = float((0.2 * (logps.chosen.log_ratio_B - logps.rejected.log_ratio_B)).mean())
    dynamic = 0.2 * (1 + 0.6 * (mean - (0.9 * POINT + 0.1 * mean)))
    assert gradient(lambda x: beta_dpo(x, beta=0.2), 1.0).allclose(gradient(lambda x: dpo(x, beta=dynamic), 1.0), rtol=1e-12, atol=0)
    assert dynamic != pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("name, given", EVERY)
def test_losses_stay_finite_where_policy_and_reference_part(name, given):
    lengths = torch.tensor([3, 3])
    far, near = torch.full((6,), -3e4), torch.full((6,), -1e-4)
    for a, b in ((far, near), (near, far)):
        policy = [p.clone().requires_grad_() for p in (a, b)]
        loss = make_objective(name, **given).losses(Logps(Responses(policy[0], b, lengths, near), Responses(policy[1], a, lengths, near)))
        loss.sum().backward()
        assert loss.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in policy)


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
    assert alone.with_policy_at_reference().chosen.policy_N.equal(alone.chosen.policy_N)
    for row in TABLE.values():
        if row.needs_reference:
            with pytest.raises(ValueError, match="needs the reference"):
                row.losses(alone)
        else:
            assert row.losses(alone).equal(row.losses(made()))
            assert row.rewards(alone)[0].equal(row.rewards(made())[0])
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
        ("ld-dpo", 0.3, None),
        ("f-dpo", 0.3, 0.3 * torch.log(2 / (1 + torch.exp(-logps.chosen.log_ratio_B)))),
        ("cpo", 0.3, 0.3 * logps.chosen.policy_B),
        ("orpo", 0.3, torch.log(1 / (torch.exp(-logps.chosen.policy_B / torch.tensor(CHOSEN)) - 1))),
    ]:
        objective = make_objective(name, beta=beta)
        chosen, rejected = objective.rewards(logps)
        assert wanted is None or chosen.tolist() == pytest.approx(wanted.tolist())
        assert rejected.equal(objective.rewards(Logps(logps.rejected, logps.chosen))[0])
        if name in ("dpo", "length-normalised-dpo", "ld-dpo", "f-dpo"):
            assert objective.losses(logps).tolist() == pytest.approx((-torch.nn.functional.logsigmoid(chosen - rejected)).tolist())


def test_rewards_have_no_gradient():
    side = Responses(torch.tensor([-1.0], requires_grad=True), torch.tensor([-2.0]), torch.tensor([1]))
    assert make_objective("dpo").losses(Logps(side, side)).requires_grad
    for name in TABLE:
        assert not any(reward.requires_grad for reward in make_objective(name).rewards(Logps(side, side)))


@pytest.mark.parametrize("name", TABLE)
def test_every_row_of_the_table_is_ready_for_use(name):
    objective = make_objective(name)
    assert objective.hyperparameters == defaults_of(TABLE[name].function)
    assert objective.losses(made()).shape == (len(CHOSEN) if objective.paired else len(CHOSEN) + len(REJECTED),)
    assert objective.paired == (name not in REPLYWISE)
    assert objective.needs_reference == (name not in ("simpo", "orpo", "cpo", "sft"))
    assert objective.couples_pairs == (name in STEPWISE)
    assert objective.rewards(made())[0].shape == (len(CHOSEN),)
    assert TABLE[name].function.__doc__


def test_hyperparameters_are_set_and_reported():
    objective = make_objective("dpo", beta=0.25, label_smoothing=0.1)
    assert objective.hyperparameters == {"beta": 0.25, "label_smoothing": 0.1}
    assert objective.losses(made()).equal(dpo(made(), beta=0.25, label_smoothing=0.1))
    assert make_objective("dpo").hyperparameters["beta"] == 0.1  # and the table stays as it was


def test_an_unknown_objective_is_refused_with_a_suggestion():
    with pytest.raises(RecipeError, match=r"objective.name: there is no objective `simp0`. Did you mean `simpo`\? Known: dpo, robust-dpo"):
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


def test_robust_dpo_over_flipped_labels_is_dpo_over_true_ones():
    """Chowdhury et al.: the estimate has no bias."""
    logps = made()
    robust = make_objective("robust-dpo", beta=0.3, label_smoothing=0.2).losses
    mean = 0.8 * robust(logps) + 0.2 * robust(Logps(logps.rejected, logps.chosen))
    assert mean.tolist() == pytest.approx(dpo(logps, beta=0.3).tolist(), rel=1e-12)


@pytest.mark.parametrize("name", TABLE)
def test_only_rows_that_say_so_mix_pairs(name):
    """Pitfall 8: a pair's loss is the same in any company, but for the rows that say otherwise."""
    objective = make_objective(name)
    whole = objective.losses(made())
    alone = torch.stack([objective.losses(taken(made(), i)) for i in range(len(CHOSEN))]).T.flatten()
    assert objective.couples_pairs != torch.allclose(whole, alone, rtol=1e-12)
    assert objective.losses(Logps.joined([taken(made(), i) for i in range(len(CHOSEN))])).equal(whole)


def taken(logps: Logps, i: int) -> Logps:
    """Pair i alone."""

    def side(r: Responses) -> Responses:
        n = r.lengths_B.tolist()
        policy_N, reference_N, collisions_N = (values.split(n)[i] for values in per_token(r))
        return Responses(policy_N, reference_N, r.lengths_B[i : i + 1], collisions_N)

    margins_B = None if logps.margins_B is None else logps.margins_B[i : i + 1]
    return replace(logps, chosen=side(logps.chosen), rejected=side(logps.rejected), margins_B=margins_B)


@pytest.mark.parametrize("objective", [aot, aot_pair, beta_dpo])
def test_losses_of_a_step_do_not_depend_on_the_order_of_its_pairs(objective):
    order = [3, 0, 4, 2, 1]
    shuffled = objective(Logps.joined([taken(made(), i) for i in order]))
    assert shuffled.tolist() == pytest.approx(objective(made())[order].tolist(), rel=1e-12)


@pytest.mark.parametrize("objective", [aot, aot_pair])
def test_optimal_transport_of_one_pair_is_dpo(objective):
    assert objective(taken(made(), 2), beta=0.3).tolist() == pytest.approx(dpo(taken(made(), 2), beta=0.3).tolist(), rel=1e-12)


RAGGED = [(CHOSEN, [4, 2]), ([3], REJECTED), (CHOSEN, []), ([], REJECTED)]
"""Lengths of good and bad replies: more of the one than of the other, or none."""


@pytest.mark.parametrize("good, bad", RAGGED)
@pytest.mark.parametrize("name, given", UNPAIRED)
def test_single_replies_come_in_any_number_of_each_kind(name, given, good, bad):
    objective, logps = make_objective(name, **given), made(chosen=good, rejected=bad)
    assert objective.losses(logps).tolist() == pytest.approx(formula(name, logps, **objective.hyperparameters), rel=1e-12)
    assert [len(rewards_B) for rewards_B in objective.rewards(logps)] == [len(good), len(bad)]
    still = formula(name, replace(logps.with_policy_at_reference(), point=0.0), **objective.hyperparameters)
    assert objective.losses(logps.with_policy_at_reference()).tolist() == pytest.approx(still, rel=1e-12)

    def losses(chosen, rejected):
        sides = [replace(side, policy_N=values_N) for side, values_N in ((logps.chosen, chosen), (logps.rejected, rejected))]
        return objective.losses(replace(logps, chosen=sides[0], rejected=sides[1]))

    inputs = [side.policy_N.clone().requires_grad_() for side in (logps.chosen, logps.rejected)]
    assert torch.autograd.gradcheck(losses, inputs)
    losses(*inputs).sum().backward()
    assert (inputs[0].grad < 0).all()  # a step down the gradient makes good replies likelier, bad ones less likely
    assert (inputs[1].grad > 0).all()


def test_what_single_replies_lose_at_the_reference():
    logps = made(rejected=[4, 2]).with_policy_at_reference()
    assert kto(logps, desirable_weight=1.5, undesirable_weight=0.7).tolist() == pytest.approx([0.75] * 5 + [0.35] * 2)
    assert bco(logps).tolist() == pytest.approx([math.log(2)] * 7)
    assert apo_zero_unpaired(logps).tolist() == pytest.approx([0.5] * 7)


def test_kto_at_a_reference_point_of_0_is_apo_zero_whose_losses_of_a_pair_add_up():
    logps = replace(made(), point=0.0)
    assert kto(logps, beta=0.3).tolist() == pytest.approx(apo_zero_unpaired(logps, beta=0.3).tolist(), rel=1e-12)
    assert apo_zero_unpaired(logps, beta=0.3).view(2, -1).sum(0).tolist() == pytest.approx(apo_zero(logps, beta=0.3).tolist(), rel=1e-12)


def test_a_reply_at_the_reference_point_is_neither_gain_nor_loss():
    """KTO's and BCO's point is where their sigmoid is at its middle, in nats of log-ratio and not times β."""
    lengths = torch.tensor([2])
    at = Responses(torch.tensor([-1.0, -0.5]), torch.tensor([-2.0, -2.0]), lengths)
    logps = Logps(at, at, point=2.5)
    assert kto(logps, beta=3.0).tolist() == pytest.approx([0.5, 0.5])
    assert bco(logps, beta=3.0).tolist() == pytest.approx([math.log(2)] * 2)


def test_pitfall_11_log1mexp_keeps_its_digits():
    for x in (-1e-8, -1e-6, -1e-3, -0.1, -0.69, -0.70, -3.0, -30.0, -80.0):
        found = log1mexp(torch.tensor([x], requires_grad=True))
        given = torch.tensor([x]).double().item()
        wanted = math.log(-math.expm1(given)) if given > -1 else math.log1p(-math.exp(given))
        assert found.item() == pytest.approx(wanted, rel=3e-7)
    x = torch.tensor([-1e-8, -1e-3, -5.0, -100.0], requires_grad=True)
    log1mexp(x).sum().backward()
    assert x.grad.tolist() == pytest.approx([-1 / math.expm1(-v) for v in x.tolist()], rel=1e-5)


def test_pitfall_11_orpo_of_a_response_that_is_certain_is_finite():
    lengths = torch.tensor([2])
    for p in (0.0, -1e-8, -1e-3):
        policy = [torch.full((2,), p, requires_grad=True), torch.full((2,), -1.0, requires_grad=True)]
        for chosen, rejected in (policy, policy[::-1]):
            loss = orpo(Logps(Responses(chosen, None, lengths), Responses(rejected, None, lengths)))
            loss.sum().backward()
            assert loss.isfinite().all()
        assert all(tensor.grad.isfinite().all() for tensor in policy)


def test_pitfall_14_ld_dpo_scales_policy_and_reference_beyond_the_shorter_response():
    chosen = Responses(torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-2.0, -2.0, -4.0]), torch.tensor([3]))
    rejected = Responses(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -1.0]), torch.tensor([2]))
    for weight in (0.0, 0.25, 1.0):
        loss = make_objective("ld-dpo", beta=1.0, tail_weight=weight).losses(Logps(chosen, rejected))
        assert loss.item() == pytest.approx(math.log1p(math.exp(-(2 + 3 * weight))), rel=1e-6)


def test_r_dpo_asks_less_of_a_longer_chosen_response():
    """Park et al.: reward − α|y|, so that a pair whose chosen side is longer teaches less, and one whose chosen side is shorter more."""

    def push(longer):
        policy = torch.zeros(1 + longer, requires_grad=True)
        other = torch.zeros(1, requires_grad=True)
        sides = Responses(policy, torch.zeros(1 + longer), torch.tensor([1 + longer])), Responses(other, torch.zeros(1), torch.tensor([1]))
        make_objective("r-dpo", length_penalty=0.5).losses(Logps(*sides)).sum().backward()
        return abs(float(other.grad))

    assert push(4) < push(0)


@pytest.mark.parametrize("divergence, like", [("reverse-kl", 0.0), ("forward-kl", 1.0)])
def test_alpha_divergence_goes_from_reverse_to_forward_kl(divergence, like):
    near = f_dpo(made(), divergence="alpha", divergence_alpha=min(max(like, 1e-6), 1 - 1e-6))
    assert near.tolist() == pytest.approx(f_dpo(made(), divergence=divergence).tolist(), rel=1e-3)


def test_dynamic_beta_rises_with_the_step_s_margin_and_never_turns_round():
    """Against a past of no margin; this step's is a tenth of what is usual from here on."""
    logps = replace(made(), point=0.0)
    turned = Logps(logps.rejected, logps.chosen)
    mean = float((logps.chosen.log_ratio_B - logps.rejected.log_ratio_B).mean())
    better, worse = (logps, turned) if mean > 0 else (turned, logps)
    assert beta_dpo(better).tolist() == pytest.approx(dpo(better, beta=0.1 * (1 + 0.6 * 0.9 * 0.1 * abs(mean))).tolist(), rel=1e-9)
    assert beta_dpo(worse, sensitivity=1e6).tolist() == pytest.approx(dpo(worse, beta=1e-3).tolist(), rel=1e-9)


@pytest.mark.parametrize(
    "name, setting, value",
    [
        ("dpo", "beta", 0.0),
        ("dpo", "beta", math.inf),
        ("dpo", "label_smoothing", 0.5),
        ("robust-dpo", "label_smoothing", 0.5),
        ("exo", "label_smoothing", 0.0),
        ("ld-dpo", "tail_weight", 1.5),
        ("f-dpo", "divergence", "kl"),
        ("f-dpo", "divergence_alpha", 0.0),
        ("discopop", "temperature", 2.0),
        ("r-dpo", "length_penalty", -0.1),
        ("dpop", "chosen_penalty", -1.0),
        ("beta-dpo", "sensitivity", math.nan),
        ("kto", "desirable_weight", 0.0),
        ("kto", "undesirable_weight", math.inf),
        ("bco", "beta", -0.1),
        ("dpo", "margin_scale", -1.0),
        ("simpo", "target_margin", -1.0),
    ],
)
def test_a_value_out_of_range_is_refused(name, setting, value):
    with pytest.raises(RecipeError, match=rf"objective\.{setting}: `{name}`: Input should be .* \(given: {re.escape(repr(value))}\)"):
        make_objective(name, **{setting: value})


def test_the_recipe_lists_every_objective():
    listed = re.findall(r"[a-z]+(?:-[a-z]+)*", ObjectiveSettings.model_fields["name"].description.partition(":")[2].partition(" Or ")[0])
    assert [word for word in listed if word in TABLE] == [*TABLE] == [*OBJECTIVES]
    assert set(listed) - TABLE.keys() == {"of", "single", "replies"}


def test_sft_takes_no_hyperparameter():
    with pytest.raises(RecipeError, match=r"objective.beta: `sft` does not take it. It takes none."):
        make_objective("sft", beta=0.1)


DOC = Path(__file__).parent.parent / "docs" / "objectives.md"


def test_the_docs_say_which_objective_takes_which_setting():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", DOC.read_text().partition("## Settings")[2].partition("\n## ")[0], flags=re.MULTILINE)
    said = {setting: "all but sft" if takers == "all but sft" else set(re.split(r"[,;] ", takers)) for setting, takers in rows}
    takes = {setting: {name for name in TABLE if setting in taken_by(TABLE[name])} for setting in ObjectiveSettings.model_fields if setting != "name"}
    assert TABLE.keys() - takes["beta"] == {"sft"}
    assert said == takes | {"beta": "all but sft"}


@pytest.mark.parametrize("name", TABLE)
def test_every_objective_has_an_entry_in_the_docs(name):
    """With its formula, source, use, TRL's name, agreement and each default as the code has it."""
    entry = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", DOC.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert entry, f"docs/objectives.md has no entry `### {name}`"
    for part in ("    L = ", "- **Source.**", "- **Use.**", "- **Defaults.**", "- **TRL.**", "- **Agreement.**"):
        assert part in entry[1], part
    for setting, default in defaults_of(TABLE[name].function).items():
        assert (
            f"`{setting}` {str(default).lower() if isinstance(default, bool) else default:{'' if isinstance(default, str | bool) else 'g'}}"
            in entry[1]
        ), setting
