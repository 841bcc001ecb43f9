"""Tokenising records, on small tokenizers and templates that behave as the well-known ones do. Numbers of pitfalls stand in the names."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from likelier.data import chat
from likelier.data.chat import Encoder, template_hash, tokenizer_hash
from likelier.errors import DataError, ModelError
from likelier.records import Labelled, Message, Pair

BOS, EOS = "<s>", "</s>"
SPECIAL = [BOS, EOS, "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|header|>", "<|eot|>", "<|eom|>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|header|>{{ m.role }}<|header|>\n\n"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}<|eom|>{% else %}{{ m.content | trim }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|header|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA2 = (  # no generation header, and spaces around the reply
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
QWEN3 = (  # an earlier turn loses its reasoning, the last one always has a reasoning block, if an empty one
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set reasoning = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}"
    "{% if loop.last %}<think>\n{{ reasoning }}\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NOT_THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")  # only generation sees the block
DEEPSEEK_R1 = (  # generation begins inside the reasoning, finished turns have none
    "{{ bos_token }}{% for m in messages %}{{ '<|header|>' if m.role == 'assistant' else '<|im_start|>' }}{{ m.content.split('</think>')[-1] }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|header|><think>\n{% endif %}"
)
ALPACA = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"
PHI3 = (  # a token after the one that ends the turn
    "{% for m in messages %}<|header|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
END_OF = {CHATML: "<|im_end|>", LLAMA3: "<|eot|>", GEMMA: "<end_of_turn>", LLAMA2: EOS, QWEN3: "<|im_end|>", ALPACA: EOS, PHI3: "<|eot|>"}
TEMPLATES = pytest.mark.parametrize("template", END_OF, ids=["chatml", "llama3", "gemma", "llama2", "qwen3", "alpaca", "phi3"])


def byte_level(template=None, *, adds_bos=False, bos=BOS, **options):
    """BPE whose merges run over any boundary: newline pairs, and spaces between words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    corpus = ["\n\nHello there", "Q: Paris is nice", "assistant\n\nParis was nice"] * 8
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False))
    return wrapped(backend, template, adds_bos=adds_bos, bos=bos, **options)


