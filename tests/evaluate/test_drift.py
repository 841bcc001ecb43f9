"""How far the policy moved, against the plain twin and full softmax in fp64."""

import copy
import math

import pytest
import torch

from likelier.evaluate import compare, drift
from likelier.evaluate.answers import ask_policy, ask_reference, write
from likelier.evaluate.drift import measure_kl, measure_kl_on_data
from likelier.evaluate.exam import make_exam
from likelier.logprobs.attention import standard_attention
from likelier.logprobs.divergence import kept_logits, token_divergences
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.head import Logits, divergences
from likelier.logprobs.scorer import Scorer, kept_attention
from likelier.logprobs.tree import PromptResponse
from likelier.models import add_adapter, as_reference
from likelier.recipe import AdapterSettings
from tests.evaluate.conftest import EVAL, sums


def test_kl_is_the_mean_log_ratio_of_the_sampled_replies():
    replies = [PromptResponse((1,), (5, 6)), PromptResponse((2,), (7,))]
    policy = dict(zip(replies, map(torch.tensor, ([-1.0, -2.0], [-0.5])), strict=True))
    reference = dict(zip(replies, map(torch.tensor, ([-2.0, -4.0], [-0.25])), strict=True))
    found = measure_kl(replies, policy=policy, reference=reference, limit=8)
    assert (found["value"], found["low"], found["high"]) == ((3.0 - 0.25) / 2, -0.25, 3.0)
    assert found["note"] == "per reply, estimated on 2 replies of the tuned model, sampled at temperature 1, up to 8 tokens"


def test_the_policys_samples_are_scored_by_both(make_run, chat_tokenizer):
    _, recipe, model, held_out = make_run(eval={**EVAL, "probes": False})
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2)
    scorer = Scorer(model, engine="nodes", precision="fp32")
    with as_reference(model):
        replies = write(exam, scorer, exam.requests)
    after = ask_policy(exam, scorer, replies)
    with as_reference(model):
        before = ask_reference(exam, scorer, replies, after)
    assert [sequence.prompt_ids for sequence in after.sampled] == exam.prompts
    assert before.sampled == after.sampled
    assert all(sequence.response_ids != greedy.ids for sequence, greedy in zip(after.sampled, after.held_out(exam), strict=True))
    wanted = sums(model, after.sampled)
    assert torch.allclose(torch.stack([after.logps[s].sum() for s in after.sampled]).double(), wanted, atol=1e-3)
    with as_reference(model):
        wanted = wanted - sums(model, after.sampled)
    assert compare(exam, before, after)["held_out"]["kl"]["value"] == pytest.approx(float(wanted.mean()), abs=1e-3)


def in_full(policy, reference, sequence):
    """KL at each of the response's tokens, by full softmax in fp64."""
    ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
    with torch.no_grad(), standard_attention(policy), standard_attention(reference):
        p, q = (model.double()(ids).logits[0, len(sequence.prompt_ids) - 1 : -1].log_softmax(-1) for model in (policy, reference))
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("engine", ["nodes", "plain"])
def test_kl_on_data_is_that_of_the_full_softmax(make_run, chat_model, engine):
    _, _, policy, held_out = make_run(method="full")
    sequences = sequences_of(held_out.examples)
    with kept_attention(policy), kept_attention(chat_model):
        kept = kept_logits(Scorer(policy, engine=engine, precision="fp32"), sequences, tokens_per_batch=64)
        found = token_divergences(kept, Scorer(chat_model, engine=engine, precision="fp32"), sequences, tokens_per_batch=64)
    width = next(iter(kept.hidden.values())).shape[1]
    assert width == (320 if engine == "plain" else 32), "hidden states are kept where the engine has them"
    truth = {sequence: in_full(policy, chat_model, sequence) for sequence in set(sequences)}
    assert found.keys() == truth.keys()
    for sequence, values_L in truth.items():
        assert values_L.min() > 1e-3, "the models must differ"
        assert torch.allclose(found[sequence].double(), values_L, rtol=1e-4, atol=1e-6)
    measured = measure_kl_on_data(held_out.examples, found)
    assert measured["value"] == pytest.approx(float(sum(truth[sequence].sum() for sequence in sequences) / len(sequences)), rel=1e-4)
    assert measured["low"] < measured["value"] < measured["high"]
    assert measured["note"] == "per reply, exact over the vocabulary at each token of 20 held-out replies"


def test_kl_on_data_of_an_adapted_head(make_run, chat_model):
    """Low rank on the head widens the hidden states of the first model, not of the second."""
    _, _, _, held_out = make_run()
    reference = copy.deepcopy(chat_model)
    model = add_adapter(chat_model, AdapterSettings(rank=4, targets="q_proj, lm_head"), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.2
    sequences = sequences_of(held_out.examples[:2])
    with kept_attention(model):
        scorer = Scorer(model, engine="nodes", precision="fp32")
        kept = kept_logits(scorer, sequences, tokens_per_batch=512)
        with as_reference(model):
            found = token_divergences(kept, Scorer(model, engine="nodes", precision="fp32"), sequences, tokens_per_batch=512)
    for sequence in sequences:
        assert torch.allclose(found[sequence].double(), in_full(model, reference, sequence), rtol=1e-4, atol=1e-6)


def test_divergences_by_hand_in_blocks_and_with_tokens_that_never_come():
    p, q = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]), torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]])
    one, other = Logits(p.log(), None), Logits((q.log() + 3.0) @ torch.eye(3), torch.eye(3))
    for working_bytes in (1, 1 << 20):
        found = divergences(one, other, device=torch.device("cpu"), working_bytes=working_bytes)
        assert found.tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)


def test_big_data_is_measured_on_pairs_spread_over_it(make_run, monkeypatch):
    _, _, model, held_out = make_run()
    with kept_attention(model):
        scorer = Scorer(model, engine="nodes", precision="fp32")
        assert drift.spread(held_out.examples, scorer) == held_out.examples
        monkeypatch.setattr(drift, "MOST_EXAMPLES", 5)
        taken = drift.spread(held_out.examples, scorer)
        assert taken == held_out.examples[::2]
        tokens = sum(len(reply) for example in taken for reply in example.replies)
        monkeypatch.setattr(drift, "KEPT_BYTES", 4 * 32 * tokens // 2)
        assert drift.spread(held_out.examples, scorer) == [taken[0], taken[2]]
    some = dict.fromkeys(sequences_of(taken), torch.tensor([0.5, 0.25]))
    replies = sum(sequence in some for sequence in sequences_of(held_out.examples))
    found = measure_kl_on_data(held_out.examples, some)
    assert found["value"] == 0.75
    assert found["note"].endswith(f"each token of {replies} of 20 held-out replies, spread evenly")
