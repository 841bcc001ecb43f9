"""Checks of what the data is made of: repetition, languages, private data, coverage of prompts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from likelier.audit.findings import Bars, Finding, Verdict, any_of, exact, graded, noted_share, share_of
from likelier.audit.privacy import SECRET_KINDS
from likelier.audit.surface import words_of
from likelier.audit.table import CHOSEN, PROMPT, REJECTED, SIDES, UNKNOWN, Private, Table, numbered
from likelier.data.near import groups
from likelier.thresholds import AuditSettings


def duplicates(table: Table, limits: AuditSettings) -> Finding:
    """Pairs that repeat an earlier one of the same annotator: same prompt, chosen and rejected, but for case and white space."""
    rows = exact_repeats(table)
    share, verdict = noted_share("repeated pairs", len(rows), len(table), warn=limits.duplicates_warn)
    return Finding(
        "duplicates",
        "Repeated pairs",
        verdict,
        f"{len(rows):,} pairs ({share.value.value:.1%}) stand in the data before.",
        mend="`likelier fix --do drop-duplicates`: each repetition is a weight that nobody chose.",
        numbers=(share,),
        rows=rows,
    )


def exact_repeats(table: Table) -> np.ndarray:
    """Rows that say what an earlier row of the same annotator says."""
    _, annotator = numbered(table.category("annotator"))
    return repeats(np.column_stack([table.keys, annotator.astype(np.uint64)]))


def repeats(keys: np.ndarray) -> np.ndarray:
    """Rows of `keys` (N, K) that equal an earlier one."""
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return np.flatnonzero(first[inverse.ravel()] != np.arange(len(keys)))


def near_duplicates(table: Table, limits: AuditSettings) -> Finding:
    """Pairs that nearly repeat an earlier one, side by side, and are not exact repetitions of it."""
    rows = np.setdiff1d(near_repeats(table, limits), repeats(table.keys))
    share, verdict = noted_share("near repetitions", len(rows), len(table), warn=limits.near_duplicates_warn)
    return Finding(
        "near-duplicates",
        "Near repetitions",
        verdict,
        f"{len(rows):,} pairs ({share.value.value:.1%}) repeat an earlier one, prompt, chosen and rejected, in {limits.near_duplicate:.0%} of their "
        "word pairs or more.",
        mend="`likelier fix --do drop-near-duplicates`, or vary the templates that made them. `likelier split` keeps like prompts on one side.",
        numbers=(share,),
        rows=rows,
    )


def near_repeats(table: Table, limits: AuditSettings) -> np.ndarray:
    """Rows each side of which is nearly that side of an earlier row, exact repetitions included. Sides are not mixed: a pair turned round, or
    another reply to the same long prompt, is no repetition."""
    alike = np.column_stack([groups(table.signatures[:, side], similarity=limits.near_duplicate) for side in range(len(SIDES))])
    return repeats(alike)


def languages(table: Table, limits: AuditSettings) -> Finding:
    """Which languages the data is in, and pairs whose sides are in different ones."""
    known = table.languages != UNKNOWN
    counts = Counter(table.languages[:, CHOSEN][known[:, CHOSEN]].tolist())
    main = counts.most_common(1)[0][0] if counts else UNKNOWN
    differ = (table.languages[:, CHOSEN] != table.languages[:, REJECTED]) & known[:, CHOSEN] & known[:, REJECTED]
    other = (table.languages[:, CHOSEN] != main) & known[:, CHOSEN]
    sides = share_of("pairs with sides in different languages", int(differ.sum()), len(table))
    minority = share_of("chosen sides outside the main language", int(other.sum()), len(table))
    away = (table.languages[:, PROMPT] != table.languages[:, CHOSEN]) & known[:, PROMPT] & known[:, CHOSEN]
    verdict = max(
        any_of(int(differ.sum())),
        graded(sides.value.value, (limits.language_differs_warn, Verdict.WARN)),
        graded(minority.value.value, (limits.language_note, Verdict.NOTE)),
    )
    mix = ", ".join(f"{code.decode()} {count / max(1, sum(counts.values())):.1%}" for code, count in counts.most_common(5))
    return Finding(
        "languages",
        "Languages",
        verdict,
        f"Chosen sides: {mix or 'too short to tell'}. In {differ.sum():,} pairs the sides are in different languages.",
        mend="Where the sides differ in language, the language is the lesson: drop or translate them.",
        numbers=(sides, minority, share_of("chosen sides not in the prompt's language", int(away.sum()), len(table))),
        rows=np.flatnonzero(differ),
    )


SHOWN = 20
"""Secrets that are named one by one."""


def secrets(table: Table, limits: AuditSettings) -> Finding:
    """Credentials: whoever has the model may get them."""
    found = [private for private in table.private if private.kind in SECRET_KINDS]
    verdict = Verdict.FATAL if found else Verdict.OK
    return _found(table, found, Finding("secrets", "Credentials", verdict, "None found.", mend="Revoke them, then `likelier fix --do mask-secrets`."))


def personal_data(table: Table, limits: AuditSettings) -> Finding:
    """Mail addresses, phone, card and account numbers."""
    found = [private for private in table.private if private.kind not in SECRET_KINDS]
    share = len({private.row for private in found}) / max(1, len(table))
    verdict = max(any_of(len(found)), graded(share, (limits.personal_data_warn, Verdict.WARN)))
    mend = "`likelier fix --do mask-secrets` puts the kind in each one's place."
    return _found(table, found, Finding("personal-data", "Personal data", verdict, "None found.", mend=mend))


def _found(table: Table, found: Sequence[Private], finding: Finding) -> Finding:
    """`finding` with what was found: kinds, rows, and the first few, masked."""
    if not found:
        return finding
    rows = np.unique(np.array([private.row for private in found], np.int64))
    kinds = Counter(private.kind for private in found)
    return replace(
        finding,
        summary=f"{', '.join(f'{count:,} × {kind}' for kind, count in kinds.most_common())}, in {len(rows):,} pairs.",
        numbers=(share_of("pairs with any", len(rows), len(table)), *(exact(kind, count) for kind, count in kinds.most_common())),
        rows=rows,
        details=tuple(f"{table.ids[private.row]}, {private.side}: {private.kind} {private.glimpse}" for private in found[:SHOWN]),
    )


def prompt_coverage(table: Table, limits: AuditSettings) -> Finding:
    """How many kinds of prompt there are: the share of pairs on one prompt, and clusters of the sampled prompts' words."""
    title = "Coverage of prompts"
    asked = groups(table.signatures[:, PROMPT], similarity=limits.near_duplicate)
    pairs_of = np.bincount(asked)
    rows = np.flatnonzero(asked == pairs_of.argmax())
    one = share_of("pairs on one prompt, or nearly the same", len(rows), len(table))
    distinct = exact("different prompts", len(np.unique(table.keys[:, PROMPT])))
    prompts = list(dict.fromkeys(sampled.texts[PROMPT] for sampled in table.sampled))
    clusters = _clusters(prompts) if len(prompts) >= _FEWEST else []
    in_largest = share_of("prompts in the largest group of like words", clusters[0][0], len(prompts)) if clusters else None
    if len(table) >= _FEWEST and one.value.value >= limits.one_cluster_warn:
        verdict, summary = Verdict.WARN, f"{one.value.value:.0%} of the pairs are on one prompt, or nearly the same."
    elif in_largest and in_largest.value.value >= limits.one_cluster_warn:
        verdict, summary, rows = Verdict.WARN, f"{in_largest.value.value:.0%} of the prompts are of one kind ({clusters[0][1]}).", _NO_ROWS
    else:
        verdict, rows = Verdict.OK, _NO_ROWS
        summary = f"{distinct.value.value:,.0f} different prompts" + (f", in {len(clusters)} groups of like words." if clusters else ".")
    return Finding(
        "prompt-coverage",
        title,
        verdict,
        summary,
        mend="Write or sample prompts of the kinds that are missing: what is learned is learned for the kind that is there.",
        numbers=(distinct, one, *([in_largest] if in_largest else [])),
        rows=rows,
        plots=(Bars("Prompts by group, named by the words that stand out", tuple(n for _, n in clusters), tuple(float(s) for s, _ in clusters)),)
        if clusters
        else (),
    )


