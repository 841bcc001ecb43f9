import csv
import gzip
import json
import math
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from likelier.data.formats import read_all, read_pairs, write_pairs
from likelier.data.messages import ROLES
from likelier.errors import DataError
from likelier.records import EXTRAS, Message, Pair, content_hash

PLAIN = {"prompt": "Where is my parcel?", "chosen": "In Ulm.", "rejected": "No idea."}


def message(role, content, **extra):
    return {"role": role, "content": content, **extra}


def user(content):
    return Message("user", content)


def assistant(content, **extra):
    return Message("assistant", content, extra)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_one(tmp_path, row):
    (pair,) = read_pairs(write(tmp_path / "one.jsonl", row))
    return pair


def refusal(tmp_path, row):
    """The message with which the second line of a file is refused, without file and line."""
    path = write(tmp_path / "bad.jsonl", PLAIN, row)
    pairs = read_pairs(path)
    assert next(pairs).chosen == (assistant("In Ulm."),)
    with pytest.raises(DataError) as caught:
        next(pairs)
    assert caught.value.exit_code == 2
    where, _, what = str(caught.value).partition(": ")
    assert where == f"{path}, line 2"
    return what


# Shapes

WANTED = Pair((user("Where is my parcel?"),), (assistant("In Ulm."),), (assistant("No idea."),))
LONG = Pair((user("Hi"), assistant("Hello!"), user("Where is it?")), (assistant("In Ulm."),), (assistant("No idea."),))
TALK = [message("user", "Hi"), message("assistant", "Hello!"), message("user", "Where is it?")]
GOOD, BAD = message("assistant", "In Ulm."), message("assistant", "No idea.")
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Where is it?\n\nAssistant:"


