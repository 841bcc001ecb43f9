"""Examples of every shape, as the tools' own documentation has them, and the records that they are."""

import csv
import json
from collections import Counter
from dataclasses import replace

from likelier.data.formats import read_records
from likelier.records import Labelled, Message, Pair


def user(content):
    return Message("user", content)


def assistant(content, **extra):
    return Message("assistant", content, extra)


def system(content):
    return Message("system", content)


def said(role, content, **extra):
    return {"role": role, "content": content, **extra}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(tmp_path, row, **options):
    """The records of one row (without the ids that were made up for them), and the shapes seen."""
    seen = Counter()
    records = read_records(write(tmp_path / "one.jsonl", row), seen=seen, **options)
    return [replace(record, id="" if record.id.startswith("one:") else record.id) for record in records], list(seen)


def faults(tmp_path, row, **options):
    """(kind, fault) of everything that is wrong with one row."""
    problems = []
    path = write(tmp_path / "one.jsonl", row)
    list(read_records(path, on_bad=problems.append, **options))
    assert all(problem.where == f"{path}, line 1" for problem in problems)
    assert all(str(problem) == f"{problem.where}: {problem.fault}" for problem in problems)
    return [(problem.kind, problem.fault) for problem in problems]


def write_table(path, row):
    """One row of a CSV file, its lists and objects as JSON text."""
    cells = {name: cell if isinstance(cell, str) else json.dumps(cell) for name, cell in row.items() if "\ud800" not in (name, cell)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, {"n": "1", **cells})
        writer.writeheader()
        writer.writerow({"n": "1", **cells})
    return path


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
SKY, BLUE, GREEN = user("What color is the sky?"), assistant("It is blue."), assistant("It is green.")

UNPAIRED_TEXT = {"prompt": "The sky is", "completion": " blue.", "label": True}
UNPAIRED_TALK = {"prompt": [SKY.as_dict()], "completion": [GREEN.as_dict()], "label": False}

OPENAI = {
    "input": {
        "messages": [said("user", "Hello, can you tell me how cold San Francisco is today?")],
        "tools": [],
        "parallel_tool_calls": True,
    },
    "preferred_output": [said("assistant", "Today in San Francisco, it is not quite cold as expected.")],
    "non_preferred_output": [said("assistant", "It is not particularly cold in San Francisco today.")],
}

ALPACA = {
    "instruction": "Translate to French.",
    "input": "I am hungry.",
    "chosen": "J'ai faim.",
    "rejected": "Je suis faim.",
    "system": "Be exact.",
    "history": [["Translate to German.", "Ich habe Hunger."]],
}
ALPACA_PROMPT = (
    system("Be exact."),
    user("Translate to German."),
    assistant("Ich habe Hunger."),
    user("Translate to French.\nI am hungry."),
)

SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "human instruction"},
        {"from": "gpt", "value": "model response"},
        {"from": "human", "value": "human instruction"},
    ],
    "chosen": {"from": "gpt", "value": "chosen answer"},
    "rejected": {"from": "gpt", "value": "rejected answer"},
}
SHAREGPT_PROMPT = (user("human instruction"), assistant("model response"), user("human instruction"))

REWARD_BENCH = {
    "prompt": "What color is the sky?",
    "chosen": "It is blue.",
    "chosen_model": "GPT4-Turbo",
    "rejected": "It is green.",
    "rejected_model": "alpaca-7b",
    "subset": "alpacaeval-easy",
    "id": 0,
}

KTO = {"instruction": "Write a haiku.", "output": "Leaves fall.", "kto_tag": True}

ULTRAFEEDBACK = {
    "source": "sharegpt",
    "instruction": "What is there to do in Cairo?",
    "models": ["falcon-40b-instruct", "gpt-4", "starchat"],
    "completions": [
        {"model": "falcon-40b-instruct", "principle": "helpfulness", "response": "Pyramids.", "overall_score": 6.0},
        {"model": "gpt-4", "principle": "honesty", "response": "The museum, the bazaar, a boat on the Nile.", "overall_score": 8.5},
        {"model": "starchat", "principle": "helpfulness", "response": "Ski.", "overall_score": 1.0},
    ],
}

RATED = {
    "instruction": "q",
    "completions": [
        {"response": "a", "annotations": {"honesty": {"Rating": "3"}, "helpfulness": {"Rating": "2", "Rationale": "thin"}}},
        {"response": "b", "annotations": {"honesty": {"Rating": "5"}, "helpfulness": {"Rating": "N/A"}}},
    ],
}

