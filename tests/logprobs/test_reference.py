import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from likelier.logprobs import reference
from likelier.logprobs.reference import ReferenceStore, fill, identity, key_of
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.models import fingerprint

NUMERICS = {"engine": "nodes", "precision": "fp32", "torch": "2.13"}
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def scorer(tiny):
    return Scorer(tiny("llama"), engine="nodes", precision="fp32")


def sequence(number: int) -> PromptResponse:
    return PromptResponse((number % 97, 5), tuple(range(1, 2 + number % 5)))


def values_of(number: int) -> torch.Tensor:
    return -torch.arange(1, 2 + number % 5, dtype=torch.float32) - number


def stored(root: Path, numbers=range(6)) -> ReferenceStore:
    """A store on disk, a chunk for each number."""
    store = ReferenceStore(root, "ref")
    for number in numbers:
        store.add(sequence(number), values_of(number))
        store.flush()
    return store


def chunks(root: Path, suffix: str = ".safetensors") -> list[Path]:
    return sorted((root / "ref").glob(f"*{suffix}"))


def test_pitfall_15_what_a_reference_is_named_by():
    name = identity(weights="w", numerics=NUMERICS)
    assert name == identity(weights="w", numerics=dict(reversed(NUMERICS.items())))
    others = [identity(weights="v", numerics=NUMERICS)] + [identity(weights="w", numerics={**NUMERICS, key: "other"}) for key in NUMERICS]
    assert len({name, *others}) == 2 + len(NUMERICS)
    assert len(name) == 32


def test_pitfall_15_only_weights_move_the_name(tiny):
    model = tiny("llama")
    before = identity(weights=fingerprint(model), numerics=NUMERICS)
    assert identity(weights=fingerprint(tiny("llama")), numerics=NUMERICS) == before
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1e-3
    assert identity(weights=fingerprint(model), numerics=NUMERICS) != before


def test_values_are_filed_under_the_ids_and_the_boundary():
    keys = [key_of(PromptResponse(*s)) for s in [((1, 2), (3,)), ((1,), (2, 3)), ((1, 2), (4,)), ((1, 2), (3, 0)), ((258,), (3,)), ((2, 1), (3,))]]
    assert len(set(keys)) == len(keys)
    assert key_of(PromptResponse((1, 2), (3,))) == keys[0]
    assert {len(key) for key in keys} == {32}


def test_what_is_filled_is_read_back_bit_for_bit(tmp_path, scorer, sequences):
    store = ReferenceStore(tmp_path, "ref")
    assert fill(store, scorer, sequences, tokens_per_batch=30) == len(set(sequences))
    with torch.no_grad():
        wanted = scorer.token_logps(sequences)
    again = ReferenceStore(tmp_path, "ref")
    for s, values in zip(sequences, wanted, strict=True):
        assert s in again
        assert again[s].shape == (len(s.response_ids),)
        assert again[s].dtype == torch.float32
        assert again[s].equal(store[s])
        assert torch.allclose(again[s], values, atol=1e-5)
    assert again.digest(sequences) == store.digest(sequences)


@pytest.mark.filterwarnings("error")
def test_values_read_from_disk_serve_as_tensors_without_a_warning(tmp_path):
    stored(tmp_path)
    assert (ReferenceStore(tmp_path, "ref")[sequence(3)] + 1).equal(values_of(3) + 1)


def test_a_second_fill_scores_nothing(tmp_path, scorer, sequences, monkeypatch):
    fill(ReferenceStore(tmp_path, "ref"), scorer, sequences, tokens_per_batch=30)
    before = chunks(tmp_path)
    monkeypatch.setattr(Scorer, "token_logps", lambda *_: pytest.fail("nothing was to be scored"))
    assert fill(ReferenceStore(tmp_path, "ref"), scorer, [*sequences, sequences[0]], tokens_per_batch=7) == 0
    assert chunks(tmp_path) == before


