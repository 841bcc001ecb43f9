"""Records that were tokenised once are read back the same, from what is whole and of the same identity."""

import json
import multiprocessing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.test_chat import ALPACA, CHATML, EOS, LLAMA3, TEMPLATES, byte_level, pair, reply, sentencepiece, text_of, user
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast

from likelier.data import chat
from likelier.data.chat import Encoder
from likelier.data.kept_turns import KeptTurns
from likelier.errors import DataError
from likelier.records import Labelled, Message, Pair

TOOL = {"type": "function", "function": {"name": "find"}}


def records(count=10):
    """Pairs and judged replies; prompts and replies stand in several, one pair is too long, one is a tie."""
    made = [pair(f"reply {n % 5}", f"no {n % 3}", prompt=user(f"prompt {n % 4}"), id=f"p{n}", weight=1.0 + n) for n in range(count)]
    long, tie = pair("nice " * 200, "was", id="long"), pair("Paris", "Paris ", id="tie")
    return [*made[:2], long, tie, *made[2:], Labelled(user("prompt 1"), reply("reply 1"), True, id="judged")]


@pytest.fixture
def tokenised(monkeypatch):
    """How many turns each call has tokenised."""
    counts, work = [], Encoder._tokenized
    monkeypatch.setattr(Encoder, "_tokenized", lambda self, turns, prompts: counts.append(len(turns)) or work(self, turns, prompts))
    return counts


def kept_by(encoder, folder):
    return KeptTurns(folder, encoder.identity)


def encode(encoder, folder, given=None):
    return encoder.encode(records() if given is None else given, kept_by(encoder, folder))


def one_by_one(tokenizer, given, **options):
    """The slow twin: a class of its own keeps the Rust tokenizer from being asked itself, nothing is kept, each record is encoded alone."""

    class Slow(PreTrainedTokenizerFast):
        def _decode(self, *args, **options):
            return super()._decode(*args, **options)

    slow = Slow(tokenizer_object=tokenizer.backend_tokenizer, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    slow.chat_template = tokenizer.chat_template
    encoder = Encoder(slow, **options)
    assert encoder.identity is None
    each = [encoder.encode([record]) for record in given]
    return [[thing for encoded in each for thing in getattr(encoded, name)] for name in ("examples", "dropped", "boundary_mismatches")]


def parts(encoded):
    return [encoded.examples, encoded.dropped, encoded.boundary_mismatches]


@TEMPLATES
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_fast_kept_and_read_back_are_the_slow_twin(make, template, tmp_path, monkeypatch, tokenised):
    monkeypatch.setattr(chat, "CHUNK", 4)
    tokenizer = make(template)
    if make is byte_level:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()  # which spells some replies otherwise
    ligature = [pair("ﬁne", "Hello", id="ligature"), pair("Hello there", "Hello there", id="same")]
    many = [*records(), *ligature]
    encoder = Encoder(tokenizer, max_length=120)
    expected = one_by_one(tokenizer, many, max_length=120)
    assert expected[1]
    assert expected[2] if make is byte_level else True
    assert parts(encoder.encode(many)) == expected
    assert parts(encode(encoder, tmp_path, many)) == expected
    tokenised.clear()
    assert parts(encode(encoder, tmp_path, many)) == expected
    assert tokenised == []


TEXT = st.text(st.one_of(st.sampled_from(" \nHello<|im_end|>"), st.characters(exclude_categories=["Cs"])), min_size=1).filter(str.strip)
ODD_PAIRS = st.lists(st.builds(lambda prompt, chosen, rejected: pair(chosen, rejected, prompt=user(prompt)), TEXT, TEXT, TEXT), max_size=4)
ENCODERS = [(tokenizer, Encoder(tokenizer, max_length=10_000)) for tokenizer in (byte_level(CHATML), sentencepiece(CHATML))]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many=ODD_PAIRS)
def test_odd_texts_are_those_of_the_slow_twin(many, tmp_path):
    many = [one for one in many if all("<|im_end|>" not in side[0].content for side in (one.chosen, one.rejected))]
    for tokenizer, encoder in ENCODERS:
        expected = one_by_one(tokenizer, many, max_length=10_000)
        expected[1] = [dropped.reason for dropped in expected[1]]
        for _ in range(2):
            found = parts(encode(encoder, tmp_path, many))
            found[1] = [dropped.reason for dropped in found[1]]
            assert found == expected


