"""Can the label be told without reading? A logistic regression on differences between the sides, asked only about prompts it was not fitted to."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from likelier.audit.surface import words_of
from likelier.metrics import Interval

FOLDS = 5
WORDS = 2**16

DENSE: dict[str, Any] = {"max_iter": 200}
SPARSE: dict[str, Any] = {"solver": "liblinear", "dual": True, "C": 0.1, "random_state": 0}
"""Ways to fit. On words the dual coordinate descent of Hsieh et al. 2008 takes a hundredth of the default solver's time to the same answer."""


def predict(differences: Any, prompts: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """(N,) log-odds that each pair's label is right, from `differences` (N, F; dense or sparse; chosen − rejected), by cross-validation in which
    all pairs of a prompt (N,) are in one fold.

    The model has no intercept: exchanging the sides changes the sign of its answer, as it must. So that there are two classes to fit, the rows that
    are `turned` (N, bool; `Table.coin`) are shown the other way round.
    """
    from sklearn.linear_model import LogisticRegression

    sparse = hasattr(differences, "multiply")
    make = partial(LogisticRegression, fit_intercept=False, **(SPARSE if sparse else DENSE))
    sign = np.where(turned, -1.0, 1.0)
    shown = differences.multiply(sign[:, None]).tocsr() if sparse else differences * sign[:, None]
    fold = (np.unique(prompts, return_inverse=True)[1].ravel() * 2654435761 % 2**32) * FOLDS // 2**32
    scores = np.zeros(len(sign))
    for held_out in range(FOLDS):
        asked = fold == held_out
        if asked.any() and len(np.unique(sign[~asked])) == 2:
            model = make().fit(shown[~asked], sign[~asked])
            scores[asked] = model.decision_function(shown[asked]) * sign[asked]
    return scores


def weights(differences: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """(F,) coefficients of the same model fitted to all rows: the change of log-odds for a change of one unit."""
    from sklearn.linear_model import LogisticRegression

    sign = np.where(turned, -1.0, 1.0)
    model = LogisticRegression(fit_intercept=False, **DENSE).fit(differences * sign[:, None], sign)
    return np.asarray(model.coef_[0])


def word_differences(texts: Sequence[tuple[str, str, str]]) -> Any:
    """(N, WORDS) sparse: which words stand in chosen and not in rejected (+1), or the other way round (−1). Words are hashed."""
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(tokenizer=words_of, token_pattern=None, lowercase=False, n_features=WORDS, alternate_sign=False, norm=None, binary=True)
    chosen, rejected = (words.transform(text[side] for text in texts) for side in (1, 2))
    return (chosen - rejected).tocsr()


def area_under_curve(scores: np.ndarray, prompts: np.ndarray, *, resamples: int = 200) -> Interval:
    """AUC of telling a pair from the same pair with its sides exchanged, P(s_i > −s_j), with a bootstrap interval over prompts.

    Exchanged, a pair's score is −s; so scores s and −s are the two classes. Ties count half.
    """
    _, cluster = np.unique(prompts, return_inverse=True)
    both = np.concatenate([scores, -scores])
    values, position = np.unique(both, return_inverse=True)
    own, other = position.ravel()[: len(scores)], position.ravel()[len(scores) :]

    def area(weight: np.ndarray) -> float:
        positive, negative = (np.bincount(at, weight, len(values)) for at in (own, other))
        below = np.concatenate([[0.0], np.cumsum(negative)[:-1]])
        return float((positive * (below + negative / 2)).sum() / weight.sum() ** 2)

    rng = np.random.default_rng(0)
    clusters = int(cluster.max()) + 1
    drawn = [area(np.bincount(rng.integers(clusters, size=clusters), minlength=clusters)[cluster.ravel()]) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(area(np.ones(len(scores))), float(low), float(high))
