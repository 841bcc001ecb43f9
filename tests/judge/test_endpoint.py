"""The endpoint judge against a server that fails in every way a server can. Requests are counted: nothing is asked twice."""

import json
import sqlite3
import sys
import time

import pytest

pytest.importorskip("openai")
from openai import _base_client

from likelier.errors import JudgeError
from likelier.judge import EndpointSettings, open_judge
from likelier.judge.asking import judge_matches, spent_as_dict
from likelier.judge.endpoint import EndpointJudge
from tests.judge.conftest import match
from tests.judge.faulty import Faulty, body, busy, cut, said, slow, status, without

SIDES = ["a"] * 9 + ["b", "tie", "tie"]
ASKED = 22  # eleven matches in both orders; the twelfth is equal word for word


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits between attempts take no time, and no setting of the machine gets in."""
    monkeypatch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def opened(server, **settings) -> EndpointJudge:
    return open_judge("openai:small", EndpointSettings(**{"base_url": server.url, "retries": 2, "timeout": 5, **settings}))


def test_every_question_once_in_both_orders_and_what_is_known_never_again(matches, store):
    with Faulty() as server:
        verdicts, spent = judge_matches(opened(server), matches, store)
        assert [verdict.side for verdict in verdicts] == SIDES
        assert not any(verdict.flipped for verdict in verdicts)
        assert verdicts[0].answers[0].reason == "it says more"
        assert (spent.asked, spent.cached, spent.failed, len(server.bodies)) == (ASKED, 0, 0, ASKED)
        assert set(server.questions.values()) == {1}
        assert spent_as_dict(spent, (2.0, 10.0))["total"] == pytest.approx(ASKED * (100 * 2 + 10 * 10) / 1e6)
        again, known = judge_matches(opened(server), matches, store)
        assert (again, known.asked, known.cached, known.known_tokens_in) == (verdicts, 0, ASKED, 100 * ASKED)
        assert len(server.bodies) == ASKED


def test_what_is_asked(store):
    rubric = "Which one is kinder?"
    with Faulty() as server:
        judge_matches(opened(server), [match(1, "left", "right!")], store)
        usual = server.bodies[0]
        assert (usual["model"], usual["temperature"], usual["max_completion_tokens"]) == ("small", 0, 1024)
        assert usual["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["A", "B", "tie"]
        text = usual["messages"][0]["content"]
        assert text.startswith("You compare two replies")
        assert "[user] Question 1?" in text
        path = store.path.parent / "rubric.txt"
        path.write_text(rubric)
        judge_matches(opened(server, rubric=path), [match(1, "left", "right!")], store)
        assert server.bodies[-1]["messages"][0]["content"].startswith(rubric), "another rubric is another question"
        assert len(server.bodies) == 4


def test_it_waits_and_goes_on_where_a_server_is_busy_broken_or_cuts_the_line(matches, store):
    faults = [busy, status(500), cut, status(503), busy, cut]
    with Faulty(faults) as server:
        verdicts, spent = judge_matches(opened(server, retries=6), matches, store)
        assert [verdict.side for verdict in verdicts] == SIDES
        assert (spent.asked, spent.failed, len(server.bodies)) == (ASKED, 0, ASKED + len(faults))
        assert set(server.questions.values()) == {1}


def test_no_more_requests_at_a_time_than_asked_for(matches, store):
    with Faulty(always=lambda handler, request: slow(0.02)(handler, request) and False) as server:
        judge_matches(opened(server, concurrency=3), matches, store)
        assert 1 < server.most_at_once <= 3


UNREADABLE = {
    "no JSON object with a verdict in 'I like the first one better.'": said("I like the first one better."),
    "its verdict is 'C', which is none of A, B and tie": said('{"reason": "x", "verdict": "C"}'),
    "several verdicts": said('{"verdict": "A"} or {"verdict": "B"}'),
    "cut off after 1024 tokens (--answer-tokens)": said('{"reason": "because', finish="length"),
    "was cut off after 1024 tokens": said('I lean to {"verdict": "A"} but wait', finish="length"),
    "holds no text": said(None),
    "holds no message": body({}),
    "answer holds no message": body([]),
    "the server failed (Expecting value": body(b'{"choices": ['),
    "out of order": status(500, "out of order"),
    "too long": status(413, "too long"),
    "no answer in 0.2 seconds, 1 times": slow(0.4),
}


def test_an_answer_that_cannot_be_read_is_failed_and_named_and_not_kept(store):
    """One failure in the first order of every fourth match."""
    matches = [match(n, f"reply {n} is long", f"reply {n}") for n in range(4 * len(UNREADABLE))]
    faults = [fault for each in UNREADABLE.values() for fault in [each, *[None] * 7]]
    with Faulty(faults) as server:
        judge = opened(server, concurrency=1, retries=0, timeout=0.2)
        verdicts, spent = judge_matches(judge, matches, store)
        assert (spent.asked, spent.failed) == (2 * len(matches), len(UNREADABLE))
        assert [verdict.side for verdict in verdicts] == [None, "a", "a", "a"] * len(UNREADABLE), "never guessed"
        for verdict, named in zip(verdicts[::4], UNREADABLE, strict=True):
            assert named in verdict.fault
        verdicts, spent = judge_matches(judge, matches, store)
        assert {verdict.side for verdict in verdicts} == {"a"}
        assert (spent.asked, spent.cached) == (len(UNREADABLE), 2 * len(matches) - len(UNREADABLE)), "only what failed is asked again"


def test_a_judge_that_cannot_be_read_is_stopped_early(matches, store):
    many = [match(n, f"a reply {n}", f"another reply {n}") for n in range(300)]
    with Faulty(always=said("They are both good.")) as server, pytest.raises(JudgeError, match=r"2\d of 2\d answers failed, so it is no judge"):
        judge_matches(opened(server, concurrency=2), many, store)
    assert len(server.bodies) < 30
    with Faulty(always=said("Hm.")) as server, pytest.raises(JudgeError, match="4 of 4 answers failed"):
        judge_matches(opened(server), matches[:2], store)


def test_a_server_that_dies_in_the_middle_costs_nothing_that_it_answered(matches, store):
    with Faulty(dies_after=9) as first:
        with pytest.raises(JudgeError, match=r"127\.0\.0\.1:\d+/v1 cannot be reached .*What was answered is kept"):
            judge_matches(opened(first, concurrency=2), matches, store)
        answered = first.questions
    assert 9 <= answered.total() <= 10
    with Faulty(port=first.port) as second:
        verdicts, spent = judge_matches(opened(second), matches, store)
        assert [verdict.side for verdict in verdicts] == SIDES
        assert (spent.cached, spent.asked) == (answered.total(), ASKED - answered.total())
        assert not answered.keys() & second.questions.keys(), "asked twice"
        assert set((answered + second.questions).values()) == {1}


def test_nothing_is_repeated_once_it_is_over(monkeypatch):
    """Ctrl-C while one question is answered and another one is asked again and again."""
    monkeypatch.setattr(_base_client, "MAX_RETRY_DELAY", 0.01)
    first, second = (match(n, "longer", "short").orders[0] for n in (1, 2))

    def fails_the_second(handler, request):
        return "Question 2?" in request["messages"][0]["content"] and status(500)(handler, request)

    with Faulty(always=fails_the_second) as server:
        judge = opened(server, concurrency=2, retries=500)

        def interrupt(place, answer):
            while len(server.bodies) < 4:
                time.sleep(0.01)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            judge.ask([first, second], interrupt)
        asked = len(server.bodies)
        time.sleep(0.2)
        assert 4 <= asked == len(server.bodies) < 500
        answers = []
        judge.ask([first], lambda place, answer: answers.append(answer.choice))
        assert answers == ["first"], "and it can be asked again"


@pytest.mark.parametrize("naming", [True, False])
def test_a_server_that_knows_no_schema_is_asked_without(matches, store, naming):
    with Faulty(always=without("response_format", naming=naming)) as server:
        verdicts, spent = judge_matches(opened(server, concurrency=1), matches, store)
        assert ([verdict.side for verdict in verdicts], spent.failed) == (SIDES, 0)
        assert ["response_format" in body for body in server.bodies] == [True] + [False] * ASKED


def test_a_server_that_knows_other_settings_than_ours(matches, store):
    with Faulty(always=without("temperature", "max_completion_tokens")) as server:
        _, spent = judge_matches(opened(server, concurrency=1), matches, store)
        assert (spent.failed, len(server.bodies)) == (0, ASKED + 2)
        assert server.bodies[-1].keys() == {"model", "messages", "response_format", "max_tokens"}


def test_a_question_that_a_server_refuses_whatever_the_settings(matches, store):
    with Faulty([status(400, "maximum context length is 512")] * 2) as server:
        verdicts, spent = judge_matches(opened(server, concurrency=1), matches, store)
        assert (verdicts[0].side, verdicts[0].fault) == (None, verdicts[0].answers[0].fault)
        assert "maximum context length is 512" in verdicts[0].fault
        assert spent.failed == 1
        assert "response_format" in server.bodies[-1], "nothing is learned from it"


def test_a_wrong_key_is_said_at_once_and_never_shown(matches, store, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with Faulty(key="sk-another") as server:
        with pytest.raises(JudgeError, match=r"refuses the key .*Set OPENAI_API_KEY") as problem:
            opened(server)
        assert "secret" not in str(problem.value)
        assert not server.bodies
    with Faulty(key="sk-very-secret") as server:
        judge = opened(server)
        server.always = said('{"reason": "sk-very-secret", "verdict": "A"}')
        verdicts, _ = judge_matches(judge, matches, store)
        assert "secret" not in repr(verdicts) + json.dumps(judge.identity)
    assert "secret" not in "".join(sqlite3.connect(store.path).iterdump())


@pytest.mark.parametrize("before", [75, 270, 275])
def test_no_part_of_the_key_stays_where_a_text_is_cut(matches, store, monkeypatch, before):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    text = "x" * before + " sk-very-secret " + "y" * 300
    with Faulty([said(text), status(500, text)]) as server:
        verdicts, _ = judge_matches(opened(server, concurrency=1, retries=0), matches, store)
    assert "xxx" in verdicts[0].fault
    assert "sk-" not in repr(verdicts)


@pytest.mark.parametrize(
    "address, shown",
    [
        ("http://127.0.0.1:abc/v1", "http://127.0.0.1:abc/v1"),
        ("http://user:secret@127.0.0.1:abc/v1?key=secret", "http://127.0.0.1:abc/v1"),
        ("http://127.0.0.1:99999999/v1", "http://127.0.0.1:99999999/v1"),
        ("http://[::1/v1", "http://[::1/v1"),
        ("http://user:se?cret@[::1]:1/v1", "http://[::1]:1/v1"),
    ],
)
def test_an_address_that_is_none_is_shown_without_its_secrets(address, shown):
    with pytest.raises(JudgeError) as problem:
        open_judge("openai:m", EndpointSettings(base_url=address, retries=0, timeout=5))
    assert shown in str(problem.value)
    assert "check --base-url" in str(problem.value).lower()
    assert "cret" not in str(problem.value)


def test_a_key_that_is_refused_later_stops_it(matches, store):
    with Faulty([status(403, "no more")]) as server, pytest.raises(JudgeError, match="refuses the key"):
        judge_matches(opened(server, concurrency=1), matches, store)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("fault, named", [(status(404, "no such model"), "does not know the model `small`"), (busy, "asked too often")])
def test_what_no_other_question_would_fare_better_with_stops_it(fault, named, matches, store):
    with Faulty(always=fault) as server, pytest.raises(JudgeError, match=named):
        judge_matches(opened(server, concurrency=1), matches, store)
    assert len(server.bodies) <= 3


def test_nobody_there():
    with Faulty() as server:
        url = server.url
    with pytest.raises(JudgeError, match=r"http://127.0.0.1:\d+/v1 cannot be reached .*refused.*check --base-url"):
        open_judge("openai:small", EndpointSettings(base_url=url.replace("http://", "http://user:secret@")))


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    with pytest.raises(JudgeError, match="OPENAI_API_KEY is not set"):
        open_judge("openai:m", EndpointSettings())
    with pytest.raises(JudgeError, match="which model"):
        open_judge("openai:", EndpointSettings())
    for rubric, named in ((tmp_path / "none.txt", "cannot be read"), (tmp_path / "empty.txt", "is empty")):
        (tmp_path / "empty.txt").touch()
        with pytest.raises(JudgeError, match=named):
            open_judge("openai:m", EndpointSettings(base_url="http://127.0.0.1:1", rubric=rubric))
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeError, match=r"pip install 'likelier\[judge\]'"):
        open_judge("openai:m", EndpointSettings())
