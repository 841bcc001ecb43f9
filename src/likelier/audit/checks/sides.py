"""Checks of how the two sides of a pair compare: their lengths, their likeness, their endings."""

from itertools import pairwise

import numpy as np

from likelier.audit.findings import Bars, Finding, Number, Verdict, any_of, exact, graded, noted_share, share_of
from likelier.audit.surface import MARKS
from likelier.audit.table import CHOSEN, PROMPT, REJECTED, Table
from likelier.metrics import Interval, clustered_share, length_summary, wilson
from likelier.thresholds import AuditSettings

LENGTH_BINS = (-np.inf, -500, -200, -100, -50, -20, 0, 20, 50, 100, 200, 500, np.inf)
"""Edges, in characters, of the bins over |Δlength| and its sign."""


def length_bias(table: Table, limits: AuditSettings) -> Finding:
    """How often the longer side wins, over all pairs and by how much longer it is."""
    difference = table.longer
    unequal = difference != 0
    wins = clustered_share(difference[unequal] > 0, table.keys[unequal, PROMPT])
    bins, by_bin = _wins_by_difference(np.abs(difference[unequal]), difference[unequal] > 0)
    verdict = max(
        graded(_distance_from_half(wins), (limits.length_bias_note, Verdict.NOTE), (limits.length_bias_warn, Verdict.WARN)),
        graded(max(map(_distance_from_half, by_bin), default=0.0), (limits.length_bias_note, Verdict.NOTE)),
    )
    direction = "longer" if wins.value > 0.5 else "shorter"
    share = max(wins.value, 1 - wins.value)
    summary = f"The {direction} side wins {share:.1%} of the {unequal.sum():,} pairs whose sides differ in length."
    if verdict > Verdict.OK and by_bin:
        telling = max(range(len(by_bin)), key=lambda i: _distance_from_half(by_bin[i]))
        summary += f" Where one is {bins.labels[telling]} characters longer, the longer side wins {by_bin[telling].value:.0%}."
    chosen, rejected = (length_summary(table.characters[:, side]) for side in (CHOSEN, REJECTED))
    return Finding(
        "length-bias",
        "Length bias",
        verdict,
        summary if unequal.any() else "All sides are of equal length.",
        mend=f"If {direction} is not what you want to teach: `likelier fix --do balance-length`, a length-aware objective, or pairs of like length.",
        numbers=(
            Number("longer side wins", wins, "share"),
            exact("mean length of chosen", chosen["mean"], "characters"),
            exact("mean length of rejected", rejected["mean"], "characters"),
            exact("median difference, chosen − rejected", float(np.median(difference)), "characters"),
        ),
        plots=(bins, _differences(difference)),
    )


def _distance_from_half(share: Interval) -> float:
    """How far the nearer end of the interval is from one half; 0 where it holds one half."""
    return min(abs(share.low - 0.5), abs(share.high - 0.5)) if share.excludes(0.5) else 0.0


def bin_of(difference: np.ndarray) -> np.ndarray:
    """(N,) the bin of each |Δlength| above 0: the upper edge belongs to it."""
    return np.asarray(np.digitize(np.abs(difference), [edge for edge in LENGTH_BINS if 0 < edge < np.inf], right=True))


def _wins_by_difference(distance: np.ndarray, longer_won: np.ndarray) -> tuple[Bars, list[Interval]]:
    edges = [edge for edge in LENGTH_BINS if edge >= 0]
    bins = bin_of(distance)
    kept = np.unique(bins).tolist()
    rates = [wilson(int(longer_won[bins == i].sum()), int((bins == i).sum())) for i in kept]
    bars = Bars(
        "How often the longer side wins, by how many characters it is longer",
        tuple(f"over {edges[i]:.0f}" if np.isinf(edges[i + 1]) else f"{edges[i] + 1:.0f}–{edges[i + 1]:.0f}" for i in kept),
        tuple(rate.value for rate in rates),
        tuple(rate.low for rate in rates),
        tuple(rate.high for rate in rates),
        level=0.5,
    )
    return bars, rates


def _differences(difference: np.ndarray) -> Bars:
    counts, _ = np.histogram(difference, LENGTH_BINS)
    names = [f"{low:.0f} to {high:.0f}" for low, high in pairwise(LENGTH_BINS[1:-1])]
    return Bars(
        "Pairs by chosen − rejected, in characters",
        (f"below {LENGTH_BINS[1]:.0f}", *names, f"over {LENGTH_BINS[-2]:.0f}"),
        tuple(float(count) for count in counts),
    )