def test_a_reply_in_several_pairs_is_tokenised_once(tokenised):
    replies = [f"reply {n}" for n in range(4)]
    pairs = [pair(chosen, rejected) for at, chosen in enumerate(replies) for rejected in replies[at + 1 :]]
    encoded = Encoder(byte_level(CHATML), max_length=1000).encode(pairs)
    assert tokenised == [4]
    assert [example.chosen_ids for example in encoded.examples] == [encoded.examples[n].chosen_ids for n in (0, 0, 0, 3, 3, 5)]


# When what is kept is read


def test_appended_records_leave_whole_chunks_as_they_are(tmp_path, monkeypatch, tokenised):
    monkeypatch.setattr(chat, "CHUNK", 4)
    encoder = Encoder(byte_level(CHATML), max_length=1000)
    many = [pair(f"reply {n}", "no", prompt=user(f"prompt {n}"), id=str(n)) for n in range(10)]
    encode(encoder, tmp_path, many[:8])
    assert tokenised == [8, 8]
    assert encode(encoder, tmp_path, many) == encoder.encode(many)
    assert tokenised[2] == 4


def test_limits_ids_weights_and_labels_do_not_count(tmp_path, tokenised):
    tokenizer = byte_level(CHATML)
    encode(Encoder(tokenizer, max_length=1000), tmp_path, [pair()])
    tokenised.clear()
    short = encode(Encoder(tokenizer, max_length=3), tmp_path, [pair(id="other", weight=3.0, margin=2.0)])
    assert [dropped.id for dropped in short.dropped] == ["other"]
    assert "data.max_length is 3" in short.dropped[0].reason
    assert tokenised == []


@pytest.mark.parametrize(
    "changed",
    [
        pair("Paris is nice!"),
        pair(rejected="Paris was nice!"),
        pair(prompt=user("Hello there!")),
        pair(prompt=(Message("system", "Hello there"),)),
        pair(meta={"tools": [TOOL]}),
        Pair(user(), (Message("assistant", "Paris is nice", {"name": "x"}),), reply("Paris was nice"), id="p1"),
    ],
    ids=["chosen", "rejected", "prompt", "role", "tools", "extra"],
)
def test_whatever_the_template_sees_counts(changed, tmp_path, tokenised):
    tokenizer = byte_level(CHATML)
    encoder = Encoder(tokenizer, max_length=1000)
    encode(encoder, tmp_path, [pair()])
    tokenised.clear()
    assert encode(encoder, tmp_path, [changed]) == encoder.encode([changed])
    assert tokenised == [2, 2]


def test_the_order_inside_a_tool_counts_because_templates_write_it(tmp_path):
    """Content hashes sort it away."""
    tokenizer = byte_level("{% if tools %}{{ tools | tojson }}{% endif %}" + LLAMA3)
    encoder = Encoder(tokenizer, max_length=1000)
    turned = dict(reversed(TOOL.items()))
    examples = [encode(encoder, tmp_path, [pair(meta={"tools": [tool]})]).examples[0] for tool in (TOOL, turned)]
    assert [json.loads(text_of(tokenizer, example.prompt_ids).partition("<s>")[0]) for example in examples] == [[TOOL], [TOOL]]
    assert examples[0].prompt_ids != examples[1].prompt_ids


def with_token(tokenizer, token):
    tokenizer.add_tokens([token])
    return tokenizer


