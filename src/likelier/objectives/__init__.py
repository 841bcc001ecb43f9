"""Objectives: each a pure function of log-probabilities that returns one loss a pair, or one a reply.

    logps            what they read: per-token log-probabilities of both sides, and their sums
    dpo              Direct Preference Optimization and what corrects or extends it
    margins          other losses of the same margin
    sides            losses that push each side on its own
    steps            losses that compare all pairs of a step with each other
    reference_free   losses without a reference
    unpaired         losses of single replies, good or bad
    table            TABLE: name → function, implicit reward, whether it needs a reference

No reduction, no logging, no masks in here. A new objective is one function and one row of TABLE.
"""

from likelier.objectives.dpo import dpo, dpop, f_dpo, ld_dpo, length_normalised_dpo, r_dpo, robust_dpo, rpo, wpo
from likelier.objectives.logps import Logps, Responses, two_pairs
from likelier.objectives.margins import discopop, exo, hinge, ipo
from likelier.objectives.reference_free import cpo, orpo, sft, simpo
from likelier.objectives.sides import apo_down, apo_zero, nca, sppo
from likelier.objectives.steps import aot, aot_pair, beta_dpo
from likelier.objectives.table import TABLE, Objective, make_objective
from likelier.objectives.unpaired import apo_zero_unpaired, bco, kto

__all__ = [
    "TABLE",
    "Logps",
    "Objective",
    "Responses",
    "aot",
    "aot_pair",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "beta_dpo",
    "cpo",
    "discopop",
    "dpo",
    "dpop",
    "exo",
    "f_dpo",
    "hinge",
    "ipo",
    "kto",
    "ld_dpo",
    "length_normalised_dpo",
    "make_objective",
    "nca",
    "orpo",
    "r_dpo",
    "robust_dpo",
    "rpo",
    "sft",
    "simpo",
    "sppo",
    "two_pairs",
    "wpo",
]
