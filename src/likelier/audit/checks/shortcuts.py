"""Checks for lessons that nobody meant: what on the surface of the sides gives the label away."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from likelier.audit.classify import area_under_curve, predict, weights
from likelier.audit.findings import Bars, Finding, Number, Verdict, exact, graded, share_of
from likelier.audit.surface import FEATURES, MARKS
from likelier.audit.table import PROMPT, REJECTED, UNKNOWN, Table, counts_of
from likelier.thresholds import AuditSettings

MOST_FEATURES = 12


def surface_features(table: Table, limits: AuditSettings) -> Finding:
    """How well length, form and tone alone tell chosen from rejected, and which of them do."""
    title = "Surface features that predict the label"
    rows = _some(table, limits.fitted)
    prompts = table.keys[rows, PROMPT]
    if len(np.unique(prompts)) < _FEWEST:
        return Finding("surface-features", title, Verdict.OK, f"{len(np.unique(prompts))} prompts are too few to tell.")
    differences, names = _standardised(table, rows)
    if not names:
        return Finding("surface-features", title, Verdict.OK, "The sides differ in none of them.")
    scores = predict(differences, prompts, table.coin[rows])
    area = area_under_curve(scores, prompts)
    coefficients = weights(differences, table.coin[rows])
    order = np.argsort(-np.abs(coefficients))[:MOST_FEATURES]
    verdict = graded(area.low, (limits.surface_note, Verdict.NOTE), (limits.surface_warn, Verdict.WARN))
    length = np.sign(table.longer[rows]).mean()
    return Finding(
        "surface-features",
        title,
        verdict,
        f"Form and tone alone tell chosen from rejected with an AUC of {area.value:.3f} (0.5 is chance): "
        f"{'longer' if length > 0 else 'shorter'} wins, and {', '.join(names[i] for i in order[:3])} say most.",
        mend="Balance what carries the label (the plot names it), or write rejected sides that share the form of the chosen ones.",
        numbers=(Number("AUC", area),),
        rows=np.sort(rows[np.argsort(-scores)[: max(1, len(rows) // 100)]]) if verdict > Verdict.OK else np.empty(0, np.int64),
        details=("Named are the hundredth of the pairs that are told most surely.",) if verdict > Verdict.OK else (),
        plots=(
            Bars(
                "Change of log-odds for one standard deviation more on a side",
                tuple(names[i] for i in order),
                tuple(float(coefficients[i]) for i in order),
                level=0.0,
            ),
        ),
    )


_FEWEST = 60


def _some(table: Table, most: int) -> np.ndarray:
    """Rows, at most so many, chosen by the hash of their content."""
    if len(table) <= most:
        return np.arange(len(table))
    return np.sort(table.order[:most])


def _standardised(table: Table, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Differences of features and marks, over their standard deviation (not centred: no difference must mean no evidence)."""
    marks = np.stack([shown[:, 0].astype(np.float32) - shown[:, 1] for shown in (table.shows(bit)[rows] for bit in range(len(MARKS)))], 1)
    differences = np.concatenate([table.features[rows], marks], 1)
    spread = np.sqrt((differences**2).mean(0))
    kept = spread > 0
    return differences[:, kept] / spread[kept], [name for name, keep in zip([*FEATURES, *MARKS], kept, strict=True) if keep]


class _Artefact(NamedTuple):
    name: str
    chosen_only: int
    rejected_only: int
    shown: np.ndarray  # (N,) bool: on exactly one side

    @property
    def odds(self) -> float:
        """McNemar's odds ratio, chosen : rejected, each count half a pair larger so that none is 0."""
        return (self.chosen_only + 0.5) / (self.rejected_only + 0.5)


def artefacts(table: Table, limits: AuditSettings) -> Finding:
    """Words and marks that one side shows far more often: first words, apologies, refusals, markdown, punctuation, language."""
    from scipy.stats import binomtest, false_discovery_control

    found = _artefacts(table, fewest=max(5, round(limits.artefact_share * len(table))))
    chances = [binomtest(a.chosen_only, a.chosen_only + a.rejected_only).pvalue for a in found]
    adjusted = false_discovery_control(chances) if chances else []
    telling = [a for a, q in zip(found, adjusted, strict=True) if q <= limits.false_discovery and max(a.odds, 1 / a.odds) >= limits.artefact_odds]
    telling.sort(key=lambda a: -(a.chosen_only + a.rejected_only))
    shares = [(a.chosen_only + a.rejected_only) / len(table) for a in telling]
    rows = np.flatnonzero(np.any([a.shown for a in telling], axis=0)) if telling else np.empty(0, np.int64)
    shown = "; ".join(f"{a.name} ({_leaning(a)})" for a in telling[:5])
    return Finding(
        "one-sided-artefacts",
        "Marks of one side",
        graded(max(shares, default=0.0), (limits.artefact_share, Verdict.NOTE), (limits.artefact_warn, Verdict.WARN)),
        f"{len(telling)} of {len(found)} words and marks lean to one side: {shown}." if telling else f"None of {len(found)} words and marks does.",
        mend="Unless it is the lesson (no apologies, say), rewrite some rejected sides with the mark and some chosen ones without.",
        numbers=tuple(exact(f"odds of {a.name}", a.odds) for a in telling[:MOST_FEATURES]),
        details=tuple(f"{a.name}: only chosen {a.chosen_only:,}, only rejected {a.rejected_only:,}, odds {a.odds:.2g}" for a in telling),
        rows=rows,
    )


