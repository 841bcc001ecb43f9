"""Checks of the labels themselves: do they contradict each other, how noisy are they, do annotators agree?"""

from itertools import combinations

import numpy as np

from likelier.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha, label_counts
from likelier.audit.classify import predict, word_differences
from likelier.audit.findings import Bars, Finding, Number, Verdict, any_of, exact, graded, share_of
from likelier.audit.table import CHOSEN, PROMPT, REJECTED, Table, numbered
from likelier.metrics import bootstrap, wilson
from likelier.thresholds import AuditSettings


def contradictions(table: Table, limits: AuditSettings) -> Finding:
    """Pairs of which the opposite is in the data: the same prompt and replies, preferred the other way round.

    Between annotators that is a difference of opinion, which `annotators` measures. From one of them, or from nobody, it is a fault.
    """
    rows = opposed(table)
    own = opposed(table, by_annotator=True)
    share = share_of("pairs contradicted by the same annotator, or by nobody named", len(own), len(table))
    fault = max(Verdict.WARN if len(own) else Verdict.OK, graded(share.value.value, (limits.contradictions_fatal, Verdict.FATAL)))
    return Finding(
        "contradictions",
        "Contradictory labels",
        max(fault, any_of(len(rows))),
        f"{len(rows):,} pairs say A over B where another says B over A"
        + (f", {len(own):,} of them against the same annotator or nobody named." if len(rows) else "."),
        mend="`likelier fix --do drop-contradictions` keeps what the majority says, and nothing where votes are even.",
        numbers=(share, share_of("contradicted pairs", len(rows), len(table))),
        rows=rows,
    )


def replies_of(table: Table) -> np.ndarray:
    """(N, 2) uint64: a name for chosen and rejected as replies to their prompt."""
    with np.errstate(over="ignore"):
        return np.asarray(table.keys[:, [CHOSEN, REJECTED]] * np.uint64(0x9E3779B97F4A7C15) + table.keys[:, [PROMPT]])


