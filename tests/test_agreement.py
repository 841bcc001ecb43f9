import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from likelier.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha, label_counts

labels = st.integers(0, 2)


@given(st.lists(st.tuples(labels, labels), min_size=2, max_size=30))
def test_cohen_equals_scikit_learn(both):
    first, second = zip(*both, strict=True)
    found = cohen_kappa(first, second)
    if len({*first, *second}) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_fleiss_on_a_known_table():
    """Ten items, fourteen annotators, five labels: the worked example of most textbooks, κ = 0.210."""
    rows = [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
    assert fleiss_kappa(rows) == pytest.approx(0.210, abs=5e-4)


@given(st.lists(st.tuples(labels, labels, labels), min_size=2, max_size=20))
def test_krippendorff_against_the_formula(rows):
    counts = np.array([np.bincount(row, minlength=3) for row in rows])
    if len({label for row in rows for label in row}) < 2:
        assert math.isnan(krippendorff_alpha(counts))
    else:
        assert krippendorff_alpha(counts) == pytest.approx(_alpha(counts), abs=1e-9)


def test_labels_are_counted_by_item():
    assert label_counts([0, 1, 0, 1], [0, 1, 1, 1]).tolist() == [[1, 1], [0, 2]]


def _alpha(counts):
    """Nominal α written out: coincidences o, margins n."""
    counts = counts[counts.sum(1) > 1].astype(float)
    coincidences = sum((np.outer(row, row) - np.diag(row)) / (row.sum() - 1) for row in counts)
    n = coincidences.sum(0)
    observed = coincidences.sum() - np.trace(coincidences)
    expected = (n.sum() ** 2 - (n**2).sum()) / (n.sum() - 1)
    return 1 - observed / expected


def test_one_label_alone_tells_nothing():
    assert math.isnan(krippendorff_alpha([[2, 0], [3, 0]]))
    assert math.isnan(fleiss_kappa([[2, 0], [3, 0]]))


@pytest.mark.parametrize("first, second", [([], []), ([1], [1, 2])])
def test_lists_that_do_not_fit(first, second):
    with pytest.raises(ValueError, match="one length"):
        cohen_kappa(first, second)


def test_an_item_of_one_annotator():
    with pytest.raises(ValueError, match="two annotators"):
        fleiss_kappa([[1, 0], [1, 1]])
