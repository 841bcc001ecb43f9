"""Generation against its slow twin: one prompt at a time, no padding, no cache, one full forward pass a token."""

import copy
import random

import pytest
import torch
import transformers

from likelier.errors import ModelError
from likelier.generation.sample import GumbelNoise, _batches, generate
from likelier.logprobs.attention import NODE_ATTENTION
from likelier.logprobs.scorer import without_dropout
from likelier.models import add_adapter, as_reference
from likelier.recipe import AdapterSettings

END = 2
NEW = 12
draw = random.Random(5)
PROMPTS = [tuple(draw.randrange(3, 320) for _ in range(length)) for length in (1, 17, 4, 30, 2, 11, 23)]


def write(model, tokenizer, prompts=PROMPTS, **options):
    return generate(model, tokenizer, prompts, **{"end_token_id": END, "max_new_tokens": NEW, **options})


@torch.no_grad()
def slowly(model, prompt, end=END, new=NEW, noise=None):
    ids = list(prompt)
    while len(ids) < len(prompt) + new:
        logits = model(torch.tensor([ids]), use_cache=False).logits[:, -1]
        ids.append(int((noise(None, logits) if noise else logits).argmax()))
        if ids[-1] == end:
            break
    return tuple(ids[len(prompt) :])


def gemma_with_short_windows():
    body = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    types = ["sliding_attention", "full_attention"] * 2
    config = transformers.Gemma3TextConfig(vocab_size=320, num_hidden_layers=4, sliding_window=5, layer_types=types, **body)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Gemma3ForCausalLM(config).eval()


def test_a_batch_padded_on_the_left_writes_what_the_slow_twin_writes(chat_model, chat_tokenizer):
    truth = [slowly(chat_model, prompt) for prompt in PROMPTS]
    assert len({ids[:3] for ids in truth}) == len(PROMPTS), "replies must depend on their prompts"
    replies = write(chat_model, chat_tokenizer)
    assert [reply.ids for reply in replies] == truth
    assert [reply.ids for reply in write(chat_model, chat_tokenizer, tokens_per_batch=1)] == truth


def test_sliding_windows_are_measured_without_the_padding(chat_tokenizer):
    model = gemma_with_short_windows()
    assert [reply.ids for reply in write(model, chat_tokenizer)] == [slowly(model, prompt) for prompt in PROMPTS]


def test_a_reply_ends_with_the_first_end_token_and_its_text_is_without_it(chat_model, chat_tokenizer):
    endless = [slowly(chat_model, prompt) for prompt in PROMPTS]
    end = endless[3][4]
    replies = write(chat_model, chat_tokenizer, end_token_id=end)
    assert {reply.ended for reply in replies} == {True, False}
    for reply, ids in zip(replies, endless, strict=True):
        ended = end in ids
        words = ids[: ids.index(end)] if ended else ids
        assert reply.ids == ((*words, end) if ended else ids)
        assert (reply.ended, reply.length) == (ended, len(words))
        assert reply.text == chat_tokenizer.decode(list(words))


def test_an_end_token_at_the_very_limit_is_an_end(chat_model, chat_tokenizer):
    first = slowly(chat_model, PROMPTS[1], new=1)
    [reply] = write(chat_model, chat_tokenizer, PROMPTS[1:2], end_token_id=first[0], max_new_tokens=1)
    assert (reply.ids, reply.ended, reply.length, reply.text) == (first, True, 0, "")


def test_sampling_follows_the_softmax_at_its_temperature(chat_model, chat_tokenizer):
    prompt, times = PROMPTS[2], 3000
    logits = chat_model(torch.tensor([prompt])).logits[0, -1]
    for temperature in (1.0, 2.0):
        wanted = (logits / temperature).softmax(-1)
        drawn = [reply.ids[0] for reply in write(chat_model, chat_tokenizer, [prompt] * times, max_new_tokens=1, temperature=temperature)]
        found = torch.bincount(torch.tensor(drawn), minlength=320) / times
        assert ((found - wanted).abs() < 4 * (wanted * (1 - wanted) / times).sqrt() + 2 / times).all()
        assert wanted.max() < 0.9, "a certain token would prove nothing"


def test_sampling_is_that_of_the_slow_twin_however_it_is_batched(chat_model, chat_tokenizer):
    truth = [slowly(chat_model, prompt, noise=GumbelNoise(1.0, 7, [i], torch.device("cpu"))) for i, prompt in enumerate(PROMPTS)]
    for tokens_per_batch in (1, 80, 8192):
        replies = write(chat_model, chat_tokenizer, temperature=1.0, seed=7, tokens_per_batch=tokens_per_batch)
        assert [reply.ids for reply in replies] == truth
    assert [reply.ids for reply in write(chat_model, chat_tokenizer, temperature=1.0, seed=8)] != truth


