import re
from dataclasses import replace

import numpy as np
import pytest

from likelier.audit.checks import CHECKS
from likelier.audit.faults import KINDS
from likelier.audit.fix import DROPS, MASK, MENDS, balanced, fix
from likelier.audit.run import audit_pairs, tabulate
from likelier.cli import COMMANDS
from likelier.data.formats import read_pairs, read_records, write_pairs, write_records
from likelier.data.version import dataset_id
from likelier.errors import DataError, Refused, RequestError
from likelier.objectives import TABLE
from likelier.records import Labelled, Message
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
        assert done.manifest.parents == (dataset_id(pairs),)
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
    assert {"dpop", "ipo", "robust-dpo"} <= TABLE.keys()
    assert set(re.findall(r"`likelier (\w+)", advised)) <= set(COMMANDS)


def test_unusable_rows_stop_it_unless_they_are_to_be_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Why?", "chosen": "Because.", "rejected": "Never mind."}\n{"prompt": "Why?", "chosen": "", "rejected": "No."}\n')
    with pytest.raises(DataError, match="line 2"):
        fix([path], tmp_path / "after.jsonl", ["drop-duplicates"])
    done = fix([path], tmp_path / "after.jsonl", ["drop-duplicates", "drop-unusable"])
    assert done.counts == {"drop-unusable": 1, "drop-duplicates": 0}
    assert len(list(read_pairs(tmp_path / "after.jsonl"))) == 1


def test_mends_are_carried_out_one_after_the_other(fixed):
    """Each sees what those before it have left: lengths are balanced at the end, and of two near twins one stays."""
    pairs, _ = corpus.repeated(corpus.longer_chosen(corpus.clean())[0])
    longer = tabulate(fixed(pairs, "balance-length", "drop-duplicates")[0], LIMITS).longer
    assert (longer > 0).sum() == (longer < 0).sum()
    twins = corpus.nearly_repeated(corpus.clean(40))[0] + corpus.clean(40)
    kept, _ = fixed(twins, "drop-near-duplicates", "drop-duplicates")
    assert len(kept) == 40
    assert not len(CHECKS["near-duplicates"](tabulate(kept, LIMITS), LIMITS).rows)


def test_the_majority_is_kept(fixed):
    [pair] = corpus.clean(1)
    votes = [replace(pair, id=f"v{i}", annotator=f"a{i}") for i in range(3)]
    against = replace(pair, id="no", annotator="b", chosen=pair.rejected, rejected=pair.chosen)
    others = corpus.clean(20, seed=5)
    assert [p.id for p in fixed([*votes, against, *others], "drop-contradictions")[0]] == ["v0", "v1", "v2", *(p.id for p in others)]
    assert [p.id for p in fixed([votes[0], against, *others], "drop-contradictions")[0]] == [p.id for p in others]


def test_a_pair_turned_round_is_no_repetition(fixed):
    pairs, _ = corpus.contradicted(corpus.clean(80))
    assert fixed(pairs, "drop-near-duplicates", "drop-duplicates")[0] == pairs


def test_other_replies_to_one_long_prompt_are_no_repetition(fixed):
    asked = " ".join(corpus.said(p.prompt) for p in corpus.clean(60))
    pairs = [replace(p, prompt=corpus.asked(asked)) for p in corpus.clean(20, seed=4)]
    assert fixed(pairs, "drop-near-duplicates")[0] == pairs


def test_sides_that_differ_in_nothing_but_a_secret_are_dropped(fixed):
    pairs = [*corpus.clean(20), corpus.pair("phones", "Your number?", "Call 415-867-5309.", "Call 415-867-5310.")]
    kept, counts = fixed(pairs, MASK)
    assert [p.id for p in kept] == [p.id for p in pairs[:-1]]
    assert counts == {MASK: 1}


def test_every_field_is_masked(fixed):
    key = "ghp_" + "a1B2" * 9
    call = {"function": {"name": "login", "arguments": {"token": key}}}
    pair = replace(corpus.clean(1)[0], reason=f"leaks {key}", meta={"raw": [{"text": f"token {key}"}]})
    pair = replace(pair, chosen=(Message("assistant", "", {"tool_calls": [call]}), *pair.chosen))
    [kept] = fixed([pair], MASK)[0]
    assert key not in str(kept)
    assert str(kept).count("[credential]") == 3


def test_unpaired_records_stay(tmp_path):
    records = [*corpus.clean(20), Labelled(corpus.asked("Why?"), corpus.reply("Because."), True, id="thumb")]
    write_records(tmp_path / "mixed.jsonl", records)
    done = fix([tmp_path / "mixed.jsonl"], tmp_path / "after.jsonl", ["drop-duplicates"])
    assert done.manifest.parents == (dataset_id(records),)
    assert list(read_records(tmp_path / "after.jsonl")) == records


def test_nothing_left_is_refused_and_so_is_writing_over_the_source(tmp_path):
    write_pairs(tmp_path / "long.jsonl", [corpus.pair(str(i), "Tell me", "x " * 90, "y") for i in range(5)])
    with pytest.raises(Refused, match="nothing of 5 pairs"):
        fix([tmp_path / "long.jsonl"], tmp_path / "after.jsonl", ["drop-over-ratio"])
    assert not (tmp_path / "after.jsonl").exists()
    with pytest.raises(RequestError, match="destroy"):
        fix([tmp_path / "long.jsonl"], tmp_path / "long.jsonl", ["drop-duplicates"])


def test_the_version_says_which_limits_it_was_made_by(tmp_path):
    write_pairs(tmp_path / "a.jsonl", corpus.clean(20))
    done = fix([tmp_path / "a.jsonl"], tmp_path / "b.jsonl", ["drop-over-ratio"], limits=AuditSettings(length_ratio=9.0))
    assert done.manifest.step == "fix drop-over-ratio with length_ratio 9.0"