def sentencepiece(template=None, *, corpus=("Hello there", "Q: Paris is nice")):
    """Spaces written as ▁, one put before the first word of any text and left out when it is decoded (Llama 2, Mistral)."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    options = {"special_tokens": ["<unk>", *SPECIAL], "initial_alphabet": list("#\nabcdefghijklmnopqrstuvwxyz:"), "show_progress": False}
    backend.train_from_iterator([*corpus] * 8, trainers.BpeTrainer(vocab_size=120, **options))
    return wrapped(backend, template, adds_bos=True)


def wrapped(backend, template, *, adds_bos, bos=BOS, **options):
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=EOS, **options)
    tokenizer.chat_template = template
    return tokenizer


def text_of(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def user(content="Hello there"):
    return (Message("user", content),)


def reply(content):
    return (Message("assistant", content),)


def pair(chosen="Paris is nice", rejected="Paris was nice", prompt=None, **fields):
    return Pair(user() if prompt is None else prompt, reply(chosen), reply(rejected), **{"id": "p1", **fields})


def encode(tokenizer, *pairs, max_length=10_000, chat_template="own"):
    return Encoder(tokenizer, chat_template=chat_template, max_length=max_length).encode(pairs)


def rendered(tokenizer, messages):
    return tokenizer.apply_chat_template([m.as_dict() for m in messages], tokenize=False)


# The boundary


def test_pitfall_1_no_token_merges_over_the_boundary():
    tokenizer = byte_level(CHATML)
    record = pair(chosen="\nHello there", rejected="Paris")
    full = rendered(tokenizer, record.prompt + record.chosen).removesuffix("\n")
    jointly = tuple(tokenizer(full, add_special_tokens=False)["input_ids"])

    encoded = encode(tokenizer, record)
    [example] = encoded.examples

    assert jointly[: len(example.prompt_ids)] != example.prompt_ids, "the header's newline and the reply's must merge when tokenised together"
    assert text_of(tokenizer, jointly[len(example.prompt_ids) :]) != "\nHello there<|im_end|>", "cutting the joint ids must lose text"
    assert text_of(tokenizer, example.prompt_ids).endswith("<|im_start|>assistant\n")
    assert text_of(tokenizer, example.chosen_ids) == "\nHello there<|im_end|>"
    assert text_of(tokenizer, example.prompt_ids + example.chosen_ids) == full
    assert encoded.boundary_mismatches == []


def test_pitfall_1_plain_text_keeps_a_leading_space_in_the_response():
    tokenizer = byte_level()
    jointly = tokenizer("Q: Paris", add_special_tokens=False)["input_ids"]
    example = Encoder(tokenizer, chat_template="none", max_length=100).encode_one(pair(" Paris", " Hello", prompt=user("Q:")))
    assert tuple(jointly[: len(example.prompt_ids)]) != example.prompt_ids
    assert [text_of(tokenizer, ids) for ids in (example.prompt_ids, example.chosen_ids, example.rejected_ids)] == ["Q:", " Paris</s>", " Hello</s>"]


def test_pitfall_1_tokens_that_both_replies_begin_with_stay_in_both():
    tokenizer = byte_level(CHATML)
    [example] = encode(tokenizer, pair("Zoos are", "Zoos were")).examples
    assert example.chosen_ids[0] == example.rejected_ids[0]
    assert text_of(tokenizer, example.chosen_ids) == "Zoos are<|im_end|>"
    assert text_of(tokenizer, example.rejected_ids) == "Zoos were<|im_end|>"


@TEMPLATES
def test_pitfall_1_prompt_and_response_together_are_the_rendering(template):
    tokenizer = byte_level(template)
    record = pair(prompt=user("Hello") + reply("Hi.") + user("Where to?"))
    encoded = encode(tokenizer, record)
    [example] = encoded.examples
    for side, ids in ((record.chosen, example.chosen_ids), (record.rejected, example.rejected_ids)):
        whole = text_of(tokenizer, example.prompt_ids + ids)
        end = END_OF[template]
        full = rendered(tokenizer, record.prompt + side)
        assert whole == (full.rstrip() + EOS if template == ALPACA else full[: full.rindex(end) + len(end)])
    assert encoded.boundary_mismatches == []


@settings(max_examples=60, deadline=None)
@given(content=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_pitfall_1_any_reply_is_spelled_in_full(content):
    encoded = BYTE_LEVEL_CHATML.encode([pair(chosen=content, rejected=content + "!")])
    [example] = encoded.examples
    assert text_of(BYTE_LEVEL_CHATML_TOKENIZER, example.chosen_ids) == content + "<|im_end|>"
    assert example.chosen_ids.count(BYTE_LEVEL_CHATML.end_token_id) == 1
    assert encoded.boundary_mismatches == []


BYTE_LEVEL_CHATML_TOKENIZER = byte_level(CHATML)
BYTE_LEVEL_CHATML = Encoder(BYTE_LEVEL_CHATML_TOKENIZER, max_length=10_000)


def test_pitfall_1_replies_that_the_tokenizer_cannot_spell_are_kept_and_named():
    backend = byte_level(CHATML).backend_tokenizer
    backend.normalizer = normalizers.NFKC()
    tokenizer = wrapped(backend, CHATML, adds_bos=False)
    encoded = encode(tokenizer, pair(id="plain"), pair(chosen="ﬁne", id="ligature"), pair(rejected="①", id="circle"))
    assert encoded.boundary_mismatches == ["ligature", "circle"]
    assert [example.id for example in encoded.examples] == ["plain", "ligature", "circle"]


def test_pitfall_1_sentencepiece_space_before_the_response_is_not_lost():
    """Decoded alone the response has no space; decoded behind its prompt it does, so this is not a mismatch."""
    tokenizer = sentencepiece()
    encoded = encode(tokenizer, pair(" Paris is", " Hello", prompt=user("Q:")), chat_template="none")
    [example] = encoded.examples
    assert text_of(tokenizer, example.chosen_ids) == "Paris is</s>"
    assert text_of(tokenizer, example.prompt_ids + example.chosen_ids) == "<s> Q: Paris is</s>"
    assert encoded.boundary_mismatches == []


def test_pitfall_1_sentencepiece_does_not_put_a_space_where_the_template_has_none():
    tokenizer = sentencepiece(ALPACA)
    alone = tokenizer("Hello</s>", add_special_tokens=False)["input_ids"]
    encoded = encode(tokenizer, pair("Hello", "Paris"))
    [example] = encoded.examples
    assert text_of(tokenizer, example.prompt_ids + tuple(alone)).endswith("### assistant:\n Hello</s>"), "alone, the reply gets a space"
    assert text_of(tokenizer, example.prompt_ids + example.chosen_ids).endswith("### assistant:\nHello</s>")
    assert encoded.boundary_mismatches == []


def test_pitfall_1_a_space_that_cannot_be_kept_out_is_named():
    """Here the header's newline and the reply do merge, so tokenising them together is no way out."""
    tokenizer = sentencepiece(ALPACA, corpus=["assistant:\nHello"])
    encoded = encode(tokenizer, pair("Hello", "Paris", id="merges"))
    [example] = encoded.examples
    assert text_of(tokenizer, example.prompt_ids + example.chosen_ids).endswith("### assistant:\n Hello</s>")
    assert encoded.boundary_mismatches == ["merges"]


