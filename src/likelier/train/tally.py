"""Sums over the pairs of a step or of an evaluation, so that no cut into batches changes a mean (pitfalls 8 and 18)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from likelier.objectives import Logps, Objective

COLUMNS = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp", "expected_loss", "drift")


@dataclass
class Tally:
    """Counts pairs and sums their metrics. Stays on the device until `row` reads it."""

    objective: Objective
    pairs: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(COLUMNS)))

    @torch.no_grad()
    def add(self, losses_B: Tensor, logps: Logps) -> None:
        """Count B pairs. `drift` is the policy's mean distance from the reference in nats a token; `expected_loss` the loss without any."""
        chosen_B, rejected_B = self.objective.rewards(logps)
        margin_B = chosen_B - rejected_B
        accuracy_B = (margin_B > 0).float() + 0.5 * (margin_B == 0).float()
        columns = [losses_B, accuracy_B, margin_B, chosen_B, rejected_B, logps.chosen.policy_B, logps.rejected.policy_B]
        if self.objective.needs_reference:
            still = logps.with_policy_at_reference()
            columns += [self.objective.losses(still), (logps.chosen.drift_B + logps.rejected.drift_B) / 2]
        sums = torch.stack([column.sum() for column in columns])
        self.sums = self.sums.to(sums.device)
        self.sums[: len(sums)] += sums
        self.pairs += len(losses_B)

    def row(self) -> dict[str, float]:
        """Means over all pairs counted."""
        return dict(zip(COLUMNS, (self.sums / max(1, self.pairs)).tolist(), strict=True))