def _judged(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """(number of the two replies that each row compares, whichever it prefers; which of them it prefers: 0 or 1)."""
    replies = replies_of(table)
    _, item = np.unique(np.sort(replies, axis=1), axis=0, return_inverse=True)
    return item.ravel(), (replies[:, 0] < replies[:, 1]).astype(int)


def opposed(table: Table, *, by_annotator: bool = False) -> np.ndarray:
    """Rows of which another row (of the same annotator) prefers the same two replies the other way round."""
    item, label = _judged(table)
    if by_annotator:
        _, annotator = numbered(table.category("annotator"))
        _, item = np.unique(np.column_stack([item, annotator]), axis=0, return_inverse=True)
        item = item.ravel()
    votes = label_counts(item, label) if len(table) else np.empty((0, 2))
    both = votes.min(1) > 0 if votes.shape[1] == 2 else np.zeros(len(votes), bool)
    different = table.keys[:, CHOSEN] != table.keys[:, REJECTED]
    return np.flatnonzero(both[item] & different)


def outvoted(table: Table) -> np.ndarray:
    """Of the rows that contradict each other, those that the majority is against; all of them where votes are even."""
    item, label = _judged(table)
    rows = opposed(table)
    votes = np.bincount(item[rows], 2 * label[rows] - 1, minlength=int(item.max(initial=-1)) + 1)
    return np.asarray(rows[np.sign(votes[item[rows]]) != 2 * label[rows] - 1])


def cycles(table: Table, limits: AuditSettings) -> Finding:
    """Pairs on a circle of three replies or more to one prompt (A over B over C over A): strongly connected components of "is preferred to"."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names, node = np.unique(replies_of(table), return_inverse=True)
    node = node.reshape(-1, 2)
    graph = coo_matrix((np.ones(len(node), np.int8), (node[:, 0], node[:, 1])), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=True, connection="strong")
    within = component[node[:, 0]] == component[node[:, 1]]
    large = np.bincount(component)[component[node[:, 0]]] > 2
    found = within & large
    found[opposed(table)] = False
    rows = np.flatnonzero(found)
    share = share_of("pairs on a circle", len(rows), len(table))
    prompts = len(np.unique(table.keys[rows, PROMPT]))
    return Finding(
        "preference-cycles",
        "Circular preferences",
        max(Verdict.WARN if len(rows) else Verdict.OK, graded(share.value.value, (limits.contradictions_fatal, Verdict.FATAL))),
        f"{len(rows):,} pairs over {prompts:,} prompts prefer in a circle.",
        mend="Ask again about these prompts, or `likelier fix --do drop-cycles`: no reward can satisfy all of them (Bradley–Terry needs an order).",
        numbers=(share,),
        rows=rows,
    )


def label_noise(table: Table, limits: AuditSettings) -> Finding:
    """How often a plain text classifier, asked about pairs that it was not fitted to, is sure of the opposite.

    Of the fifth of the pairs that it is surest of, the share with the other label: an upper bound of the noise there, and an honest one only if
    words tell the sides apart at all. The rows are all pairs with which it disagrees, the surest at the head (Northcutt et al. 2021).
    """
    title = "Label noise"
    if len(table.sampled) < _FEWEST:
        return Finding("label-noise", title, Verdict.OK, f"{len(table.sampled)} pairs are too few for an estimate.")
    rows = np.array([sampled.row for sampled in table.sampled])
    scores = predict(word_differences([sampled.texts for sampled in table.sampled]), table.keys[rows, PROMPT], table.coin[rows])
    wrong = scores < 0
    overall = bootstrap((scores < 0) + 0.5 * (scores == 0), table.keys[rows, PROMPT].tolist(), resamples=500)
    surest = np.argsort(-np.abs(scores), kind="stable")[: max(1, len(rows) // 5)]
    sure = wilson(int(wrong[surest].sum()), len(surest))
    numbers = (Number("disagreement, cross-validated", overall, "share"), Number("disagreement of the surest fifth", sure, "share"))
    if overall.value > _UNPREDICTABLE:
        return Finding(
            "label-noise",
            title,
            Verdict.OK,
            f"Not to be told: from words alone {1 - overall.value:.0%} of the labels can be predicted, so noise cannot be told from difficulty.",
            numbers=numbers,
        )
    suspects = np.flatnonzero(wrong)
    return Finding(
        "label-noise",
        title,
        graded(sure.low, (limits.noise_note, Verdict.NOTE), (limits.noise_warn, Verdict.WARN)),
        f"Of the fifth of the labels that words make surest, {sure.value:.1%} ({sure.low:.1%} to {sure.high:.1%}) are the other way round.",
        mend="Look at the pairs that are named; then objective.name ipo or robust-dpo, or `objective.label_smoothing`.",
        numbers=numbers,
        rows=rows[suspects[np.argsort(scores[suspects])]],
    )


_FEWEST = 200
_UNPREDICTABLE = 0.3


def annotators(table: Table, limits: AuditSettings) -> Finding:
    """Agreement where several annotators judged the same two replies, and each one's liking for the longer one."""
    title = "Annotators"
    names, annotator = numbered(table.category("annotator"))
    named = np.array([name is not None for name in names])
    if not named.any():
        return Finding("annotators", title, Verdict.SKIPPED, "Asked only where pairs name their `annotator`.")
    judgements = _judgements(table, annotator, named)
    overlap = _overlap(judgements)
    biased, bars = _biases(table, names, annotator, named, limits)
    numbers = [exact("annotators", int(named.sum())), exact("items with several annotators", len(overlap))]
    verdict = any_of(len(biased))
    summary = f"{named.sum():,} annotators; no two of them judged the same replies, so their agreement is unknown."
    if len(overlap):
        alpha = krippendorff_alpha(overlap)
        shared = _cohens(judgements, names, limits)
        known = [("Krippendorff's α", alpha), ("Fleiss' κ", fleiss_kappa(overlap)), *shared]
        numbers += [exact(name, value) for name, value in known if np.isfinite(value)]
        verdict = max(verdict, _agreement_verdict(alpha, limits))
        summary = (
            f"Krippendorff's α is {alpha:.2f} over {len(overlap):,} items with {int(overlap.sum()):,} judgements."
            if np.isfinite(alpha)
            else f"{len(overlap):,} items are too few to tell agreement from chance."
        )
    return Finding(
        "annotators",
        title,
        verdict,
        summary + (f" The taste for length of {len(biased):,} differs from the others'." if biased else ""),
        mend="Sharpen the rubric on the items in dispute; `likelier fix --do drop-contradictions` keeps the majority's labels.",
        numbers=tuple(numbers),
        details=tuple(biased),
        plots=bars,
    )


def _agreement_verdict(alpha: float, limits: AuditSettings) -> Verdict:
    if np.isnan(alpha) or alpha >= limits.agreement_note:
        return Verdict.OK
    return Verdict.WARN if alpha <= limits.agreement_warn else Verdict.NOTE


def _judgements(table: Table, annotator: np.ndarray, named: np.ndarray) -> np.ndarray:
    """(J, 3) item, annotator, label: one row for each annotator and item. Who contradicts him- or herself about an item has said nothing of it."""
    item, label = _judged(table)
    said = np.unique(np.column_stack([item, annotator, label])[named[annotator]], axis=0)
    _, position, times = np.unique(said[:, :2], axis=0, return_inverse=True, return_counts=True)
    return np.asarray(said[times[position.ravel()] == 1])


def _overlap(judgements: np.ndarray) -> np.ndarray:
    """(items, 2) counts of labels, of the items that two annotators or more judged."""
    if not len(judgements):
        return np.empty((0, 2), int)
    _, item = np.unique(judgements[:, 0], return_inverse=True)
    counts = label_counts(item.ravel(), judgements[:, 2])
    counts = np.pad(counts, ((0, 0), (0, 2 - counts.shape[1])))
    return np.asarray(counts[counts.sum(1) > 1])


def _cohens(judgements: np.ndarray, names: list[str | None], limits: AuditSettings) -> list[tuple[str, float]]:
    """κ of the pairs of annotators who share the most items, ten at most, among the twelve busiest."""
    busiest = np.argsort(-np.bincount(judgements[:, 1]), kind="stable")[:12]
    judged = {int(a): dict(judgements[judgements[:, 1] == a][:, [0, 2]].tolist()) for a in busiest}
    shared = [(a, b, sorted(judged[a].keys() & judged[b].keys())) for a, b in combinations(judged, 2)]
    shared = sorted((each for each in shared if len(each[2]) >= limits.annotator_items), key=lambda each: -len(each[2]))[:10]
    kappas = (cohen_kappa([judged[a][i] for i in both], [judged[b][i] for i in both]) for a, b, both in shared)
    return [(f"Cohen's κ, {names[a]} and {names[b]}", kappa) for (a, b, _), kappa in zip(shared, kappas, strict=True)]


def _biases(
    table: Table, names: list[str | None], annotator: np.ndarray, named: np.ndarray, limits: AuditSettings
) -> tuple[list[str], tuple[Bars, ...]]:
    """Who prefers the longer side clearly more or less often than all others, and a plot of the busiest. False discoveries are held down: of a
    thousand fair annotators fifty stray from the others by chance."""
    from scipy.stats import binomtest, false_discovery_control

    unequal = (table.longer != 0) & named[annotator]
    wins = np.bincount(annotator[unequal & (table.longer > 0)], minlength=len(names))
    totals = np.bincount(annotator[unequal], minlength=len(names))
    told = [i for i in np.argsort(-totals, kind="stable").tolist() if totals[i] >= limits.annotator_items]
    if len(told) < 2:
        return [], ()
    rates = {i: wilson(int(wins[i]), int(totals[i])) for i in told}
    others = {i: (wins.sum() - wins[i]) / max(1, totals.sum() - totals[i]) for i in told}
    chances = false_discovery_control([binomtest(int(wins[i]), int(totals[i]), others[i]).pvalue for i in told])
    biased = [
        f"{names[i]} prefers the longer side in {rates[i].value:.0%}, the others in {others[i]:.0%}"
        for i, chance in zip(told, chances, strict=True)
        if chance <= limits.false_discovery and abs(rates[i].value - others[i]) >= limits.annotator_bias
    ]
    shown = told[:20]
    bars = Bars(
        "How often each annotator prefers the longer side",
        tuple(str(names[i]) for i in shown),
        tuple(rates[i].value for i in shown),
        tuple(rates[i].low for i in shown),
        tuple(rates[i].high for i in shown),
        level=float(wins.sum() / max(1, totals.sum())),
    )
    return biased, (bars,)
