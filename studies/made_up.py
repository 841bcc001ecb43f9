"""What rules and statistics do with made-up data whose truth is known: the figures that docs and docstrings name. Usage: python studies/made_up.py"""

import numpy as np

from likelier import win_rates
from likelier.metrics import calibration
from likelier.sweep.hopeless import Rival, why_hopeless

PAIRS, EVALUATIONS, TOP = 400, 10, 0.9
POINTS = (0, 5, 10, 20, 30)


def given_up(prompts: int, points: int, draw: np.random.Generator) -> float:
    """Share of runs that a sweep gives up, whose true accuracy ends so many points below that of a rival which ends at `TOP`.

    Accuracies rise from a half, fast at first: after t evaluations they have come 1 − e^(−t/2) of the way. Each evaluation asks so many prompts,
    drawn anew.
    """
    rise = 1 - np.exp(-np.arange(1, EVALUATIONS + 1) / 2)
    ends = np.array([TOP - points / 100, TOP])
    seen_KRE = draw.binomial(prompts, 0.5 + (ends[:, None, None] - 0.5) * rise, (2, PAIRS, EVALUATIONS)) / prompts
    ended = 0
    for ours_E, theirs_E in zip(*seen_KRE, strict=True):
        rows, theirs = ([{"step": step, "accuracy": value} for step, value in enumerate(each_E, 1)] for each_E in (ours_E, theirs_E))
        rival = Rival("rival", theirs, prompts, same_loss=False)
        ended += any(why_hopeless(rows[:seen], EVALUATIONS, [rival]) for seen in range(1, EVALUATIONS + 1))
    return ended / PAIRS


def error_of_a_perfect_model(pairs: int, draw: np.random.Generator) -> float:
    """Mean ECE where σ(margin) is the chance to be right, over 200 sets of pairs whose margins have a spread of 2."""
    found = []
    for _ in range(200):
        size = np.abs(draw.normal(0, 2, pairs))
        found.append(calibration(size * np.where(draw.random(pairs) < 1 / (1 + np.exp(-size)), 1, -1)).ece)
    return float(np.mean(found))


def judged_by_length_alone(prompts: int, spread: float, draw: np.random.Generator) -> tuple[float, float]:
    """Mean and scatter over 400 comparisons of the length-controlled win rate where the longer reply always wins, and the first is mostly longer."""
    before, win_rates.PRIOR_SPREAD = win_rates.PRIOR_SPREAD, spread
    rates = []
    for _ in range(400):
        lengths, others = draw.normal(120, 40, prompts), draw.normal(100, 40, prompts)
        rates.append(win_rates.length_controlled((lengths > others).astype(float), lengths, others, resamples=2).value)
    win_rates.PRIOR_SPREAD = before
    return float(np.mean(rates)), float(np.std(rates))


def main() -> None:
    draw = np.random.default_rng(0)
    print(f"runs that a sweep gives up, of {PAIRS} that are behind by", *POINTS, "points")
    for prompts in (20, 50, 200):
        print(f"{prompts:4} held-out prompts", *(f"{given_up(prompts, points, draw):5.0%}" for points in POINTS))
    print("expected calibration error of a perfect model")
    for pairs in (100, 500):
        print(f"{pairs:4} pairs {error_of_a_perfect_model(pairs, draw):.3f}")
    print("length-controlled win rate under a judge that goes by length alone")
    for prompts in (30, 500):
        for factor in (0.5, 1, 2):
            mean, scatter = judged_by_length_alone(prompts, factor * win_rates.PRIOR_SPREAD, draw)
            print(f"{prompts:4} prompts, prior spread {factor * win_rates.PRIOR_SPREAD:4}: {mean:.1%}, scatter {scatter:.1%}")


if __name__ == "__main__":
    main()
