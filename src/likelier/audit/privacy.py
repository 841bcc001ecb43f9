"""Secrets and personal data in text, found by their form and never shown whole.

Patterns follow the forms that providers document for their own keys. Numbers of cards are checked by their last digit (Luhn), those of
accounts by theirs (ISO 7064, modulo 97), so that an order number is not taken for one.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Found(NamedTuple):
    """One secret: of which kind, and where in the text."""

    kind: str
    start: int
    stop: int


class Pattern(NamedTuple):
    """A form is looked for only in a text that holds one of its `stems` (and two digits in a row, if it has no stem): that is what makes a clean
    text cheap. `holds` says how many characters of a match are what was looked for; 0 where it only looks like it."""

    kind: str
    secret: bool  # a credential, whose owner must revoke it, rather than personal data
    stems: tuple[str, ...]
    form: re.Pattern[str]
    holds: Callable[[str], int] = len


def _luhn(text: str) -> int:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    holds = 13 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
    return len(text) if holds else 0


def _iban(text: str) -> int:
    """Words in capitals may follow: the longest beginning whose digits are right is the number."""
    for stop in range(len(text), 14, -1):
        plain = text[:stop].replace(" ", "")
        if 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1 and text[stop - 1] != " ":
            return stop if stop == len(text) or not text[stop].isalnum() or text[stop - 1].isdigit() else 0
    return 0


def _somebodys(text: str) -> int:
    """Addresses of the domains that are reserved for examples (RFC 2606) belong to nobody."""
    reserved = re.search(r"@(?:[\w-]+\.)*(?:example(?:\.\w+)?|invalid|test|localhost)$", text, re.IGNORECASE)
    return 0 if reserved else len(text)


def _phone(text: str) -> int:
    """No date, and none of the numbers that are kept for fiction (555-0100 to 555-0199)."""
    digits = sum(map(str.isdigit, text))
    return len(text) if 9 <= digits <= 15 and not re.match(r"\d{4}-\d{2}-\d{2}", text) and "555-01" not in text else 0


_KEYS = (
    *("AKIA", "ASIA", "ghp_", "gho_", "ghs_", "ghu_", "github_pat_", "glpat-", "sk-", "sk_live_", "rk_live_", "xoxa-", "xoxb-", "xoxp-", "xoxr-"),
    *("xoxs-", "AIza", "hf_", "npm_", "pypi-", "SG.", "eyJ", "-----BEGIN"),
)
_DIGITS = re.compile(r"\d\d")

PATTERNS = (
    Pattern(
        "credential",
        True,
        _KEYS,
        re.compile(
            r"""\b(?:AKIA|ASIA)[0-9A-Z]{16}\b                                      # Amazon
              | \bgh[posu]_[A-Za-z0-9]{36,}\b | \bgithub_pat_[A-Za-z0-9_]{50,}\b   # GitHub
              | \bglpat-[A-Za-z0-9_-]{20,}                                         # GitLab
              | \bsk-(?:proj-|ant-|or-)?(?=[A-Za-z_-]{0,40}\d)[A-Za-z0-9_-]{20,}    # OpenAI, Anthropic, OpenRouter
              | \b[sr]k_live_[A-Za-z0-9]{20,}\b                                    # Stripe
              | \bxox[abprs]-[A-Za-z0-9-]{10,}                                     # Slack
              | \bAIza[0-9A-Za-z_-]{35}                                            # Google
              | \bhf_[A-Za-z]{30,}\b                                               # Hugging Face
              | \bnpm_[A-Za-z0-9]{36}\b | \bpypi-[A-Za-z0-9_-]{50,}
              | \bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}                       # SendGrid
              | \beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,} # JSON web token
              | -----BEGIN\ (?:[A-Z]+\ ){0,3}PRIVATE\ KEY-----(?:[\s\S]{0,8000}?-----END\ (?:[A-Z]+\ ){0,3}PRIVATE\ KEY-----)?""",
            re.VERBOSE | re.ASCII,
        ),
    ),
    Pattern(
        "password in an address",
        True,
        ("://",),
        re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,80}:[^\s:/@]{3,80}@[\w.-]+", re.ASCII | re.IGNORECASE),
    ),
    Pattern("card number", False, (), re.compile(r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![\d-]|\.\d)", re.ASCII), _luhn),
    Pattern("account number", False, (), re.compile(r"\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{4}){2,7}(?:\s?[A-Z0-9]{1,4})?\b", re.ASCII), _iban),
    Pattern("social security number", False, (), re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])")),
    Pattern(
        "mail address",
        False,
        ("@",),
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b", re.ASCII),
        _somebodys,
    ),
    Pattern(
        "phone number",
        False,
        (),
        re.compile(
            r"""(?<![\w.,/#-])(?:\+\d{1,3}[\s.-]?(?:\(\d{1,4}\)[\s.-]?)?\d{1,4}(?:[\s.-]\d{2,8}){1,4}   # +49 30 123456
                | \(\d{3}\)\s?\d{3}[\s.-]\d{4} | \d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|\.\d)""",
            re.VERBOSE | re.ASCII,
        ),
        _phone,
    ),
)
"""What is looked for, the most specific first: a text that one pattern took is not offered to the next."""

SECRET_KINDS = frozenset(pattern.kind for pattern in PATTERNS if pattern.secret)


def find_private(text: str) -> Iterator[Found]:
    """Secrets and personal data in `text`, without overlaps."""
    found: list[Found] = []
    taken = bytearray(len(text))
    has_digits = _DIGITS.search(text) is not None
    for pattern in PATTERNS:
        if not (any(stem in text for stem in pattern.stems) if pattern.stems else has_digits):
            continue
        for match in pattern.form.finditer(text):
            start = match.start()
            stop = start + pattern.holds(match.group())
            if stop > start and not any(taken[start:stop]):
                taken[start:stop] = b"\1" * (stop - start)
                found.append(Found(pattern.kind, start, stop))
    return iter(sorted(found, key=lambda each: each.start))


def mask(text: str) -> str:
    """`text` with every secret and personal datum replaced by its kind: "[mail address]"."""
    pieces, end = [], 0
    for found in find_private(text):
        pieces += [text[end : found.start], f"[{found.kind}]"]
        end = found.stop
    return "".join(pieces) + text[end:]


def mask_all(value: Any) -> Any:
    """A JSON value with every text in it masked."""
    match value:
        case str():
            return mask(value)
        case list() | tuple():
            return [mask_all(item) for item in value]
        case dict():
            return {name: mask_all(item) for name, item in value.items()}
    return value


def glimpse(text: str) -> str:
    """What may be shown of a secret: enough to find it again, too little to use it."""
    return f"{text[:4]}…({len(text)} characters)" if len(text) > 12 else f"{text[:2]}…"
