"""Texts ⇄ ids by the Rust tokenizer itself are what the tokenizer's own calls give, one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.test_chat import CHATML, EOS, byte_level, sentencepiece
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from likelier.data.ids import SharedInts, TextIds, plain_backend

ODD = ["", " ", "\n\n", "Paris\n\n  is <|im_end|> nice</s>", "né 日本 🙂\u200d", "\x00", "a" * 300, "<|im_start|>user\nHello there"]


def of(tokenizer, texts):
    """(ids, texts of the ids), by calls of one text each."""
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return ids, [tokenizer.decode(list(each), skip_special_tokens=False, clean_up_tokenization_spaces=False) for each in ids]


def together(tokenizer, texts):
    text_ids = TextIds(tokenizer)
    ids = text_ids.ids(texts)
    return ids, text_ids.texts(ids)


BYTE_LEVEL, SENTENCEPIECE = byte_level(CHATML, adds_bos=True), sentencepiece()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
def test_odd_texts(tokenizer):
    assert plain_backend(tokenizer) is not None
    assert together(tokenizer, ODD) == of(tokenizer, ODD)
    assert together(tokenizer, []) == ([], [])


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_any_texts(texts):
    assert together(BYTE_LEVEL, texts) == of(BYTE_LEVEL, texts)
    assert together(SENTENCEPIECE, texts) == of(SENTENCEPIECE, texts)


def test_what_an_earlier_call_has_set_is_not_heeded():
    tokenizer = byte_level(CHATML, pad_token=EOS)
    expected = of(tokenizer, ODD)
    text_ids = TextIds(tokenizer)
    tokenizer(ODD, padding="max_length", truncation=True, max_length=3, split_special_tokens=True)
    assert text_ids.ids(ODD) == expected[0]


def test_a_tokenizer_that_splits_special_tokens_goes_on_doing_so():
    tokenizer = byte_level(CHATML, split_special_tokens=True)
    assert together(tokenizer, ODD) == of(tokenizer, ODD) != of(byte_level(CHATML), ODD)


def test_tokens_that_are_added_later_are_known():
    tokenizer = byte_level(CHATML)
    text_ids = TextIds(tokenizer)
    tokenizer.add_tokens([AddedToken("Paris", special=False)])
    [ids] = text_ids.ids(["Paris"])
    assert ids == (tokenizer.convert_tokens_to_ids("Paris"),)


def test_python_code_of_a_class_is_not_passed_by():
    class Shouting(PreTrainedTokenizerFast):
        def _decode(self, *args, **options):
            return super()._decode(*args, **options).upper()

    tokenizer = Shouting(tokenizer_object=byte_level().backend_tokenizer, eos_token=EOS)
    assert plain_backend(tokenizer) is None
    assert together(tokenizer, ODD) == of(tokenizer, ODD)
    assert "PARIS" in together(tokenizer, ODD)[1][3]


def test_equal_ids_are_one_object():
    """More than small ints, which Python shares anyway."""
    [first, second] = SharedInts().cut(np.array([40_000, 7, 40_000, 40_000], np.int32), [1, 3])
    assert (first, second) == ((40_000,), (7, 40_000, 40_000))
    assert first[0] is second[1] is second[2]
