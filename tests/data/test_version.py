import hashlib
import itertools
import random
from dataclasses import replace

from likelier.data.version import dataset_id
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
