"""Checks for lessons that nobody meant: what on the surface of the sides gives the label away."""

from collections import Counter
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
    order = np.ascontiguousarray(table.content).view(">u8")[::4]
    return np.sort(np.argsort(order, kind="stable")[:most])


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
    first = np.array([[words.partition(" ")[0] for words in row] for row in table.openings], dtype=str).reshape(-1, 2)
    for word, count in Counter(first.ravel().tolist()).most_common(_MOST_WORDS):
        if word and count >= fewest:
            sides[f'begins with "{word}"'] = first == word
    languages = table.languages[:, 1:]
    for code in np.unique(languages):
        if code != UNKNOWN:
            sides[f"in {code.decode()}"] = languages == code
    one_sided = [_Artefact(name, int((s[:, 0] & ~s[:, 1]).sum()), int((s[:, 1] & ~s[:, 0]).sum()), s[:, 0] != s[:, 1]) for name, s in sides.items()]
    return [a for a in one_sided if a.chosen_only + a.rejected_only >= fewest]


_MOST_WORDS = 200


def rejection_types(table: Table, limits: AuditSettings) -> Finding:
    """Whether rejected sides are worse in one way only: by their `reason`, by how they open, by being the same text."""
    reasons = counts_of(table.category("reason"))
    known = sum(reasons.values())
    reason, times = next(iter(reasons.items()), ("", 0))
    opening, opens, chosen_opens = _shared_opening(table)
    texts, counts = np.unique(table.keys[:, REJECTED], return_counts=True)
    same = int(counts.max(initial=0))
    numbers = (
        share_of("rejected sides with the commonest opening", opens, len(table)),
        share_of("rejected sides that are one text", same, len(table)),
    )
    faults = []
    if known and times / known >= limits.one_reason_warn and len(table) > 1:
        faults.append(f"`{reason}` is the reason of {times / known:.0%}")
    if opens / max(1, len(table)) >= limits.one_opening_warn and opens > 2 * chosen_opens and opens > 1:
        faults.append(f'{opens / len(table):.0%} open with "{opening}" (of the chosen ones {chosen_opens / len(table):.0%})')
    if same > 1 and same / len(table) >= limits.one_opening_warn:
        faults.append(f"{same / len(table):.0%} are the same text")
    shape = f"{len(reasons)} reasons, the commonest `{reason}` ({times / known:.0%})" if known else "No `reason` is given"
    rows = np.flatnonzero(table.openings[:, 1] == opening) if len(faults) and opens > 2 * chosen_opens else np.empty(0, np.int64)
    if same > 1 and same / len(table) >= limits.one_opening_warn:
        rows = np.union1d(rows, np.flatnonzero(table.keys[:, REJECTED] == texts[counts.argmax()]))
    return Finding(
        "rejection-types",
        "Kinds of rejected sides",
        Verdict.WARN if faults else Verdict.OK,
        f"Rejected sides are worse in one way: {'; '.join(faults)}." if faults else f"{shape}; no opening or text stands out.",
        mend="The model learns to avoid that one fault and nothing else. Add rejected sides with other faults, and name them in `reason`.",
        numbers=numbers,
        rows=rows,
        plots=(Bars("Pairs by reason", tuple(reasons)[:12], tuple(map(float, reasons.values()))[:12]),) if known else (),
    )


def _shared_opening(table: Table) -> tuple[str, int, int]:
    """(the three words with which most rejected sides open, how many do, how many chosen ones do)."""
    openings = Counter(words for words in table.openings[:, 1].tolist() if words.count(" ") == 2)
    opening, opens = openings.most_common(1)[0] if openings else ("", 0)
    return opening, opens, int((table.openings[:, 0] == opening).sum()) if opening else 0


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
