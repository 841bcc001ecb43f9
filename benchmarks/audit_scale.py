"""How an audit grows with the data: time and peak memory for 10,000, 100,000 and 1,000,000 pairs.

    python benchmarks/audit_scale.py [--pairs 10000 60000 100000 1000000] [--tokens 600] [--workers N] [--json FILE]

Pairs are made up: words by Zipf's law in sentences, a prompt and two replies with about `--tokens` tokens in all; one pair in a hundred is a
near-duplicate or a contradiction of the one before, or holds a mail address. Each size is audited by a fresh process, all checks, no model.
Peak memory is that of the process and all of its workers together, sampled four times a second.
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

WORDS = 30_000
COMMON = "the of and to a in is it you that he was for on are with as I his they be at one have this from or had by but not what all"
CHARACTERS_PER_TOKEN = 4.4


def vocabulary(draw: random.Random) -> tuple[list[str], list[float]]:
    """Words of one to four syllables, and their frequencies."""
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "on", "al")]
    made = ("".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in itertools.count())
    words = list(itertools.islice(dict.fromkeys(itertools.chain(COMMON.split(), itertools.islice(made, 3 * WORDS))), WORDS))
    return words, list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))


def pairs(count: int, tokens: int) -> Iterator[dict[str, Any]]:
    """So many pairs, of which one in a hundred has a fault."""
    draw = random.Random(0)
    words, weights = vocabulary(draw)

    def text(characters: float) -> str:
        chosen = draw.choices(words, cum_weights=weights, k=max(4, round(characters / 5.6)))
        sentences = [" ".join(chosen[at : at + 14]).capitalize() + "." for at in range(0, len(chosen), 14)]
        return " ".join(sentences)

    previous = None
    for _ in range(count):
        long = tokens * CHARACTERS_PER_TOKEN * draw.lognormvariate(0, 0.4)
        row = {"prompt": text(long * 0.3), "chosen": text(long * 0.35), "rejected": text(long * 0.35)}
        fault = draw.randrange(300) if previous else None
        if fault == 0:
            row = {**previous, "chosen": previous["chosen"] + " Indeed."}
        elif fault == 1:
            row = {**previous, "chosen": previous["rejected"], "rejected": previous["chosen"]}
        elif fault == 2:
            row["chosen"] += f" Write to {draw.choice(words)}@{draw.choice(words)}.com."
        previous = row
        yield row


def write(path: Path, count: int, tokens: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in pairs(count, tokens):
            file.write(json.dumps(row) + "\n")


def audit_one(path: Path, workers: int) -> dict[str, Any]:
    """Audit a file in a process of its own; its time in seconds, peak bytes, and verdicts."""
    code = "import sys; from likelier.audit.run import audit; print(audit([sys.argv[1]], workers=int(sys.argv[2])).to_json())"
    script = f"if __name__ == '__main__':\n    {code}\n"
    runner = path.with_suffix(".py")
    runner.write_text(script)
    started = time.perf_counter()
    out = path.with_suffix(".audit.json")
    with out.open("w") as target:
        process = psutil.Popen([sys.executable, str(runner), str(path), str(workers)], stdout=target)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"the audit of {path} failed with exit code {process.returncode}")
    found = json.loads(out.read_text())
    verdicts = {finding["check"]: finding["count"] for finding in found["findings"] if finding["verdict"] not in ("ok", "skipped")}
    return {"seconds": time.perf_counter() - started, "peak_bytes": peak, "found": verdicts}


def resident(process: psutil.Process) -> int:
    """Bytes in memory of a process and its children; what they share counts for each."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--tokens", type=int, default=600, help="tokens a pair, prompt and both replies")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    print("    pairs   MB of text   seconds   ms a pair   peak GiB   found")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.pairs:
            path = Path(folder) / f"{count}.jsonl"
            write(path, count, arguments.tokens)
            size = path.stat().st_size
            result = {"pairs": count, "bytes": size, **audit_one(path, arguments.workers)}
            results.append(result)
            each = 1000 * result["seconds"] / count
            found = ", ".join(f"{check} {number:,}" for check, number in result["found"].items() if number)
            print(f"{count:9,} {size / 1e6:12,.0f} {result['seconds']:9.1f} {each:11.2f} {result['peak_bytes'] / 2**30:10.2f}   {found}", flush=True)
            path.unlink()
    if arguments.json:
        about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "likelier": version("likelier"), "workers": arguments.workers}
        arguments.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
