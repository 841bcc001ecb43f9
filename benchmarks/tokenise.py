"""How long records take to become token ids: through the tokenizer's own calls, through the Rust tokenizer below it, and from the cache.

    python benchmarks/tokenise.py PAIRS.jsonl            # model: the embedded one; 7 rounds

One way after the other in each round, in one process; every way must find the same ids. Seconds are medians, of the wall and of all cores' work, and
ratios are medians of each round's. What is read before (files to records) and after is not in them.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from likelier.data.chat import Encoded, Encoder
from likelier.data.formats import read_all
from likelier.data.kept_turns import KeptTurns
from likelier.models import load_tokenizer
from likelier.recipe import ModelSettings

MAX_LENGTH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    pairs = read_all((given.data,), on_bad=lambda problem: None)
    tokenizer = load_tokenizer(ModelSettings(name=given.model))
    plain, encoder = (Encoder(each, max_length=MAX_LENGTH) for each in (with_own_code(tokenizer), tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], Encoded]] = {
            "the tokenizer's own calls": lambda: plain.encode(pairs),
            "the Rust tokenizer": lambda: encoder.encode(pairs),
            "the same, kept": lambda: encoder.encode(pairs, KeptTurns(Path(tempfile.mkdtemp(dir=folder)), encoder.identity)),
            "from the cache": lambda: encoder.encode(pairs, KeptTurns(Path(folder), encoder.identity)),
        }
        expected = [way() for way in ways.values()]  # warms up, and fills the cache
        assert all(found == expected[0] for found in expected)
        rounds = [[timed(way) for way in ways.values()] for _ in range(given.rounds)]
    tokens = sum(len(example.prompt_ids) + sum(map(len, example.replies)) for example in expected[0].examples)
    print(f"{len(pairs):,} pairs of {given.data}, {tokens / len(pairs):.0f} tokens each, {given.model}, {given.rounds} rounds")
    for at, name in enumerate(ways):
        wall, work = (statistics.median(each[at][kind] for each in rounds) for kind in (0, 1))
        faster, less = (statistics.median(each[0][kind] / each[at][kind] for each in rounds) for kind in (0, 1))
        print(f"{name:<28}{wall:7.3f} s  {wall / len(pairs) * 1e6:5.0f} µs a pair  {faster:5.1f} x   work {work:.3f} s  {less:5.1f} x")


def timed(way: Callable[[], Encoded]) -> tuple[float, float]:
    """(seconds on the wall, seconds of all cores)."""
    wall, work = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - wall, time.process_time() - work


def with_own_code(tokenizer: Any) -> Any:
    """The same tokenizer as a class with a method of its own, which is therefore asked itself."""
    same = copy.copy(tokenizer)
    same.__class__ = type("Own", (type(tokenizer),), {"_decode": lambda self, *ids, **options: type(tokenizer)._decode(self, *ids, **options)})
    return same


if __name__ == "__main__":
    main()