def length_ratio(table: Table, limits: AuditSettings) -> Finding:
    """Pairs one side of which is more than `length_ratio` times as long as the other."""
    long, short = table.characters[:, 1:].max(1), table.characters[:, 1:].min(1)
    found = (long > limits.length_ratio * short) & (long > limits.length_ratio_short)
    rows = np.flatnonzero(found)
    shorter_won = int((table.longer[found] < 0).sum())
    share, verdict = noted_share("pairs out of proportion", len(rows), len(table), warn=limits.length_ratio_warn)
    return Finding(
        "length-ratio",
        f"One side over {limits.length_ratio:g} times as long",
        verdict,
        f"{len(rows):,} pairs ({share.value.value:.1%}); the shorter side is chosen in {shorter_won:,} of them.",
        mend="`likelier fix --do drop-over-ratio`, or rewrite the side that is out of proportion.",
        numbers=(share,),
        rows=rows,
    )


def near_identical(table: Table, limits: AuditSettings) -> Finding:
    """Pairs whose sides are nearly the same text, or the same but for case and white space."""
    rows = np.flatnonzero((table.similarity >= limits.near_identical) | (table.keys[:, CHOSEN] == table.keys[:, REJECTED]))
    share, verdict = noted_share("near-identical pairs", len(rows), len(table), warn=limits.near_identical_warn)
    return Finding(
        "near-identical-sides",
        "Near-identical sides",
        verdict,
        f"{len(rows):,} pairs ({share.value.value:.1%}) have sides of which at most {1 - limits.near_identical:.0%} differs.",
        mend="`likelier fix --do drop-near-identical`, or objective.name dpop, which keeps the chosen side's log-probability up.",
        numbers=(share,),
        rows=rows,
    )


def cut_off(table: Table, limits: AuditSettings) -> Finding:
    """Sides that end in the middle while the other one does not, and whether one side does so more often."""
    closed = ~table.shows(list(MARKS).index("ends without a mark"))
    ends_open = table.shows(list(MARKS).index("ends in the middle")) & closed[:, ::-1]
    chosen, rejected = (share_of(f"{side} sides that end in the middle", int(ends_open[:, i].sum()), len(table)) for i, side in enumerate(_REPLIES))
    only = ends_open.sum(0)
    odds = (max(only) + 0.5) / (min(only) + 0.5)
    share = max(chosen.value.value, rejected.value.value)
    one_sided = share >= limits.cut_off_note and odds >= limits.cut_off_odds and wilson(int(max(only)), int(only.sum())).low > 0.5
    verdict = Verdict.WARN if one_sided else graded(share, (limits.cut_off_note, Verdict.NOTE))
    more = _REPLIES[int(np.argmax(only))]
    return Finding(
        "cut-off-sides",
        "Sides that end in the middle",
        verdict,
        f"{chosen.value.value:.1%} of chosen and {rejected.value.value:.1%} of rejected sides stop without an end"
        + (f": {more} ones {odds:.1f} times as often, so that ending is part of the label." if one_sided else "."),
        mend="Sample or export with a higher length limit, or `likelier fix --do drop-cut-off`: a model taught on these does not learn to stop.",
        numbers=(chosen, rejected),
        rows=np.flatnonzero(ends_open.any(1)),
    )


def over_long(table: Table, limits: AuditSettings) -> Finding:
    """Pairs beyond the model's length limit, which training drops, and which side is to blame."""
    if table.tokens is None:
        return Finding(
            "over-long", "Pairs beyond the length limit", Verdict.SKIPPED, "Asked only with --model, whose tokenizer and template count the tokens."
        )
    too_long = (table.tokens[:, [PROMPT]] + table.tokens[:, 1:]) > table.max_length
    rows = np.flatnonzero(too_long.any(1))
    pairs = share_of("pairs dropped", len(rows), len(table))
    sides = [share_of(f"{name} sides too long", int(too_long[:, i].sum()), len(table)) for i, name in enumerate(_REPLIES)]
    lengths = length_summary(table.tokens[:, PROMPT] + table.tokens[:, 1:].max(1))
    return Finding(
        "over-long",
        f"Pairs beyond {table.max_length:,} tokens",
        max(
            any_of(len(rows)),
            graded(pairs.value.value, (limits.over_long_warn, Verdict.WARN), (limits.over_long_fatal, Verdict.FATAL)),
        ),
        f"{len(rows):,} pairs ({pairs.value.value:.1%}) do not fit and would be dropped: "
        + ", ".join(f"{side.value.value:.1%} by the {name} side" for side, name in zip(sides, _REPLIES, strict=True))
        + ".",
        mend="Raise data.max_length as far as memory allows, or `likelier fix --do drop-over-long` to make the loss visible in the data's version.",
        numbers=(pairs, *sides, *(exact(f"tokens a pair, {name}", lengths[name], "tokens") for name in ("p50", "p95", "max"))),
        rows=rows,
    )


_REPLIES = ("chosen", "rejected")
