"""Sums over the examples of a step or of an evaluation, so that no cut into batches changes a mean (pitfalls 8 and 18)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from likelier.objectives import Logps, Objective
from likelier.train.parallel import ALONE, Ranks

Row = dict[str, float | None]
"""Means by name; None where there was nothing to average."""


@dataclass
class Tally:
    """Counts values and sums them, by name. Stays on the device until `row` reads it.

    `pairs`: accuracy compares the two sides of each pair. Else it asks of each reply whether its log-ratio is on the right side of `Logps.point`: a
    good one's above, a bad one's below.
    """

    objective: Objective
    pairs: bool = True
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, losses_B: Tensor, logps: Logps) -> None:
        """Count a batch: its losses, its accuracy, rewards, log-probabilities and, with a reference, log-ratios to it."""
        chosen_B, rejected_B = self.objective.rewards(logps)
        self.count("loss", losses_B)
        if self.pairs:
            self.count("accuracy", _wins(chosen_B - rejected_B))
        else:
            self.count("accuracy", _wins(logps.chosen.log_ratio_B - logps.point))
            self.count("accuracy", _wins(logps.point - logps.rejected.log_ratio_B))
        self.count("chosen_reward", chosen_B)
        self.count("rejected_reward", rejected_B)
        self.count("chosen_logp", logps.chosen.policy_B)
        self.count("rejected_logp", logps.rejected.policy_B)
        if logps.chosen.reference_N is not None:
            self.count("chosen_log_ratio", logps.chosen.log_ratio_B)
            self.count("rejected_log_ratio", logps.rejected.log_ratio_B)

    def count(self, name: str, values: Tensor) -> None:
        """Count values under a name of their own."""
        self._sums[name] = self._sums.get(name, torch.zeros((), device=values.device)) + values.detach().sum()
        self._counts[name] = self._counts.get(name, 0) + len(values)

    def row(self, ranks: Ranks = ALONE) -> Row:
        """Means over all that was counted, by all ranks, and `margin`: how far apart the mean rewards are."""
        sums = torch.stack([*self._sums.values()]).tolist() if self._sums else []
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        for some in ranks.gather([(name, total, self._counts[name]) for name, total in zip(self._sums, sums, strict=True)]):
            for name, total, counted in some:
                totals[name], counts[name] = totals.get(name, 0.0) + total, counts.get(name, 0) + counted
        means = {name: total / counts[name] if counts[name] else None for name, total in totals.items()}
        chosen, rejected = means["chosen_reward"], means["rejected_reward"]
        margin = None if chosen is None or rejected is None else chosen - rejected
        return {"loss": means.pop("loss"), "accuracy": means.pop("accuracy"), "margin": margin, **means}


def _wins(margin_B: Tensor) -> Tensor:
    """1 for a win, ½ for a tie, 0 for a loss."""
    return (margin_B > 0).float() + 0.5 * (margin_B == 0).float()
