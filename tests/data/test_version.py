import hashlib
import itertools
import json
import random
import tracemalloc
from dataclasses import replace

import mlcroissant
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likelier.data.formats import read_all
from likelier.data.version import croissant_path, dataset_id, manifest_path, note_audit, read_manifest, split_version, verify, write_version
from likelier.errors import DataError, RecipeError, Refused
from likelier.records import Labelled, Message, Pair, content_hash


def pair(n):
    return Pair((Message("user", f"q{n}"),), (Message("assistant", "good"),), (Message("assistant", "bad"),), id=str(n))


def sha(content):
    return hashlib.sha256(content).digest()


def root(leaves):
    """RFC 6962, section 2.1, as it is written there: by recursion, cut at the largest power of two below the number of leaves."""
    if len(leaves) <= 1:
        return sha(b"\x00" + leaves[0]) if leaves else sha(b"")
    cut = 1
    while cut * 2 < len(leaves):
        cut *= 2
    return sha(b"\x01" + root(leaves[:cut]) + root(leaves[cut:]))


def test_it_is_the_merkle_root_of_the_rfc():
    for count in (*range(18), 31, 33, 100):
        records = [pair(n) for n in range(count)]
        assert dataset_id(records) == root(sorted(bytes.fromhex(content_hash(record)) for record in records)).hex()


def test_no_records():
    assert dataset_id([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_order_ids_and_iterators_do_not_count():
    records = [pair(n) for n in range(20)]
    other = [replace(record, id="") for record in random.Random(0).sample(records, 20)]
    assert dataset_id(iter(other)) == dataset_id(records)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=12), st.randoms(use_true_random=False))
def test_the_id_is_one_of_a_multiset(numbers, draw):
    shuffled = draw.sample(numbers, len(numbers))
    assert dataset_id(pair(n) for n in shuffled) == dataset_id(pair(n) for n in numbers)
    other = draw.randrange(6)
    assert dataset_id(pair(n) for n in [*shuffled, other]) != dataset_id(pair(n) for n in numbers)
    if numbers and other != numbers[0]:
        assert dataset_id(pair(n) for n in [other, *numbers[1:]]) != dataset_id(pair(n) for n in numbers)


def test_every_content_and_every_repetition_counts():
    records = [pair(n) for n in range(5)]
    labelled = Labelled(records[0].prompt, records[0].chosen, True)
    sets = [
        records,
        records[:4],
        [*records, records[0]],
        [*records, records[4]],
        [*records, records[0], records[0]],
        [replace(records[0], weight=2.0), *records[1:]],
        [replace(records[0], chosen=records[0].rejected, rejected=records[0].chosen), *records[1:]],
        [labelled],
        [replace(labelled, label=False)],
    ]
    ids = [dataset_id(one) for one in sets]
    assert all(left != right for left, right in itertools.combinations(ids, 2))


def test_an_inner_node_cannot_pass_for_a_record():
    """Leaves and inner nodes are hashed with different first bytes, so no data set shares its id with one made of the hashes of its halves."""
    left, right = sorted(bytes.fromhex(content_hash(pair(n))) for n in range(2))
    assert dataset_id([pair(0), pair(1)]) not in {sha(left + right).hex(), sha(sha(left) + sha(right)).hex()}


def test_many_records_are_named_in_little_memory():
    some = [pair(n) for n in range(100)]
    tracemalloc.start()
    dataset_id(some[n % 100] for n in range(30_000))
    assert tracemalloc.get_traced_memory()[1] < 200 * 30_000
    tracemalloc.stop()


# Versions on disk

