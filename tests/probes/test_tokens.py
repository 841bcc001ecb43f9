"""The shipped probes in tokens."""

import pytest
import torch

from likelier.errors import DataError, ModelError
from likelier.probes import Question, in_tokens, shipped_probes

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


def questions(tokenizer, chat_template="own"):
    return asked("qa_accuracy", tokenizer, chat_template).questions


def neutral_prompts(tokenizer, chat_template="own"):
    return asked("reply_length", tokenizer, chat_template).prompts


def asked(name, tokenizer, chat_template="own", *, max_new_tokens=128):
    [probe] = [probe for probe in shipped_probes() if probe.name == name]
    return in_tokens(probe, tokenizer, chat_template, max_new_tokens=max_new_tokens)


def text_of(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def test_every_choice_is_a_beginning_of_the_reply_to_its_question(chat_tokenizer):
    asked = questions(chat_tokenizer)
    assert len(asked) > 90
    first = asked[0]
    assert {text_of(chat_tokenizer, choice.prompt_ids) for choice in first.choices} == {
        "<|im_start|>user\nWhat was the first artificial satellite called?<|im_end|>\n<|im_start|>assistant\n"
    }
    assert [text_of(chat_tokenizer, choice.response_ids) for choice in first.choices] == ["Challenger", "Hubble", "Sputnik", "Voyager"]
    assert first.answer == 2
    for question in asked:
        assert len(set(question.choices)) == 4
        assert len({choice.prompt_ids for choice in question.choices}) == 1
        assert question.answer in range(4)


def test_right_answers_stand_in_every_place_about_as_often(chat_tokenizer):
    places = [question.answer for question in questions(chat_tokenizer)]
    assert all(0.15 < places.count(place) / len(places) < 0.35 for place in range(4))


def test_the_largest_sum_is_the_answer_and_a_tie_is_none(chat_tokenizer):
    choices = questions(chat_tokenizer)[0].choices
    sums = dict(zip(choices, map(torch.tensor, ([-1.0, -2.0], [-2.5], [-0.4] * 5, [-9.0])), strict=True))
    assert Question(choices, 0).chosen(sums) == 2
    sums[choices[3]] = torch.tensor([-2.0])
    sums[choices[2]] = torch.tensor([-2.0])
    assert Question(choices, 0).chosen(sums) is None


def test_plain_text_says_in_words_what_a_template_says_in_tokens(chat_tokenizer):
    choice = questions(chat_tokenizer, "none")[0].choices[2]
    assert text_of(chat_tokenizer, choice.prompt_ids) == "Question: What was the first artificial satellite called?\nAnswer:"
    assert text_of(chat_tokenizer, choice.response_ids) == " Sputnik"
    whole = text_of(chat_tokenizer, neutral_prompts(chat_tokenizer, "none")[1])
    assert whole.startswith("You are Harbor Support")
    assert whole.endswith("briefly and accurately.\n\nWhere is my invoice for May?\n\n")


def test_neutral_prompts_end_where_a_reply_begins(chat_tokenizer):
    prompts = [text_of(chat_tokenizer, ids) for ids in neutral_prompts(chat_tokenizer)]
    assert len(set(prompts)) == len(prompts) > 40
    assert all(prompt.endswith("<|im_end|>\n<|im_start|>assistant\n") for prompt in prompts)
    assert prompts[1].startswith("<|im_start|>system\nYou are Harbor Support")


def test_a_template_without_system_role_gets_its_text_before_the_question(chat_tokenizer):
    chat_tokenizer.chat_template = NO_SYSTEM + chat_tokenizer.chat_template
    prompt = text_of(chat_tokenizer, neutral_prompts(chat_tokenizer)[1])
    assert prompt.startswith("<|im_start|>user\nYou are Harbor Support")
    assert "accurately.\n\nWhere is my invoice for May?<|im_end|>" in prompt


def test_only_the_first_turn_takes_the_system_messages_text(chat_tokenizer):
    chat_tokenizer.chat_template = NO_SYSTEM + chat_tokenizer.chat_template
    prompt = text_of(chat_tokenizer, asked("short_answers", chat_tokenizer).prompts[0])
    assert prompt.startswith("<|im_start|>user\nAnswer with one word, name or number, and nothing else.\n\nWhat is the capital of Italy?<|im_end|>")
    assert prompt.count("<|im_start|>assistant\n") == 4


def test_a_template_that_can_say_nothing_is_an_error(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ raise_exception('out of order') }}"
    with pytest.raises(ModelError, match="out of order"):
        asked("reply_length", chat_tokenizer)


def test_the_shorter_limit_counts(chat_tokenizer):
    assert asked("short_answers", chat_tokenizer).max_new_tokens == 16
    assert asked("short_answers", chat_tokenizer, max_new_tokens=5).max_new_tokens == 5
    assert asked("reply_length", chat_tokenizer, max_new_tokens=77).max_new_tokens == 77


@pytest.mark.parametrize("name", ["qa_accuracy", "reply_length"])
def test_what_the_model_has_no_positions_for_is_named(chat_tokenizer, name):
    [probe] = [probe for probe in shipped_probes() if probe.name == name]
    found = in_tokens(probe, chat_tokenizer, max_new_tokens=8)
    longest = max(
        [len(choice.prompt_ids + choice.response_ids) for question in found.questions for choice in question.choices]
        + [len(prompt) + 8 for prompt in found.prompts]
    )
    assert in_tokens(probe, chat_tokenizer, max_new_tokens=8, positions=longest) == found
    with pytest.raises(DataError, match=f"probe `{name}`: this model has {longest - 1} positions, .* takes {longest}"):
        in_tokens(probe, chat_tokenizer, max_new_tokens=8, positions=longest - 1)


def test_a_probe_has_questions_or_prompts(chat_tokenizer):
    for probe in shipped_probes():
        found = in_tokens(probe, chat_tokenizer, max_new_tokens=8)
        assert sorted([len(found.questions), len(found.prompts)]) == [0, len(probe.items)], probe.name