def test_a_fill_scores_only_what_is_missing_and_says_how_far_it_is(tmp_path, scorer, sequences):
    store = ReferenceStore(tmp_path, "ref")
    fill(store, scorer, sequences[:3], tokens_per_batch=30)
    said = []
    missing = len(set(sequences) - set(sequences[:3]))
    assert fill(store, scorer, sequences, tokens_per_batch=30, on_progress=lambda *done: said.append(done)) == missing
    assert said[-1] == (missing, missing)
    assert [done for done, _ in said] == sorted({done for done, _ in said})


def test_another_reference_shares_nothing(tmp_path):
    stored(tmp_path)
    assert sequence(1) not in ReferenceStore(tmp_path, "other")
    with pytest.raises(KeyError):
        ReferenceStore(tmp_path, "other")[sequence(1)]


def test_opening_and_reading_writes_nothing(tmp_path):
    store = ReferenceStore(tmp_path / "none", "ref")
    assert sequence(1) not in store
    store.flush()
    assert not (tmp_path / "none").exists()


def test_chunks_are_written_every_so_many_values_and_named_by_their_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FLUSH_TOKENS", 10)
    store = ReferenceStore(tmp_path, "ref")
    for number in range(20):
        store.add(sequence(number), values_of(number))
    assert len(chunks(tmp_path)) == 5
    store.flush()
    for path in chunks(tmp_path):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
        content = load_file(path)
        assert content["keys"].dtype == np.uint8
        assert content["values"].shape == (content["lengths"].sum(),)
        assert len(content["values"]) < 10 + 5
    assert all(ReferenceStore(tmp_path, "ref")[sequence(n)].equal(values_of(n)) for n in range(20))


@pytest.mark.parametrize("harm", ["a flipped bit", "a flipped bit in the header", "cut short", "emptied", "something else"])
def test_a_damaged_chunk_is_set_aside_and_computed_again(harm, tmp_path, scorer, sequences, monkeypatch):
    monkeypatch.setattr(reference, "FLUSH_TOKENS", 1)
    store = ReferenceStore(tmp_path, "ref")
    fill(store, scorer, sequences, tokens_per_batch=1)
    whole = store.digest(sequences)
    victim = chunks(tmp_path)[2]
    content = bytearray(victim.read_bytes())
    if harm.startswith("a flipped bit"):
        content[-3 if harm == "a flipped bit" else 20] ^= 0x10
    victim.write_bytes({"cut short": content[:-5], "emptied": b"", "something else": b"not a chunk"}.get(harm, bytes(content)))

    reopened = ReferenceStore(tmp_path, "ref")
    assert reopened.damaged == [victim]
    assert not victim.exists()
    assert victim.with_suffix(".damaged").is_file()
    lost = [s for s in set(sequences) if s not in reopened]
    assert len(lost) == 1
    assert fill(reopened, scorer, sequences, tokens_per_batch=1) == 1
    assert torch.allclose(reopened[lost[0]], store[lost[0]], atol=1e-5)
    final = ReferenceStore(tmp_path, "ref")
    assert final.damaged == []
    assert final.digest(sequences) == whole


def test_a_chunk_that_another_run_sets_aside_meanwhile_is_no_error(tmp_path, monkeypatch):
    stored(tmp_path)
    gone, damaged = chunks(tmp_path)[:2]
    damaged.write_bytes(b"damage")
    read = Path.read_bytes

    def racing(path):
        if path == gone:
            path.unlink()
        content = read(path)
        if path == damaged:
            path.rename(path.with_suffix(".damaged"))
        return content

    monkeypatch.setattr(Path, "read_bytes", racing)
    assert sum(sequence(n) in ReferenceStore(tmp_path, "ref") for n in range(6)) == 4


def write(root: Path, numbers: range, barrier) -> None:
    barrier.wait()
    store = ReferenceStore(root, "ref")
    for number in numbers:
        store.add(sequence(number), values_of(number))
        store.flush()


