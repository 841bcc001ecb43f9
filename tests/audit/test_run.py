import json
import random
import re
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from likelier.audit.findings import Verdict
from likelier.audit.run import BLOCK, audit, tabulate
from likelier.audit.table import Table
from likelier.data.formats import write_pairs, write_records
from likelier.errors import DataError
from likelier.records import Labelled
from likelier.thresholds import AuditSettings
from tests.audit.corpus import clean, contradicted, with_a_key

LIMITS = AuditSettings()


@pytest.fixture(scope="module")
def pairs():
    return clean(BLOCK * 6 + 17, seed=3)


@pytest.fixture
def write(tmp_path):
    def write(pairs, name="pairs.jsonl"):
        write_pairs(tmp_path / name, pairs)
        return tmp_path / name

    return write


def same(one: Table, other: Table) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Table))


def test_other_processes_measure_the_same(pairs):
    assert same(tabulate(pairs, LIMITS), tabulate(iter(pairs), LIMITS, workers=2))


def test_the_sample_does_not_depend_on_the_order_of_rows(pairs):
    limits = AuditSettings(sample=100)
    shuffled = random.Random(0).sample(pairs, len(pairs))
    texts = [[each.texts for each in tabulate(order, limits).sampled] for order in (pairs, shuffled)]
    assert len(texts[0]) == 100
    assert texts[0] == texts[1]


def test_an_audit_does_not_depend_on_the_order_of_rows_nor_on_their_file(write):
    pairs, _ = contradicted(clean(300))
    orders = (pairs, random.Random(0).sample(pairs, len(pairs)))
    found = [audit([write(order, f"{i}.jsonl")]) for i, order in enumerate(orders)]
    assert found[0].hash == found[1].hash
    assert [(f.check, f.verdict, f.count, f.summary) for f in found[0].findings] == [
        (f.check, f.verdict, f.count, f.summary) for f in found[1].findings
    ]
    named = [{f.check: set(f.ids) for f in each.findings if "duplicates" not in f.check} for each in found]  # which of two is the second does depend
    assert named[0] == named[1]
    assert audit([write(pairs[1:], "fewer.jsonl")]).hash != found[0].hash


def test_leaks_are_found_in_unpaired_records_too_and_no_row_is_passed_over(write, tmp_path):
    path = write(clean(60))
    held_out = [Labelled(pair.prompt, pair.chosen, True, id=f"t{i}") for i, pair in enumerate(clean(3))]
    write_records(tmp_path / "thumbs.jsonl", held_out)
    finding = audit([path], against=[tmp_path / "thumbs.jsonl"]).findings[-1]
    assert (finding.check, finding.verdict, finding.count) == ("leakage", Verdict.FATAL, 3)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl"):
        audit([path], against=[tmp_path / "prompts.jsonl"])


def test_findings_name_their_rows_and_show_two_of_them_masked(write):
    pairs, planted = with_a_key(clean(300))
    found = audit([write(pairs)])
    finding = next(f for f in found.findings if f.check == "secrets")
    assert set(finding.ids) == planted
    assert finding.count == len(planted) == 3
    assert [example.id for example in finding.examples] == list(finding.ids[:2])
    assert all("[credential]" in example.chosen for example in finding.examples)
    written = found.to_json()
    assert "a1B2c3D4" not in written
    assert json.loads(written)["verdict"] == "fatal"


def test_bad_rows_are_findings_by_kind(tmp_path):
    good = {"prompt": "Why?", "chosen": "Because.", "rejected": "Never mind."}
    rows = [good, {**good, "chosen": ""}, {**good, "rejected": "Because."}, {**good, "label": "tie"}, {"prompt": 3}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {f.check: f for f in audit([path]).findings}
    for check, line in (("empty-sides", 2), ("identical-sides", 3), ("ties", 4), ("unreadable-rows", 5)):
        assert found[check].verdict == Verdict.FATAL
        assert found[check].ids == (f"{path}, line {line}",)


def test_a_set_of_one_pair_and_of_none(tmp_path, write):
    one = audit([write(clean(1))])
    assert one.pairs == 1
    assert all(f.verdict <= Verdict.WARN for f in one.findings)
    (tmp_path / "bad.jsonl").write_text('{"prompt": 1}\n')
    none = audit([tmp_path / "bad.jsonl"])
    assert (none.pairs, none.unreadable) == (0, 1)
    assert [f.check for f in none.fatal()] == ["unreadable-rows"]
    with pytest.raises(DataError, match="no such file"):
        audit([tmp_path / "missing.jsonl"])


def test_accepted_checks_open_the_gate(write):
    found = audit([write(with_a_key(clean(300))[0])])
    assert [f.check for f in found.fatal()] == ["secrets"]
    assert found.fatal(accepted=["secrets"]) == []


def test_limits_are_obeyed(write):
    path = write(clean(300))
    strict = audit([path], limits=AuditSettings(length_ratio=1.01, length_ratio_warn=0.1))
    assert next(f for f in strict.findings if f.check == "length-ratio").verdict == Verdict.WARN


def test_every_limit_is_read_by_a_check():
    from pathlib import Path

    import likelier.audit

    source = "".join(path.read_text() for path in Path(likelier.audit.__file__).parent.rglob("*.py"))
    assert [name for name in AuditSettings.model_fields if not re.search(rf"limits\.{name}\b", source)] == []


def test_an_audit_needs_no_torch(write):
    path = write(clean(60))
    code = f"import sys; from likelier.cli import main; main(['audit', {str(path)!r}]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "60 pairs" in done.stdout


def test_replies_that_are_judged_alone_are_a_warning(tmp_path):
    """They train, if not by every objective, and are no reason to say no."""
    path = tmp_path / "thumbs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Where is room {n}?", "completion": "Upstairs.", "label": n % 2 == 0}) + "\n" for n in range(4)))
    found = audit([path])
    [finding] = [finding for finding in found.findings if finding.check == "unpaired-records"]
    assert (finding.verdict, finding.count) == (Verdict.WARN, 4)
    assert "kto" in finding.mend
    assert found.fatal(()) == []
