"""Replies that were written once are read back, and what is damaged is written again."""

from likelier.generation.kept import KeptReplies
from likelier.generation.sample import Reply

PROMPTS = [(5, 6), (7,), (5, 6)]


def kept_in(folder, limit=4):
    return KeptReplies(folder, "some-model", end_token_id=2, max_new_tokens=limit)


def writer(asked):
    def write(prompts):
        asked.extend(prompts)
        return [Reply((*prompt, 2), "", True) if len(prompt) > 1 else Reply((9, 9, 9, 9), "", False) for prompt in prompts]

    return write


def test_what_was_written_is_kept_by_prompt_and_limit(tmp_path, chat_tokenizer):
    asked = []
    kept = kept_in(tmp_path)
    kept.fill(PROMPTS, writer(asked))
    assert asked == [(5, 6), (7,)], "each prompt once"
    again = kept_in(tmp_path)
    again.fill(PROMPTS, writer(asked))
    assert len(asked) == 2
    replies = again.replies(PROMPTS, chat_tokenizer)
    assert [(reply.ids, reply.ended) for reply in replies] == [((5, 6, 2), True), ((9, 9, 9, 9), False), ((5, 6, 2), True)]
    assert replies[1].text == chat_tokenizer.decode([9, 9, 9, 9])
    assert kept_in(tmp_path, limit=5).lacks(PROMPTS) == [(5, 6), (7,)], "with more room a reply may be another one"
    again.fill([(8, 8)], writer(asked))
    assert not kept_in(tmp_path).lacks([*PROMPTS, (8, 8)])


def test_a_damaged_file_is_set_aside_and_written_again(tmp_path):
    asked = []
    kept_in(tmp_path).fill(PROMPTS, writer(asked))
    [file] = (tmp_path / "some-model").glob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"5, 6, 2", b"5, 7, 2"))
    kept = kept_in(tmp_path)
    assert file.with_suffix(".damaged").is_file()
    kept.fill(PROMPTS, writer(asked))
    assert len(asked) == 4
    assert file.read_bytes() == whole
