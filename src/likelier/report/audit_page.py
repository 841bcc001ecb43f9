"""An audit as one HTML page that needs no network: what was found, the gravest first, with its numbers, bars and examples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likelier.atomic import atomic_file
from likelier.audit.findings import Audit, Bars, Finding, Verdict
from likelier.errors import DataError
from likelier.report.build import template
from likelier.wording import count, ends, quantity

MOST_IDS = 60


@dataclass(frozen=True)
class Bar:
    """One row of a bar plot, its places in percent of the width."""

    label: str
    text: str
    start: float
    width: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Plot:
    title: str
    bars: tuple[Bar, ...]
    level: float | None


def write_audit_page(audit: Audit, path: Path) -> None:
    """Write the page: the whole file or nothing. Raises DataError where it cannot be written."""
    _write(path, template("audit.html.jinja").render(_page(audit)))


def write_audit_json(audit: Audit, path: Path) -> None:
    """Write all findings as JSON. Raises as `write_audit_page` does."""
    _write(path, audit.to_json())


def _write(path: Path, text: str) -> None:
    try:
        with atomic_file(path) as file:
            file.write(text.encode())
    except OSError as problem:
        raise DataError(f"{path}: this file cannot be written ({problem.strerror}).") from None


def _page(audit: Audit) -> dict[str, Any]:
    told = audit.at_least(Verdict.NOTE)
    return {
        "name": ", ".join(Path(source).name for source in audit.sources),
        "audit": audit,
        "headline": headline(audit),
        "tiles": [(str(verdict), sum(f.verdict == verdict for f in audit.findings)) for verdict in reversed(Verdict) if verdict > Verdict.SKIPPED],
        "sections": [_section(finding) for finding in told],
        "quiet": [finding for finding in audit.findings if finding.verdict == Verdict.OK],
        "skipped": [finding for finding in audit.findings if finding.verdict == Verdict.SKIPPED],
        "quiet_plots": [(finding.title, plot_of(plot)) for finding in audit.findings if finding.verdict == Verdict.OK for plot in finding.plots],
    }


def headline(audit: Audit) -> list[str]:
    """Two or three sentences that the numbers make."""
    fatal, warned = audit.at_least(Verdict.FATAL), [f for f in audit.findings if f.verdict == Verdict.WARN]
    gate = (
        f"Training refuses this data: {', '.join(f.title.lower() for f in fatal)}."
        if fatal
        else "Nothing in this data keeps it from being trained on."
    )
    worth = f"Worth a look first: {', '.join(f.title.lower() for f in warned)}." if warned else "No check warns."
    return [f"{count(audit.pairs, 'pair')} over {count(audit.prompts, 'prompt')}.", gate, worth]


def _section(finding: Finding) -> dict[str, Any]:
    return {
        "finding": finding,
        "numbers": [(n.name, quantity(n.value.value, n.unit), ends(n.value, n.unit) if n.value.low < n.value.high else "") for n in finding.numbers],
        "plots": [plot_of(plot) for plot in finding.plots],
        "ids": finding.ids[:MOST_IDS],
        "more": finding.count - len(finding.ids[:MOST_IDS]),
    }


def plot_of(bars: Bars) -> Plot:
    """Bars that start at the level, or at 0 without one, on an axis that holds all ends. Rates are drawn from 0 to 1."""
    origin = bars.level or 0.0
    rates = bars.level is not None and all(0 <= value <= 1 for value in (*bars.values, *bars.highs)) and 0 < origin < 1
    low = 0.0 if rates else min(0.0, *bars.values, *bars.lows)
    high = 1.0 if rates else max(0.0, *bars.values, *bars.highs)
    scale = 100 / ((high - low) or 1.0)

    def place(value: float) -> float:
        return round((value - low) * scale, 2)

    rows = tuple(
        Bar(
            label,
            quantity(value, "share") if rates else quantity(value, ""),
            min(place(value), place(origin)),
            abs(place(value) - place(origin)),
            place(bars.lows[i]) if bars.lows else None,
            place(bars.highs[i]) if bars.highs else None,
        )
        for i, (label, value) in enumerate(zip(bars.labels, bars.values, strict=True))
    )
    return Plot(bars.title, rows, place(origin) if bars.level is not None else None)
