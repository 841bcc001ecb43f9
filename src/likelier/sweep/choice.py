"""Which setting to take: the frontier of held-out accuracy against KL, and one point of it with its reason.

KL from the reference is the price of accuracy (Rafailov et al. 2023, figure 2; Gao et al. 2023): of settings that are equally good the one that moves
least is the best, because what it leaves alone it does not break. Equally good is what the one-standard-error rule calls so (Breiman et al. 1984,
section 3.4.3). Pure functions of results.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from likelier.metrics import Interval, bootstrap_difference, correct
from likelier.wording import count, estimate, listing, quantity

NORMAL_95 = 1.96
CHANCE = 0.5


@dataclass(frozen=True)
class Result:
    """What one finished run came to. `kl` is the same quantity in all results that are compared; `margins` and `of_prompt` are each held-out pair's,
    where the evaluation left them."""

    name: str
    accuracy: Interval
    kl: Interval | None
    prompts: int
    dataset: str = ""
    symptoms: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    margins: tuple[float, ...] = ()
    of_prompt: tuple[int, ...] = ()

    @property
    def price(self) -> float:
        """KL, without which a run is taken for the farthest from the reference."""
        return self.kl.value if self.kl else math.inf

    @property
    def marks(self) -> tuple[str, ...]:
        """What speaks against it."""
        return (*self.symptoms, *(f"worse: {title}" for title in self.worse))


@dataclass(frozen=True)
class Choice:
    """The recommended setting, if there is one, and what else a reader should know."""

    name: str = ""
    reason: str = ""
    frontier: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        recommended = {"name": self.name, "reason": self.reason} if self.name else None
        return {"frontier": self.frontier, "recommended": recommended, "notes": self.notes}


@dataclass(frozen=True)
class Lead:
    """By how much accuracy one run leads another, with the standard error of that."""

    value: float
    error: float

    @property
    def is_seen(self) -> bool:
        """Whether it is more than one standard error; equal ones, down to rounding, are not."""
        return self.value > self.error + 1e-9

    @property
    def is_certain(self) -> bool:
        return self.value > NORMAL_95 * self.error


def choose(results: Sequence[Result], distance: str = "KL") -> Choice:
    """The frontier, and of the runs that are as good as the best the one with least against it: fewest symptoms and worse probes, then least KL.

    As good as the best is a run whose accuracy is lower by at most one standard error of the difference, or by one prompt. Where no run is better
    than chance for certain, none is recommended. `distance` is what the reason calls the KL of `results`.
    """
    learned = [result for result in results if result.accuracy.low > CHANCE]
    if not learned:
        why = "No run has ended yet" if not results else "No run ranks held-out pairs better than chance for certain"
        return Choice(frontier=frontier(results), notes=[f"{why}, so no setting is recommended."])
    best = max(learned, key=lambda result: (result.accuracy.value, -result.price))
    leads = {result.name: lead(best, result) for result in results if result is not best}
    as_good = [result for result in learned if result is best or not leads[result.name].is_seen]
    chosen = min(as_good, key=lambda result: (len(result.marks), result.price))
    notes = [*_notes(best, leads, results), *_note_on_price(chosen, as_good)]
    return Choice(chosen.name, _reason(chosen, best, as_good, distance, alone=len(results) == 1), frontier(results), notes)


def frontier(results: Sequence[Result]) -> list[str]:
    """Names of the runs that no other run beats, by rising KL: none is as accurate at less KL, or more accurate at as little."""

    def beaten(by: Result, result: Result) -> bool:
        no_worse = by.accuracy.value >= result.accuracy.value and by.price <= result.price
        return no_worse and (by.accuracy.value > result.accuracy.value or by.price < result.price)

    kept = [result for result in results if result.kl and not any(beaten(other, result) for other in results)]
    return [result.name for result in sorted(kept, key=lambda result: result.price)]


def lead(better: Result, worse: Result) -> Lead:
    """Difference of accuracy, pair by pair over the same prompts where both runs have their margins; else as though the two were independent, which
    makes the error larger than it is. It is at least one prompt: a bootstrap of pairs that all agree would have none."""
    if are_paired(better, worse):
        sides = (correct(worse.margins), correct(better.margins))
        interval = bootstrap_difference(*sides, better.of_prompt)
        error, prompts = _error(interval), len(set(better.of_prompt))
    else:
        error, prompts = math.hypot(_error(better.accuracy), _error(worse.accuracy)), min(better.prompts, worse.prompts)
    return Lead(better.accuracy.value - worse.accuracy.value, max(error, 1 / prompts))


def are_paired(one: Result, other: Result) -> bool:
    """Whether both have margins of the same held-out pairs."""
    return bool(one.margins) and one.dataset == other.dataset and one.of_prompt == other.of_prompt


def _error(interval: Interval) -> float:
    return (interval.high - interval.low) / (2 * NORMAL_95)


def _reason(chosen: Result, best: Result, as_good: Sequence[Result], distance: str, *, alone: bool) -> str:
    accuracy = f"held-out accuracy {estimate(chosen.accuracy, 'share')}"
    price = f"{distance} {estimate(chosen.kl, 'nats a reply')}" if chosen.kl else "KL not measured"
    passed_over = [result for result in as_good if result.price < chosen.price and len(result.marks) > len(chosen.marks)]
    if alone:
        reason = f"It is the only run that ended: {accuracy}, {price}."
    elif len(as_good) == 1:
        reason = f"No other run is within one standard error of it: {accuracy}, {price}."
    else:
        merit = "has least against it" if passed_over else "moves least from the reference"
        top = f"{best.name} ({quantity(best.accuracy.value, 'share')})"
        reason = f"{len(as_good)} runs are as accurate as the best, {top}, within one standard error. Of these it {merit}: {accuracy}, {price}."
    for result in passed_over:
        reason += f" {result.name} moves less, but: {', '.join(result.marks)}."
    if chosen.marks:
        reason += f" Against it: {', '.join(chosen.marks)}."
    return reason


def _note_on_price(chosen: Result, as_good: Sequence[Result]) -> list[str]:
    """Where runs are as good, and their KLs no farther apart than their intervals: chance may have chosen."""
    alike = [other.name for other in as_good if other is not chosen and chosen.kl and other.kl and other.kl.low <= chosen.kl.high]
    return [f"The KLs of {chosen.name} and {listing(alike)} differ by less than their intervals, so that any of them will do."] if alike else []


def _notes(best: Result, leads: dict[str, Lead], results: Sequence[Result]) -> list[str]:
    notes = []
    alike = [name for name, each in leads.items() if not each.is_certain]
    prompts = count(best.prompts, "held-out prompt")
    if alike and len(alike) == len(leads):
        notes.append(
            f"{prompts} cannot tell these settings apart by accuracy at 95%. The choice among them rests on KL; more held-out prompts would tell."
        )
    elif alike:
        notes.append(f"{prompts} cannot tell {best.name} from {', '.join(alike)} by accuracy at 95%.")
    others = [result for result in results if result is not best]
    if others and not all(are_paired(best, result) for result in others):
        notes.append("Accuracies were compared by their intervals, as though on different prompts: that makes it harder to tell settings apart.")
    if any(result.dataset != best.dataset for result in others):
        notes.append("The runs were evaluated on different held-out sets; their numbers are not of one scale.")
    return notes
