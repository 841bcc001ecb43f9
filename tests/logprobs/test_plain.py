import doctest
import math

import pytest
import torch
from torch import nn

from likelier.errors import DataError
from likelier.examples import PreferenceExample
from likelier.logprobs import plain
from likelier.logprobs.plain import compute_log_probs, dpo_loss, pad_and_collate_pref, plain_token_logps, sequence_logprob
from likelier.logprobs.tree import PromptResponse

V = 97
EXAMPLES = [
    PreferenceExample((5, 6, 7), (1, 2), (3,), id="first"),
    PreferenceExample((8,), (4,), (9, 10, 11, 12), id="second"),
    PreferenceExample((5, 6), (7, 1, 2), (7, 2), id="third"),
]


class TwoLayerGPT(nn.Module):
    """A course's transformer: token and position embeddings, two causal blocks, no transformers, no configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, 16), nn.Embedding(64, 16)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.5, batch_first=True, norm_first=True) for _ in range(2))
        self.head = nn.Linear(16, V)

    def forward(self, ids):
        length = ids.shape[1]
        hidden = self.tokens(ids) + self.positions(torch.arange(length))
        mask = torch.full((length, length), -math.inf).triu(1)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask)
        return self.head(hidden)


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.cells, self.head = nn.Embedding(V, 12), nn.LSTM(12, 16, 2, batch_first=True), nn.Linear(16, V)

    def forward(self, ids):
        return self.head(self.cells(self.tokens(ids))[0])


class WithItsOwnConfig(LSTM):
    """Research code often keeps a configuration of its own under the name that transformers uses."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"width": 16}


MODULES = {"gpt": TwoLayerGPT, "lstm": LSTM, "with its own config": WithItsOwnConfig}


@pytest.fixture(params=MODULES)
def module(request):
    torch.manual_seed(1)
    return MODULES[request.param]().eval()


def by_hand(model, prompt_ids, response_ids):
    """log p of each response token in fp64, one forward pass for each, from the definition."""
    found = []
    for step, token in enumerate(response_ids):
        logits = model(torch.tensor([prompt_ids + response_ids[:step]])).detach()[0, -1].double()
        found.append(float(logits[token] - logits.exp().sum().log()))
    return found


def test_docstring_examples():
    result = doctest.testmod(plain)
    assert result.attempted >= 4
    assert result.failed == 0


def test_padding_shifts_and_marks_the_response():
    x, y, mask = pad_and_collate_pref(EXAMPLES, max_seq_len=5, pad_id=0)[:3]
    assert x.tolist() == [[5, 6, 7, 1], [8, 4, 0, 0], [5, 6, 7, 1]]
    assert y.tolist() == [[6, 7, 1, 2], [4, 0, 0, 0], [6, 7, 1, 2]]
    assert mask.tolist() == [[False, False, True, True], [True, False, False, False], [False, True, True, True]]
    rejected = pad_and_collate_pref(EXAMPLES, max_seq_len=5, pad_id=0)[3:]
    assert rejected[0].tolist() == [[5, 6, 7, 3], [8, 9, 10, 11], [5, 6, 7, 2]]
    assert rejected[1].tolist() == [[6, 7, 3, 0], [9, 10, 11, 12], [6, 7, 2, 0]]
    assert rejected[2].sum(1).tolist() == [1, 4, 2]


def test_a_pair_over_the_limit_is_named():
    with pytest.raises(DataError, match="pair second has 5 tokens, over max_seq_len=4"):
        pad_and_collate_pref(EXAMPLES[1:], max_seq_len=4, pad_id=0)


@pytest.mark.parametrize("sides", [((), (1,), (2,)), ((3,), (), (2,)), ((3,), (1,), ())])
def test_pitfall_17_an_empty_side_is_refused(sides):
    with pytest.raises(DataError, match=r"pair odd: .*empty"):
        pad_and_collate_pref([*EXAMPLES, PreferenceExample(*sides, id="odd")], max_seq_len=9, pad_id=0)


