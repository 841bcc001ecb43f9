"""What an objective reads: per-token log-probabilities of policy and reference, both sides.

Shape legend, here and in every room of this package: B pairs (or replies of one side), N response tokens of one side, all end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

POINT_MOMENTUM = 0.9
"""How much of a moving `Logps.point` stays at each step."""


@dataclass(frozen=True)
class Responses:
    """One side of B pairs, or B replies: per-token log-probabilities under policy and reference, and how many tokens each response has.

    Lengths were decided where ids were made and are never read back from values. `reference_N` is None for objectives without a reference.
    """

    policy_N: Tensor  # fp32, with gradient
    reference_N: Tensor | None  # fp32, constant
    lengths_B: Tensor  # int64, ≥ 1
    collisions_N: Tensor | None = None  # fp32, constant: log Σ_v π(v)² where each token stands, for objectives that ask for it

    @cached_property
    def policy_B(self) -> Tensor:
        """log π(y|x): sums over each response's tokens."""
        return _sums(self.policy_N, self.lengths_B)

    @cached_property
    def reference_B(self) -> Tensor:
        """log π_ref(y|x)."""
        if self.reference_N is None:
            raise ValueError("this objective needs the reference's log-probabilities, and none were given")
        return _sums(self.reference_N, self.lengths_B)

    @property
    def log_ratio_B(self) -> Tensor:
        """log π(y|x) − log π_ref(y|x)."""
        return self.policy_B - self.reference_B

    @property
    def policy_mean_B(self) -> Tensor:
        """log π(y|x) / |y|, in nats a token."""
        return self.policy_B / self.lengths_B

    @property
    def aligned_mean_B(self) -> Tensor:
        """(log π(y|x) − Σ_t log Σ_v π(v)²) / |y|: 0 on average for what the policy samples itself."""
        if self.collisions_N is None:
            raise ValueError("this objective needs log Σ π(v)² of each token, which was not asked for")
        return self.policy_mean_B - _sums(self.collisions_N, self.lengths_B) / self.lengths_B

    @property
    def drift_B(self) -> Tensor:
        """Mean absolute distance of policy from reference, in nats a token."""
        if self.reference_N is None:
            raise ValueError("there is no reference to drift from")
        return _sums((self.policy_N - self.reference_N).abs(), self.lengths_B) / self.lengths_B

    def with_policy_at_reference(self) -> "Responses":
        """The same side where the policy says what the reference says."""
        return self if self.reference_N is None else replace(self, policy_N=self.reference_N)

    def with_tail_scaled(self, heads_B: Tensor, weight: float) -> "Responses":
        """The same side where each token after the first `heads_B` of its response counts `weight`, in the policy and in the reference."""
        before_B = self.lengths_B.cumsum(0) - self.lengths_B
        heads_end_N = (before_B + heads_B).repeat_interleave(self.lengths_B, output_size=len(self.policy_N))
        in_tail_N = torch.arange(len(self.policy_N), device=self.policy_N.device) >= heads_end_N
        scaled = [None if values_N is None else torch.where(in_tail_N, weight * values_N, values_N) for values_N in (self.policy_N, self.reference_N)]
        assert scaled[0] is not None
        return Responses(scaled[0], scaled[1], self.lengths_B)


@dataclass(frozen=True)
class Logps:
    """What an objective reads.

    Of pairs, `chosen` and `rejected` hold the two sides in the same order. An unpaired objective takes `chosen` for the good replies and `rejected`
    for the bad ones, as many as there are of each, so that pairs are as good to it as single replies, and so is a mixture.
    """

    chosen: Responses
    rejected: Responses
    margins_B: Tensor | None = None  # how much better the chosen one is, in the annotator's scale; 0 where the record does not say
    offsets_B: Tensor | None = None  # nats by which the log-ratios shall at least differ
    point: Tensor | float = 0.0  # () what an objective compares rewards with, where it says so

    @property
    def log_ratio_gap_B(self) -> Tensor:
        """log π/π_ref(y_w) − log π/π_ref(y_l) − offset: h in the formulas, which know no offset (Amini et al. 2024, "ODPO")."""
        gap_B = self.chosen.log_ratio_B - self.rejected.log_ratio_B
        return gap_B if self.offsets_B is None else gap_B - self.offsets_B

    def asking_for(self, margin_scale: float) -> "Logps":
        """The same where each pair's log-ratios shall differ by `margin_scale` nats for each unit of its margin, and by no other offset."""
        return replace(self, offsets_B=margin_scale * self.margins_B if self.margins_B is not None and margin_scale else None)

    def with_policy_at_reference(self) -> "Logps":
        """What an untrained policy would give: the losses that a run must begin with."""
        return replace(self, chosen=self.chosen.with_policy_at_reference(), rejected=self.rejected.with_policy_at_reference(), point=0.0)

    @staticmethod
    def joined(parts: "Sequence[Logps]") -> "Logps":
        """The pairs of all parts, end to end; of the first part's point, which is the same for all."""
        sides = _joined([part.chosen for part in parts]), _joined([part.rejected for part in parts])
        margins = [torch.zeros_like(part.chosen.lengths_B, dtype=torch.float32) if part.margins_B is None else part.margins_B for part in parts]
        some = any(part.margins_B is not None for part in parts)
        return Logps(*sides, margins_B=torch.cat(margins) if some else None, point=parts[0].point)


def two_pairs() -> Logps:
    """For examples: the first pair's policy has moved the way it should, the second's stands where its reference does.

    >>> two_pairs().chosen.log_ratio_B, two_pairs().rejected.log_ratio_B
    (tensor([2., 0.]), tensor([-1.,  0.]))
    """
    chosen = Responses(torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-2.0, -2.0, -2.0]), torch.tensor([2, 1]), torch.tensor([-0.5, -0.5, -1.0]))
    return Logps(chosen, Responses(torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -1.0]), torch.tensor([1, 1]), torch.tensor([-1.5, -0.5])))


def _joined(parts: Sequence[Responses]) -> Responses:
    def end_to_end(values: Sequence[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        return torch.cat(known) if known else None

    policy_N, lengths_B = torch.cat([part.policy_N for part in parts]), torch.cat([part.lengths_B for part in parts])
    return Responses(policy_N, end_to_end([p.reference_N for p in parts]), lengths_B, end_to_end([p.collisions_N for p in parts]))


def _sums(values_N: Tensor, lengths_B: Tensor) -> Tensor:
    if not len(lengths_B):
        return values_N
    sums: Tensor = torch.segment_reduce(values_N, "sum", lengths=lengths_B, unsafe=True)
    return sums
