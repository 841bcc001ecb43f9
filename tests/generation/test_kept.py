"""Replies that were written once are read back, and what is damaged is written again."""

import pytest

from likelier.generation.kept import KeptReplies
from likelier.generation.requests import Request
from likelier.generation.sample import Reply

REQUESTS = [Request((5, 6), 4), Request((7,), 4), Request((5, 6), 4)]


def kept_in(folder):
    return KeptReplies(folder, "some-model", end_token_id=2)


def writer(asked):
    def write(requests, keep):
        asked.extend(requests)
        for request in requests:
            prompt = request.prompt
            keep({request: Reply((*prompt, 2), "", True) if len(prompt) > 1 else Reply((9,) * request.limit, "", False)})

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
    longer = Request((5, 6), 5)
    assert kept_in(tmp_path).lacks([longer]) == [longer], "with more room a reply may be another one"
    again.fill([Request((8, 8), 4)], writer(asked))
    assert not kept_in(tmp_path).lacks([*REQUESTS, Request((8, 8), 4)])


def test_a_draw_is_kept_by_temperature_seed_and_place(tmp_path):
    drawn = Request((5, 6), 4, 1.0, 0, 0)
    kept_in(tmp_path).fill([drawn], writer([]))
    others = [Request((5, 6), 4), drawn._replace(temperature=0.5), drawn._replace(seed=1), drawn._replace(place=1)]
    assert kept_in(tmp_path).lacks([drawn, *others]) == others


def test_what_was_written_before_a_kill_is_kept(tmp_path):
    def dies(requests, keep):
        writer([])(requests[:1], keep)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_in(tmp_path).fill(REQUESTS, dies)
    assert kept_in(tmp_path).lacks(REQUESTS) == [REQUESTS[1]]


def test_a_damaged_file_is_set_aside_and_written_again(tmp_path):
    asked = []
    kept_in(tmp_path).fill(REQUESTS, writer(asked))
    file = next(path for path in (tmp_path / "some-model").glob("*.jsonl") if b"5, 6, 2" in path.read_bytes())
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"5, 6, 2", b"5, 7, 2"))
    kept = kept_in(tmp_path)
    assert file.with_suffix(".damaged").is_file()
    assert kept.damaged == [file]
    kept.fill(REQUESTS, writer(asked))
    assert asked[2:] == REQUESTS[:1]
    assert file.read_bytes() == whole
