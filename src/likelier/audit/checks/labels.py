"""Checks of the labels themselves: do they contradict each other, how noisy are they, do annotators agree?"""

from itertools import combinations

import numpy as np

from likelier.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha, label_counts
from likelier.audit.classify import predict, word_differences
from likelier.audit.findings import Bars, Finding, Number, Verdict, exact, graded, share_of
from likelier.audit.table import CHOSEN, PROMPT, REJECTED, Table
from likelier.metrics import bootstrap, wilson
from likelier.thresholds import AuditSettings


def contradictions(table: Table, limits: AuditSettings) -> Finding:
    """Pairs of which the opposite is in the data: the same prompt and replies, preferred the other way round."""
    rows = opposed(table)
    share = share_of("contradicted pairs", len(rows), len(table))
    return Finding(
        "contradictions",
        "Contradictory labels",
        graded(share.value.value, (1 / max(1, len(table)), Verdict.WARN), (limits.contradictions_fatal, Verdict.FATAL)),
        f"{len(rows):,} pairs ({share.value.value:.1%}) say A over B where another says B over A.",
        mend="`likelier fix --do drop-contradictions` drops both; with several annotators, keep the majority's.",
        numbers=(share,),
        rows=rows,
    )


def replies_of(table: Table) -> np.ndarray:
    """(N, 2) uint64: a name for chosen and rejected as replies to their prompt."""
    with np.errstate(over="ignore"):
        return np.asarray(table.keys[:, [CHOSEN, REJECTED]] * np.uint64(0x9E3779B97F4A7C15) + table.keys[:, [PROMPT]])


def opposed(table: Table) -> np.ndarray:
    """Rows of which another row prefers the same two replies the other way round."""
    replies = replies_of(table)
    upward = replies[:, 0] < replies[:, 1]
    _, item = np.unique(np.sort(replies, axis=1), axis=0, return_inverse=True)
    item = item.ravel()
    both = (np.bincount(item, upward) > 0) & (np.bincount(item, ~upward) > 0)
    return np.flatnonzero(both[item] & (replies[:, 0] != replies[:, 1]))


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
        graded(share.value.value, (1 / max(1, len(table)), Verdict.WARN), (limits.contradictions_fatal, Verdict.FATAL)),
        f"{len(rows):,} pairs over {prompts:,} prompts prefer in a circle.",
        mend="Ask again about these prompts, or `likelier fix --do drop-cycles`: no reward can satisfy all of them (Bradley–Terry needs an order).",
        numbers=(share,),
        rows=rows,
    )


def label_noise(table: Table, limits: AuditSettings) -> Finding:
    """How often a plain text classifier, asked about pairs that it was not fitted to, is sure of the opposite.

    Of the fifth of the pairs that it is surest of, the share with the other label: an upper bound of the noise there, and an honest one only if
    words tell the sides apart at all. The rows are all pairs with which it disagrees, the ones to look at first first (Northcutt et al. 2021).
    """
    title = "Label noise"
    if len(table.sampled) < _FEWEST:
        return Finding("label-noise", title, Verdict.OK, f"{len(table.sampled)} pairs are too few for an estimate.")
    rows = np.array([sampled.row for sampled in table.sampled])
    scores = predict(word_differences([sampled.texts for sampled in table.sampled]), table.keys[rows, PROMPT], table.coin[rows])
    wrong = scores < 0
    overall = bootstrap(wrong.astype(float), table.keys[rows, PROMPT].tolist(), resamples=500)
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
        f"Of the labels that words make surest, {sure.value:.1%} are the other way round.",
        mend="Look at the pairs that are named; then `objective.label_smoothing` of about that share, or IPO.",
        numbers=numbers,
        rows=rows[suspects[np.argsort(scores[suspects])]],
    )


_FEWEST = 200
_UNPREDICTABLE = 0.3


