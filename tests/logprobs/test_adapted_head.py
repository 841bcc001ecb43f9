"""A head with an adapter on it, by the fused head and by the plain twin: log-probabilities and gradients."""

import copy

import pytest
import torch
import transformers
from tests.logprobs.conftest import BODY

from likelier.logprobs.scorer import Scorer, choose_engine, in_fp32
from likelier.models import add_adapter, as_reference, load_model, trainable
from likelier.recipe import AdapterSettings, ModelSettings

TARGETS = "q_proj, lm_head"


def adapted(*, tied: bool, dtype: torch.dtype = torch.float32, size: float = 0.3, **settings):
    config = transformers.LlamaConfig(**BODY, tie_word_embeddings=tied)
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config)
    for parameter in base.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = add_adapter(base.to(dtype), AdapterSettings(rank=3, targets=TARGETS, **settings), seed=0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += size * torch.randn_like(parameter)
    return model


def scored(model, sequences, engine, precision="fp32"):
    model = copy.deepcopy(model)
    values = torch.cat(Scorer(model, engine=engine, precision=precision).token_logps(sequences))
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    return values.detach(), {name: parameter.grad for name, parameter in trainable(model).items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("engine", ["nodes", "mask"])
def test_log_probs_and_gradients_are_those_of_the_plain_twin(tied, engine, sequences):
    model = adapted(tied=tied)
    assert any("lm_head.lora_B" in name for name in trainable(model))
    truth, true_grads = scored(model, sequences, "plain")
    values, grads = scored(model, sequences, engine)
    assert torch.allclose(values, truth, atol=1e-4)
    for name, grad in true_grads.items():
        assert (grads[name] - grad).norm() <= 1e-5 * grad.norm(), name


def test_the_reference_is_scored_without_it(sequences):
    model = adapted(tied=True)
    bare = copy.deepcopy(model).unload()
    with torch.no_grad():
        wanted = torch.cat(Scorer(bare, engine="nodes", precision="fp32").token_logps(sequences))
        with as_reference(model):
            found = torch.cat(Scorer(model, engine="nodes", precision="fp32").token_logps(sequences))
    assert found.equal(wanted)


def test_in_bf16_a_small_update_of_the_head_is_seen(sequences):
    model = adapted(tied=False, dtype=torch.bfloat16, size=0.0)
    with torch.no_grad():
        head = model.get_base_model().lm_head
        head.lora_A["default"].weight.normal_(0, 1)
        head.lora_B["default"].weight.normal_(0, 2e-4)

    def moved(precision):
        by = {}
        for state in ("on", "off"):
            with torch.no_grad(), model.disable_adapter() if state == "off" else torch.no_grad():
                by[state] = torch.cat(Scorer(model, engine="nodes", precision=precision).token_logps(sequences))
        return by["on"] - by["off"]

    with in_fp32(model):
        true = moved("fp32")
    coarse = moved("bf16")
    assert true.norm() > 0
    assert torch.nn.functional.cosine_similarity(true, coarse, dim=0) > 0.98


def test_the_parity_probe_takes_the_fused_head_for_lora_and_the_plain_twin_for_dora(sequences):
    assert choose_engine(adapted(tied=False), sequences[:3]).engine == "nodes"
    found = choose_engine(adapted(tied=False, dora=True), sequences[:3])
    assert found.engine == "plain"
    assert "no plain linear head" in found.passed_over[0]


def test_the_probe_computes_in_fp32_with_weights_in_four_bits_and_gives_back_what_was(tmp_path, sequences):
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**BODY)).save_pretrained(tmp_path)
    from tests.conftest import built_tokenizer

    built_tokenizer().save_pretrained(tmp_path)
    settings = ModelSettings(name=str(tmp_path))
    model = load_model(settings, dtype=torch.bfloat16, device=torch.device("cpu"), in_four_bits=True).model
    layers = [layer for layer in model.modules() if hasattr(layer, "compute_dtype")]
    assert layers
    with in_fp32(model):
        assert {layer.compute_dtype for layer in layers} == {torch.float32}
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}
    found = choose_engine(model, sequences[:3])
    assert (found.engine, found.difference <= 2e-5) == ("nodes", True)