@pytest.mark.parametrize("empty", [PromptResponse((), (1,)), PromptResponse((1,), ())])
def test_an_empty_sequence_is_refused_as_the_tree_refuses_it(empty):
    with pytest.raises(ValueError, match="at least one prompt token and one response token"):
        plain_token_logps(LSTM(), [PromptResponse((1,), (2,)), empty])


def test_sums_are_those_of_the_chain_rule(module):
    chosen = pad_and_collate_pref(EXAMPLES, max_seq_len=9, pad_id=0)[:3]
    sums = sequence_logprob(module(chosen[0]), chosen[1], chosen[2])
    wanted = [sum(by_hand(module, e.prompt_ids, e.chosen_ids)) for e in EXAMPLES]
    assert sums.tolist() == pytest.approx(wanted, abs=1e-5)


def test_per_token_values_of_any_module(module):
    sequences = [PromptResponse(e.prompt_ids, ids) for e in EXAMPLES for ids in (e.chosen_ids, e.rejected_ids)]
    found = plain_token_logps(module, sequences, pad_id=96)
    for values, sequence in zip(found, sequences, strict=True):
        assert values.tolist() == pytest.approx(by_hand(module, *sequence), abs=1e-5)
    assert all(values.requires_grad for values in found)


@pytest.mark.parametrize("pad_id", [0, 5, 96])
def test_what_stands_in_the_padding_does_not_count(module, pad_id):
    sequences = [PromptResponse((1, 2), (3,)), PromptResponse((1,), (2, 3, 4, 5, 6, 7))]
    found, wanted = plain_token_logps(module, sequences, pad_id=pad_id), plain_token_logps(module, sequences, pad_id=1)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba"])
def test_per_token_values_of_a_transformers_model(architecture, tiny, sequences, truth):
    with torch.no_grad():
        found = torch.cat(plain_token_logps(tiny(architecture), sequences))
    assert (found - truth(architecture)[0]).abs().max() <= 1e-5


def test_labels_of_minus_100_are_outside(module):
    chosen = pad_and_collate_pref(EXAMPLES, max_seq_len=9, pad_id=0)[:3]
    ids = torch.cat([chosen[0], chosen[1][:, -1:]], 1)
    labels = torch.where(torch.cat([torch.zeros(3, 1, dtype=torch.bool), chosen[2]], 1), ids, -100)
    found = compute_log_probs(module, ids, None, labels)
    assert found.tolist() == pytest.approx([sum(by_hand(module, e.prompt_ids, e.chosen_ids)) for e in EXAMPLES], abs=1e-5)


@pytest.mark.parametrize("padded_on", ["left", "right"])
def test_attention_masks_reach_a_transformers_model(tiny, padded_on):
    model = tiny("llama")
    alone = compute_log_probs(model, torch.tensor([[5, 6, 7, 8]]), None, torch.tensor([[-100, -100, 7, 8]]))
    padding = [0, 0, 0]
    row = [*padding, 5, 6, 7, 8] if padded_on == "left" else [5, 6, 7, 8, *padding]
    labels = [-100] * 5 + [7, 8] if padded_on == "left" else [-100, -100, 7, 8] + [-100] * 3
    ids = torch.tensor([row])
    found = compute_log_probs(model, ids, (ids != 0).long(), torch.tensor([labels]))
    assert torch.allclose(found, alone, atol=1e-4)


