import math
from pathlib import Path

import pytest

from likelier.audit.checks import CHECKS
from likelier.audit.faults import KINDS
from likelier.audit.findings import Verdict
from likelier.audit.fix import MENDS
from likelier.audit.run import tabulate
from likelier.thresholds import AuditSettings
from tests.audit.corpus import PLANTERS, clean

LIMITS = AuditSettings()


@pytest.fixture(scope="module")
def clean_table():
    return tabulate(clean(), LIMITS)


@pytest.mark.parametrize("check", CHECKS)
def test_a_clean_set_is_left_alone(clean_table, check):
    finding = CHECKS[check](clean_table, LIMITS)
    assert finding.verdict <= Verdict.NOTE, finding.summary


@pytest.mark.parametrize("check, verdict, plant", PLANTERS, ids=lambda value: getattr(value, "__name__", value))
def test_every_planted_fault_is_found(check, verdict, plant):
    pairs, planted = plant(clean())
    table = tabulate(pairs, LIMITS)
    finding = CHECKS[check](table, LIMITS)
    assert finding.verdict >= Verdict[verdict.upper()], finding.summary
    assert planted <= {table.ids[row] for row in finding.rows}
    assert finding.mend
    assert all(math.isfinite(number.value.value) for number in finding.numbers)
    assert all(number.value.low <= number.value.value <= number.value.high for number in finding.numbers)


def test_every_check_has_a_fault_planted():
    assert {check for check, _, _ in PLANTERS} == set(CHECKS) - {"over-long"}


def test_the_docs_name_every_check_and_every_limit():
    told = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    names = [*CHECKS, *(kind.check for kind in KINDS.values()), "leakage", *MENDS, *(AuditSettings.model_fields.keys() - {"accept"})]
    assert [name for name in names if f"`{name}`" not in told] == []
