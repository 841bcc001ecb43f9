"""Training and held-out data as the page shows them: counts, lengths, what was dropped, and what the audit noted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from likelier.changes import Finding
from likelier.report import plots
from likelier.report.curves import Drawing, Key
from likelier.wording import UNKNOWN

Manifest = Mapping[str, Any]
MOST_DROPPED = 20
LENGTHS = ("mean", "p5", "p50", "p95", "max")


@dataclass(frozen=True)
class DataView:
    """One side of the data, training or held-out."""

    title: str
    facts: tuple[tuple[str, str], ...]
    length_names: tuple[str, ...]
    lengths: tuple[tuple[str, tuple[str, ...]], ...]
    remark: str
    drawings: tuple[Drawing, ...]
    reasons: tuple[tuple[str, str], ...]
    dropped: tuple[tuple[str, str], ...]
    dropped_more: int


def audit_findings(manifest: Manifest) -> list[Finding]:
    """What the audit of the training pairs noted, the gravest first."""
    grave = {"fatal": 0, "warn": 1, "note": 2}
    noted = (manifest.get("audit") or {}).get("findings") or []
    return [Finding(row["title"], row["summary"], row["verdict"]) for row in sorted(noted, key=lambda row: grave[row["verdict"]])]


def data_view(side: str, data: Mapping[str, Any]) -> DataView:
    """Counts, lengths and their distribution for one side of the data."""
    tokens = data.get("tokens") or {}
    dropped = data.get("dropped") or []
    sides = ("good", "bad") if data.get("unpaired") else ("chosen", "rejected")
    reasons = sorted((data.get("reasons") or {}).items(), key=lambda item: -item[1])
    return DataView(
        title={"train": "Training", "eval": "Held-out"}[side],
        facts=(
            *([("Pairs", f"{data['pairs']:,}")] if data["pairs"] or not data.get("unpaired") else []),
            *([("Good and bad replies", f"{data['unpaired']['good']:,} and {data['unpaired']['bad']:,}")] if data.get("unpaired") else []),
            ("Prompts", f"{data['prompts']:,}"),
            ("Dropped", f"{len(dropped):,}"),
            ("Sources", ", ".join(data.get("sources") or []) or UNKNOWN),
        ),
        length_names=("mean", "5%", "median", "95%", "max"),
        lengths=tuple(
            (shown, tuple(_whole(tokens[name].get(cut)) for cut in LENGTHS))
            for name, shown in zip(("prompt", "chosen", "rejected"), ("prompt", *sides), strict=True)
            if tokens.get(name)
        ),
        remark=_length_remark(tokens, sides),
        drawings=_histograms(side, data.get("histogram"), sides),
        reasons=tuple((name, f"{times:,}") for name, times in reasons),
        dropped=tuple((row["id"], row["reason"]) for row in dropped[:MOST_DROPPED]),
        dropped_more=max(0, len(dropped) - MOST_DROPPED),
    )


def _length_remark(tokens: Mapping[str, Any], sides: tuple[str, str]) -> str:
    """A model learns length when length tells the sides apart, so the difference is said in words."""
    if not tokens:
        return "Token lengths were not recorded."
    if not (tokens.get("chosen") and tokens.get("rejected")):
        return ""
    chosen, rejected = tokens["chosen"]["mean"], tokens["rejected"]["mean"]
    if not rejected:
        return ""
    percent = round(100 * (chosen / rejected - 1))
    if percent == 0:
        return f"{sides[0].capitalize()} and {sides[1]} replies are equally long on average."
    return f"{sides[0].capitalize()} replies are {abs(percent)}% {'longer' if percent > 0 else 'shorter'} than {sides[1]} ones on average."


def _histograms(side: str, histogram: Mapping[str, Any] | None, sides: tuple[str, str]) -> tuple[Drawing, ...]:
    if not histogram:
        return ()
    edges, title = histogram["edges"], {"train": "Training", "eval": "Held-out"}[side].lower()
    prompts = plots.histogram(f"{side}-prompts", f"Distribution of {title} prompt lengths", edges, [(histogram["prompt"], plots.ACCENT)])
    rows = "Pairs" if sides[0] == "chosen" else "Records"
    both = [(histogram["chosen"], plots.CHOSEN), (histogram["rejected"], plots.REJECTED)]
    replies = plots.histogram(f"{side}-replies", f"Distribution of {title} reply lengths", edges, both)
    return (
        Drawing("Length of prompts", f"{rows} by number of tokens.", (Key("accent", "prompt"),), prompts),
        Drawing("Length of replies", f"{rows} by number of tokens.", (Key("chosen", sides[0]), Key("rejected", sides[1])), replies),
    )


def _whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"
