"""Whole comparisons: numbers on disk, the table, and a server that dies on the way."""

import json
import signal
import subprocess
import sys

import pytest

from likelier.cli import main
from likelier.compare import compare_models
from likelier.errors import JudgeError, RequestError
from likelier.metrics import Interval
from likelier.win_rates import length_controlled, win_rate
from tests.judge.faulty import Faulty
from tests.train.conftest import model_folder  # noqa: F401  (a fixture)

REPLIES = {  # how long each contestant's replies are
    "long": [30, 30, 30, 30, 30, 5, 9, 12],
    "short": [10, 10, 10, 10, 10, 10, 9, 11],
    "middle": [20, 20, 20, 5, 20, 20, 20, 20],
}


@pytest.fixture
def field(tmp_path, monkeypatch):
    """Three files of replies, prompts and a judge by length, in a folder with a cache of its own."""
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, lengths in REPLIES.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"id": f"asked:{n + 1}", "reply": "x" * k}) + "\n" for n, k in enumerate(lengths)))
    (tmp_path / "asked.txt").write_text("".join(f"Question {n}?\n" for n in range(8)))
    (tmp_path / "judges.py").write_text("def by_length(prompt, a, b):\n    return len(a) - len(b)\n")
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_two_contestants_by_hand(field):
    result = compare_models(["long.jsonl", "short.jsonl"], "asked.txt", judge="python:judges.py:by_length", out="out")
    [pair] = result["pairs"]
    assert (pair["a"], pair["b"], pair["prompts"], pair["wins"], pair["ties"], pair["losses"]) == ("long", "short", 8, 6, 1, 1)
    assert (pair["equal"], pair["flips"], pair["failed"], pair["extrapolated"]) == (1, 0, 0, False)
    outcomes = [1] * 5 + [0, 0.5, 1]
    assert pair["win_rate"] == win_rate(outcomes).as_dict()
    assert pair["win_rate"]["value"] == 6.5 / 8
    assert pair["length_controlled"]["value"] == length_controlled(outcomes, REPLIES["long"], REPLIES["short"], resamples=2).value
    assert [(each["name"], each["file"]) for each in result["contestants"]] == [("long", "replies/long.jsonl"), ("short", "replies/short.jsonl")]
    assert result["contestants"][0]["length"]["value"] == sum(REPLIES["long"]) / 8
    assert (result["contestants"][0]["length_unit"], result["contestants"][0]["cut"]) == ("characters", None)
    assert Interval.from_dict(result["contestants"][0]["strength"]) == Interval(0, 0, 0)
    assert result["contestants"][1]["strength"]["value"] < 0
    assert (result["prompts"], result["cost"]["asked"], result["cost"]["total"]) == (8, 14, None)
    assert json.loads((field / "out/compare.json").read_text()) == result
    rows = [json.loads(line) for line in (field / "out/verdicts.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["a"] * 5 + ["b", "tie", "a"]
    assert (rows[0]["orders"], rows[0]["why"]) == (["first", "second"], "both orders agree")
    assert (rows[6]["orders"], rows[6]["why"], rows[6]["id"]) == ([], "equal word for word", "asked:7")
    assert sorted(path.name for path in (field / "out/replies").iterdir()) == ["long.jsonl", "short.jsonl"]


def test_nothing_of_another_comparison_stays_beside_a_new_one(field):
    (field / "judges.py").write_text("def by_length(prompt, a, b):\n    return len(a) - len(b)\ndef none(prompt, a, b):\n    return None\n")
    compare_models(["long.jsonl", "short.jsonl"], "asked.txt", judge="python:judges.py:by_length", out="out")
    again = ["out/replies/long.jsonl", "middle.jsonl"]
    with pytest.raises(JudgeError):
        compare_models(again, "asked.txt", judge="python:judges.py:none", out="out")
    assert sorted(path.name for path in (field / "out").rglob("*")) == ["long.jsonl", "middle.jsonl", "replies"]
    with pytest.raises(RequestError):
        compare_models(["long.jsonl", "none.jsonl"], "asked.txt", judge="python:judges.py:by_length", out="out")
    assert (field / "out/replies/middle.jsonl").is_file(), "a request that is refused removes nothing"
    (field / "other").mkdir()
    (field / "other/compare.json").write_text('{"contestants": [{"file": "../../long.jsonl"}], "judge": "somebody"}')
    with pytest.raises(RequestError, match="is not of a comparison"):
        compare_models(["long.jsonl", "short.jsonl"], "asked.txt", judge="python:judges.py:by_length", out="other")
    assert (field / "long.jsonl").is_file()


def test_every_two_of_three_and_one_scale(field):
    result = compare_models(["long.jsonl", "short.jsonl", "middle.jsonl"], "asked.txt", judge="python:judges.py:by_length", out="out")
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("long", "short"), ("long", "middle"), ("short", "middle")]
    assert [(pair["wins"], pair["ties"], pair["losses"]) for pair in result["pairs"]] == [(6, 1, 1), (5, 0, 3), (1, 0, 7)]
    first, second, third = (each["strength"]["value"] for each in result["contestants"])
    assert first == 0 > third > second
    assert len((field / "out/verdicts.jsonl").read_text().splitlines()) == 24
    known = compare_models(["middle.jsonl", "long.jsonl"], "asked.txt", judge="python:judges.py:by_length", out="elsewhere")
    assert (known["cost"]["asked"], known["cost"]["cached"]) == (0, 16), "either way round, in any folder"


def test_the_command_says_it_all(field, capsys):
    arguments = ("compare", "long.jsonl", "short.jsonl", "middle.jsonl", "asked.txt", "--judge", "python:judges.py:by_length", "--out", "out")
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "8 prompts, judged by python:judges.py:by_length in both orders" in out
    assert "long against short" in out
    assert "81.2%" in out
    assert "6 won, 1 tied, 1 lost, 0.0% flips" in out
    assert "strength" in out
    assert "44 questions asked, 0 known from before." in out
    code, out, _ = run(capsys, *arguments, "--limit", "5")
    assert "long against short: one is longer at every prompt" in out
    assert "0 questions asked, 30 known from before." in out


def test_names_are_text_and_no_markup(field, capsys):
    names = ["[/INST]", "[rude] x", ":dog:"]
    given = [f"{name}={file}.jsonl" for name, file in zip(names, REPLIES, strict=True)]
    code, out, err = run(capsys, "compare", *given, "asked.txt", "--judge", "python:judges.py:by_length", "--limit", "5", "--out", "out")
    assert code == 0, err
    assert "[/INST] against [rude] x: one is longer at every prompt" in out
    assert "[rude] x against :dog:" in out
    assert [sum(line.startswith(name) for line in out.splitlines()) for name in names] == [5, 2, 1], "two pairs, a contestant, two notes"


@pytest.mark.parametrize(
    "arguments, fault",
    [
        ((), "is of two contestants or more"),
        (("long.jsonl", "asked.txt"), "is of two contestants or more"),
        (("long.jsonl", "short.jsonl", "asked.txt"), "no judge was given"),
        (("long.jsonl", "short.jsonl", "none.txt", "--judge", "python:judges.py:by_length"), "cannot be read"),
        (("long.jsonl", "none.jsonl", "asked.txt", "--judge", "python:judges.py:by_length"), "no such file of replies"),
        (("long.jsonl", "short.jsonl", "asked.txt", "--judge", "openai:m", "--base-url", "nothing"), "check --base-url|Check --base-url"),
        (("long.jsonl", "short.jsonl", "asked.txt", "--judge", "openai:m", "--concurrency", "0"), "--concurrency is 0"),
        (("long.jsonl", "short.jsonl", "asked.txt", "--judge", "openai:m", "--prices", "-1", "2"), "--prices -1 2"),
        (("long.jsonl", "short.jsonl", "asked.txt", "--judge", "python:judges.py:by_length", "--prices", "1", "2"), "--prices 1 2"),
        (("long.jsonl", "short.jsonl", "asked.txt", "--judge", "python:judges.py:by_length", "--rubric", "x"), "only an endpoint"),
    ],
)
def test_a_wrong_request_is_one_paragraph(field, capsys, arguments, fault, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    code, _, err = run(capsys, "compare", *arguments)
    assert code == 2
    with pytest.raises(RequestError, match=fault):
        raise RequestError(err)
    assert "secret" not in err
    assert not (field / "runs").exists()


def test_models_write_and_a_reward_model_judges(field, model_folder):  # noqa: F811
    from tests.judge.test_judges import reward_folder

    (field / "system.txt").write_text("You are kind.")
    reward_folder(field / "reward")
    from likelier.compare.contestants import Sampling

    contestants = [f"plain={model_folder}", f"kind={model_folder}+system=system.txt", f"same={model_folder}"]
    options = {"judge": "reward:reward", "out": "out", "sampling": Sampling(max_new_tokens=6)}
    said: list[str] = []
    result = compare_models(contestants, "asked.txt", **options, say=said.append)
    pairs = {(pair["a"], pair["b"]): pair for pair in result["pairs"]}
    assert (pairs["plain", "same"]["equal"], pairs["plain", "same"]["win_rate"]["value"]) == (8, 0.5)
    assert pairs["plain", "same"]["flips"] is None
    assert pairs["plain", "kind"]["equal"] < 8
    assert 0 <= result["contestants"][0]["cut"] <= 1
    again = compare_models(contestants, "asked.txt", **options, say=said.append)
    assert again["pairs"] == result["pairs"]
    assert again["cost"]["asked"] == 0
    assert said.count("plain: 8 replies kept from before") == 1


def test_a_server_that_dies_and_the_same_command_again(field, capsys, monkeypatch):
    base = pytest.importorskip("openai")._base_client
    monkeypatch.setattr(base, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(base, "MAX_RETRY_DELAY", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    arguments = ["compare", "long.jsonl", "short.jsonl", "asked.txt", "--judge", "openai:m", "--concurrency", "2", "--out", "out"]
    with Faulty(dies_after=5) as first:
        code, _, err = run(capsys, *arguments, "--base-url", first.url)
        assert code == 2
        assert "What was answered is kept: the same command asks the rest." in err
    with Faulty(port=first.port) as second:
        code, out, err = run(capsys, *arguments, "--base-url", second.url, "--prices", "3", "15")
        assert code == 0, err
    assert max((first.questions + second.questions).values()) == 1
    assert (first.questions + second.questions).total() == 14
    asked = second.questions.total()
    assert f"{asked} questions asked, {14 - asked} known from before; {100 * asked:,} tokens in, {10 * asked} out, cost" in out
    kept = "".join(path.read_text(errors="replace") for path in (field / "out").rglob("*") if path.is_file())
    assert "secret" not in kept + out + err
    assert "secret" not in (field / "cache/verdicts.sqlite").read_bytes().decode(errors="replace")


def test_a_comparison_that_is_killed_goes_on(field, capsys):
    """SIGKILL while the judge answers: what it answered is not asked again."""
    (field / "judges.py").write_text(
        "import os, pathlib\nlog = pathlib.Path('asked.log')\n"
        "def by_length(prompt, a, b):\n"
        "    done = log.read_text().splitlines() if log.exists() else []\n"
        "    if len(done) == 5: os.kill(os.getpid(), 9) if not pathlib.Path('again').exists() else None\n"
        "    log.write_text('\\n'.join([*done, repr((prompt, a, b))]))\n"
        "    return len(a) - len(b)\n"
    )
    command = ["compare", "long.jsonl", "short.jsonl", "asked.txt", "--judge", "python:judges.py:by_length"]
    assert subprocess.run([sys.executable, "-m", "likelier", *command], capture_output=True, check=False).returncode == -signal.SIGKILL
    assert not (field / "runs/compare/compare.json").exists()
    (field / "again").touch()
    code, out, err = run(capsys, *command)
    assert code == 0, err
    asked = (field / "asked.log").read_text().splitlines()
    assert len(asked) == len(set(asked)) == 14
    assert "9 questions asked, 5 known from before." in out


def test_an_unreadable_judge_stops_it_with_a_word(field):
    (field / "judges.py").write_text("def f(prompt, a, b):\n    return 'better'\n")
    with pytest.raises(JudgeError, match=r"answers failed, so it is no judge of these replies\. For example: it returned 'better'"):
        compare_models(["long.jsonl", "short.jsonl"], "asked.txt", judge="python:judges.py:f", out="out")
    assert not (field / "out/compare.json").exists()


def test_without_a_single_verdict_nothing_is_claimed(field, monkeypatch, capsys):
    monkeypatch.setattr("likelier.judge.asking.FAILED_SHARE", 1.0)
    (field / "judges.py").write_text("def f(prompt, a, b):\n    return 'better'\n")
    code, out, err = run(capsys, "compare", "long.jsonl", "short.jsonl", "middle.jsonl", "asked.txt", "--judge", "python:judges.py:f", "--limit", "5")
    assert code == 0, err
    result = json.loads((field / "runs/compare/compare.json").read_text())
    assert {each["strength"] for each in result["contestants"]} == {None}
    assert [(pair["win_rate"], pair["length_controlled"], pair["flips"], pair["failed"]) for pair in result["pairs"]] == [(None, None, None, 5)] * 3
    assert "no verdict on 5 prompts" in out
