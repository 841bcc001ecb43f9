"""A tokenizer read from its files counts what transformers' own does, on the tokenizers and templates of test_chat.py."""

import pickle
import subprocess
import sys

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tests.data.test_chat import ALPACA, CHATML, LLAMA3, TEMPLATES, byte_level, pair, sentencepiece, text_of

from likelier.data.chat import Encoder
from likelier.data.tokenizer_files import FileTokenizer, TokenCounter
from likelier.errors import DataError, ModelError
from likelier.model_files import tokenizer_folder
from likelier.records import Message

PAIRS = [
    pair(),
    pair("Paris\n\nwas nice", "  Q: there", prompt=(Message("user", "Hello"), Message("assistant", "there"), Message("user", "Q:"))),
    pair("Hello </s>", "<|im_end|>"),
]


def both(tokenizer, folder, chat_template="own"):
    tokenizer.save_pretrained(folder)
    theirs = Encoder(tokenizer, chat_template=chat_template, max_length=10_000).encode(PAIRS[:2]).examples
    ours = Encoder(FileTokenizer(folder), chat_template=chat_template, max_length=10_000).encode(PAIRS[:2]).examples
    return theirs, ours


@TEMPLATES
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_same_ids(make, template, tmp_path):
    theirs, ours = both(make(template), tmp_path)
    assert ours == theirs


def test_the_same_ids_without_a_template(tmp_path):
    pairs = [pair()]
    tokenizer = byte_level(adds_bos=True)
    tokenizer.save_pretrained(tmp_path)
    examples = [Encoder(t, chat_template="none", max_length=99).encode(pairs).examples for t in (tokenizer, FileTokenizer(tmp_path))]
    assert examples[0] == examples[1]
    assert examples[0][0].prompt_ids[0] == tokenizer.bos_token_id


def test_tokens_are_counted_as_they_are_trained_on(tmp_path):
    tokenizer = byte_level(LLAMA3)
    tokenizer.save_pretrained(tmp_path)
    examples = Encoder(tokenizer, max_length=10_000).encode(PAIRS).examples
    counted = TokenCounter(tmp_path)(PAIRS)
    assert counted.tolist() == [[len(e.prompt_ids), len(e.chosen_ids), len(e.rejected_ids)] for e in examples]
    assert TokenCounter(tmp_path)([]).shape == (0, 3)


def test_a_template_is_compiled_once(tmp_path, monkeypatch):
    byte_level(CHATML).save_pretrained(tmp_path)
    compiled, compile_template = [], ImmutableSandboxedEnvironment.from_string
    monkeypatch.setattr(ImmutableSandboxedEnvironment, "from_string", lambda self, text: compiled.append(text) or compile_template(self, text))
    Encoder(FileTokenizer(tmp_path), max_length=10_000).encode(PAIRS[:2])
    assert compiled == [CHATML]


def test_a_counter_travels_to_other_processes(tmp_path):
    byte_level(CHATML).save_pretrained(tmp_path)
    counter = TokenCounter(tmp_path)
    before = counter(PAIRS[:2])
    assert pickle.loads(pickle.dumps(counter))(PAIRS[:2]).tolist() == before.tolist()


def test_a_pair_that_the_template_does_not_take_counts_nothing(tmp_path):
    byte_level(CHATML).save_pretrained(tmp_path)
    counted = TokenCounter(tmp_path)(PAIRS)  # the last one's rejected side is the end token alone
    assert counted[2].tolist() == [0, 0, 0]
    assert counted[:2].all()
    with pytest.raises(DataError, match="empty"):
        TokenCounter(tmp_path)(PAIRS[2:])


def test_a_pair_that_never_fits_is_counted_all_the_same(tmp_path):
    byte_level(ALPACA).save_pretrained(tmp_path)
    [[_, chosen, rejected]] = TokenCounter(tmp_path)([pair("nice " * 5000, "nice")])
    assert chosen > 5000
    assert rejected < 20


def test_a_folder_without_a_fast_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        FileTokenizer(tmp_path)


def test_folders_are_found_by_the_names_of_models(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tokenizer_folder(str(tmp_path)) == tmp_path
    assert tokenizer_folder("~/x") == tmp_path / "x"
    with pytest.raises(ModelError, match="no such GGUF"):
        tokenizer_folder(str(tmp_path / "none.gguf"))


def test_counting_needs_no_torch(tmp_path):
    byte_level(CHATML).save_pretrained(tmp_path)
    code = (
        "import sys; from pathlib import Path; from likelier.data.tokenizer_files import TokenCounter; from likelier.records import Message, Pair;"
        f"m = lambda r: (Message(r, 'Hello'),); print(TokenCounter(Path({str(tmp_path)!r}))([Pair(m('user'), m('assistant'), m('assistant'))]));"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_template_that_asks_for_the_date_is_told_the_same_day_by_both(tmp_path):
    tokenizer = byte_level("\n{% if strftime_now is defined %}{{ strftime_now(format='%d %b %Y, %A, %-d %e %F') + '.' }}{% endif %}" + CHATML)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, FileTokenizer(tmp_path)):
        ids = Encoder(each, max_length=10_000).encode_prompt(PAIRS[0].prompt)
        assert text_of(tokenizer, ids).startswith("\n26 Jul 2024, Friday, 26 26 2024-07-26."), (
            "or a run that is resumed tomorrow goes on with other prompts"
        )