# The end token


@TEMPLATES
def test_pitfall_2_a_response_ends_with_the_templates_end_token_once(template):
    tokenizer = byte_level(template)
    encoder = Encoder(tokenizer, max_length=1000)
    example = encoder.encode_one(pair())
    assert encoder.end_token_id == tokenizer.convert_tokens_to_ids(END_OF[template])
    for ids in (example.chosen_ids, example.rejected_ids):
        assert ids[-1] == encoder.end_token_id
        assert Counter(ids)[encoder.end_token_id] == 1


@TEMPLATES
@pytest.mark.parametrize("after", ["", "\n", "{end}"])
def test_pitfall_2_an_end_token_in_the_data_is_not_doubled(template, after):
    tokenizer = byte_level(template)
    encoder = Encoder(tokenizer, max_length=1000)
    end = END_OF[template]
    clean, closed = encoder.encode_one(pair("Paris is", "no")), encoder.encode_one(pair(f"Paris is{end}{after.format(end=end)}", "no"))
    assert clean.chosen_ids == closed.chosen_ids


def test_pitfall_2_plain_text_ends_with_eos_once():
    tokenizer = byte_level()
    example = Encoder(tokenizer, chat_template="none", max_length=100).encode_one(pair("Paris", "Hello</s>"))
    assert example.chosen_ids[-1] == tokenizer.eos_token_id
    assert text_of(tokenizer, example.rejected_ids) == "Hello</s>"


def test_pitfall_2_the_end_token_need_not_be_marked_special():
    tokenizer = byte_level(CHATML.replace("<|im_end|>", "[END]"))
    tokenizer.add_tokens([AddedToken("[END]", special=False), AddedToken("\n", special=False)])
    [example] = encode(tokenizer, pair()).examples
    assert example.chosen_ids[-1] == tokenizer.convert_tokens_to_ids("[END]")


def test_pitfall_2_a_tag_before_the_end_token_is_scored_with_it():
    tokenizer = byte_level(CHATML.replace("<|im_end|>", "</answer><|im_end|>"))
    tokenizer.add_tokens([AddedToken("</answer>", special=False), AddedToken("<|im_end", special=True)])
    encoder = Encoder(tokenizer, max_length=100)
    assert text_of(tokenizer, [encoder.end_token_id]) == "<|im_end|>"
    assert text_of(tokenizer, encoder.encode_one(pair()).chosen_ids) == "Paris is nice</answer><|im_end|>"


def test_pitfall_2_a_blank_added_token_does_not_end_a_turn():
    tokenizer = byte_level(ALPACA)
    tokenizer.add_tokens([AddedToken("\n\n", special=False)])
    [example] = encode(tokenizer, pair()).examples
    assert text_of(tokenizer, example.chosen_ids) == "Paris is nice</s>"


def test_pitfall_2_an_end_token_that_is_read_as_text_is_refused():
    with pytest.raises(ModelError, match=r"pair p1, chosen: .*'<\|im_end\|>' as one token"):
        encode(byte_level(CHATML, split_special_tokens=True), pair())