def test_pitfall_22_a_row_without_a_scored_token_is_zero_and_has_no_gradient():
    logits = torch.randn(3, 4, V, requires_grad=True)
    mask = torch.tensor([[True, False, True, False], [False] * 4, [False, False, False, True]])
    sums = sequence_logprob(logits, torch.zeros(3, 4, dtype=torch.long), mask)
    assert sums[1] == 0
    sums.sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[~mask].any()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_pitfall_22_what_a_fully_masked_position_says_reaches_neither_value_nor_gradient(poison):
    clean = torch.randn(2, 3, V)
    mask = torch.tensor([[False, True, True], [False, False, False]])
    targets = torch.where(mask, 3, -100)
    poisoned = torch.where(mask[..., None], clean, poison).requires_grad_()
    clean = clean.requires_grad_()
    found, wanted = sequence_logprob(poisoned, targets, mask), sequence_logprob(clean, targets.clamp(min=0), mask)
    assert found.equal(wanted)
    found.sum().backward()
    wanted.sum().backward()
    assert poisoned.grad.equal(clean.grad)


def test_masks_of_numbers_serve_as_well():
    logits, targets = torch.randn(2, 3, V), torch.randint(V, (2, 3))
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    assert sequence_logprob(logits, targets, mask).equal(sequence_logprob(logits, targets, mask.bool()))


def test_logsumexp_is_fp32_whatever_the_logits():
    logits, targets = (torch.randn(4, 5, V) * 5).bfloat16(), torch.randint(V, (4, 5))
    found = sequence_logprob(logits, targets, torch.ones(4, 5))
    wanted = logits.double().log_softmax(-1).gather(-1, targets[..., None]).sum((1, 2))
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() <= 1e-4


def test_dpo_loss_is_the_formula():
    policy_w, policy_l, ref_w, ref_l = torch.tensor(
        [[-3.0, -9.0, -2.0], [-4.0, -7.0, -2.0], [-3.5, -8.0, -1.0], [-3.0, -8.5, -1.0]], dtype=torch.float64, requires_grad=True
    )
    loss, metrics = dpo_loss(policy_w, policy_l, ref_w, ref_l, beta=0.3)
    margins = [0.3 * ((w - rw) - (lose - rl)) for w, lose, rw, rl in zip(*(t.tolist() for t in (policy_w, policy_l, ref_w, ref_l)), strict=True)]
    assert margins == pytest.approx([0.45, -0.75, 0.0])
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 3, rel=1e-12)
    assert float(metrics["margin"]) == pytest.approx(-0.1)
    assert float(metrics["chosen_reward"]) == pytest.approx(0.3 * (0.5 - 1.0 - 1.0) / 3)
    assert float(metrics["rejected_reward"]) == pytest.approx(0.3 * (-1.0 + 1.5 - 1.0) / 3)
    assert float(metrics["accuracy"]) == pytest.approx(0.5)  # right, wrong, tie
    assert not any(value.requires_grad for value in metrics.values())
    (slope,) = torch.autograd.grad(loss, policy_w)
    assert slope.tolist() == pytest.approx([-0.3 / (1 + math.exp(m)) / 3 for m in margins])


def test_dpo_loss_begins_at_log_2_and_stays_finite():
    one = torch.tensor([-5.0, -7.0])
    assert float(dpo_loss(one, one, one, one, beta=0.1)[0]) == pytest.approx(math.log(2), rel=1e-6)
    far = torch.tensor([-1e5, 0.0]), torch.tensor([0.0, -1e5])
    loss, _ = dpo_loss(*far, torch.zeros(2), torch.zeros(2), beta=1.0)
    assert float(loss) == pytest.approx(5e4)


def test_a_course_can_train_with_these_parts(module):
    """One batch by heart: the loss falls from log 2, the margin grows."""
    x, y, mask, rx, ry, rmask = pad_and_collate_pref(EXAMPLES, max_seq_len=9, pad_id=0)
    with torch.no_grad():
        reference = sequence_logprob(module(x), y, mask), sequence_logprob(module(rx), ry, rmask)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        policy = sequence_logprob(module(x), y, mask), sequence_logprob(module(rx), ry, rmask)
        loss, metrics = dpo_loss(*policy, *reference, beta=0.5)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[-1] < 0.1
    assert metrics["accuracy"] == 1