def _leaning(artefact: _Artefact) -> str:
    odds, side = (artefact.odds, "chosen") if artefact.odds > 1 else (1 / artefact.odds, "rejected")
    return f"{odds:.1f} : 1 {side}"


def _artefacts(table: Table, *, fewest: int) -> list[_Artefact]:
    """All that stand on exactly one side in `fewest` pairs or more."""
    sides = {name: table.shows(bit) for bit, name in enumerate(MARKS)}
    first = np.empty((len(table), 2), object)
    first[:] = [[words.partition(" ")[0] for words in row] for row in table.openings]
    for word, count in Counter(first.ravel().tolist()).most_common(_MOST_WORDS):
        if word and count >= fewest:
            sides[f'begins with "{word}"'] = first == word
    languages = table.languages[:, 1:]
    known = (languages != UNKNOWN).all(1, keepdims=True)
    for code in np.unique(languages):
        if code != UNKNOWN:
            sides[f"in {code.decode()}"] = (languages == code) & known
    one_sided = [_Artefact(name, int((s[:, 0] & ~s[:, 1]).sum()), int((s[:, 1] & ~s[:, 0]).sum()), s[:, 0] != s[:, 1]) for name, s in sides.items()]
    return [a for a in one_sided if a.chosen_only + a.rejected_only >= fewest]


_MOST_WORDS = 200


class _Sameness(NamedTuple):
    """A way in which many rejected sides are alike: what is said of it, and the rows that show it."""

    said: str
    rows: np.ndarray


def rejection_types(table: Table, limits: AuditSettings) -> Finding:
    """Whether rejected sides are worse in one way only: by their `reason`, by how they open, by being the same text."""
    found = [*_one_reason(table, limits), *_one_opening(table, limits), *_one_text(table, limits)]
    reasons = counts_of(table.category("reason"))
    return Finding(
        "rejection-types",
        "Kinds of rejected sides",
        Verdict.WARN if found else Verdict.OK,
        f"Rejected sides are worse in one way: {'; '.join(sameness.said for sameness in found)}."
        if found
        else f"{f'{len(reasons)} reasons are given' if reasons else 'No `reason` is given'}; no reason, opening or text stands out.",
        mend="The model learns to avoid that one fault and nothing else. Add rejected sides with other faults, and name them in `reason`.",
        numbers=tuple(exact(f"pairs with reason {reason}", count, "pairs") for reason, count in list(reasons.items())[:MOST_FEATURES]),
        rows=np.unique(np.concatenate([sameness.rows for sameness in found])) if found else np.empty(0, np.int64),
        plots=(Bars("Pairs by reason", tuple(reasons)[:MOST_FEATURES], tuple(map(float, reasons.values()))[:MOST_FEATURES]),) if reasons else (),
    )


def _one_reason(table: Table, limits: AuditSettings) -> Iterator[_Sameness]:
    """One `reason`, where enough pairs give any."""
    given = table.category("reason")
    reasons = counts_of(given)
    known = sum(reasons.values())
    for reason, times in reasons.items():
        if known >= _FEWEST and times / known >= limits.one_reason_warn:
            yield _Sameness(f"`{reason}` is the reason of {times / known:.0%}", np.flatnonzero(given == reason))


def _one_opening(table: Table, limits: AuditSettings) -> Iterator[_Sameness]:
    """Three words with which many rejected sides open and few chosen ones do."""
    openings = [Counter(words for words in side if words.count(" ") == 2) for side in table.openings.T.tolist()]
    for words, times in openings[1].most_common(_MOST_OPENINGS):
        if times > 1 and times / len(table) >= limits.one_opening_warn and times > 2 * openings[0][words]:
            said = f'{times / len(table):.0%} open with "{words}" (of the chosen ones {openings[0][words] / len(table):.0%})'
            yield _Sameness(said, np.flatnonzero(table.openings[:, 1] == words))


def _one_text(table: Table, limits: AuditSettings) -> Iterator[_Sameness]:
    """One and the same text."""
    texts, counts = np.unique(table.keys[:, REJECTED], return_counts=True)
    for i in np.argsort(-counts, kind="stable")[:_MOST_OPENINGS]:
        if counts[i] > 1 and counts[i] / len(table) >= limits.one_opening_warn:
            yield _Sameness(f"{counts[i] / len(table):.0%} are one text", np.flatnonzero(table.keys[:, REJECTED] == texts[i]))


_MOST_OPENINGS = 5


def refusals(table: Table, limits: AuditSettings) -> Finding:
    """How often the sides refuse: chosen sides that do teach refusing, rejected ones teach not to."""
    refuses = table.shows(list(MARKS).index("refusal"))
    chosen, rejected = (share_of(f"{side} sides that refuse", int(refuses[:, i].sum()), len(table)) for i, side in enumerate(("chosen", "rejected")))
    return Finding(
        "refusals",
        "Refusals",
        graded(chosen.value.value, (limits.refusals_note, Verdict.NOTE), (limits.refusals_warn, Verdict.WARN)),
        f"{chosen.value.value:.1%} of chosen and {rejected.value.value:.1%} of rejected sides refuse.",
        mend="Add harmless look-alikes with a helpful chosen side, and measure over-refusal after training.",
        numbers=(chosen, rejected),
        rows=np.flatnonzero(refuses[:, 0]),
    )
