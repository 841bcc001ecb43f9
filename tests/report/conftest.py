"""Made-up runs and audits with their pages, for tests that only read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.audit import corpus
from tests.report.made_up import INJECTION, made_up_comparison, made_up_run

from likelier.audit.run import audit
from likelier.data.formats import write_pairs
from likelier.report import write_report
from likelier.report.audit_page import write_audit_page
from likelier.report.comparison_page import write_comparison_page
from likelier.rundir import RunDir


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """One finished run with its report, for tests that only read."""
    made = made_up_run(tmp_path_factory.mktemp("runs") / "support-dpo")
    assert write_report(made) == made.report
    return made


@pytest.fixture(scope="session")
def audit_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an audit that finds something of every kind, in rows with markup in them."""
    folder = tmp_path_factory.mktemp("audit")
    pairs = corpus.clean()
    for _, _, plant in corpus.PLANTERS:
        pairs = plant(pairs)[0]
    marked = [replace(pair, prompt=corpus.asked(f"{INJECTION} {'long' * 60} {corpus.said(pair.prompt)}")) for pair in pairs]
    write_pairs(folder / "pairs.jsonl", marked)
    with (folder / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "' + "x" * 50 + '", "chosen": "", "rejected": "b"}\n')
    write_audit_page(audit([folder / "pairs.jsonl"]), folder / "audit.html")
    return folder / "audit.html"


@pytest.fixture(scope="session")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison of three."""
    return write_comparison_page(made_up_comparison(tmp_path_factory.mktemp("comparison")))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    """Makes a run directory of its own for one test, to be changed at will."""
    return lambda **sizes: made_up_run(tmp_path / "run", **sizes)


@pytest.fixture(scope="session")
def injection() -> str:
    """Markup that stands in the samples of every made-up run."""
    return INJECTION