@pytest.mark.parametrize(
    "row, pair",
    [
        (PLAIN, WANTED),
        ({**PLAIN, "prompt": [message("user", PLAIN["prompt"])]}, WANTED),
        ({**PLAIN, "chosen": [GOOD], "rejected": [BAD]}, WANTED),
        ({"prompt": TALK, "chosen": [GOOD], "rejected": [BAD]}, LONG),
        ({"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}, LONG),
        ({"chosen": f"{TRANSCRIPT} In Ulm.", "rejected": f"{TRANSCRIPT} No idea."}, LONG),
        ({"prompt": TRANSCRIPT, "chosen": "In Ulm.", "rejected": "No idea."}, LONG),
        ({"prompt": "Hi", "chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}, LONG),
        ({"prompt": TALK, "chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}, LONG),
        ({"prompt": TRANSCRIPT, "chosen": f"{TRANSCRIPT} In Ulm.", "rejected": f"{TRANSCRIPT} No idea."}, LONG),
    ],
    ids=[
        "strings",
        "messages and strings",
        "string and messages",
        "TRL explicit",
        "TRL implicit",
        "HH-RLHF",
        "HH-RLHF with its prompt apart",
        "UltraFeedback-binarized",
        "messages repeated",
        "transcript repeated",
    ],
)
def test_shape(tmp_path, row, pair):
    assert read_one(tmp_path, row) == pair


def test_prompt_of_whole_conversations_never_eats_the_reply(tmp_path):
    """Pitfall 1, at the level of messages: agreeing openings of two replies stay in the replies."""
    opening = message("assistant", "Let me look.")
    ask = message("user", "Where?")
    pair = read_one(tmp_path, {"chosen": [ask, opening, GOOD], "rejected": [ask, opening, BAD]})
    assert (pair.prompt, pair.chosen) == ((user("Where?"),), (assistant("Let me look."), assistant("In Ulm.")))
    pair = read_one(tmp_path, {"chosen": [ask, GOOD], "rejected": [ask, GOOD, message("user", "Sure?"), BAD]})
    assert (pair.prompt, pair.chosen, len(pair.rejected)) == ((user("Where?"),), (assistant("In Ulm."),), 3)


def test_conversations_that_part_early_keep_all_turns_from_there_on(tmp_path):
    ask, again = message("user", "Where?"), message("user", "Sure?")
    pair = read_one(tmp_path, {"chosen": [ask, GOOD, again, GOOD], "rejected": [ask, BAD, again, BAD]})
    assert pair.prompt == (user("Where?"),)
    assert pair.rejected == (assistant("No idea."), user("Sure?"), assistant("No idea."))


def test_system_prompt_beside_a_string(tmp_path):
    system = Message("system", "Be brief.")
    assert read_one(tmp_path, {**PLAIN, "system": "Be brief."}).prompt == (system, *WANTED.prompt)
    assert read_one(tmp_path, {**PLAIN, "system": " "}).prompt == WANTED.prompt
    talk = {"prompt": [system.as_dict(), *TALK], "chosen": [GOOD], "rejected": [BAD]}
    assert read_one(tmp_path, {**talk, "system": "Be brief."}).prompt == (system, *LONG.prompt)
    assert "`system` and the system message of the prompt differ" in refusal(tmp_path, {**talk, "system": "Be long."})
    assert "`system` is a list" in refusal(tmp_path, {**PLAIN, "system": ["Be brief."]})


def test_tool_calls_and_names_stay_in_the_message(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "track", "arguments": {"id": None}}}], "name": None}
    row = {"prompt": TALK, "chosen": [call, message("tool", "Ulm", name="track"), GOOD], "rejected": [BAD]}
    chosen = read_one(tmp_path, row).chosen
    assert chosen[0] == assistant("", tool_calls=[{"function": {"name": "track", "arguments": {"id": None}}}])
    assert chosen[1].extra == {"name": "track"}


def test_text_is_kept_as_it_is(tmp_path):
    row = {"prompt": " a\n", "chosen": ' [{"role": "user"}] ', "rejected": "\tc\u2028é🙂"}
    pair = read_one(tmp_path, row)
    assert [side[0].content for side in (pair.prompt, pair.chosen, pair.rejected)] == list(row.values())


def test_tables_hold_messages_and_numbers_as_text(tmp_path):
    row = {"prompt": json.dumps(TALK), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD]), "weight": "2", "meta": '{"a": 1}', "note": "[1]"}
    wanted = Pair(LONG.prompt, LONG.chosen, LONG.rejected, weight=2.0, meta={"a": 1, "note": "[1]"})
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert list(read_pairs(tmp_path / name)) == [wanted]


@pytest.mark.parametrize(
    "cell, fault",
    [
        ('[{"role": "assistant", "content": "\\ud800"}]', "half of a character"),
        ('[{"role": "assistant", "content": "a", "n": NaN}]', "`n`: nan is not a number"),
    ],
)
def test_json_in_a_cell_is_checked_like_any_other(tmp_path, cell, fault):
    pq.write_table(pa.Table.from_pylist([{**PLAIN, "chosen": cell}]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet, row 1: `chosen`: .*{fault}"):
        list(read_pairs(tmp_path / "a.parquet"))


def test_same_rows_same_content_whatever_the_container(tmp_path):
    rows = [
        {**PLAIN, "chosen": [GOOD], "rejected": [BAD], "margin": 2, "score": None},
        {"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD], "score": 1.5},
    ]
    write(tmp_path / "a.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    left, right = ([content_hash(pair) for pair in read_pairs(tmp_path / name)] for name in ("a.jsonl", "a.parquet"))
    assert left == right


# Optional fields


def test_known_extras_are_fields_and_unknown_ones_go_to_meta(tmp_path):
    extras = {"id": 7, "weight": 2, "margin": 0.5, "group": "eu", "source": "s", "annotator": "ann", "reason": "vague", "meta": {"a": [None]}}
    pair = read_one(tmp_path, {**PLAIN, **extras, "score_chosen": 8, "score_rejected": 3, "lang": "de", "gone": None})
    assert {name: getattr(pair, name) for name in EXTRAS} == {
        **extras,
        "id": "7",
        "meta": {"a": [None], "score_chosen": 8, "score_rejected": 3, "lang": "de"},
    }
    assert isinstance(pair.weight, float)


@pytest.mark.parametrize(
    "field, value, fault",
    [
        ("weight", 0, "`weight` is 0; it must be a positive finite number"),
        ("weight", -1.5, "`weight` is -1.5;"),
        ("weight", "2", "`weight` is text;"),
        ("weight", True, "`weight` is True;"),
        ("weight", math.nan, "nan"),
        ("weight", math.inf, "inf"),
        ("weight", 10**400, "`weight` is 1000"),
        ("margin", -1, "`margin` is -1; it must be a positive finite number"),
        ("margin", [], "`margin` is a list"),
        ("id", [1], "`id` is a list; it must be text"),
        ("group", True, "`group` is true or false; it must be text"),
        ("reason", 1.5, "`reason` is a number; it must be text"),
        ("meta", "x", "`meta` is text; it must be an object"),
        ("meta", {"lang": "de"}, "`lang` stands both in the row and in its `meta`"),
    ],
)
def test_bad_extra(tmp_path, field, value, fault):
    assert fault in refusal(tmp_path, {**PLAIN, "lang": "en", field: value})


# Faults


@pytest.mark.parametrize(
    "row, fault",
    [
        ({"prompt": "q", "chosen": "a", "rejectd": "b"}, "no `rejected`; it has `prompt`, `chosen`, `rejectd`. Did you mean `rejectd`?"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "no `rejected`; it has `prompt`, `chosen`."),
        ({"promt": "q", "chosen": "a", "rejected": "b"}, "no `prompt`, and `chosen` and `rejected` are not whole conversations"),
        ({}, "no `chosen`; it has no field at all"),
        ([1], "this row is a list, not an object"),
        (None, "this row is null, not an object"),
        ({**PLAIN, "chosen": 5}, "`chosen` is a number. It holds text, or a list of messages"),
        ({**PLAIN, "prompt": {"role": "user"}}, "`prompt` is an object"),
        ({**PLAIN, "prompt": ["q"]}, "`prompt`, message 1 is text, not an object with `role` and `content`"),
        ({**PLAIN, "chosen": [message("asistant", "a")]}, "`chosen`, message 1 has the unknown role 'asistant'. Did you mean `assistant`?"),
        ({**PLAIN, "chosen": [{"content": "a"}]}, "`chosen`, message 1 has no `role`"),
        ({**PLAIN, "chosen": [GOOD, message("assistant", ["a"])]}, "`chosen`, message 2 has a list as `content`"),
        ({**PLAIN, "chosen": [{"role": "assistant"}]}, "`chosen`, message 1 has no `content`"),
        ({**PLAIN, "prompt": " \n"}, "`prompt` is empty"),
        ({**PLAIN, "prompt": []}, "`prompt` is empty"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "`prompt` is empty"),
        ({**PLAIN, "rejected": "In Ulm."}, "`chosen` and `rejected` are identical"),
        ({"chosen": [*TALK, GOOD], "rejected": [*TALK, GOOD]}, "`chosen` and `rejected` are identical"),
        ({**PLAIN, "chosen": [GOOD, message("user", "Thanks")]}, "`chosen` begins or ends with a message of the user"),
        ({**PLAIN, "chosen": [message("tool", "Ulm"), GOOD]}, "`chosen` begins or ends with a message of the tool"),
        ({"prompt": "Bye", "chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}, "they do not begin with what `prompt` says"),
        ({**PLAIN, "chosen": [*TALK, GOOD]}, "part at message 1"),
        ({"chosen": [*TALK[:2], message("user", "x"), GOOD], "rejected": [*TALK, BAD]}, "part at message 3, which is not the assistant's"),
        ({"chosen": TALK, "rejected": [*TALK, BAD]}, "or one holds no reply"),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"}, "they answer different prompts"),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "b"}, "they answer different prompts"),
        ({"chosen": f"{TRANSCRIPT} a\n\nHuman: b", "rejected": f"{TRANSCRIPT} c"}, "`chosen` does not end with an Assistant turn"),
    ],
)
def test_bad_row(tmp_path, row, fault):
    assert fault in refusal(tmp_path, row)


@pytest.mark.parametrize(
    "row, side",
    [
        ({**PLAIN, "rejected": ""}, "rejected"),
        ({**PLAIN, "chosen": " \n"}, "chosen"),
        ({**PLAIN, "chosen": []}, "chosen"),
        ({**PLAIN, "chosen": [message("assistant", ""), GOOD]}, "chosen"),
        ({"chosen": [*TALK, GOOD], "rejected": [*TALK, message("assistant", "")]}, "rejected"),
        ({"chosen": [], "rejected": [*TALK, BAD]}, "chosen"),
        ({"chosen": f"{TRANSCRIPT} a", "rejected": TRANSCRIPT}, "rejected"),
    ],
)
def test_pitfall_17_an_empty_response_is_refused_at_load(tmp_path, row, side):
    assert refusal(tmp_path, row).startswith(f"`{side}` is an empty response")


@pytest.mark.parametrize(
    "tie",
    [
        {"label": "tie"},
        {"winner": "Tie (bothbad)"},
        {"margin": 0},
        {"margin": 0.0},
        {"chosen_score": 4, "rejected_score": 4.0},
        {"score_chosen": 4, "score_rejected": 4},
    ],
)
def test_pitfall_16_a_tie_is_not_a_preference(tmp_path, tie):
    assert "this row is a tie. A tie is not a preference" in refusal(tmp_path, {**PLAIN, **tie})


def test_pitfall_16_in_a_table(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,chosen_score,rejected_score\nq,a,b,4,4.0\n")
    with pytest.raises(DataError, match=r"a\.csv, row 1: `chosen_score` and `rejected_score` are equal"):
        list(read_pairs(tmp_path / "a.csv"))


def test_a_label_that_is_no_tie_is_kept(tmp_path):
    assert read_one(tmp_path, {**PLAIN, "label": "chosen", "chosen_score": 5, "rejected_score": 4}).meta["label"] == "chosen"


def test_on_bad_takes_bad_rows_and_reading_goes_on(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = [json.dumps(PLAIN), "{", json.dumps({**PLAIN, "rejected": ""}), json.dumps(PLAIN)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    problems: list[DataError] = []
    assert len(list(read_pairs(path, on_bad=problems.append))) == 2
    assert [str(problem).partition(": ")[0] for problem in problems] == [f"{path}, line 2", f"{path}, line 3"]
    with pytest.raises(DataError, match="line 2"):
        list(read_pairs(path))
    with pytest.raises(DataError, match="no such file"):
        list(read_pairs(tmp_path / "no.jsonl", on_bad=problems.append))


# Several sources


def test_read_all_gives_every_pair_an_id_of_its_own(tmp_path):
    (tmp_path / "other").mkdir()
    one = write(tmp_path / "train.jsonl", PLAIN, {**PLAIN, "id": "x"}, {**PLAIN, "id": "x"}, {**PLAIN, "id": "x#2"}, {**PLAIN, "id": "x"})
    two = write(tmp_path / "other" / "train.jsonl", PLAIN, {**PLAIN, "id": ""})
    ids = [pair.id for pair in read_all([str(one), str(two)])]
    assert ids == ["train:1", "x", "x#2", "x#2#2", "x#3", "train:1#2", "train:2"]


def test_read_all_never_takes_an_id_that_the_file_gave(tmp_path):
    path = write(tmp_path / "train.jsonl", {**PLAIN, "id": "x#2"}, {**PLAIN, "id": "x"}, {**PLAIN, "id": "x"})
    assert [pair.id for pair in read_all([path])] == ["x#2", "x", "x#3"]


def test_read_all_counts_bad_rows_too(tmp_path):
    path = write(tmp_path / "train.jsonl", {}, PLAIN)
    problems: list[DataError] = []
    assert [pair.id for pair in read_all([path], on_bad=problems.append)] == ["train:2"]
    assert len(problems) == 1


# Properties

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from([*ROLES, "\n\nHuman: a\n\nAssistant: b", "tie"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES) | inner, "content": inner}), max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ("prompt", "chosen", "rejected", "system", "label", "chosen_score", "rejected_score", "other", *EXTRAS)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2), st.sampled_from([{}, *[PLAIN] * 5]), st.booleans())
def test_any_json_in_any_field_is_a_record_or_a_data_error(changes, row, as_table):
    row = {**row, **changes}
    with tempfile.TemporaryDirectory() as folder:
        if as_table:
            path = Path(folder, "a.parquet")
            texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items() if not _has_surrogate(value)}
            pq.write_table(pa.table({name: [text] for name, text in {"x": "y", **texts}.items()}), path)
        else:
            path = write(Path(folder, "a.jsonl"), row)
        problems: list[DataError] = []
        pairs = list(read_pairs(path, on_bad=problems.append))
        assert len(pairs) + len(problems) == 1
        assert all(str(problem).startswith(f"{path}, ") for problem in problems)
        event("record" if pairs else "error")
        _assert_written_and_read_back(folder, pairs)


def _has_surrogate(value):
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
WORDS = TEXT.filter(lambda text: text.strip())
PLAIN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EXTRA = st.dictionaries(TEXT.filter(lambda name: name not in ("role", "content")), PLAIN_JSON.filter(lambda value: value is not None), max_size=2)
REPLY = st.tuples(st.builds(Message, st.just("assistant"), WORDS, EXTRA))
NUMBER = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
PAIRS = st.builds(
    Pair,
    st.tuples(st.builds(Message, st.sampled_from(ROLES), TEXT, EXTRA), st.builds(Message, st.just("user"), WORDS, EXTRA)),
    REPLY,
    REPLY,
    id=st.text(st.characters(exclude_categories=["Cs"])),
    weight=NUMBER,
    margin=st.none() | NUMBER,
    group=st.none() | TEXT,
    source=st.none() | TEXT,
    annotator=st.none() | TEXT,
    reason=st.none() | TEXT,
    meta=st.dictionaries(TEXT, PLAIN_JSON, max_size=3),
).filter(lambda pair: pair.chosen != pair.rejected)


@settings(max_examples=100, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=4))
def test_written_pairs_read_back_equal(pairs):
    with tempfile.TemporaryDirectory() as folder:
        _assert_written_and_read_back(folder, pairs)


def _assert_written_and_read_back(folder, pairs):
    for name in ("back.jsonl", "back.jsonl.gz", "back.parquet"):
        write_pairs(Path(folder, name), pairs)
        if pairs:
            back = list(read_pairs(Path(folder, name)))
            assert back == pairs
            assert [content_hash(pair) for pair in back] == [content_hash(pair) for pair in pairs]


def test_write_pairs_refuses_other_endings(tmp_path):
    with pytest.raises(DataError, match=r"records are written as \.jsonl"):
        write_pairs(tmp_path / "a.csv", [WANTED])
