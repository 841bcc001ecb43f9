"""Replies that were written once are read back, and what is damaged is written again."""

from likelier.generation.kept import KeptReplies
from likelier.generation.sample import Reply

REQUESTS = [((5, 6), 4), ((7,), 4), ((5, 6), 4)]


def kept_in(folder):
    return KeptReplies(folder, "some-model", end_token_id=2)


def writer(asked):
    def write(requests):
        asked.extend(requests)
        return {(prompt, limit): Reply((*prompt, 2), "", True) if len(prompt) > 1 else Reply((9,) * limit, "", False) for prompt, limit in requests}

    return write


def test_what_was_written_is_kept_by_prompt_and_limit(tmp_path, chat_tokenizer):
    asked = []
    kept = kept_in(tmp_path)
    kept.fill(REQUESTS, writer(asked))
    assert asked == REQUESTS[:2], "each once"
    again = kept_in(tmp_path)
    again.fill(REQUESTS, writer(asked))
    assert len(asked) == 2
    replies = [again.replies(REQUESTS, chat_tokenizer)[request] for request in REQUESTS]
    assert [(reply.ids, reply.ended) for reply in replies] == [((5, 6, 2), True), ((9, 9, 9, 9), False), ((5, 6, 2), True)]
    assert replies[1].text == chat_tokenizer.decode([9, 9, 9, 9])
    assert kept_in(tmp_path).lacks([((5, 6), 5)]) == [((5, 6), 5)], "with more room a reply may be another one"
    again.fill([((8, 8), 4)], writer(asked))
    assert not kept_in(tmp_path).lacks([*REQUESTS, ((8, 8), 4)])


def test_a_damaged_file_is_set_aside_and_written_again(tmp_path):
    asked = []
    kept_in(tmp_path).fill(REQUESTS, writer(asked))
    [file] = (tmp_path / "some-model").glob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"5, 6, 2", b"5, 7, 2"))
    kept = kept_in(tmp_path)
    assert file.with_suffix(".damaged").is_file()
    assert kept.damaged == [file]
    kept.fill(REQUESTS, writer(asked))
    assert len(asked) == 4
    assert file.read_bytes() == whole
