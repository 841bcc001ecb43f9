"""What a reply looks like, without reading it: numbers that a model could learn instead of the lesson, and marks that it shows or does not."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from likelier.data.near import spaced
from likelier.metrics import has_apology, has_refusal, in_a_loop

WORD = re.compile(r"\w+(?:['’]\w+)?")
CLOSING = tuple(".!?…。！？؟।\"”’»')]}*`~:;")
"""Marks after which a text may end. A list item or a line of code may end without one: see `ends_open`."""

_SENTENCE_END = re.compile(r"[.!?…。！？؟।]+")
_LIST_ITEM = re.compile(r"^[^\S\n]*(?:[-*•–]|\d{1,3}[.)])[^\S\n]+", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}[^\S\n]|^[^\S\n]*\*\*[^*\n]+\*\*:?[^\S\n]*$", re.MULTILINE)
_EMPHASIS = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")
_HTML = re.compile(r"</?(?:p|br|div|span|b|i|a|ul|li|h[1-6]|table|strong|em)\b[^<>]{0,300}>", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\[(?:[A-Z][A-Z _]{2,60}|[Nn]ame|[Yy]our [a-z]{1,40}|[Ii]nsert [^\]\n]{1,80})\]|\{\{[^}\n]{1,80}\}\}")
_TURN = re.compile(
    r"^[^\S\n]*(?:Human|User|Assistant|AI|###[^\S\n]*(?:Instruction|Response))[^\S\n]*:|<\|(?:im_|end|eot)\w{0,20}\|>|</s>", re.MULTILINE
)
_SHOUTED = re.compile(r"\b[A-Z]{4,}(?:\s+[A-Z]{4,})+\b")

HEDGES, NEGATIONS, SELF, YOU, COURTESY, CONNECTIVES = (
    frozenset(words.split(" "))
    for words in (
        "maybe perhaps might possibly probably seems guess think believe likely apparently somewhat generally usually",
        "no not never none nobody nothing cannot can't don't won't isn't aren't doesn't didn't wouldn't shouldn't couldn't",
        "i i'm i'll i'd i've me my mine we we're our us",
        "you you're you'll you'd you've your yours",
        "please thank thanks welcome glad happy appreciate sure certainly absolutely",
        "and or but because so however therefore then also",
    )
)


class Reply(NamedTuple):
    """One side's text, split once."""

    text: str
    words: list[str]  # lower case
    prompt_words: frozenset[str]


def reply_of(text: str, prompt_words: frozenset[str]) -> Reply:
    return Reply(text, words_of(text), prompt_words)


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation; each character of a script that puts no spaces between words is one."""
    return WORD.findall(spaced(text).lower().replace("’", "'"))


def share(members: frozenset[str]) -> Callable[[Reply], float]:
    """The feature "share of the words that are among `members`"."""
    return lambda reply: sum(map(members.__contains__, reply.words)) / max(1, len(reply.words))


def per_word(*marks: str) -> Callable[[Reply], float]:
    """The feature "how many of `marks` a word"."""
    return lambda reply: sum(map(reply.text.count, marks)) / max(1, len(reply.words))


FEATURES: dict[str, Callable[[Reply], float]] = {
    "length in characters": lambda reply: math.log1p(len(reply.text)),
    "length in words": lambda reply: math.log1p(len(reply.words)),
    "number of lines": lambda reply: math.log1p(reply.text.count("\n")),
    "number of sentences": lambda reply: math.log1p(len(_SENTENCE_END.findall(reply.text))),
    "words that occur once": lambda reply: len(set(reply.words)) / max(1, len(reply.words)),
    "letters a word": lambda reply: sum(map(len, reply.words)) / max(1, len(reply.words)),
    "words of the prompt": lambda reply: sum(map(reply.prompt_words.__contains__, reply.words)) / max(1, len(reply.words)),
    "questions": lambda reply: math.log1p(reply.text.count("?")),
    "ends with a question": lambda reply: float(reply.text.rstrip().endswith("?")),
    "exclamations": lambda reply: math.log1p(reply.text.count("!")),
    "commas": per_word(",", ";"),
    "parentheses": per_word("("),
    "quotes": per_word('"', "“"),
    "digits": lambda reply: sum(map(str.isdigit, reply.words)) / max(1, len(reply.words)),
    "hedges": share(HEDGES),
    "negations": share(NEGATIONS),
    "first person": share(SELF),
    "second person": share(YOU),
    "courtesy": share(COURTESY),
    "connectives": share(CONNECTIVES),
    "list items": lambda reply: math.log1p(len(_LIST_ITEM.findall(reply.text))),
}
"""Numbers by name. What grows with the length enters by its logarithm."""


def ends_open(text: str) -> bool:
    """Whether a text stops in the middle: an open code block, or a last line of prose without a mark that closes it.

    A list item is left alone, and so is a single short line: "Madrid" is a whole answer.
    """
    if text.count("```") % 2:
        return True
    text = text.rstrip()
    last = text.rpartition("\n")[2]
    if not text or text.endswith(CLOSING) or _LIST_ITEM.match(last):
        return False
    return text[-1] in ",-(，、" or (len(spaced(last).split()) > 8 and text[-1].isalpha())


MARKS: dict[str, Callable[[str], bool]] = {
    "apology": has_apology,
    "refusal": has_refusal,
    "list": lambda text: _LIST_ITEM.search(text) is not None,
    "heading": lambda text: ("#" in text or "**" in text) and _HEADING.search(text) is not None,
    "bold": lambda text: ("**" in text or "__" in text) and _EMPHASIS.search(text) is not None,
    "code block": lambda text: "```" in text,
    "link": lambda text: "](" in text or "http://" in text or "https://" in text or "www." in text,
    "table": lambda text: "|--" in text or "| --" in text or "|:-" in text,
    "HTML": lambda text: "<" in text and _HTML.search(text) is not None,
    "placeholder": lambda text: ("[" in text or "{{" in text) and _PLACEHOLDER.search(text) is not None,
    "another turn's header": lambda text: (":" in text or "<" in text) and _TURN.search(text) is not None,
    "capitals": lambda text: _SHOUTED.search(text) is not None,
    "emoji": lambda text: not text.isascii() and _EMOJI.search(text) is not None,
    "exclamation mark": lambda text: "!" in text,
    "question mark": lambda text: "?" in text,
    "ends without a mark": lambda text: not text.rstrip().endswith(CLOSING),
    "ends in the middle": ends_open,
    "begins with a small letter": lambda text: text.lstrip()[:1].islower(),
    "loop": lambda text: in_a_loop(text),
    "as an AI": lambda text: "as an AI" in text or "language model" in text,
}
"""Marks by name, at most 32: what a text shows or does not. Those that only an English reply can show never match another language."""


def marks_of(text: str) -> int:
    """The marks of a text as bits, in the order of MARKS."""
    return sum(1 << bit for bit, shows in enumerate(MARKS.values()) if shows(text))


LONGEST_WORD = 40
"""Characters of a word that an opening keeps: a link or a run of nonsense is not told apart beyond them."""


def opening(words: list[str], count: int = 3) -> str:
    """The first words of a reply."""
    return " ".join(word[:LONGEST_WORD] for word in words[:count])
