"""From what the players of `gpu.py` measured to the figures that it prints."""

import statistics
from typing import Any

from gpu_players import WARM_UP

GIB = 2**30


def add_figures(match: dict[str, Any], *, datasheet: float | None, ceiling: float) -> None:
    """Put `figures` into a match: of each tool, and of one against the other where both have made their steps."""
    figures = {}
    for tool in ("likelier", "trl"):
        if match[tool]:
            figures[tool] = tool_figures(match, match[tool], datasheet=datasheet, ceiling=ceiling)
    if len(figures) == 2:
        pairs = list(zip(match["trl"]["turns"], match["likelier"]["turns"], strict=False))  # alone, one may have made more steps in its time
        included = match["opponent"] == "default"  # its steps score the reference, too
        figures["speed_up"] = statistics.median(
            theirs["seconds"] / (own["seconds"] + included * own["reference_seconds"]) for theirs, own in pairs[WARM_UP:]
        )
        figures["speed_up_without_reference"] = statistics.median(theirs["seconds"] / own["seconds"] for theirs, own in pairs[WARM_UP:])
        figures["largest_difference_of_losses"] = max(abs(theirs["loss"] - own["loss"]) for theirs, own in pairs)
        peaks = [figures[tool]["peak_bytes"] for tool in ("likelier", "trl")]
        figures["peak_ratio"] = peaks[0] / peaks[1] if all(peaks) else None
    match["figures"] = figures


def tool_figures(match: dict[str, Any], measured: dict[str, Any], *, datasheet: float | None, ceiling: float) -> dict[str, Any]:
    """Of one tool, medians over timed steps. Its reference pass, where it is apart from the steps, is left out but in `pairs_per_second_all`."""
    timed = list(zip(measured["turns"], match["unique_tokens"], match["needed_flops"], strict=False))[WARM_UP:]
    with_reference = match["opponent"] == "default" and "precompute_seconds" in measured  # TRL scores it within its step
    rate = statistics.median((flops["step"] + with_reference * flops["reference"]) / turn["seconds"] for turn, _, flops in timed)
    scored = sum(flops["reference"] for flops in match["needed_flops"][WARM_UP:])  # of all steps, whether they were made or not
    beforehand = scored / measured["reference_seconds"] if "reference_seconds" in measured else None
    return {
        "timed_steps": len(timed),
        "pairs_per_second": statistics.median(match["pairs_per_step"] / turn["seconds"] for turn, _, _ in timed),
        "pairs_per_second_all": statistics.median(match["pairs_per_step"] / (turn["seconds"] + turn["reference_seconds"]) for turn, _, _ in timed),
        "unique_tokens_per_second": statistics.median(tokens / turn["seconds"] for turn, tokens, _ in timed),
        "needed_flops_per_second": rate,
        "mfu": rate / datasheet if datasheet else None,
        "of_matmul_ceiling": rate / ceiling,
        **({"reference_flops_per_second": beforehand} if beforehand else {}),
        "peak_bytes": max(measured["peak_bytes"], measured.get("start_peak_bytes") or 0) if measured["peak_bytes"] else None,
    }


def print_table(found: dict[str, Any]) -> None:
    """All matches, a line each; L is Likelier, T is TRL."""
    ceilings = [match["ceiling"] for match in found["matches"]]
    if ceilings:
        rate = found["datasheet_rate"]
        sheet = f"{rate / 1e12:,.1f} TFLOP/s by the data sheet" if rate else "no data sheet at hand"
        lowest, highest = min(ceilings) / 1e12, max(ceilings) / 1e12
        print(f"\n{found['device']}: {sheet}, matmuls reach {lowest:,.2f} to {highest:,.2f}; {found['precision']}")
    print("L Likelier, T TRL; ratio: how many times as many pairs a second, against `default` with L's reference pass; MFU on deduplicated tokens;")
    print("ceiling: the same over the measured matmul; peak in GiB; loss: largest difference. * one after the other, not in turn\n")
    width = max([len("case"), *(len(match["case"]) for match in found["matches"])])
    print(f"{'case':{width}}  opponent   L pairs/s  T pairs/s  ratio  L tokens/s   L MFU   T MFU  ceiling  L peak  T peak  ratio     loss")
    for match in found["matches"]:
        print(f"{match['case']:{width}}  {line(match)}")
    for name in found.get("left_out", []):
        print(f"{name}: left out, the time was over")


def line(match: dict[str, Any]) -> str:
    if "failed" in match:
        return f"{match['opponent']:8}   failed: {match['failed'][:100]}"
    figures = match["figures"]
    own, theirs = (figures.get(tool, {}) for tool in ("likelier", "trl"))
    name = match["opponent"] + ("*" if match["together"] is False else "")
    all_of_it = "pairs_per_second_all" if match["opponent"] == "default" else "pairs_per_second"
    columns = [
        (own.get(all_of_it), "10.2f"),
        (theirs.get("pairs_per_second"), "10.2f"),
        (figures.get("speed_up"), "6.2f"),
        (own.get("unique_tokens_per_second"), "11,.0f"),
        (own.get("mfu"), "7.1%"),
        (theirs.get("mfu"), "7.1%"),
        (own.get("of_matmul_ceiling"), "8.1%"),
        (in_gib(own.get("peak_bytes")), "7.1f"),
        (in_gib(theirs.get("peak_bytes")), "7.1f"),
        (figures.get("peak_ratio"), "6.2f"),
        (figures.get("largest_difference_of_losses"), "8.4f"),
    ]
    unfit = ", ".join(name for name, tool in (("L", own), ("T", theirs)) if not tool and (name, match["opponent"]) != ("T", "alone"))
    cells = [format(value, form) if value is not None else "–".rjust(int(form.split(".")[0].rstrip(","))) for value, form in columns]
    return f"{name:9} {' '.join(cells)}" + (f"   does not fit: {unfit}" if unfit else "")


def in_gib(count: int | None) -> float | None:
    return None if count is None else count / GIB
