"""Any records, scored: log-probabilities, implicit rewards and margins, a row a record. Streams, so that data may be larger than memory.

    records ──policy──▶ values on disk, a chunk at a time ──reference──▶ rows      (two passes: the two models are never held at once)

Shape legend: B examples, L tokens of one response.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappush, heappushpop
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from likelier.atomic import atomic_file
from likelier.chunks import say_damaged
from likelier.data.chat import Dropped
from likelier.data.files import refuse_ending, refuse_input_as_output, write_rows
from likelier.data.formats import BEST_AND_WORST, read_records, write_records
from likelier.data.shapes.lists import Pairing
from likelier.errors import DataError, RequestError
from likelier.examples import Example, PreferenceExample
from likelier.logprobs.examples import responses, sequences_of
from likelier.logprobs.reference import ReferenceStore, ReferenceValues, fill
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.model_files import cache_dir
from likelier.objectives import Logps, Objective
from likelier.records import Labelled, Pair, Record
from likelier.rundir import writing
from likelier.subject import Subject
from likelier.wording import count

CHUNK = 512
"""Records in memory at once."""

Row = dict[str, Any]


@dataclass
class Account:
    """What became of the records."""

    pairs: int = 0
    replies: int = 0  # judged one by one
    right: float = 0.0  # pairs whose chosen reply has the higher reward; a tie counts half
    margins: float = 0.0  # their sum
    dropped: list[Dropped] = field(default_factory=list)
    hardest: list[tuple[float, int, Pair]] = field(default_factory=list)  # (−|margin|, −place, pair): a heap whose least is the easiest

    def note(self, pair: Pair, margin: float, hardest: int) -> None:
        """Count a pair that has a margin, and keep it while it is among the `hardest`."""
        self.right += (margin > 0) + 0.5 * (margin == 0)
        self.margins += margin
        if hardest:
            add = heappush if len(self.hardest) < hardest else heappushpop
            add(self.hardest, (-abs(margin), -self.pairs, pair))


def score(
    subject: Subject,
    sources: Sequence[str],
    out: Path,
    *,
    pairing: Pairing = BEST_AND_WORST,
    tokens: bool = False,
    hardest: int = 0,
    say: Callable[[str], object] = lambda _: None,
) -> Account:
    """Write a row for each record of `sources` into `out` (.jsonl, .jsonl.gz or .parquet), in their order; docs/evaluation.md says what it holds.

    `tokens` adds ids and log-probabilities of single tokens. `hardest`: so many pairs whose margin is nearest to 0 are written as records, nearest
    first (`hardest_path`). A list of judged replies gives the pairs that `pairing` says. The reference's values come from its store and go there.

    Raises RequestError for `hardest` without a reward, and what reading raises; then there is no file.
    """
    for written in (out, hardest_path(out)) if hardest else (out,):
        refuse_input_as_output(written, sources)
    refuse_ending(out)
    if hardest < 0:
        raise RequestError(f"--hardest {hardest}: a number of pairs is 0 or more.")
    if hardest and subject.objective is None:
        raise RequestError(f"--hardest: {subject.name} has no reference, so pairs have no margin. Name one with --reference.")
    account = Account()
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as spool:
        dropped: list[Dropped] = []
        for _, examples in _chunks(subject, sources, pairing, dropped):
            if examples:
                subject.settle(sequences_of(examples))
                break
        else:
            first = f" {count(len(dropped), 'record')} left out; the first: {dropped[0].id}: {dropped[0].reason}" if dropped else ""
            raise DataError(f"{', '.join(sources)}: there is no record to score.{first}")
        subject.ask("policy", lambda scorer: _spool(scorer, _chunks(subject, sources, pairing), Path(spool), subject.tokens_per_batch))

        def write(store: ReferenceStore | None = None, scorer: Scorer | None = None) -> None:
            chunks = _scored(subject, _chunks(subject, sources, pairing, account.dropped), Path(spool), store, scorer)
            _write(out, _rows(chunks, subject.objective, account, tokens, hardest), compared=subject.compared, tokens=tokens)

        if subject.compared:
            store = ReferenceStore(cache_dir() / "reference", subject.reference_name())
            say_damaged(store.damaged, say)
            subject.ask("reference", partial(write, store))
        else:
            write()
    if hardest:
        write_records(hardest_path(out), [pair for *_, pair in sorted(account.hardest, reverse=True)])
    return account


def hardest_path(out: Path) -> Path:
    """Where the pairs go whose margin is nearest to 0: scores.jsonl → scores.hardest.jsonl."""
    return out.with_name(f"{Path(out.name.removesuffix('.gz')).stem}.hardest.jsonl")


Chunk = tuple[list[Record], list[Example]]


def _chunks(subject: Subject, sources: Sequence[str], pairing: Pairing, dropped: list[Dropped] | None = None) -> Iterator[Chunk]:
    """Records that can be scored, with their examples, some at a time, the same each time; who asks for it gets the others as `dropped`."""
    records = read_records(*sources, pairing=pairing)
    while chunk := list(islice(records, CHUNK)):
        encoded = subject.encoder.encode(chunk)
        left_out = {each.id for each in encoded.dropped}
        if dropped is not None:
            dropped.extend(encoded.dropped)
        yield [record for record in chunk if record.id not in left_out], encoded.examples


def _spool(scorer: Scorer, chunks: Iterable[Chunk], spool: Path, tokens_per_batch: int) -> None:
    """One file of values a chunk."""
    for number, (_, examples) in enumerate(chunks):
        values = ReferenceValues()
        fill(values, scorer, sequences_of(examples), tokens_per_batch=tokens_per_batch)
        with writing(spool):
            save_file(values.packed(), spool / str(number))


Scored = tuple[list[Record], list[Example], ReferenceValues, ReferenceValues | None]


def _scored(subject: Subject, chunks: Iterable[Chunk], spool: Path, store: ReferenceStore | None, scorer: Scorer | None) -> Iterator[Scored]:
    """Each chunk with the policy's values and the reference's, of which memory holds no more than those that the store was opened with."""
    for number, (records, examples) in enumerate(chunks):
        policy = ReferenceValues()
        policy.unpack(load_file(spool / str(number)))
        fresh: list[PromptResponse] = []
        if store is not None and scorer is not None:
            fresh = [sequence for sequence in sequences_of(examples) if sequence not in store]
            fill(store, scorer, fresh, tokens_per_batch=subject.tokens_per_batch)
        yield records, examples, policy, store
        if store is not None:
            store.forget(fresh)


def _rows(chunks: Iterable[Scored], objective: Objective | None, account: Account, tokens: bool, hardest: int) -> Iterator[Row]:
    for records, examples, policy, reference in chunks:
        for record, example, rewards in zip(records, examples, _rewards(examples, objective, policy, reference), strict=True):
            row: Row = {"id": record.id, **({"group": record.group} if record.group else {})}
            if isinstance(record, Labelled):
                row["label"] = record.label
            for side, ids, reward in zip(_names(example), example.replies, rewards, strict=True):
                row |= _of_side(side, PromptResponse(example.prompt_ids, ids), policy, reference, reward, tokens)
            if isinstance(record, Pair):
                account.pairs += 1
                if objective is not None:
                    chosen, rejected = rewards
                    row["margin"] = chosen - rejected
                    account.note(record, row["margin"], hardest)
            else:
                account.replies += 1
            yield row


def _rewards(
    examples: Sequence[Example], objective: Objective | None, policy: ReferenceValues, reference: ReferenceValues | None
) -> list[tuple[Any, ...]]:
    """The reward of each reply of each example, None without an objective. One that is judged alone is its own counterpart: some rewards look at
    the other side."""
    if objective is None:
        return [(None,) * len(example.replies) for example in examples]
    both = [(PromptResponse(e.prompt_ids, e.replies[0]), PromptResponse(e.prompt_ids, e.replies[-1])) for e in examples]
    if not both:
        return []
    one, other = (responses([pair[side] for pair in both], policy, reference) for side in (0, 1))
    chosen_B, rejected_B = (reward_B.double().tolist() for reward_B in objective.rewards(Logps(one, other)))
    return [(chosen, rejected)[: len(e.replies)] for e, chosen, rejected in zip(examples, chosen_B, rejected_B, strict=True)]


def _names(example: Example) -> tuple[str, ...]:
    return ("chosen", "rejected") if isinstance(example, PreferenceExample) else ("completion",)


def _of_side(
    side: str, sequence: PromptResponse, policy: ReferenceValues, reference: ReferenceValues | None, reward: float | None, tokens: bool
) -> Row:
    values_L = policy[sequence].double()
    row: Row = {f"{side}_logp": float(values_L.sum()), f"{side}_tokens": len(values_L), f"{side}_mean": float(values_L.mean())}
    if reference is not None:
        row |= {f"{side}_reference_logp": float(reference[sequence].double().sum()), f"{side}_reward": reward}
    if tokens:
        row |= {f"{side}_ids": list(sequence.response_ids), f"{side}_token_logps": policy[sequence].tolist()}
        if reference is not None:
            row[f"{side}_reference_token_logps"] = reference[sequence].tolist()
    return row


def _write(out: Path, rows: Iterator[Row], *, compared: bool, tokens: bool) -> None:
    if out.suffix != ".parquet":
        write_rows(out, rows)
        return
    with writing(out), atomic_file(out) as file, pq.ParquetWriter(file, _schema(compared, tokens)) as writer:
        while batch := list(islice(rows, CHUNK)):
            writer.write_table(pa.Table.from_pylist(batch, schema=writer.schema))


def _schema(compared: bool, tokens: bool) -> pa.Schema:
    """All columns that a row may have; those of another kind of record are null."""
    numbers, many = pa.float64(), pa.list_(pa.float32())
    columns = {"id": pa.string(), "group": pa.string(), "label": pa.bool_()}
    for side in ("chosen", "rejected", "completion"):
        columns |= {f"{side}_logp": numbers, f"{side}_tokens": pa.int32(), f"{side}_mean": numbers}
        columns |= {f"{side}_reference_logp": numbers, f"{side}_reward": numbers} if compared else {}
        columns |= {f"{side}_ids": pa.list_(pa.int32()), f"{side}_token_logps": many} if tokens else {}
        columns |= {f"{side}_reference_token_logps": many} if tokens and compared else {}
    return pa.schema({**columns, **({"margin": numbers} if compared else {})})