def test_identity_is_of_tokenizer_template_and_packages(tmp_path, monkeypatch):
    path = tmp_path / "alpaca.jinja"
    path.write_text(ALPACA)
    plain = byte_level(CHATML, pad_token=EOS)
    encoders = [
        Encoder(plain, max_length=1),
        Encoder(plain, max_length=1, chat_template=str(path)),
        Encoder(plain, max_length=1, chat_template="none"),
        Encoder(byte_level(LLAMA3, pad_token=EOS), max_length=1),
        Encoder(byte_level(CHATML, pad_token=EOS, adds_bos=True), max_length=1),
        Encoder(with_token(byte_level(CHATML, pad_token=EOS), AddedToken("Paris", special=False)), max_length=1),
        Encoder(byte_level(CHATML, pad_token=EOS, unk_token=EOS), max_length=1),
        Encoder(byte_level(CHATML, pad_token=EOS, split_special_tokens=True), max_length=1),
        Encoder(sentencepiece(CHATML), max_length=1),
    ]
    identities = [encoder.identity for encoder in encoders]
    assert len({*identities, None}) == len(encoders) + 1
    assert Encoder(byte_level(CHATML, pad_token=EOS), max_length=99).identity == identities[0]
    plain(["Paris", "Paris is nice"], padding=True, truncation=True, max_length=4)
    assert encoders[0].identity == identities[0], "use changes nothing"
    monkeypatch.setattr(chat, "version", lambda package: "another")
    assert encoders[0].identity != identities[0]
    monkeypatch.undo()
    monkeypatch.setattr(chat, "REVISION", chat.REVISION + 1)
    assert encoders[0].identity != identities[0]


def test_another_template_reads_nothing_of_the_first(tmp_path):
    for template in (CHATML, ALPACA):
        encoder = Encoder(byte_level(template), max_length=1000)
        assert encode(encoder, tmp_path) == encoder.encode(records())


# Templates that write the date


def test_what_a_dated_template_writes_is_kept(tmp_path, tokenised):
    encoder = Encoder(byte_level("{{ strftime_now('%d %b') }}" + CHATML), max_length=1000)
    for _ in range(2):
        assert encode(encoder, tmp_path, [pair()]).examples
    assert tokenised == [2]


# Damage, kills, several at once


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, empty])
def test_a_damaged_file_is_set_aside_and_written_again(harm, tmp_path, monkeypatch, tokenised):
    monkeypatch.setattr(chat, "CHUNK", 4)
    encoder = Encoder(byte_level(CHATML), max_length=1000)
    expected = encode(encoder, tmp_path)
    victim, *others = sorted(tmp_path.rglob("*.ids"))
    assert others
    harm(victim)
    tokenised.clear()
    kept = kept_by(encoder, tmp_path)
    assert encoder.encode(records(), kept) == expected
    assert kept.damaged == [victim]
    assert victim.with_suffix(".damaged").is_file()
    assert len(tokenised) == 1
    kept = kept_by(encoder, tmp_path)
    assert encoder.encode(records(), kept) == expected
    assert kept.damaged == []
    assert len(tokenised) == 1


def test_a_file_under_anothers_name_is_damage(tmp_path):
    encoder = Encoder(byte_level(CHATML), max_length=1000)
    encode(encoder, tmp_path, [pair()])
    [first] = tmp_path.rglob("*.ids")
    encode(encoder, tmp_path, [pair("Hello")])
    [second] = {*tmp_path.rglob("*.ids")} - {first}
    first.replace(second)
    kept = kept_by(encoder, tmp_path)
    assert encoder.encode([pair("Hello")], kept) == encoder.encode([pair("Hello")])
    assert kept.damaged == [second]


def test_a_chunk_that_raises_is_not_kept(tmp_path):
    encoder = Encoder(byte_level(CHATML), max_length=1000)
    for _ in range(2):
        with pytest.raises(DataError, match="pair empty, chosen: the reply is empty"):
            encode(encoder, tmp_path, [pair(), pair(" ", id="empty")])
    assert not [*tmp_path.iterdir()]


def work_along(folder):
    chat.CHUNK = 2
    encoder = Encoder(byte_level(CHATML), max_length=1000)
    return [encode(encoder, folder) for _ in range(2)]


def test_two_processes_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(work_along, [tmp_path] * 2)
    expected = Encoder(byte_level(CHATML), max_length=1000).encode(records())
    assert [encoded == expected for each in results for encoded in each] == [True] * 4
    kept = kept_by(Encoder(byte_level(CHATML), max_length=1000), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".ids"]
    assert kept.damaged == []