def test_equal_prompts_get_draws_of_their_own(chat_model, chat_tokenizer):
    replies = write(chat_model, chat_tokenizer, [PROMPTS[1]] * 4, temperature=1.0)
    assert len({reply.ids for reply in replies}) == 4


def test_the_global_random_state_is_neither_read_nor_moved(chat_model, chat_tokenizer):
    torch.manual_seed(1)
    first = write(chat_model, chat_tokenizer, temperature=1.0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert write(chat_model, chat_tokenizer, temperature=1.0) == first
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 5.0, "top_k": 3},
        {"repetition_penalty": 1e6},
        {"max_length": 4, "eos_token_id": list(range(320))},
        {"suppress_tokens": list(range(3, 300))},
        {"num_beams": 3},
        {"min_new_tokens": NEW, "forced_eos_token_id": 5, "bad_words_ids": [[9]]},
    ],
    ids=lambda own: next(iter(own)),
)
def test_the_models_own_generation_settings_do_not_leak_in(chat_model, chat_tokenizer, own):
    truth = write(chat_model, chat_tokenizer)
    chat_model.generation_config = transformers.GenerationConfig(**own)
    assert write(chat_model, chat_tokenizer) == truth
    assert all(getattr(chat_model.generation_config, name) == value for name, value in own.items()), "they must be back afterwards"


def test_gradient_checkpointing_does_not_cost_the_cache(chat_model, chat_tokenizer):
    truth = write(chat_model, chat_tokenizer)
    chat_model.gradient_checkpointing_enable()
    chat_model.train()
    without_dropout(chat_model)
    flags = [module.training for module in chat_model.modules()]
    assert any(flags)
    assert write(chat_model, chat_tokenizer) == truth
    assert [module.training for module in chat_model.modules()] == flags


def test_a_model_that_attends_on_trees_generates_as_before_and_goes_back(chat_model, chat_tokenizer):
    truth = write(chat_model, chat_tokenizer)
    chat_model.config._attn_implementation = NODE_ATTENTION
    assert write(chat_model, chat_tokenizer) == truth
    assert chat_model.config._attn_implementation == NODE_ATTENTION


def test_the_adapter_counts_unless_it_is_off(chat_model, chat_tokenizer):
    base = write(copy.deepcopy(chat_model), chat_tokenizer)
    model = add_adapter(chat_model, AdapterSettings(rank=4), seed=0)
    assert write(model, chat_tokenizer) == base, "an untrained adapter changes nothing"
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    adapted = write(model, chat_tokenizer)
    assert [reply.ids for reply in adapted] == [slowly(model, prompt) for prompt in PROMPTS]
    assert adapted != base
    with as_reference(model):
        assert write(model, chat_tokenizer) == base


def test_a_batch_that_does_not_fit_into_memory_is_split(chat_model, chat_tokenizer, monkeypatch):
    truth = write(chat_model, chat_tokenizer)
    generate_all, sizes = chat_model.generate, []

    def small(input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return generate_all(input_ids=input_ids, **options)

    monkeypatch.setattr(chat_model, "generate", small)
    assert write(chat_model, chat_tokenizer) == truth
    assert sizes[0] == 7
    assert set(sizes[1:]) > {1, 2}

    monkeypatch.setattr(chat_model, "generate", lambda **options: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(ModelError, match="not enough memory for a reply to a prompt of 30 tokens"):
        write(chat_model, chat_tokenizer)


def test_batches_hold_similar_lengths_within_their_budget():
    prompts = [(0,) * length for length in (5, 90, 6, 80, 7, 200)]
    batches = _batches(prompts, 10, 200)
    assert batches == [[5], [1, 3], [4, 2, 0]]


def test_batches_are_handed_over_as_they_are_written(chat_model, chat_tokenizer):
    seen = []
    replies = write(chat_model, chat_tokenizer, tokens_per_batch=100, on_batch=seen.append)
    assert len(seen) > 1
    assert {i: reply for batch in seen for i, reply in batch.items()} == dict(enumerate(replies))
    assert write(chat_model, chat_tokenizer, []) == []


def test_a_draw_can_be_made_again_alone(chat_model, chat_tokenizer):
    drawn = write(chat_model, chat_tokenizer, temperature=1.0)
    assert write(chat_model, chat_tokenizer, PROMPTS[3:5], temperature=1.0, places=[3, 4]) == drawn[3:5]
    assert write(chat_model, chat_tokenizer, PROMPTS[3:5], temperature=1.0) != drawn[3:5]


def test_what_cannot_be_written_is_refused(chat_model, chat_tokenizer):
    with pytest.raises(ModelError, match=r"1024 positions, and a prompt of 1020 tokens with a reply of 12 .*Lower eval\.max_new_tokens"):
        write(chat_model, chat_tokenizer, [(5,) * 1020])
    with pytest.raises(ValueError, match="temperature is -1"):
        write(chat_model, chat_tokenizer, temperature=-1)