def annotators(table: Table, limits: AuditSettings) -> Finding:
    """Agreement where several annotators judged the same two replies, and each one's liking for the longer one."""
    title = "Annotators"
    who = table.category("annotator")
    names, annotator = np.unique(np.where(who == None, "", who).astype(str), return_inverse=True)  # noqa: E711
    if list(names) in ([], [""]):
        return Finding("annotators", title, Verdict.SKIPPED, "Asked only where pairs name their `annotator`.")
    replies = replies_of(table)
    label = (replies[:, 0] < replies[:, 1]).astype(int)
    _, item = np.unique(np.sort(replies, axis=1), axis=0, return_inverse=True)
    item = item.ravel()
    named = names[annotator] != ""
    overlap = _overlap(item, label, annotator, named)
    biased, bars = _biases(table, names, annotator, named, limits)
    numbers = [exact("annotators", int(np.sum(names != ""))), exact("items with several annotators", len(overlap))]
    verdict = Verdict.NOTE if biased else Verdict.OK
    summary = f"{np.sum(names != ''):,} annotators; no two of them judged the same replies, so their agreement is unknown."
    if len(overlap):
        alpha = krippendorff_alpha(overlap)
        numbers += [exact("Krippendorff's α", alpha), exact("Fleiss' κ", fleiss_kappa(overlap))]
        numbers += [exact(f"Cohen's κ, {a} and {b}", kappa) for a, b, kappa in _cohens(item, label, annotator, names, limits)]
        verdict = max(verdict, _agreement_verdict(alpha, limits))
        summary = f"Krippendorff's α is {alpha:.2f} over {len(overlap):,} items that {int(overlap.sum()):,} judgements were made of."
    return Finding(
        "annotators",
        title,
        verdict,
        summary + (f" Their taste for length sets apart: {'; '.join(biased)}." if biased else ""),
        mend="Sharpen the rubric on the items in dispute; train on the majority; weigh or leave out who judges by length.",
        numbers=tuple(numbers),
        plots=bars,
    )


def _agreement_verdict(alpha: float, limits: AuditSettings) -> Verdict:
    if np.isnan(alpha) or alpha >= limits.agreement_note:
        return Verdict.OK
    return Verdict.WARN if alpha <= limits.agreement_warn else Verdict.NOTE


def _overlap(item: np.ndarray, label: np.ndarray, annotator: np.ndarray, named: np.ndarray) -> np.ndarray:
    """(items, 2) counts of labels for items that two annotators or more judged; each one's first judgement counts."""
    judgements = np.unique(np.stack([item, annotator, label], 1)[named], axis=0)
    _, first = np.unique(judgements[:, :2], axis=0, return_index=True)
    judgements = judgements[first]
    _, position, times = np.unique(judgements[:, 0], return_inverse=True, return_counts=True)
    several = times[position] > 1
    if not several.any():
        return np.empty((0, 2), int)
    _, position = np.unique(judgements[several, 0], return_inverse=True)
    return np.pad(counts := label_counts(position, judgements[several, 2]), ((0, 0), (0, 2 - counts.shape[1])))


def _cohens(item: np.ndarray, label: np.ndarray, annotator: np.ndarray, names: np.ndarray, limits: AuditSettings) -> list[tuple[str, str, float]]:
    """κ of the pairs of annotators who share the most items, ten at most."""
    judged = {int(a): dict(zip(item[annotator == a].tolist(), label[annotator == a].tolist(), strict=True)) for a in np.unique(annotator) if names[a]}
    busiest = sorted(judged, key=lambda a: -len(judged[a]))[:12]
    shared = [(a, b, judged[a].keys() & judged[b].keys()) for a, b in combinations(busiest, 2)]
    shared = sorted((s for s in shared if len(s[2]) >= limits.annotator_items), key=lambda s: -len(s[2]))[:10]
    return [(str(names[a]), str(names[b]), cohen_kappa([judged[a][i] for i in both], [judged[b][i] for i in both])) for a, b, both in shared]


def _biases(table: Table, names: np.ndarray, annotator: np.ndarray, named: np.ndarray, limits: AuditSettings) -> tuple[list[str], tuple[Bars, ...]]:
    """Who prefers the longer side clearly more or less often than all others, and a plot of it."""
    unequal = (table.longer != 0) & named
    longer_won = (table.longer > 0) & unequal
    wins, totals = np.bincount(annotator[longer_won], minlength=len(names)), np.bincount(annotator[unequal], minlength=len(names))
    told = [i for i in np.argsort(-totals, kind="stable") if totals[i] >= limits.annotator_items]
    if len(told) < 2:
        return [], ()
    rates = {i: wilson(int(wins[i]), int(totals[i])) for i in told}
    biased = []
    for i in told:
        others = (wins.sum() - wins[i]) / max(1, totals.sum() - totals[i])
        if abs(rates[i].value - others) >= limits.annotator_bias and rates[i].excludes(others):
            biased.append(f"{names[i]} prefers the longer side in {rates[i].value:.0%}, the others in {others:.0%}")
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
