"""Reward models and Python functions as judges, and specifications that name none."""

import json

import pytest
import torch
import transformers

from likelier.errors import JudgeError
from likelier.judge import EndpointSettings, open_judge
from likelier.judge.asking import Match, judge_matches
from likelier.judge.reward import RewardJudge
from likelier.records import Message
from tests.conftest import built_tokenizer
from tests.judge.conftest import match


def opened(spec: str):
    return open_judge(spec, EndpointSettings())


# Functions


@pytest.fixture
def judges(tmp_path):
    path = tmp_path / "judges.py"
    path.write_text(
        "def by_length(prompt, a, b):\n    assert prompt == [{'role': 'user', 'content': prompt[0]['content']}]\n    return len(a) - len(b)\n"
        "def in_words(prompt, a, b):\n    return {'long': 'a', 'no': 'b'}.get(a[:4].strip().split(' ')[-1], 'tie')\n"
        "def wrong(prompt, a, b):\n    return {'short': None, 'a': True, 'no': 'A', 'four': float('nan')}.get(a.split()[0], 0)\n"
        "def broken(prompt, a, b):\n    raise KeyError('nothing')\n"
        "def leaves(prompt, a, b):\n    raise SystemExit(0)\n"
        "value = 3\n"
    )
    return path


def test_a_function_judges_by_number_or_word(judges, matches, store):
    verdicts, spent = judge_matches(opened(f"python:{judges}:by_length"), matches, store)
    assert [verdict.side for verdict in verdicts] == ["a"] * 9 + ["b", "tie", "tie"]
    assert (spent.asked, spent.tokens_in) == (22, 0)
    verdicts, _ = judge_matches(opened(f"python:{judges}:in_words"), [match(1, "no", "longer")], store)
    assert verdicts[0].answers[0].choice == "second"


def test_what_a_function_returns_is_never_guessed_at(judges, matches, store):
    with pytest.raises(JudgeError, match="answers failed"):
        judge_matches(opened(f"python:{judges}:wrong"), matches, store)
    with pytest.raises(JudgeError, match="it raised SystemExit"):
        judge_matches(opened(f"python:{judges}:leaves"), matches, store)
    with pytest.raises(JudgeError, match=r"it raised KeyError: 'nothing'"):
        judge_matches(opened(f"python:{judges}:broken"), matches, store)


def test_a_changed_file_is_another_judge(judges, matches, store):
    judge_matches(opened(f"python:{judges}:by_length"), matches, store)
    judges.write_text(judges.read_text().replace("len(a) - len(b)", "len(b) - len(a)"))
    verdicts, spent = judge_matches(opened(f"python:{judges}:by_length"), matches, store)
    assert verdicts[0].side == "b"
    assert spent.cached == 0


@pytest.mark.parametrize(
    "spec, named",
    [
        ("", "no judge was given. Judges are reward:"),
        ("gpt-9", "`gpt-9` is no judge"),
        ("reward:", "`reward:` is no judge"),
        ("python:judges", "is named python:FILE.py:FUNCTION"),
        ("python:none.py:f", "there is no such file"),
        ("python:{judges}:f", "no function `f`"),
        ("python:{judges}:value", "no function `value`"),
        ("python:{bad}:f", "does not run .*SyntaxError"),
        ("reward:{folder}", "cannot be loaded .*Give a folder or a hub name"),
    ],
)
def test_a_judge_that_is_none_is_said(spec, named, judges, tmp_path):
    (tmp_path / "bad.py").write_text("def f(:")
    with pytest.raises(JudgeError, match=named):
        opened(spec.format(judges=judges, bad=tmp_path / "bad.py", folder=tmp_path))


# Reward models


