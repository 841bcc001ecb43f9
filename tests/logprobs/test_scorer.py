import copy
import random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from likelier.errors import ModelError
from likelier.logprobs.attention import standard_attention
from likelier.logprobs.scorer import Scorer, decoder_layers, in_fp32
from likelier.logprobs.tree import PromptResponse, build_tree
from likelier.models import add_adapter, as_reference, trainable
from likelier.recipe import AdapterSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


class Bigram(nn.Module):
    """The simplest module that maps ids to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(97, 97)

    def forward(self, ids):
        return self.table(ids)


class Small(Scorer):
    """A scorer on a machine that has room for so many sequences at once. Counts what it was asked."""

    room = 3
    asked: list[int] = []  # noqa: RUF012

    def token_logps(self, sequences):
        self.asked.append(len(sequences))
        if len(sequences) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().token_logps(sequences)


def scored(scorer, sequences, **options):
    """Values in the order of `sequences`, and the batches that they came in."""
    values, batches = [None] * len(sequences), []
    for indices, found in scorer.score_all(sequences, **options):
        batches.append(indices)
        for i, value in zip(indices, found, strict=True):
            assert values[i] is None
            values[i] = value
    return values, batches


def adapted(model, *, rank=4, seed=1):
    """The model under LoRA whose B is no longer zero: what it is in the middle of training."""
    model = add_adapter(model, AdapterSettings(rank=rank, alpha=2 * rank), seed=seed)
    move(model)
    return model


def move(model):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for parameter in trainable(model).values():
            parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("engine", ["nodes", "plain"])
@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10_000])
def test_any_number_of_sequences_in_any_batches(engine, tokens_per_batch, tiny, sequences):
    scorer = Scorer(tiny("llama"), engine=engine, precision="fp32")
    with torch.no_grad():
        wanted = scorer.token_logps(sequences)
    values, batches = scored(scorer, sequences, tokens_per_batch=tokens_per_batch)
    assert len(batches) > 1 or tokens_per_batch > 1000
    for value, want, sequence in zip(values, wanted, sequences, strict=True):
        assert value.shape == (len(sequence.response_ids),)
        assert value.dtype == torch.float32
        assert torch.allclose(value, want, atol=1e-5)


@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_a_batch_that_does_not_fit_is_split(room, tiny, sequences):
    wanted, _ = scored(Scorer(tiny("llama"), engine="nodes", precision="fp32"), sequences, tokens_per_batch=10_000)
    small = Small(tiny("llama"), engine="nodes", precision="fp32")
    small.room, small.asked = room, []
    values, batches = scored(small, sequences, tokens_per_batch=10_000)
    assert small.asked[0] == len(sequences)
    assert max(len(batch) for batch in batches) <= room
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(values, wanted, strict=True))


def test_one_sequence_that_does_not_fit_is_an_error_that_names_its_length(tiny, sequences):
    small = Small(tiny("llama"), engine="nodes", precision="fp32")
    small.room = 0
    with pytest.raises(ModelError, match=r"one sequence of 31 tokens. Lower data.max_length"):
        list(small.score_all(sequences[:1], tokens_per_batch=100))


def test_scoring_without_gradient_leaves_the_callers_gradients_on(tiny, sequences):
    parameter = torch.ones(1, requires_grad=True)
    for _, values in Scorer(tiny("llama"), engine="nodes", precision="fp32").score_all(sequences, tokens_per_batch=40):
        assert torch.is_grad_enabled()
        assert not any(value.requires_grad for value in values)
        assert (parameter * values[0].sum()).requires_grad


def test_nothing_to_score(tiny):
    assert list(Scorer(tiny("llama"), engine="nodes", precision="fp32").score_all([], tokens_per_batch=100)) == []


def test_tokens_put_through_the_model_are_counted(tiny, sequences):
    scorer = Scorer(tiny("llama"), engine="nodes", precision="fp32")
    scorer.token_logps(sequences)
    assert scorer.last_tokens == len(build_tree(sequences))


def test_any_module_is_scored_by_the_plain_engine_only(sequences):
    model = Bigram()
    values = Scorer(model, engine="plain", precision="fp32").token_logps(sequences)
    table = model.table.weight.log_softmax(-1)
    for value, (prompt_ids, response_ids) in zip(values, sequences, strict=True):
        before = (prompt_ids[-1], *response_ids[:-1])
        assert torch.allclose(value, table[list(before), list(response_ids)], atol=1e-6)
    with pytest.raises(ModelError, match="Bigram"):
        Scorer(Bigram(), engine="nodes", precision="fp32")


@pytest.mark.parametrize("architecture", ["phi", "llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_of_either_type_score_in_either_precision(architecture, dtype, precision, tiny, sequences, truth):
    """Phi's head has a bias, which must go through autocast as the weight does."""
    model = tiny(architecture).to(dtype)
    errors = {}
    for engine in ("nodes", "plain"):
        values = torch.cat(Scorer(model, engine=engine, precision=precision).token_logps(sequences))
        assert values.dtype == torch.float32
        errors[engine] = float((values.detach() - truth(architecture)[0]).pow(2).mean().sqrt())
    assert errors["nodes"] <= (1e-5 if (dtype, precision) == (torch.float32, "fp32") else 1.5 * errors["plain"])
    values.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in model.parameters() if p.grad is not None)


