"""Secrets and personal data in text, found by their form and never shown whole.

Patterns follow the forms that providers document for their own keys. Numbers of cards are checked by their last digit (Luhn), those of
accounts by theirs (ISO 7064, modulo 97), so that an order number is not taken for one.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Found(NamedTuple):
    """One secret: of which kind, and where in the text."""

    kind: str
    start: int
    stop: int


class Pattern(NamedTuple):
    """A form is looked for only in a text that holds one of its `stems` (and three digits in a row, if it has no stem): that is what makes a clean
    text cheap."""

    kind: str
    secret: bool  # a credential, whose owner must revoke it, rather than personal data
    stems: tuple[str, ...]
    form: re.Pattern[str]
    holds: Callable[[str], bool] = lambda text: True


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    plain = re.sub(r"\s", "", text).upper()
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _own_domain(text: str) -> bool:
    """Addresses of the domains that are reserved for examples (RFC 2606) belong to nobody."""
    return re.search(r"@(?:[\w-]+\.)*(?:example(?:\.\w+)?|invalid|test|localhost)$", text, re.IGNORECASE) is None


def _phone(text: str) -> bool:
    digits = sum(map(str.isdigit, text))
    return 9 <= digits <= 15 and not re.fullmatch(r"[\d.,\s]*\d{4}-\d{2}-\d{2}.*", text) and "555-01" not in text


_KEYS = (
    *("AKIA", "ASIA", "ghp_", "gho_", "ghs_", "ghu_", "github_pat_", "glpat-", "sk-", "sk_live_", "rk_live_", "xoxa-", "xoxb-", "xoxp-", "xoxr-"),
    *("xoxs-", "AIza", "hf_", "npm_", "pypi-", "SG.", "eyJ", "-----BEGIN"),
)
_DIGITS = re.compile(r"\d{3}")

PATTERNS = (
    Pattern(
        "credential",
        True,
        _KEYS,
        re.compile(
            r"""\b(?:AKIA|ASIA)[0-9A-Z]{16}\b                                      # Amazon
              | \bgh[posu]_[A-Za-z0-9]{36,}\b | \bgithub_pat_[A-Za-z0-9_]{50,}\b   # GitHub
              | \bglpat-[A-Za-z0-9_-]{20,}                                         # GitLab
              | \bsk-(?:proj-|ant-|or-)?[A-Za-z0-9_-]{20,}                         # OpenAI, Anthropic, OpenRouter
              | \b[sr]k_live_[A-Za-z0-9]{20,}\b                                    # Stripe
              | \bxox[abprs]-[A-Za-z0-9-]{10,}                                     # Slack
              | \bAIza[0-9A-Za-z_-]{35}                                            # Google
              | \bhf_[A-Za-z]{30,}\b                                               # Hugging Face
              | \bnpm_[A-Za-z0-9]{36}\b | \bpypi-[A-Za-z0-9_-]{50,}
              | \bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}                       # SendGrid
              | \beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,} # JSON web token
              | -----BEGIN\ (?:[A-Z]+\ )*PRIVATE\ KEY-----[^-]*(?:-----END\ (?:[A-Z]+\ )*PRIVATE\ KEY-----)?""",
            re.VERBOSE,
        ),
    ),
    Pattern("card number", False, (), re.compile(r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![\d.-])"), _luhn),
    Pattern("account number", False, (), re.compile(r"\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{4}){2,7}(?:\s?[A-Z0-9]{1,4})?\b"), _iban),
    Pattern("social security number", False, (), re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])")),
    Pattern(
        "mail address",
        False,
        ("@",),
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"),
        _own_domain,
    ),
    Pattern(
        "phone number",
        False,
        (),
        re.compile(
            r"""(?<![\w.,/#-])(?:\+\d{1,3}[\s.-]?(?:\(\d{1,4}\)[\s.-]?)?\d{1,4}(?:[\s.-]\d{2,8}){1,4}   # +49 30 123456
                | \(\d{3}\)\s?\d{3}[\s.-]\d{4} | \d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|\.\d)""",
            re.VERBOSE,
        ),
        _phone,
    ),
)
"""What is looked for, the most specific first: a text that one pattern took is not offered to the next."""

SECRET_KINDS = frozenset(pattern.kind for pattern in PATTERNS if pattern.secret)


def find_private(text: str) -> Iterator[Found]:
    """Secrets and personal data in `text`, without overlaps."""
    taken: list[Found] = []
    has_digits = _DIGITS.search(text) is not None
    for pattern in PATTERNS:
        if not (any(stem in text for stem in pattern.stems) if pattern.stems else has_digits):
            continue
        for match in pattern.form.finditer(text):
            start, stop = match.span()
            if pattern.holds(match.group()) and all(stop <= other.start or start >= other.stop for other in taken):
                taken.append(Found(pattern.kind, start, stop))
    return iter(sorted(taken, key=lambda found: found.start))


def mask(text: str) -> str:
    """`text` with every secret and personal datum replaced by its kind: "[mail address]"."""
    pieces, end = [], 0
    for found in find_private(text):
        pieces += [text[end : found.start], f"[{found.kind}]"]
        end = found.stop
    return "".join(pieces) + text[end:]


def glimpse(text: str) -> str:
    """What may be shown of a secret: enough to find it again, too little to use it."""
    return f"{text[:4]}…({len(text)} characters)" if len(text) > 12 else f"{text[:2]}…"