RANKED = {"prompt": "q", "responses": ["fine", "good", "bad"]}

LABEL_STUDIO = {
    "id": 7,
    "data": {"prompt": "The quick brown fox...", "answer1": "jumps over the lazy dog.", "answer2": "bags few lynx.", "lang": "en"},
    "annotations": [
        {
            "id": 1001,
            "completed_by": 10,
            "was_cancelled": False,
            "result": [{"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "left"}}],
        },
        {
            "id": 1002,
            "completed_by": {"id": 11, "email": "bo@example.org"},
            "was_cancelled": False,
            "result": [{"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "right"}}],
        },
        {"id": 1003, "completed_by": 12, "was_cancelled": True, "result": []},
    ],
}
FOX, DOG, LYNX = user("The quick brown fox..."), assistant("jumps over the lazy dog."), assistant("bags few lynx.")

LABEL_STUDIO_MIN = {
    "prompt": "The quick brown fox...",
    "answer1": "jumps over the lazy dog.",
    "answer2": "bags few lynx.",
    "id": 7,
    "comparison": [{"selected": "right"}],
    "annotator": 10,
    "annotation_id": 1001,
    "lead_time": 4.2,
}

ARGILLA = {
    "id": "r1",
    "fields": {"instruction": "q", "response1": "a", "response2": "b"},
    "metadata": {"lang": "en"},
    "suggestions": {"ranking": {"value": ["response1", "response2"], "score": None, "agent": "judge"}},
    "responses": {
        "ranking": [{"value": ["response2", "response1"], "user_id": "u1"}, {"value": ["response1", "response2"], "user_id": "u2"}],
        "comment": [{"value": "b is shorter", "user_id": "u1"}],
    },
    "vectors": {},
    "_server_id": "s1",
}

FEEDBACK_DATASET = {
    "fields": {"prompt": "q", "reply_1": "a", "reply_2": "b", "reply_3": "c"},
    "responses": [
        {
            "user_id": "u1",
            "status": "submitted",
            "values": {"preference": {"value": [{"rank": 1, "value": "reply-2"}, {"rank": 2, "value": "reply-1"}, {"rank": 3, "value": "reply-3"}]}},
        },
        {"user_id": "u2", "status": "discarded", "values": {"preference": {"value": [{"rank": 1, "value": "reply-1"}]}}},
    ],
    "suggestions": [],
    "external_id": "e1",
}

ARGILLA_FLAT = {
    "id": "r1",
    "status": "completed",
    "_server_id": "s1",
    "instruction": "q",
    "generations-0": "a",
    "generations-1": "b",
    "generations-0-rating.responses": [2, 4],
    "generations-0-rating.responses.users": ["u1", "u2"],
    "generations-0-rating.responses.status": ["submitted", "submitted"],
    "generations-1-rating.responses": [5, 3],
    "generations-1-rating.responses.users": ["u1", "u2"],
    "generations-1-rating.responses.status": ["submitted", "submitted"],
    "generations-1-rating.suggestion": 3,
}

FEEDBACK_HUB = {
    "prompt": "q",
    "reply_1": "a",
    "reply_2": "b",
    "reply-ranking": [{"user_id": "u1", "value": {"rank": [2, 1], "value": ["reply-1", "reply-2"]}, "status": "submitted"}],
    "reply-ranking-suggestion": {"rank": [], "value": []},
    "reply-ranking-suggestion-metadata": {"type": None, "score": None, "agent": None},
    "external_id": "e1",
    "metadata": "{}",
}

EDIT = {"messages": [said("user", "Where is my parcel?")], "draft": "No idea.", "sent": "In Ulm.", "annotator": "ann"}
THUMB = {"messages": [said("user", "Hi")], "response": "Hello!", "feedback": "up", "chat": "c1"}

THREE_AND_ONE = {"meta": {"chosen_score": 3.0, "rejected_score": 1.0}, "margin": 2.0}

EXAMPLES = {
    "RewardBench": (
        REWARD_BENCH,
        "reward-bench",
        [Pair((SKY,), (BLUE,), (GREEN,), id="0", group="alpacaeval-easy", meta={"chosen_model": "GPT4-Turbo", "rejected_model": "alpaca-7b"})],
    ),
    "TRL unpaired text": (UNPAIRED_TEXT, "unpaired", [Labelled((user("The sky is"),), (assistant(" blue."),), True)]),
    "TRL unpaired messages": (UNPAIRED_TALK, "unpaired", [Labelled((SKY,), (GREEN,), False)]),
    "OpenAI": (
        OPENAI,
        "openai",
        [
            Pair(
                (user("Hello, can you tell me how cold San Francisco is today?"),),
                (assistant("Today in San Francisco, it is not quite cold as expected."),),
                (assistant("It is not particularly cold in San Francisco today."),),
            )
        ],
    ),
    "LLaMA-Factory alpaca": (ALPACA, "alpaca", [Pair(ALPACA_PROMPT, (assistant("J'ai faim."),), (assistant("Je suis faim."),))]),
    "LLaMA-Factory sharegpt": (
        SHAREGPT,
        "sharegpt",
        [Pair(SHAREGPT_PROMPT, (assistant("chosen answer"),), (assistant("rejected answer"),))],
    ),
    "LLaMA-Factory alpaca KTO": (KTO, "kto", [Labelled((user("Write a haiku."),), (assistant("Leaves fall."),), True)]),
    "LLaMA-Factory sharegpt KTO": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "kto_tag": False},
        "kto",
        [Labelled((user("Hi"),), (assistant("Ho"),), False)],
    ),
    "messages with a label": (
        {"messages": [said("user", "Hi"), said("assistant", "Ho")], "label": True},
        "labelled-messages",
        [Labelled((user("Hi"),), (assistant("Ho"),), True)],
    ),
    "UltraFeedback": (
        ULTRAFEEDBACK,
        "ultrafeedback",
        [
            Pair(
                (user("What is there to do in Cairo?"),),
                (assistant("The museum, the bazaar, a boat on the Nile."),),
                (assistant("Ski."),),
                margin=7.5,
                source="sharegpt",
                meta={
                    "models": ULTRAFEEDBACK["models"],
                    "chosen_model": "gpt-4",
                    "chosen_principle": "honesty",
                    "chosen_score": 8.5,
                    "rejected_model": "starchat",
                    "rejected_principle": "helpfulness",
                    "rejected_score": 1.0,
                },
            )
        ],
    ),
    "scores beside the responses": (
        {"prompt": [SKY.as_dict()], "responses": ["It is green.", [BLUE.as_dict()]], "scores": [1, "3"]},
        "scored-list",
        [Pair((SKY,), (BLUE,), (GREEN,), **THREE_AND_ONE)],
    ),
    "distilabel": (
        {"instruction": "q", "generations": ["a", "b", "c"], "ratings": [1, None, 3], "generation_models": ["m", "n", "o"]},
        "scored-list",
        [
            Pair(
                (user("q"),),
                (assistant("c"),),
                (assistant("a"),),
                margin=2.0,
                meta={"chosen_score": 3.0, "rejected_score": 1.0, "generation_models": ["m", "n", "o"]},
            )
        ],
    ),
    "PairRM's ranks": (
        {"input": "Hello, how are you?", "candidates": ["fine", "good", "bad"], "ranks": [2, 1, 3]},
        "ranked-list",
        [Pair((user("Hello, how are you?"),), (assistant("good"),), (assistant("bad"),))],
    ),
    "Nectar's ranks": (
        {"prompt": "q", "answers": [{"answer": "b", "model": "m", "rank": 2.0}, {"answer": "a", "model": "n", "rank": 1.0}]},
        "ranked-list",
        [Pair((user("q"),), (assistant("a"),), (assistant("b"),), meta={"chosen_model": "n", "rejected_model": "m"})],
    ),
    "an order": ({**RANKED, "order": [1, 2, 0]}, "ranked-list", [Pair((user("q"),), (assistant("good"),), (assistant("fine"),))]),
    "a ranking that is its own inverse": (
        {**RANKED, "ranking": [2, 1, 3]},
        "ranked-list",
        [Pair((user("q"),), (assistant("good"),), (assistant("bad"),))],
    ),
    "a ranking by text": (
        {**RANKED, "ranking": ["bad", "fine", "good"]},
        "ranked-list",
        [Pair((user("q"),), (assistant("bad"),), (assistant("good"),))],
    ),
    "Label Studio": (
        LABEL_STUDIO,
        "label-studio",
        [
            Pair((FOX,), (DOG,), (LYNX,), id="7", annotator="10", meta={"lang": "en", "annotation_id": 1001}),
            Pair((FOX,), (LYNX,), (DOG,), id="7#2", annotator="bo@example.org", meta={"lang": "en", "annotation_id": 1002}),
        ],
    ),
    "Label Studio, tags with other names": (
        {
            "data": {"prompt": "q", "text1": "a", "text2": "b"},
            "annotations": [{"result": [{"to_name": "txt-1,txt-2", "type": "pairwise", "value": {"selected": "right"}}]}],
        },
        "label-studio",
        [Pair((user("q"),), (assistant("b"),), (assistant("a"),))],
    ),
    "Label Studio, a choice": (
        {
            "data": {"prompt": "q", "response_a": "a", "response_b": "b"},
            "annotations": [{"result": [{"to_name": "prompt", "type": "choices", "value": {"choices": ["Response B"]}}]}],
        },
        "label-studio",
        [Pair((user("q"),), (assistant("b"),), (assistant("a"),))],
    ),
    "Label Studio JSON-MIN": (
        LABEL_STUDIO_MIN,
        "label-studio-min",
        [Pair((FOX,), (LYNX,), (DOG,), id="7", annotator="10", meta={"annotation_id": 1001, "lead_time": 4.2})],
    ),
    "Label Studio JSON-MIN, a choice": (
        {"prompt": "q", "answer1": "a", "answer2": "b", "better": "answer1", "annotation_id": 3},
        "label-studio-min",
        [Pair((user("q"),), (assistant("a"),), (assistant("b"),), meta={"annotation_id": 3})],
    ),
    "Argilla 2": (
        ARGILLA,
        "argilla",
        [
            Pair(
                (user("q"),),
                (assistant("b"),),
                (assistant("a"),),
                id="r1",
                annotator="u1",
                meta={"lang": "en", "_server_id": "s1", "comment": "b is shorter"},
            ),
            Pair((user("q"),), (assistant("a"),), (assistant("b"),), id="r1#2", annotator="u2", meta={"lang": "en", "_server_id": "s1"}),
        ],
    ),
    "Argilla 2, only suggested": (
        {**ARGILLA, "responses": {}},
        "argilla",
        [Pair((user("q"),), (assistant("a"),), (assistant("b"),), id="r1", annotator="judge", meta={"lang": "en", "_server_id": "s1"})],
    ),
    "Argilla 2, a label": (
        {"fields": {"prompt": "q", "Chat 1": "a", "Chat 2": "b"}, "responses": {"which": [{"value": "chat-2", "user_id": "u1"}]}},
        "argilla",
        [Pair((user("q"),), (assistant("b"),), (assistant("a"),), annotator="u1")],
    ),
    "Argilla's FeedbackDataset": (
        FEEDBACK_DATASET,
        "argilla",
        [Pair((user("q"),), (assistant("b"),), (assistant("c"),), id="e1", annotator="u1")],
    ),
    "Argilla 2 flat, ratings": (
        ARGILLA_FLAT,
        "argilla-flat",
        [
            Pair(
                (user("q"),),
                (assistant("b"),),
                (assistant("a"),),
                id="r1",
                annotator="u1",
                margin=3.0,
                meta={"status": "completed", "_server_id": "s1", "chosen_score": 5.0, "rejected_score": 2.0},
            ),
            Pair(
                (user("q"),),
                (assistant("a"),),
                (assistant("b"),),
                id="r1#2",
                annotator="u2",
                margin=1.0,
                meta={"status": "completed", "_server_id": "s1", "chosen_score": 4.0, "rejected_score": 3.0},
            ),
        ],
    ),
    "Argilla's FeedbackDataset on the Hub": (
        FEEDBACK_HUB,
        "argilla-flat",
        [Pair((user("q"),), (assistant("b"),), (assistant("a"),), id="e1", annotator="u1")],
    ),
    "an edit": (EDIT, "edits", [Pair((user("Where is my parcel?"),), (assistant("In Ulm."),), (assistant("No idea."),), annotator="ann")]),
    "a thumb": (THUMB, "thumbs", [Labelled((user("Hi"),), (assistant("Hello!"),), True, meta={"chat": "c1"})]),
    "a thumb after the messages": (
        {"messages": [said("user", "Hi"), said("assistant", "Hello!")], "rating": -1},
        "thumbs",
        [Labelled((user("Hi"),), (assistant("Hello!"),), False)],
    ),
    "a thumb called label": (
        {"prompt": "Hi", "response": "Ho", "label": False},
        "thumbs",
        [Labelled((user("Hi"),), (assistant("Ho"),), False)],
    ),
    "a thumb with a comment": (
        {"prompt": "Hi", "response": "Ho", "feedback": {"rating": "thumbs_down", "comment": "rude"}},
        "thumbs",
        [Labelled((user("Hi"),), (assistant("Ho"),), False, meta={"feedback": {"comment": "rude"}})],
    ),
}