ENDINGS = [".jsonl", ".jsonl.gz", ".parquet"]
RECORDS = [replace(pair(n), reason="verbose", margin=0.5) if n % 2 else pair(n // 4 * 4) for n in range(12)]


def verdicts(path):
    return {check.what: check.verdict for check in verify(path)}


ALL_HOLDS = dict.fromkeys(["bytes of the file", "data set id", "counts", "Croissant metadata"], "holds")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_version_says_what_it_is_and_verifies(ending, tmp_path):
    path = tmp_path / f"pairs{ending}"
    made = write_version(path, iter(RECORDS), parents=["ab" * 32], step="made up")
    assert made == read_manifest(path)
    assert made.id == dataset_id(RECORDS) == dataset_id(read_all([path]))
    assert made.counts.model_dump() == {"pairs": 12, "unpaired": 0, "prompts": 9}
    assert made.fields == ("prompt", "chosen", "rejected", "id", "margin", "reason")
    assert made.files == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert (made.parents, made.step, made.audit) == (("ab" * 32,), "made up", None)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.name}.manifest.json", f"{path.name}.croissant.json"}
    assert verdicts(path) == ALL_HOLDS


UNPAIRED = [Labelled(pair(n).prompt, pair(n).chosen, n % 2 == 0) for n in range(30)]


def test_unpaired_records_are_counted_verified_and_split(tmp_path):
    path = tmp_path / "a.jsonl"
    made = write_version(path, [*UNPAIRED, pair(0)], parents=(), step="made up")
    assert made.counts.model_dump() == {"pairs": 1, "unpaired": 30, "prompts": 30}
    assert str(made.counts) == "1 pair and 30 unpaired records"
    assert made.fields == ("prompt", "chosen", "rejected", "completion", "label", "id")
    assert verdicts(path) == ALL_HOLDS
    sides = split_version(str(path), eval_fraction=0.3)
    assert sum(side.counts.unpaired for _, side in sides) == 30
    assert all(verdicts(target) == ALL_HOLDS for target, _ in sides)
    table = tmp_path / "a.parquet"
    assert write_version(table, UNPAIRED, parents=(), step="made up").id == dataset_id(UNPAIRED)
    assert verdicts(table) == ALL_HOLDS
    with pytest.raises(DataError, match="either pairs or unpaired records"):
        write_version(table, [*UNPAIRED, pair(0)], parents=(), step="made up")
    assert verdicts(table) == ALL_HOLDS, "the file that was there stays"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ENDINGS), st.data())
def test_no_flipped_byte_goes_unseen(tmp_path_factory, ending, data):
    path = tmp_path_factory.mktemp("version") / f"pairs{ending}"
    write_version(path, RECORDS, parents=(), step="made up")
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert verdicts(path)["bytes of the file"] == "differs"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_changed_letter_of_a_record_keeps_the_id(tmp_path_factory, data):
    """Even where the recorded hash of the file was changed with it."""
    path = tmp_path_factory.mktemp("version") / "pairs.jsonl"
    write_version(path, RECORDS, parents=(), step="made up")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    row = data.draw(st.sampled_from(rows))
    message = row[data.draw(st.sampled_from(["prompt", "chosen", "rejected"]))][0]
    message["content"] += data.draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = json.loads(manifest_path(path).read_text())
    manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest_path(path).write_text(json.dumps(manifest))
    assert verdicts(path)["bytes of the file"] == "holds"
    assert verdicts(path)["data set id"] == "differs"


def test_the_same_records_in_another_order_are_the_same_data_in_another_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_version(path, RECORDS, parents=(), step="made up")
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert verdicts(path) == ALL_HOLDS | {"bytes of the file": "differs"}