def test_pitfall_2_a_tokenizer_without_any_end_token_is_refused():
    tokenizer = byte_level(ALPACA)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos_token"):
        Encoder(tokenizer, max_length=100)


# Length


def test_pitfall_3_a_pair_that_does_not_fit_is_dropped_and_named_not_cut():
    tokenizer = byte_level(CHATML)
    short, long = pair(id="short"), pair(rejected="far too long " * 20, id="long")
    [exact] = encode(tokenizer, short).examples
    encoded = encode(tokenizer, short, long, max_length=len(exact))
    assert encoded.examples == [exact]
    [dropped] = encoded.dropped
    assert dropped.id == "long"
    length = len(encode(tokenizer, long).examples[0])
    assert f"{length} tokens" in dropped.reason
    assert f"data.max_length is {len(exact)}" in dropped.reason
    assert encode(tokenizer, short, max_length=len(exact) - 1).examples == []


def test_pitfall_3_a_single_record_that_does_not_fit_is_an_error():
    encoder = Encoder(byte_level(CHATML), max_length=5)
    with pytest.raises(DataError, match=r"pair p1 .*data\.max_length is 5"):
        encoder.encode_one(pair())
    with pytest.raises(DataError, match=r"record up7 .*data\.max_length is 5"):
        encoder.encode_one(Labelled(user(), reply("Paris"), True, id="up7"))


# The beginning of a sequence


@pytest.mark.parametrize("template", [LLAMA3, LLAMA2, GEMMA], ids=["llama3", "llama2", "gemma"])
def test_pitfall_4_bos_in_the_template_is_not_doubled(template):
    tokenizer = byte_level(template, adds_bos=True)
    doubled = tokenizer(rendered(tokenizer, user()))["input_ids"]
    assert doubled[:2] == [tokenizer.bos_token_id] * 2, "this tokenizer must add one by itself"
    [example] = encode(tokenizer, pair()).examples
    assert example.prompt_ids[0] == tokenizer.bos_token_id
    assert (example.prompt_ids + example.chosen_ids).count(tokenizer.bos_token_id) == 1


def test_pitfall_4_a_template_without_bos_gets_none_as_in_transformers():
    tokenizer = byte_level(CHATML, adds_bos=True)
    expected = tokenizer.apply_chat_template([m.as_dict() for m in user()], add_generation_prompt=True, return_dict=False)
    assert list(Encoder(tokenizer, max_length=100).encode_prompt(user())) == expected
    assert tokenizer.bos_token_id not in expected


@pytest.mark.parametrize("written", ["Paris", "<s>Paris"])
def test_pitfall_4_plain_text_gets_bos_once_where_the_tokenizer_adds_it(written):
    tokenizer = byte_level(adds_bos=True)
    [example] = encode(tokenizer, pair(prompt=user(written)), chat_template="none").examples
    assert text_of(tokenizer, example.prompt_ids) == "<s>Paris"
    assert tokenizer.bos_token_id not in example.chosen_ids


def test_pitfall_4_plain_text_gets_no_bos_where_the_tokenizer_does_not_add_it():
    tokenizer = byte_level()
    assert text_of(tokenizer, Encoder(tokenizer, chat_template="none", max_length=100).encode_prompt(user("Paris"))) == "Paris"


@pytest.mark.parametrize("prompt", [(), user("")], ids=["no message", "no text"])
def test_an_empty_plain_prompt_is_bos_or_refused(prompt):
    encoded = encode(sentencepiece(), pair(prompt=prompt), chat_template="none")
    assert encoded.examples[0].prompt_ids == (sentencepiece().bos_token_id,)
    assert encoded.boundary_mismatches == [], "nothing stands before the response"
    with pytest.raises(ModelError, match="bos_token"):
        encode(byte_level(bos=None), pair(prompt=prompt), chat_template="none")


# Replies that say nothing


def test_pitfall_16_replies_that_become_the_same_tokens_are_dropped():
    """LLAMA3 trims the content, as the original does."""
    encoded = encode(byte_level(LLAMA3), pair("Paris", "Paris \n", id="tie"), pair(id="real"))
    assert [example.id for example in encoded.examples] == ["real"]
    assert [(dropped.id, dropped.reason) for dropped in encoded.dropped] == [("tie", "its two replies are the same tokens")]
    with pytest.raises(DataError, match=r"pair tie .*same tokens"):
        Encoder(byte_level(LLAMA3), max_length=100).encode_one(pair("Paris", "Paris ", id="tie"))


