import re

import numpy as np
import pytest

from likelier.audit.checks import CHECKS
from likelier.audit.faults import KINDS
from likelier.audit.fix import DROPS, MASK, MENDS, balanced, fix
from likelier.audit.run import audit_pairs, tabulate
from likelier.data.formats import read_pairs, write_pairs
from likelier.data.version import dataset_id
from likelier.errors import DataError, RequestError
from likelier.thresholds import AuditSettings
from tests.audit import corpus

LIMITS = AuditSettings()

CURES = [
    ("drop-near-identical", "near-identical-sides", corpus.nearly_identical),
    ("drop-near-identical", "near-identical-sides", corpus.same_but_for_case),
    ("drop-duplicates", "duplicates", corpus.repeated),
    ("drop-near-duplicates", "near-duplicates", corpus.nearly_repeated),
    ("drop-contradictions", "contradictions", corpus.contradicted),
    ("drop-cycles", "preference-cycles", corpus.circular),
    ("drop-over-ratio", "length-ratio", corpus.out_of_proportion),
    ("drop-cut-off", "cut-off-sides", corpus.stops_in_the_middle),
    ("mask-secrets", "secrets", corpus.with_a_key),
    ("mask-secrets", "personal-data", corpus.with_addresses),
]


@pytest.fixture
def fixed(tmp_path):
    def fixed(pairs, *do, **options):
        write_pairs(tmp_path / "before.jsonl", pairs)
        done = fix([tmp_path / "before.jsonl"], tmp_path / "after.jsonl", do, **options)
        assert done.parent == dataset_id(pairs)
        assert done.manifest.parents == (done.parent,)
        return list(read_pairs(tmp_path / "after.jsonl")), done.counts

    return fixed


@pytest.mark.parametrize("mend, check, plant", CURES)
def test_what_a_mend_leaves_has_the_fault_no_more(fixed, mend, check, plant):
    pairs, planted = plant(corpus.clean())
    kept, counts = fixed(pairs, mend)
    table = tabulate(kept, LIMITS)
    assert not len(CHECKS[check](table, LIMITS).rows)
    if mend == MASK:
        assert [p.id for p in kept] == [p.id for p in pairs]
        assert counts == {MASK: len(planted)}
    else:
        assert planted.isdisjoint(p.id for p in kept)
        assert all(p in pairs for p in kept)


def test_balanced_lengths_say_nothing_any_more(fixed):
    pairs, _ = corpus.longer_chosen(corpus.clean())
    kept, _ = fixed(pairs, "balance-length")
    longer = tabulate(kept, LIMITS).longer
    assert 0 < len(kept) < len(pairs)
    assert (longer > 0).sum() == (longer < 0).sum()
    assert not len(balanced(tabulate(kept, LIMITS), LIMITS))


def test_pairs_beyond_the_length_limit_are_left_out(fixed):
    pairs = corpus.clean(50)
    kept, _ = fixed(pairs, "drop-over-long", count_tokens=lambda pairs: np.array([(10, 5, 2000 if p.id == "clean-7" else 5) for p in pairs]))
    assert [p.id for p in pairs if p not in kept] == ["clean-7"]


def test_mends_that_cannot_be_done(tmp_path):
    with pytest.raises(RequestError, match="Did you mean `drop-duplicates`"):
        fix([], tmp_path / "x.jsonl", ["drop-duplicate"])
    with pytest.raises(RequestError, match="--model"):
        fix([], tmp_path / "x.jsonl", ["drop-over-long"])


def test_a_pair_with_two_faults_is_counted_once(fixed):
    pairs, _ = corpus.repeated(corpus.clean())
    pairs += [p for p in pairs if p.id.startswith("copy")]
    kept, counts = fixed(pairs, *(DROPS.keys() - {"drop-over-long"}))
    assert sum(counts.values()) == len(pairs) - len(kept)


def test_every_mend_that_is_advised_exists():
    findings = audit_pairs(corpus.clean(80)).findings
    advised = " ".join([*(f.mend for f in findings), *(kind.mend for kind in KINDS.values())])
    named = set(re.findall(r"--do ([\w-]+)", advised))
    assert named
    assert named <= set(MENDS)


def test_unusable_rows_stop_it_unless_they_are_to_be_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Why?", "chosen": "Because.", "rejected": "Never mind."}\n{"prompt": "Why?", "chosen": "", "rejected": "No."}\n')
    with pytest.raises(DataError, match="line 2"):
        fix([path], tmp_path / "after.jsonl", ["drop-duplicates"])
    done = fix([path], tmp_path / "after.jsonl", ["drop-duplicates", "drop-unusable"])
    assert done.counts == {"drop-unusable": 1, "drop-duplicates": 0}
    assert len(list(read_pairs(tmp_path / "after.jsonl"))) == 1