_FEWEST = 40
_CLUSTERS = 12
_NO_ROWS = np.empty(0, np.int64)


def _clusters(prompts: list[str]) -> list[tuple[int, str]]:
    """(size, words that name it) of each cluster, the largest first: k-means on tf-idf, brought to 50 dimensions (Deerwester et al. 1990).

    Words of a single prompt, and of most of them, tell nothing; prompts without any other are left out, and where few are left there are no clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    vectorizer = TfidfVectorizer(
        tokenizer=words_of, token_pattern=None, lowercase=False, sublinear_tf=True, max_df=0.5, min_df=2, max_features=20_000
    )
    try:
        weights = vectorizer.fit_transform(prompt[-2000:] for prompt in prompts)
    except ValueError:  # no word is left
        return []
    weights = weights[np.flatnonzero(weights.getnnz(1))]
    if weights.shape[0] < max(_FEWEST, len(prompts) // 2) or weights.shape[1] < 3:
        return []
    points = normalize(TruncatedSVD(min(50, weights.shape[1] - 1), random_state=0).fit_transform(weights)).round(6)
    kinds = min(_CLUSTERS, len(np.unique(points, axis=0)), len(prompts) // 4)
    label = KMeans(kinds, n_init=1, random_state=0).fit(points).labels_
    vocabulary = vectorizer.get_feature_names_out()
    found = []
    for cluster in np.unique(label):
        mean = np.asarray(weights[label == cluster].mean(0)).ravel()
        found.append((int((label == cluster).sum()), ", ".join(vocabulary[i] for i in np.argsort(-mean, kind="stable")[:3])))
    return sorted(found, key=lambda each: (-each[0], each[1]))