def test_every_word_of_the_manifest_is_held_to(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_version(path, RECORDS, parents=(), step="made up")
    whole = manifest_path(path).read_text()
    changes = {
        "data set id": {"id": "00" * 32},
        "counts": {"counts": {"pairs": 12, "unpaired": 0, "prompts": 8}},
        "bytes of the file": {"files": {}},
        "Croissant metadata": {"parents": ["00" * 32]},
    }
    for what, change in changes.items():
        manifest_path(path).write_text(json.dumps(json.loads(whole) | change))
        assert verdicts(path)[what] == "differs"


def test_what_cannot_be_asked(tmp_path):
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(DataError, match=r"no pairs.jsonl.manifest.json beside it"):
        verify(path)
    write_version(path, RECORDS, parents=(), step="made up")
    croissant_path(path).unlink()
    assert verdicts(path)["Croissant metadata"] == "not checked"
    for broken in ("", "[]", '{"id": 3}', manifest_path(path).read_text().replace('"step"', '"stepp"')):
        manifest_path(path).write_text(broken)
        with pytest.raises(DataError, match="this manifest was edited or cut"):
            verify(path)
    path.unlink()
    write_version(path, RECORDS, parents=(), step="made up")
    path.unlink()
    with pytest.raises(DataError, match="there is no such file"):
        verify(path)


def test_what_stands_beside_data_is_not_read_as_data(tmp_path):
    write_version(tmp_path / "pairs.jsonl", RECORDS, parents=(), step="made up")
    for source in (tmp_path, tmp_path / "*.json*"):
        assert dataset_id(read_all([source])) == dataset_id(RECORDS)


@pytest.mark.parametrize("ending", ENDINGS)
def test_croissant_is_valid_and_its_loader_reads_the_records(ending, tmp_path, caplog):
    path = tmp_path / f"my pairs{ending}"
    made = write_version(path, RECORDS[:4], parents=["ab" * 32], step="made up")
    dataset = mlcroissant.Dataset(jsonld=croissant_path(path))
    assert not dataset.metadata.ctx.issues.errors
    assert not [record.message for record in caplog.records if "not standard" in record.message]
    described = json.loads(croissant_path(path).read_text())
    assert described["identifier"] == f"urn:likelier:sha256:{made.id}"
    assert described["isBasedOn"] == [f"urn:likelier:sha256:{'ab' * 32}"]
    rows = list(dataset.records("records"))
    assert [row["records/id"].decode() for row in rows] == [record.id for record in RECORDS[:4]]
    assert rows[1]["records/margin"] == 0.5
    if ending == ".parquet":
        assert json.loads(rows[1]["records/prompt"]) == [{"role": "user", "content": "q1"}]
    else:
        assert rows[1]["records/prompt"] == [{"records/prompt/role": b"user", "records/prompt/content": b"q1"}]


# Splits as versions


def test_both_sides_name_the_whole_as_their_parent(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    whole = write_version(path, [replace(pair(n), reason=f"{n % 3}") for n in range(60)], parents=(), step="made up")
    made = split_version(str(path), eval_fraction=0.2, stratify="reason")
    assert [target.name for target, _ in made] == ["pairs.train.jsonl", "pairs.eval.jsonl"]
    for target, manifest in made:
        assert manifest.parents == (whole.id,)
        assert verdicts(target) == ALL_HOLDS
    assert [manifest.step for _, manifest in made] == [f"split eval 0.2 by prompt stratified by reason, {side} side" for side in ("train", "eval")]
    assert dataset_id([*read_all([made[0][0]]), *read_all([made[1][0]])]) == whole.id


def test_where_sides_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.v1").mkdir()
    write_version(tmp_path / "data.v1" / "a.parquet", [pair(n) for n in range(20)], parents=(), step="made up")
    assert [str(target) for target, _ in split_version("data.v1", eval_fraction=0.2)] == ["data.v1.train.jsonl", "data.v1.eval.jsonl"]
    assert [str(target) for target, _ in split_version("data.v1/a.parquet", eval_fraction=0.2)] == ["data.v1/a.train.jsonl", "data.v1/a.eval.jsonl"]
    assert [str(target) for target, _ in split_version("embedded:facts", eval_fraction=0.2)] == ["facts.train.jsonl", "facts.eval.jsonl"]
    with pytest.raises(DataError, match="a pattern has no name"):
        split_version("data.v1/*.parquet", eval_fraction=0.2)


def test_a_split_that_holds_nothing_out_is_refused_and_writes_nothing(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_version(path, [replace(pair(0), id=str(n), meta={"n": n}) for n in range(5)], parents=(), step="made up")
    before = set(tmp_path.iterdir())
    with pytest.raises(Refused, match="all 5 records hang together"):
        split_version(str(path), eval_fraction=0.2)
    with pytest.raises(RecipeError, match="`by` is 'promt'"):
        split_version(str(path), eval_fraction=0.2, by="promt")
    assert set(tmp_path.iterdir()) == before


def test_an_audit_is_noted_in_the_manifest_of_what_it_audited(tmp_path):
    made = write_version(tmp_path / "a.jsonl", RECORDS, parents=(), step="made up")
    assert made.audit is None
    assert note_audit(tmp_path / "a.jsonl", dataset=made.id, audit="cd" * 32)
    assert read_manifest(tmp_path / "a.jsonl") == made.model_copy(update={"audit": "cd" * 32})
    assert all(check.verdict == "holds" for check in verify(tmp_path / "a.jsonl"))
    assert not note_audit(tmp_path / "a.jsonl", dataset="ef" * 32, audit="00" * 32)
    assert not note_audit(tmp_path / "b.jsonl", dataset=made.id, audit="00" * 32)
    assert read_manifest(tmp_path / "a.jsonl").audit == "cd" * 32