def reward_folder(path, *, labels=1, pad=0):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
    config = transformers.LlamaConfig(vocab_size=320, num_labels=labels, pad_token_id=pad, bos_token_id=None, eos_token_id=2, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForSequenceClassification(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(path)
    built_tokenizer().save_pretrained(path)
    return path, model.eval()


def score(model, prompt, reply):
    """The slow and obvious way: one conversation, no padding."""
    text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in (*prompt, Message("assistant", reply)))
    with torch.no_grad():
        return float(model(torch.tensor([built_tokenizer()(text)["input_ids"]])).logits[0, 0])


@pytest.mark.parametrize("pad", [0, None])
def test_the_higher_score_wins_whatever_the_order_and_the_batch(tmp_path, matches, store, pad, monkeypatch):
    folder, model = reward_folder(tmp_path / "reward", pad=pad)
    monkeypatch.setattr("likelier.judge.reward.TOKENS_PER_BATCH", 150)
    judge = opened(f"reward:{folder}")
    verdicts, spent = judge_matches(judge, matches, store)
    truth = [(score(model, match.prompt, match.a), score(model, match.prompt, match.b)) for match in matches]
    assert [verdict.side for verdict in verdicts[:-1]] == ["a" if a > b else "b" for a, b in truth[:-1]]
    assert len({verdict.side for verdict in verdicts[:-1]}) == 2, "a judge of one mind would show nothing"
    assert not any(verdict.flipped for verdict in verdicts)
    assert verdicts[0].answers[0].reason == "{:.4g} against {:.4g}".format(*truth[0])
    assert spent.asked == 22


def test_every_reply_is_scored_once(tmp_path, store, monkeypatch):
    folder, _ = reward_folder(tmp_path / "reward")
    judge, scored = opened(f"reward:{folder}"), []
    logits = judge._logits
    monkeypatch.setattr(judge, "_logits", lambda batch: scored.extend(batch) or logits(batch))
    prompt = (Message("user", "Who?"),)
    judge_matches(judge, [Match(prompt, "one", "two"), Match(prompt, "one", "three"), Match(prompt, "two", "three")], store)
    assert len(scored) == len(set(scored)) == 3


def test_a_conversation_that_does_not_fit_is_a_failed_answer(tmp_path, store, matches):
    folder, _ = reward_folder(tmp_path / "reward")
    verdicts, spent = judge_matches(opened(f"reward:{folder}"), [*matches, match(20, "word " * 300, "b")], store)
    assert verdicts[-1].side is None
    assert "tokens does not fit into the reward model's 256" in verdicts[-1].fault
    assert spent.failed == 2


def test_a_conversation_that_the_template_refuses_is_a_failed_answer(tmp_path, store, matches):
    folder, _ = reward_folder(tmp_path / "reward")
    template = folder / "chat_template.jinja"
    template.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + template.read_text())
    asked = [*matches, Match((Message("system", "Be brief."), Message("user", "Why?")), "one", "two")]
    verdicts, spent = judge_matches(opened(f"reward:{folder}"), asked, store)
    assert verdicts[-1].side is None
    assert "chat template cannot write this conversation (System role not supported)" in verdicts[-1].fault
    assert (spent.failed, None in [verdict.side for verdict in verdicts[:-1]]) == (2, False)


def test_what_is_no_reward_model_is_refused(tmp_path):
    with pytest.raises(JudgeError, match="has 2 logits"):
        RewardJudge(str(reward_folder(tmp_path / "two", labels=2)[0]))
    folder, _ = reward_folder(tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(JudgeError, match="no chat template"):
        RewardJudge(str(folder))
    causal = tmp_path / "causal"
    transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(folder)).save_pretrained(causal)
    built_tokenizer().save_pretrained(causal)
    with pytest.raises(JudgeError, match=r"1 of its weights are missing, among them score\.weight"):
        RewardJudge(str(causal)).identity  # noqa: B018
    (causal / "config.json").unlink()
    with pytest.raises(JudgeError, match="cannot be loaded"):
        RewardJudge(str(causal))


def test_other_weights_are_another_judge(tmp_path):
    first, _ = reward_folder(tmp_path / "one")
    identity = RewardJudge(str(first)).identity
    assert RewardJudge(str(reward_folder(tmp_path / "two")[0])).identity == identity, "a folder's name plays no part"
    model = transformers.LlamaForSequenceClassification.from_pretrained(first)
    model.score.weight.data += 1
    model.save_pretrained(first)
    assert RewardJudge(str(first)).identity != identity
    assert json.dumps(identity)