class Casts(TorchDispatchMode):
    """Counts how often each of `weights` is converted."""

    def __init__(self, weights):
        super().__init__()
        self.counts = dict.fromkeys([weight.data_ptr() for weight in weights], 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.counts:
            self.counts[args[0].data_ptr()] += 1
        return function(*args, **(kwargs or {}))


def test_batches_between_two_steps_share_one_cast_of_the_weights(tiny, sequences):
    """Also where they follow a pass without gradient, as a training step follows an evaluation."""
    model = tiny("llama")
    layers = [module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    scorer = Scorer(model, engine="nodes", precision="bf16")
    model.zero_grad()
    apart = [torch.cat(scorer.token_logps(sequences[i : i + 2])) for i in (0, 2, 4)]
    sum(values.sum() for values in apart).backward()
    gradients = [weight.grad for weight in layers]
    model.zero_grad()
    with Casts(layers) as casts, scorer.unchanged_weights():
        with torch.no_grad():
            scorer.token_logps(sequences)
        together = []
        for i in (0, 2, 4):
            together.append(torch.cat(scorer.token_logps(sequences[i : i + 2])))
            together[-1].sum().backward()
    assert set(casts.counts.values()) <= {1, 2}  # once without gradient, once with
    assert all(a.equal(b) for a, b in zip(apart, together, strict=True))
    assert all((weight.grad - gradient).norm() <= 1e-2 * gradient.norm() for weight, gradient in zip(layers, gradients, strict=True))
    with torch.no_grad():
        layers[0].zero_()
    assert not torch.cat(scorer.token_logps(sequences[:2])).equal(apart[0])


def with_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    return model.train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("engine", ["nodes", "mask", "plain"])
@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama"])
def test_pitfall_10_dropout_is_off_even_while_activations_are_recomputed(architecture, engine, checkpointing, tiny, sequences, truth):
    """OPT drops in the very layer whose training flag turns recomputing on."""
    model = with_dropout(tiny(architecture))
    if checkpointing:
        model.gradient_checkpointing_enable()
    values = torch.cat(Scorer(model, engine=engine, precision="fp32").token_logps(sequences))
    assert (values - truth(architecture)[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("engine", ["nodes", "mask", "plain"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "opt"])
def test_recomputed_activations_give_the_same_gradients(architecture, engine, tiny, sequences, values_and_gradients, furthest):
    model = tiny(architecture)
    calls = []
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    (layers[0].attn if architecture == "gpt2" else layers[0].self_attn).register_forward_hook(lambda *_: calls.append(1))
    kept = values_and_gradients(model, Scorer(model, engine=engine, precision="fp32").token_logps(sequences))
    assert len(calls) == 1
    model.gradient_checkpointing_enable()
    again = values_and_gradients(model, Scorer(model, engine=engine, precision="fp32").token_logps(sequences))
    assert len(calls) == 3  # once forwards, once more backwards
    assert again[0].equal(kept[0])
    assert furthest(again[1], kept[1]) <= 1e-6


@pytest.mark.parametrize("engine", ["nodes", "mask"])
def test_lora_on_the_tree_against_the_plain_twin(engine, tiny, sequences, values_and_gradients, furthest):
    model = adapted(tiny("llama"))
    truth = values_and_gradients(model, Scorer(model, engine="plain", precision="fp32").token_logps(sequences))
    found = values_and_gradients(model, Scorer(model, engine=engine, precision="fp32").token_logps(sequences))
    assert (found[0] - truth[0]).abs().max() <= 1e-5
    assert furthest(found[1], truth[1]) <= 1e-5
    assert found[1].keys() == trainable(model).keys()
    model.gradient_checkpointing_enable()
    again = values_and_gradients(model, Scorer(model, engine=engine, precision="fp32").token_logps(sequences))
    assert furthest(again[1], found[1]) <= 1e-6


@pytest.mark.parametrize("engine", ["nodes", "mask", "plain"])
@pytest.mark.parametrize("dtype, precision", [(torch.float32, "fp32"), (torch.float32, "bf16"), (torch.bfloat16, "bf16")])
def test_pitfall_21_with_the_adapter_off_the_model_is_its_base_bit_for_bit(engine, precision, dtype, tiny, sequences):
    with torch.no_grad():
        base = torch.cat(Scorer(tiny("llama").to(dtype), engine=engine, precision=precision).token_logps(sequences))
        model = add_adapter(tiny("llama").to(dtype), AdapterSettings(rank=4), seed=0)
        scorer = Scorer(model, engine=engine, precision=precision)
        fresh = torch.cat(scorer.token_logps(sequences))
        assert fresh.equal(base)  # B is zero: the policy begins as its reference
        with as_reference(model):
            assert torch.cat(scorer.token_logps(sequences)).equal(base)
        move(model)
        moved = torch.cat(scorer.token_logps(sequences))
        assert (moved - base).abs().max() > 0.01
        with as_reference(model):
            assert torch.cat(scorer.token_logps(sequences)).equal(base)
        assert torch.cat(scorer.token_logps(sequences)).equal(moved)


def test_the_adapter_is_back_on_after_an_error(tiny, sequences):
    model = adapted(tiny("llama"))
    scorer = Scorer(model, engine="nodes", precision="fp32")
    before = torch.cat(scorer.token_logps(sequences))
    with pytest.raises(KeyError), as_reference(model):
        raise KeyError
    assert torch.cat(scorer.token_logps(sequences)).equal(before)
    assert all(parameter.requires_grad for parameter in trainable(model).values())
    assert trainable(model)


def test_full_training_has_no_reference_to_switch_to(tiny, sequences):
    model = tiny("llama")
    scorer = Scorer(model, engine="nodes", precision="fp32")
    with as_reference(model):
        inside = torch.cat(scorer.token_logps(sequences))
    assert inside.equal(torch.cat(scorer.token_logps(sequences)))


@pytest.mark.parametrize("cuts", [[1] * 10, [3, 7], [9, 1]])
def test_pitfall_8_batches_of_any_cut_add_up_to_the_same_gradient(cuts, tiny, sequences, values_and_gradients, furthest):
    model = tiny("qwen3")
    scorer = Scorer(model, engine="nodes", precision="fp32")
    model.zero_grad()
    torch.cat(scorer.token_logps(sequences)).sum().backward()
    whole = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    start = 0
    for size in cuts:
        torch.cat(scorer.token_logps(sequences[start : start + size])).sum().backward()
        start += size
    assert furthest({name: p.grad for name, p in model.named_parameters()}, whole) <= 5e-6


def test_in_fp32_widens_and_gives_back_the_same_bits(tiny):
    model = tiny("gpt2").bfloat16()
    model.transformer.ln_f.half()
    before = {name: (p.dtype, p.detach().clone()) for name, p in model.named_parameters()}
    with in_fp32(model):
        wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32 and p.equal(before[name][1].float())}
        assert wide == {name for name in before if ".h." not in name}, "all but the layers"
    assert all(p.dtype == before[name][0] and p.equal(before[name][1]) for name, p in model.named_parameters())
    with pytest.raises(KeyError), in_fp32(model):
        raise KeyError
    assert all(p.dtype == before[name][0] and p.equal(before[name][1]) for name, p in model.named_parameters())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_in_fp32_a_layer_is_wide_only_while_it_computes(architecture, tiny, sequences):
    model = tiny(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        wanted = torch.cat(Scorer(copy.deepcopy(model), engine="nodes", precision="fp32").token_logps(sequences))
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        layers = decoder_layers(model)
        seen = []

        def look(layer, *_):
            seen.append([all(p.dtype == torch.float32 for p in other.parameters()) for other in layers])

        with in_fp32(model):
            for layer in layers:
                layer.register_forward_hook(look, prepend=True)
            found = torch.cat(Scorer(model, engine="nodes", precision="fp32").token_logps(sequences))
    assert found.equal(wanted)
    assert seen == [[layer is other for other in layers] for layer in layers]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def rectangle(query, key, matmuls):
    """`matmuls` products of all queries with all keys, as torch counts attention on a GPU: nothing off for causality."""
    return matmuls * 2 * query[0] * query[1] * query[2] * key[2] * query[3]


CPU_ATTENTION = {
    ATTENTION: lambda query, key, *_, **__: rectangle(query, key, 2),
    ATTENTION_BACKWARD: lambda grad, query, key, *_, **__: rectangle(query, key, 5),  # the scores, and gradients of four
}


def flops_of(run):
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def pairs_of(draw, vocabulary, prompts, per_prompt):
    def ids(low, high):
        return tuple(draw.randrange(vocabulary) for _ in range(draw.randint(low, high)))

    for _ in range(prompts):
        prompt, best = ids(60, 130), ids(40, 90)
        for _ in range(per_prompt):
            yield PromptResponse(prompt, best)
            yield PromptResponse(prompt, ids(40, 90))


@pytest.mark.parametrize("prompts, per_prompt", [(5, 1), (2, 3)])
@pytest.mark.parametrize("lora", [False, True])
def test_a_step_costs_no_more_than_its_unique_tokens(prompts, per_prompt, lora, record_property):
    """Counted FLOPs of forward and backward pass against the least that a causal model without padding can do them with:

    - linear layers of the body: 2 · weights for each distinct token whose hidden state is needed. A prompt counts once however many
      responses hang on it, a response once however many pairs it stands in, and a last token not at all, since nothing is predicted from it;
    - attention: two products of each prompt's and each response's queries with the keys of its own context, as rectangles;
    - head: 2 · weights for each distinct scored token;
    - all three times: once forwards, twice backwards. Under LoRA the frozen matmuls cost twice (no gradient of their weights), and the
      adapter's own three times.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=997, max_position_embeddings=512, **sizes))
    body = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.dim() == 2)
    head, width, layers = model.lm_head.weight.numel(), 128, 3
    adapter = 0
    if lora:
        model = adapted(model, rank=8)
        adapter = sum(p.numel() for p in trainable(model).values())

    sequences = list(pairs_of(random.Random(0), 997, prompts, per_prompt))
    distinct = set(sequences)
    contexts = [(len(p), len(p)) for p in {s.prompt_ids for s in distinct}]
    contexts += [(len(s.response_ids) - 1, len(s.prompt_ids) + len(s.response_ids) - 1) for s in distinct]
    tokens = sum(queries for queries, _ in contexts)
    scores = sum(queries * keys for queries, keys in contexts)
    edges = sum(len(s.response_ids) for s in distinct)
    linear = 2 * body * tokens + 2 * head * edges
    least = (2 if lora else 3) * linear + 3 * 2 * adapter * tokens + 3 * layers * 2 * 2 * width * scores

    scorer = Scorer(model, engine="nodes", precision="fp32")
    counted = flops_of(lambda: torch.cat(scorer.token_logps(sequences)).sum().backward())
    record_property("ratio", counted / least)
    assert 0.95 < counted / least <= 1.03
    plain = Scorer(model, engine="plain", precision="fp32")
    padded = flops_of(lambda: torch.cat(plain.token_logps(sequences)).sum().backward())
    assert padded > 1.4 * counted


@pytest.mark.parametrize("engine", ["nodes", "mask", "plain"])
def test_collisions_stand_where_the_log_probabilities_do(tiny, sequences, engine):
    scorer = Scorer(tiny("llama"), engine=engine, precision="fp32")
    logps, collisions = scorer.score(sequences, collisions=True)
    truth = Scorer(tiny("llama"), engine="plain", precision="fp32")
    for sequence, values, squares in zip(sequences, logps, collisions, strict=True):
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
        with standard_attention(truth.model), torch.no_grad():
            wanted = truth.model(ids).logits[0, len(sequence.prompt_ids) - 1 : -1].double().softmax(-1).square().sum(-1).log()
        assert squares.shape == values.shape
        assert squares.double().allclose(wanted, atol=1e-4)
        assert not squares.requires_grad
    assert scorer.score(sequences)[1] == []
