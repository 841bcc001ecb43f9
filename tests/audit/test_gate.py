import pytest

from likelier.audit import gate
from likelier.audit.gate import open_gate
from likelier.data.version import dataset_id
from likelier.errors import RecipeError, Refused
from likelier.thresholds import AuditSettings
from tests.audit.corpus import clean, contradicted, with_a_key


@pytest.fixture
def ask(tmp_path):
    def ask(pairs, **limits):
        return open_gate(pairs, dataset_id(pairs), AuditSettings(**limits), cache=tmp_path / "audits")

    return ask


def test_clean_pairs_pass(ask):
    said = ask(clean(200))
    assert said["verdict"] in ("ok", "note")
    assert said["accepted"] == []
    assert len(said["hash"]) == 64


def test_a_fatal_finding_closes_it_and_is_listed_with_its_mend(ask):
    pairs, _ = with_a_key(clean(200))
    with pytest.raises(Refused, match=r"(?s)secrets: 2 × credential.*--accept secrets"):
        ask(pairs)


def test_accepted_by_name_it_opens_and_says_so(ask):
    pairs, _ = with_a_key(clean(200))
    said = ask(pairs, accept=["secrets", "contradictions"])
    assert said["verdict"] == "fatal"
    assert said["accepted"] == ["secrets"]


def test_one_of_two_accepted_is_not_enough(ask):
    pairs, _ = contradicted(with_a_key(clean(200))[0])
    with pytest.raises(Refused, match="contradictions"):
        ask(pairs, accept=["secrets"], contradictions_fatal=0.01)


def test_a_check_that_does_not_exist(ask):
    with pytest.raises(RecipeError, match="Did you mean `secrets`"):
        ask(clean(10), accept=["secret"])


def test_the_same_data_is_audited_once(ask, monkeypatch):
    pairs = clean(200)
    first = ask(pairs)
    monkeypatch.setattr(gate, "audit_pairs", lambda *args, **more: pytest.fail("audited again"))
    assert ask(pairs) == first
    assert ask(pairs, accept=["secrets"]) == first
    with pytest.raises(pytest.fail.Exception):
        ask(pairs, near_identical=0.9)
    with pytest.raises(pytest.fail.Exception):
        ask(pairs[1:])


def test_a_damaged_memory_is_not_believed(ask, tmp_path):
    pairs = clean(200)
    first = ask(pairs)
    [file] = (tmp_path / "audits").iterdir()
    file.write_text(file.read_text()[:50])
    assert ask(pairs) == first
