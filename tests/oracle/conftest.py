"""`pytest tests/oracle` ends with a table of how closely each objective agrees."""

import pytest

MEASURED = pytest.StashKey[list[tuple[str, dict, float, float]]]()


def pytest_configure(config):
    config.stash[MEASURED] = []


@pytest.fixture
def agreement(request):
    """agreement(name, settings, loss_error, gradient_error): a row of the table at the end."""
    return lambda *row: request.config.stash[MEASURED].append(row)


def pytest_terminal_summary(terminalreporter, config):
    if rows := config.stash.get(MEASURED, []):
        terminalreporter.section("agreement with TRL: largest relative distance, fp32")
        for name, settings, loss_error, gradient_error in rows:
            terminalreporter.write_line(f"{name:24} loss {loss_error:.1e}  gradient {gradient_error:.1e}  {settings}")