@pytest.mark.parametrize("template", [CHATML, QWEN3, None], ids=["chatml", "qwen3", "plain"])
@pytest.mark.parametrize("nothing", ["", " \n", "{end}"])
def test_pitfall_17_an_empty_reply_is_refused(template, nothing):
    with pytest.raises(DataError, match="pair p1, rejected: the reply is empty"):
        encode(byte_level(template), pair(rejected=nothing.format(end=END_OF.get(template, EOS))), chat_template="own" if template else "none")
    with pytest.raises(DataError, match="the reply is empty"):
        Encoder(byte_level(CHATML), max_length=100).encode_one(Labelled(user(), (), False))


def test_pitfall_17_a_reply_that_the_template_leaves_out_is_refused():
    call = (Message("assistant", "", {"tool_calls": [{"name": "find"}]}),)
    with pytest.raises(DataError, match="pair p1, rejected: the chat template leaves the whole reply out"):
        encode(byte_level(CHATML), Pair(user(), reply("Paris"), call, id="p1"))


# Templates


def test_template_that_trims_gives_the_text_that_it_writes():
    tokenizer = byte_level(GEMMA)
    [example] = encode(tokenizer, pair(" Paris \n", "Hello")).examples
    assert text_of(tokenizer, example.chosen_ids) == "Paris<end_of_turn>"


def test_template_that_pads_the_reply_keeps_the_padding():
    tokenizer = byte_level(LLAMA2)
    [example] = encode(tokenizer, pair("Paris", "Hello")).examples
    assert text_of(tokenizer, example.prompt_ids + example.chosen_ids) == "<s>[INST] Hello there [/INST] Paris </s>"


@pytest.mark.parametrize(
    "prompt, reason",
    [((Message("system", "Be kind."), *user()), "System role not supported"), (user() + user(), "roles must alternate")],
)
def test_template_that_refuses_the_roles_is_an_error_that_names_the_pair(prompt, reason):
    with pytest.raises(ModelError, match=f"pair p1, chosen: .*{reason}"):
        encode(byte_level(GEMMA), pair(prompt=prompt))


def test_thinking_template_writes_an_empty_block_before_a_reply_without_reasoning():
    tokenizer = byte_level(QWEN3)
    [example] = encode(tokenizer, pair("Paris", "<think>\nHm.\n</think>\n\nHello")).examples
    assert text_of(tokenizer, example.prompt_ids).endswith("<|im_start|>assistant\n")
    assert text_of(tokenizer, example.chosen_ids) == "<think>\n\n</think>\n\nParis<|im_end|>"
    assert text_of(tokenizer, example.rejected_ids) == "<think>\nHm.\n</think>\n\nHello<|im_end|>"


def test_thinking_template_drops_the_reasoning_of_earlier_turns_only():
    tokenizer = byte_level(QWEN3)
    before = user() + reply("<think>\nold\n</think>\n\nHi.") + user("And?")
    [example] = encode(tokenizer, pair("<think>\nnew\n</think>\n\nParis", "Hello", prompt=before)).examples
    assert "old" not in text_of(tokenizer, example.prompt_ids)
    assert "new" in text_of(tokenizer, example.chosen_ids)


