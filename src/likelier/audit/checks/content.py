"""Checks of what the data is made of: repetition, languages, private data, coverage of prompts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from likelier.audit.findings import Bars, Finding, Verdict, exact, graded, share_of
from likelier.audit.privacy import SECRET_KINDS
from likelier.audit.table import CHOSEN, PROMPT, REJECTED, UNKNOWN, Private, Table
from likelier.data.near import groups
from likelier.metrics import wilson
from likelier.thresholds import AuditSettings


def duplicates(table: Table, limits: AuditSettings) -> Finding:
    """Pairs that repeat an earlier one: same prompt, chosen and rejected, but for case and white space."""
    rows = repeats(table.keys)
    share = share_of("repeated pairs", len(rows), len(table))
    return Finding(
        "duplicates",
        "Repeated pairs",
        graded(share.value.value, (1 / max(1, len(table)), Verdict.NOTE), (limits.duplicates_warn, Verdict.WARN)),
        f"{len(rows):,} pairs ({share.value.value:.1%}) stand in the data before.",
        mend="`likelier fix --do drop-duplicates`; give what is meant to count more a `weight`.",
        numbers=(share,),
        rows=rows,
    )


def repeats(keys: np.ndarray) -> np.ndarray:
    """Rows of `keys` (N, K) that equal an earlier one."""
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return np.flatnonzero(first[inverse.ravel()] != np.arange(len(keys)))


def near_duplicates(table: Table, limits: AuditSettings) -> Finding:
    """Pairs that nearly repeat an earlier one, and are not exact repetitions of it."""
    label = groups(table.signatures, similarity=limits.near_duplicate)
    near = label != np.arange(len(table))
    near[repeats(table.keys)] = False
    rows = np.flatnonzero(near)
    share = share_of("near repetitions", len(rows), len(table))
    return Finding(
        "near-duplicates",
        "Near repetitions",
        graded(share.value.value, (1 / max(1, len(table)), Verdict.NOTE), (limits.near_duplicates_warn, Verdict.WARN)),
        f"{len(rows):,} pairs ({share.value.value:.1%}) repeat an earlier one in {limits.near_duplicate:.0%} of their word sequences or more.",
        mend="`likelier fix --do drop-near-duplicates`, or vary the templates that made them. `likelier split` keeps them on one side.",
        numbers=(share,),
        rows=rows,
    )


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
        graded(sides.value.value, (limits.language_differs_warn, Verdict.WARN), (1 / max(1, len(table)), Verdict.NOTE)),
        graded(minority.value.value, (limits.language_note, Verdict.NOTE)),
    )
    mix = ", ".join(f"{code.decode()} {count / max(1, sum(counts.values())):.1%}" for code, count in counts.most_common(5))
    return Finding(
        "languages",
        "Languages",
        verdict,
        f"Chosen sides: {mix or 'too short to tell'}. In {differ.sum():,} pairs the sides are in different languages.",
        mend="Where the sides differ in language, the language is the lesson: drop or translate them. Report rare languages apart (`group`).",
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
    verdict = graded(share, (1 / max(1, len(table)), Verdict.NOTE), (limits.personal_data_warn, Verdict.WARN))
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
    """How many kinds of prompt there are: clusters of the sampled prompts' words, and the share of the largest."""
    prompts = list(dict.fromkeys(sampled.texts[PROMPT] for sampled in table.sampled))
    distinct = len(np.unique(table.keys[:, PROMPT]))
    if len(prompts) < _FEWEST:
        return Finding(
            "prompt-coverage",
            "Coverage of prompts",
            Verdict.OK,
            f"{distinct:,} different prompts: too few to group.",
            numbers=(exact("different prompts", distinct),),
        )
    label, names = _clusters(prompts)
    sizes = np.bincount(label)
    order = np.argsort(-sizes, kind="stable")
    largest = wilson(int(sizes[order[0]]), len(prompts))
    effective = float(np.exp(-(sizes[sizes > 0] / len(prompts) * np.log(sizes[sizes > 0] / len(prompts))).sum()))
    return Finding(
        "prompt-coverage",
        "Coverage of prompts",
        graded(largest.value, (limits.one_cluster_warn, Verdict.WARN)),
        f"{distinct:,} different prompts, in about {effective:.0f} groups of like words; the largest holds {largest.value:.0%} ({names[order[0]]}).",
        mend="Write or sample prompts of the kinds that are missing; evaluate by `group`, so that the large kind does not speak for all.",
        numbers=(exact("different prompts", distinct), share_of("prompts in the largest group", int(sizes[order[0]]), len(prompts))),
        plots=(
            Bars(
                "Prompts by group, named by the words that stand out",
                tuple(names[i] for i in order if sizes[i]),
                tuple(float(sizes[i]) for i in order if sizes[i]),
            ),
        ),
    )


_FEWEST = 40
_CLUSTERS = 12


def _clusters(prompts: list[str]) -> tuple[np.ndarray, list[str]]:
    """(cluster of each prompt, words that name each cluster): k-means on tf-idf, brought to 50 dimensions (Deerwester et al. 1990)."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    words = TfidfVectorizer(sublinear_tf=True, max_df=0.5, min_df=2, max_features=20_000, stop_words="english", dtype=np.float32)
    try:
        weights = words.fit_transform(prompt[-2000:] for prompt in prompts)
    except ValueError:  # no word stands in two prompts and in fewer than half of them
        return np.zeros(len(prompts), np.int64), ["no common words"]
    width = min(50, weights.shape[1] - 1, len(prompts) - 1)
    points = normalize(TruncatedSVD(width, random_state=0).fit_transform(weights)) if width >= 2 else weights.toarray()
    model = KMeans(min(_CLUSTERS, len(prompts) // 4), n_init=1, random_state=0).fit(points)
    vocabulary = words.get_feature_names_out()
    names = []
    for cluster in range(model.n_clusters):
        mean = np.asarray(weights[model.labels_ == cluster].mean(0)).ravel()
        names.append(", ".join(vocabulary[i] for i in np.argsort(-mean)[:3]))
    return model.labels_, names