def test_two_writers_at_once(tmp_path):
    """Each writes its own values and some that the other writes too; afterwards all are there, whole, and nothing is left over."""
    barrier = FORK.Barrier(2)
    writers = [FORK.Process(target=write, args=(tmp_path, numbers, barrier)) for numbers in (range(40), range(25, 70))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = ReferenceStore(tmp_path, "ref")
    assert store.damaged == []
    assert all(store[sequence(n)].equal(values_of(n)) for n in range(70))
    assert set((tmp_path / "ref").iterdir()) == set(chunks(tmp_path))


def test_a_reader_while_another_writes_sees_whole_chunks_only(tmp_path):
    barrier = FORK.Barrier(2)
    writer = FORK.Process(target=write, args=(tmp_path, range(60), barrier))
    writer.start()
    barrier.wait()
    seen = 0
    while writer.is_alive():
        store = ReferenceStore(tmp_path, "ref")
        known = [n for n in range(60) if sequence(n) in store]
        assert store.damaged == []
        assert len(known) >= seen
        assert all(store[sequence(n)].equal(values_of(n)) for n in known)
        seen = len(known)
    writer.join(60)
    assert writer.exitcode == 0


def fill_and_wait(root: Path, scorer: Scorer, sequences, after: int) -> None:
    """Fill the store, and wait for a kill once it has so many chunks."""
    reference.FLUSH_TOKENS = 1

    def wait(*_: object) -> None:
        while len(chunks(root)) >= after:
            time.sleep(60)

    fill(ReferenceStore(root, "ref"), scorer, sequences, tokens_per_batch=1, on_progress=wait)


@pytest.mark.parametrize("after", [1, 3, 7])
def test_a_fill_that_is_killed_loses_no_chunk_and_is_ended_by_the_next(after, tmp_path, scorer):
    many = [sequence(n) for n in range(60)]
    victim = FORK.Process(target=fill_and_wait, args=(tmp_path, scorer, many, after + 3))
    victim.start()
    deadline = time.monotonic() + 60
    while len(chunks(tmp_path)) < after and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL

    store = ReferenceStore(tmp_path, "ref")
    kept = sum(s in store for s in many)
    assert store.damaged == []
    assert after <= kept < len(many)
    assert fill(store, scorer, many, tokens_per_batch=100) == len(many) - kept
    assert all(s in ReferenceStore(tmp_path, "ref") for s in many)


def test_a_half_written_file_is_not_a_chunk(tmp_path):
    stored(tmp_path)
    (tmp_path / "ref" / ".0123abcd").write_bytes(chunks(tmp_path)[0].read_bytes()[:50])
    store = ReferenceStore(tmp_path, "ref")
    assert store.damaged == []
    assert all(sequence(n) in store for n in range(6))


def test_an_interrupted_fill_keeps_what_was_scored(tmp_path, scorer, sequences):
    def interrupt(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(ReferenceStore(tmp_path, "ref"), scorer, sequences, tokens_per_batch=1, on_progress=interrupt)
    assert sum(s in ReferenceStore(tmp_path, "ref") for s in set(sequences)) == 4


def test_the_digest_sees_any_moved_value_and_not_the_order(tmp_path):
    store = stored(tmp_path)
    numbers = list(range(6))
    whole = store.digest(sequence(n) for n in numbers)
    assert store.digest(sequence(n) for n in [*numbers[::-1], 0]) == whole
    assert store.digest(sequence(n) for n in numbers[:5]) != whole
    store.add(sequence(2), torch.nextafter(values_of(2), torch.tensor(0.0)))
    assert store.digest(sequence(n) for n in numbers) != whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_becomes_of_the_tensor_afterwards_does_not_matter(dtype, tmp_path):
    store = ReferenceStore(tmp_path, "ref")
    values = torch.tensor([-1.0, -2.0], dtype=dtype, requires_grad=True)
    store.add(PromptResponse((1,), (2, 3)), values)
    with torch.no_grad():
        values += 1
    found = store[PromptResponse((1,), (2, 3))]
    assert found.tolist() == [-1.0, -2.0]
    assert found.dtype == torch.float32
    assert not found.requires_grad
