"""Numbers as people read them: a real minus sign, few digits, shares in per cent, "–" for what is not known."""

import math
from collections.abc import Sequence

from likelier.metrics import Interval

UNKNOWN = "–"
DIGITS = 3


def number(value: float | None, like: Interval | None = None) -> str:
    """Three significant digits, thousands grouped, counts whole: 0.0123, 4.57, 1,234. With `like`, the decimals that suit that whole interval."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if like is None and float(value).is_integer():
        return _minus(f"{int(value):,}")
    size = max(abs(x) for x in (like.value, like.low, like.high) if math.isfinite(x)) if like else abs(value)
    decimals = DIGITS - 1 - math.floor(math.log10(size)) if size else 0
    decimals = min(max(decimals, 0), 6)
    return _minus(f"{_rounded(value, decimals):,.{decimals}f}")


def quantity(value: float | None, unit: str, like: Interval | None = None) -> str:
    """A number in its unit: 62.5% for a share, 57.3 tokens, 4.57 nats."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{_percent(value)}%" if unit == "share" else f"{number(value, like)} {unit}".rstrip()


def change(value: float | None, unit: str, like: Interval | None = None) -> str:
    """A difference with its sign; of shares, in percentage points."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{_percent(value)} points" if unit == "share" else f"{number(value, like)} {unit}".rstrip()
    return f"+{text}" if value > 0 else text


def ends(interval: Interval, unit: str) -> str:
    """The interval alone, bare of its unit: 54.1 to 70.0, or 54.1 and more where the data set no limit."""
    low, high = (_percent(end) if unit == "share" else number(end, interval) for end in (interval.low, interval.high))
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        return f"{low} to {high}"
    if math.isfinite(interval.low):
        return f"{low} and more"
    return f"up to {high}" if math.isfinite(interval.high) else "no interval: too few prompts"


def estimate(interval: Interval, unit: str) -> str:
    """Value and interval: 62.5% (54.1 to 70.0)."""
    return f"{quantity(interval.value, unit, interval)} ({ends(interval, unit)})"


def count(number_of: int, singular: str, plural: str | None = None) -> str:
    """1 pair, 2 pairs, 1,200 replies."""
    return f"{number_of:,} {singular if number_of == 1 else plural or singular + 's'}"


def listing(items: Sequence[str], most: int | None = None) -> str:
    """a, b and c; beyond `most` of them: a, b and 2 more."""
    named = list(items) if most is None or len(items) <= most else [*items[:most], f"{len(items) - most} more"]
    return " and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else "".join(named)


def duration(seconds: float | None) -> str:
    """Under 1 s, 48 s, 12 min, 3 h 5 min."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{number(round(seconds, 1) if seconds < 10 else round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _percent(share: float) -> str:
    return _minus(f"{_rounded(100 * share, 1):.1f}")


def _rounded(value: float, decimals: int) -> float:
    return round(value, decimals) + 0.0  # -0.0 + 0.0 is 0.0: nothing reads "minus zero"


def _minus(text: str) -> str:
    return text.replace("-", "−")
