"""An audit in the terminal: one row a check, and what to do about those that matter."""

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from likelier.audit.findings import Audit, Finding, Verdict

COLOURS = {Verdict.FATAL: "bold red", Verdict.WARN: "yellow", Verdict.NOTE: "cyan", Verdict.OK: "green", Verdict.SKIPPED: "dim"}
NAMED = 5


def show_audit(audit: Audit, console: Console | None = None) -> None:
    """Print the findings: gravest first, those that are all right in one line at the end."""
    console = console or Console()
    console.print(
        f"{', '.join(audit.sources)}: {_count(audit.pairs, 'pair')} over {_count(audit.prompts, 'prompt')}"
        + (f", {_count(audit.unreadable, 'row')} left out" if audit.unreadable else "")
        + (f"\nread as {', '.join(audit.shapes)}" if audit.shapes else "")
        + f"\ndata set {audit.dataset}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for finding in audit.at_least(Verdict.NOTE):
        table.add_row(Text(str(finding.verdict), COLOURS[finding.verdict]), Text(finding.check, "bold"), _account(finding, audit))
    console.print(table)
    for verdict in (Verdict.OK, Verdict.SKIPPED):
        names = [finding.check for finding in audit.findings if finding.verdict == verdict]
        if names:
            console.print(Text(f"{verdict}: ", COLOURS[verdict]) + Text(", ".join(names), "dim"))


def _account(finding: Finding, audit: Audit) -> Group:
    """What was found, the first rows with it, and the mend. Of a single source the name is not said again."""
    source = f"{audit.sources[0]}, " if len(audit.sources) == 1 else ""
    lines = [Text(finding.summary)]
    if finding.verdict == Verdict.FATAL and finding.details:
        lines += [Text(detail.removeprefix(source), "dim") for detail in finding.details[:NAMED]]
    elif named := finding.ids[:NAMED]:
        lines.append(Text(f"{', '.join(named)}{' …' if finding.count > len(named) else ''}", "dim"))
    if finding.verdict >= Verdict.WARN:
        lines.append(Text(f"→ {finding.mend}", "italic"))
    return Group(*lines)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what if number == 1 else what + 's'}"
