"""What is wrong with a row, in words and as a kind."""

import json

import pytest
from tests.data.shapes.examples import (
    ALPACA,
    ARGILLA,
    EDIT,
    LABEL_STUDIO,
    LABEL_STUDIO_MIN,
    OPENAI,
    SHAREGPT,
    THUMB,
    UNPAIRED_TEXT,
    faults,
    said,
    write,
)

from likelier.data.formats import read_all, read_pairs, read_records
from likelier.errors import DataError


def test_one_annotators_fault_leaves_the_others(tmp_path):
    row = json.loads(json.dumps(LABEL_STUDIO))
    row["annotations"][0]["result"][0]["value"] = {"choices": ["tie"]}
    [(kind, fault)] = faults(tmp_path, row)
    assert (kind, fault.partition(":")[0]) == ("tie", "the annotation says 'tie'")
    path = write(tmp_path / "one.jsonl", row)
    assert [pair.annotator for pair in read_records(path, on_bad=lambda problem: None)] == ["bo@example.org"]


def changed(row, **changes):
    return {**row, **changes}


FAULTS = {
    "Label Studio, not annotated": (changed(LABEL_STUDIO, annotations=[]), "unlabelled", "this task has no annotation"),
    "Label Studio, no result": (changed(LABEL_STUDIO, annotations=[{"result": []}]), "unlabelled", "no pairwise comparison and no choice"),
    "Label Studio, replies with other names": (
        changed(LABEL_STUDIO, data={"prompt": "q", "good": "a", "evil": "b"}),
        "malformed",
        "which two fields hold the replies is not clear",
    ),
    "Label Studio, another word": (
        changed(LABEL_STUDIO, annotations=[{"result": [{"value": {"selected": "middle"}}]}]),
        "malformed",
        "says 'middle', which names neither `answer1` nor `answer2`",
    ),
    "JSON-MIN, nothing selected": (changed(LABEL_STUDIO_MIN, comparison=[]), "unlabelled", "no comparison and no choice"),
    "JSON-MIN, two comparisons": (changed(LABEL_STUDIO_MIN, again=[{"selected": "left"}]), "malformed", "2 results of comparisons"),
    "Argilla, nobody answered": (changed(ARGILLA, responses={}, suggestions={}), "unlabelled", "nobody judged it"),
    "Argilla, a tie": (
        changed(ARGILLA, responses={"ranking": [{"value": [{"rank": 1, "value": "response1"}, {"rank": 1, "value": "response2"}]}]}),
        "tie",
        "all replies are judged alike",
    ),
    "Argilla, no answer about a field": (
        changed(ARGILLA, responses={"language": [{"value": "en"}]}, suggestions={}),
        "unlabelled",
        "The questions are `language`, the fields `instruction`, `response1`, `response2`",
    ),
    "draft as it was": (changed(EDIT, sent="No  idea.\n"), "identical", "a draft that was not changed prefers nothing"),
    "edit without a prompt": ({"draft": "a", "sent": "b"}, "malformed", "this row has no prompt"),
    "thumb not given": (changed(THUMB, feedback=None), "unlabelled", "a reply and no judgement of it"),
    "thumb empty": (changed(THUMB, feedback=""), "unlabelled", "nobody judged this reply"),
    "zero": (changed(THUMB, feedback=0), "malformed", "`feedback` is 0, which is neither up nor down"),
    "stars": (changed(THUMB, feedback=4), "malformed", "`feedback` is 4, which is neither up nor down"),
    "label of another kind": (changed(UNPAIRED_TEXT, label="good"), "malformed", "`label` is 'good'; it must be true"),
    "completion empty": (changed(UNPAIRED_TEXT, completion=" "), "empty", "`completion` is an empty response"),
    "kto without output": ({"instruction": "q", "kto_tag": True}, "malformed", "no `output` that it judges"),
    "OpenAI, input without messages": (changed(OPENAI, input={}), "malformed", "`input` is an object without `messages`"),
    "OpenAI, equal": (changed(OPENAI, non_preferred_output=OPENAI["preferred_output"]), "identical", "identical"),
    "history": (changed(ALPACA, history=[["one"]]), "malformed", "`history` is not a list of"),
    "sharegpt, unknown speaker": (
        changed(SHAREGPT, chosen={"from": "human1", "value": "a"}),
        "malformed",
        "`chosen`, message 1 comes `from` 'human1'. Did you mean `human`?",
    ),
    "sharegpt, call that is not JSON": (
        changed(SHAREGPT, chosen={"from": "function_call", "value": "weather()"}),
        "malformed",
        "is a function_call whose `value` is not JSON",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(tmp_path, name):
    row, kind, fault = FAULTS[name]
    found = faults(tmp_path, row)
    assert {each for each, _ in found} == {kind}
    assert all(fault in message for _, message in found), found


KINDS = [
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical"),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "empty"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "winner": "tie"}, "tie"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 0}, "tie"),
    ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"}, "prompts-differ"),
    ({"chosen": [said("user", "q"), said("assistant", "a")], "rejected": [said("user", "p"), said("assistant", "b")]}, "prompts-differ"),
    (
        {"prompt": "p", "chosen": [said("user", "q"), said("assistant", "a")], "rejected": [said("user", "q"), said("assistant", "b")]},
        "prompts-differ",
    ),
    ({"prompt": "q", "chosen": "a", "rejected": 5}, "malformed"),
    (["no object"], "malformed"),
]


@pytest.mark.parametrize("row, kind", KINDS, ids=[f"{kind} {at}" for at, (_, kind) in enumerate(KINDS)])
def test_a_fault_has_a_kind_for_programs(tmp_path, row, kind):
    assert [found for found, _ in faults(tmp_path, row)] == [kind]


def test_where_pairs_are_needed_an_unpaired_record_is_a_fault(tmp_path):
    path = write(tmp_path / "a.jsonl", THUMB, {"prompt": "q", "chosen": "a", "rejected": "b"})
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: this row judges one reply") as caught:
        list(read_pairs(path))
    assert caught.value.kind == "unpaired"
    problems = []
    assert [pair.id for pair in read_all([path], on_bad=problems.append)] == ["a:2"]
    assert [problem.where for problem in problems] == [f"{path}, line 1"]
