"""Replies side by side: pieces of text that join to the reply, nats that join to its log-ratio."""

import pytest
import torch

from likelier.evaluate import evaluate
from likelier.evaluate.answers import ask_policy, ask_reference, write
from likelier.evaluate.exam import make_exam
from likelier.evaluate.samples import pieces, side_by_side
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.models import as_reference
from tests.evaluate.conftest import EVAL, PAIRS, sides, sums


def joined(row, side):
    return "".join(text for text, _ in row["tokens"][side])


def total(row, side):
    return sum(nats for _, nats in row["tokens"][side])


def test_every_side_has_its_tokens_and_what_the_policy_makes_of_them(make_run):
    run, _, model, held_out = make_run(eval={**EVAL, "probes": False})
    evaluate(run)
    rows = run.read_samples()
    chosen, rejected = sides(held_out)
    for row in rows:
        number = [pair["id"] for pair in PAIRS].index(row["id"])
        assert row["chosen"] == PAIRS[number]["chosen"][0]["content"]
        assert row["rejected"] == PAIRS[number]["rejected"][0]["content"]
        for side in ("before", "after", "chosen", "rejected"):
            assert joined(row, side) == row[side]
        for side, sequences in (("chosen", chosen), ("rejected", rejected)):
            assert row["tokens"][side][-1][0] == "", "the end token"
            with as_reference(model):
                before = sums(model, sequences[number : number + 1])
            assert total(row, side) == pytest.approx(float(sums(model, sequences[number : number + 1]) - before), abs=1e-3)
    assert any(abs(nats) > 0.05 for row in rows for side in ("before", "after") for _, nats in row["tokens"][side])


def test_a_reply_that_only_one_model_wrote_is_scored_by_both(make_run, chat_tokenizer):
    _, recipe, model, held_out = make_run(eval={**EVAL, "probes": False})
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2)
    scorer = Scorer(model, engine="nodes", precision="fp32")
    with as_reference(model):
        replies = write(exam, scorer, exam.requests)
    after = ask_policy(exam, scorer, replies)
    with as_reference(model):
        before = ask_reference(exam, scorer, replies, after)
    rows = side_by_side(exam, before, after)
    for side, answers in (("before", before), ("after", after)):
        written = [PromptResponse(prompt, reply.ids) for prompt, reply in zip(exam.prompts, answers.held_out(exam), strict=True)]
        with as_reference(model):
            truth = -sums(model, written)
        truth += sums(model, written)
        assert truth.abs().min() > 0.01
        assert torch.tensor([total(row, side) for row in rows], dtype=torch.float64).allclose(truth, atol=1e-3)


def test_tokens_that_split_a_character_are_one_piece(chat_tokenizer):
    ids = tuple(chat_tokenizer("é my 🙂!")["input_ids"])
    nats = torch.arange(1.0, len(ids) + 2)
    found = pieces(chat_tokenizer, (*ids, 2), nats, ended=True)
    assert found[0] == ["é", 1.0 + 2.0], "two bytes, two tokens"
    [smile] = [nats for text, nats in found if text == "🙂"]
    assert smile == sum(range(len(ids) - 4, len(ids)))
    assert found[-2:] == [["!", float(len(ids))], ["", len(ids) + 1.0]]
    assert "".join(text for text, _ in found) == "é my 🙂!"
    assert sum(nats for _, nats in found) == nats.sum()


def test_a_reply_cut_within_a_character_ends_with_what_its_bytes_decode_to(chat_tokenizer):
    ids = tuple(chat_tokenizer("a🙂")["input_ids"])[:-1]
    found = pieces(chat_tokenizer, ids, torch.ones(len(ids)), ended=False)
    assert found == [["a", 1.0], [chat_tokenizer.decode(ids)[1:], 3.0]]
    assert pieces(chat_tokenizer, (2,), torch.tensor([0.5]), ended=True) == [["", 0.5]]