def test_thinking_block_that_only_the_generation_header_has_stays_in_the_prompt():
    tokenizer = byte_level(NOT_THINKING)
    encoded = encode(tokenizer, pair("Paris", "Hello"))
    [example] = encoded.examples
    assert text_of(tokenizer, example.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert text_of(tokenizer, example.chosen_ids) == "Paris<|im_end|>"
    assert encoded.boundary_mismatches == []


@pytest.mark.parametrize("given", ["<think>\nHm.\n</think>\n\nParis", "<think>Hm.\n</think>\n\nParis", "Hm.\n</think>\n\nParis"])
def test_thinking_block_that_the_generation_header_leaves_open_is_followed_by_the_reasoning(given):
    tokenizer = byte_level(DEEPSEEK_R1)
    [example] = encode(tokenizer, pair(given, "No.\n</think>\n\nHello")).examples
    assert text_of(tokenizer, example.prompt_ids).endswith("<|header|><think>\n")
    assert text_of(tokenizer, example.chosen_ids) == "Hm.\n</think>\n\nParis</s>"


@pytest.mark.parametrize("messages", [reply("Paris"), reply("Hm.\n</think>\n\nParis") * 2], ids=["no reasoning", "two messages"])
def test_thinking_block_left_open_refuses_a_reply_that_does_not_close_it(messages):
    with pytest.raises(DataError, match=r"pair p1, chosen: .*<think>.*reasoning"):
        encode(byte_level(DEEPSEEK_R1), Pair(user(), messages, reply("No.\n</think>\n\nHello"), id="p1"))


def test_template_that_opens_given_replies_differently_is_refused():
    template = CHATML.replace("assistant\n{% endif %}", "bot\n{% endif %}")
    with pytest.raises(ModelError, match=r"pair p1, chosen: after '.*<\|im_start\|>' .* writes 'bot.* but 'assistant.*Jinja file"):
        encode(byte_level(template), pair())
    depends_on_the_reply = CHATML.replace("<|im_start|>{{ m.role }}", "{{ '<|header|>' if 'Paris' in m.content else '<|im_start|>' }}{{ m.role }}")
    with pytest.raises(ModelError, match=r"pair p1, chosen: .*Jinja file"):
        encode(byte_level(depends_on_the_reply), pair())


@pytest.mark.parametrize("template", ["{{ messages[-1].role }}", CHATML + CHATML], ids=["never", "twice"])
def test_template_that_does_not_write_the_reply_once_is_refused(template):
    with pytest.raises(ModelError, match="not once"):
        Encoder(byte_level(template), max_length=100)


def test_template_that_ends_a_turn_without_any_token_is_refused():
    template = "{% for m in messages %}{{ m.content }}{% if not m.tool_calls %}<|eot|>{% endif %}{% endfor %}"
    call = (Message("assistant", "look it up", {"tool_calls": [{"name": "find"}]}),)
    with pytest.raises(ModelError, match=r"pair p1, rejected: .*look it up', not a special token"):
        encode(byte_level(template), Pair(user(), reply("Paris"), call, id="p1"))


def test_tool_calls_and_tools_reach_the_template():
    tokenizer = byte_level("{% if tools %}{{ tools | tojson }}{% endif %}" + LLAMA3)
    tools = [{"type": "function", "function": {"name": "find"}}]
    call = Message("assistant", "", {"tool_calls": [{"name": "find"}]})
    record = Pair(user(), (call, Message("tool", "Paris"), *reply("It is Paris.")), (call,), id="p1", meta={"tools": tools})
    encoder = Encoder(tokenizer, max_length=1000)
    example = encoder.encode_one(record)
    header = "<|header|>assistant<|header|>\n\n"
    assert text_of(tokenizer, example.prompt_ids).startswith('[{"type": "function"')
    assert example.prompt_ids == encoder.encode_prompt(record.prompt, tools) != encoder.encode_prompt(record.prompt)
    assert text_of(tokenizer, example.chosen_ids) == (
        f'[{{"name": "find"}}]<|eom|><|header|>tool<|header|>\n\nParis<|eot|>{header}It is Paris.<|eot|>'
    )
    assert text_of(tokenizer, example.rejected_ids) == '[{"name": "find"}]<|eom|>', "a turn may end with another token than usual"


def test_a_template_renders_a_reply_to_nothing():
    tokenizer = byte_level(QWEN3)
    encoder = Encoder(tokenizer, max_length=100)
    example = encoder.encode_one(pair("Paris", "Hello", prompt=()))
    assert text_of(tokenizer, example.prompt_ids) == "<|im_start|>assistant\n"
    assert text_of(tokenizer, example.chosen_ids) == "<think>\n\n</think>\n\nParis<|im_end|>"


def test_explicit_template_takes_the_place_of_the_tokenizers(tmp_path):
    path = tmp_path / "chatml.jinja"
    path.write_text(CHATML)
    ours = encode(byte_level(LLAMA3), pair(), chat_template=str(path))
    assert ours == encode(byte_level(CHATML), pair())
    assert ours != encode(byte_level(LLAMA3), pair())


def test_templates_that_cannot_be_used_say_what_to_do(tmp_path):
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}")
    with pytest.raises(ModelError, match=r"model\.chat_template to none"):
        Encoder(byte_level(), max_length=100)
    with pytest.raises(ModelError, match=r"model\.chat_template is own, none or a Jinja file, and 'mine\.jinja'"):
        Encoder(byte_level(), chat_template="mine.jinja", max_length=100)
    with pytest.raises(ModelError, match=r"model\.chat_template: the chat template cannot render"):
        Encoder(byte_level(), chat_template=str(broken), max_length=100)


def test_plain_text_refuses_a_conversation():
    with pytest.raises(DataError, match=r"pair p1, .*3 messages.*model\.chat_template"):
        encode(byte_level(), pair(prompt=user() + reply("Hi.") + user()), chat_template="none")


# Many records


def test_records_encoded_together_and_one_by_one_are_the_same(monkeypatch):
    monkeypatch.setattr(chat, "CHUNK", 2)
    encoder = Encoder(byte_level(CHATML), max_length=1000)
    pairs = [pair(f"reply {i}", prompt=user(f"prompt {i % 3}"), id=str(i)) for i in range(7)]
    assert encoder.encode(pairs).examples == [encoder.encode_one(one) for one in pairs]


def test_a_shared_prompt_is_rendered_once(monkeypatch):
    tokenizer = byte_level(CHATML)
    encoder = Encoder(tokenizer, max_length=1000)
    render, rendered_prompts = tokenizer.apply_chat_template, []

    def counting(messages, **options):
        if options["add_generation_prompt"]:
            rendered_prompts.append(messages[0]["content"])
        return render(messages, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counting)
    monkeypatch.setattr(chat, "CHUNK", 4)
    encoder.encode([pair(f"reply {i}", prompt=user(f"prompt {i % 2}")) for i in range(6)])
    assert rendered_prompts == ["prompt 0", "prompt 1"]


def test_records_without_an_id_are_named_by_their_number():
    encoded = encode(byte_level(CHATML), pair(id=""), pair("Paris", "Paris", id=""))
    assert [dropped.id for dropped in encoded.dropped] == ["number 2"]


def test_a_labelled_record_is_encoded_like_a_side_of_a_pair():
    encoder = Encoder(byte_level(CHATML), max_length=1000)
    example = encoder.encode_one(pair())
    labelled = encoder.encode_one(Labelled(user(), reply("Paris is nice"), False, id="down"))
    assert (labelled.prompt_ids, labelled.completion_ids, labelled.label, labelled.id) == (example.prompt_ids, example.chosen_ids, False, "down")


# Hashes


def test_template_hash_follows_the_text_in_use(tmp_path):
    path = tmp_path / "gemma.jinja"
    path.write_text(GEMMA)
    hashes = [template_hash(byte_level(CHATML)), template_hash(byte_level(GEMMA)), template_hash(byte_level(CHATML), "none")]
    assert len(set(hashes)) == 3
    assert template_hash(byte_level(CHATML), str(path)) == hashes[1]
    assert template_hash(byte_level({"default": CHATML})) not in hashes
    with pytest.raises(ModelError, match="no chat template"):
        template_hash(byte_level())


def test_tokenizer_hash_changes_with_the_vocabulary_and_not_with_use():
    tokenizer = byte_level(CHATML, pad_token=EOS)
    before = tokenizer_hash(tokenizer)
    tokenizer(["Paris", "Paris is nice"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(tokenizer) == before == tokenizer_hash(byte_level(CHATML, pad_token=EOS))
    tokenizer.add_tokens(["[NEW]"])
    assert tokenizer_hash(tokenizer) != before


class InPython:
    """A tokenizer without a serialised backend."""

    def __init__(self, **vocabulary):
        self.get_vocab = lambda: vocabulary


def test_tokenizer_hash_without_a_backend_is_that_of_the_vocabulary():
    assert tokenizer_hash(InPython(a=0, b=1)) == tokenizer_hash(InPython(b=1, a=0)) != tokenizer_hash(InPython(a=1, b=0))
