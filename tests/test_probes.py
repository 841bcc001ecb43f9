"""The shipped probes in tokens."""

import torch

from likelier.probes import Question, neutral_prompts, questions

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


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
    assert [Question(choices, answer).is_right(sums) for answer in range(4)] == [False, False, True, False]
    sums[choices[3]] = torch.tensor([-2.0])
    sums[choices[2]] = torch.tensor([-2.0])
    assert not any(Question(choices, answer).is_right(sums) for answer in range(4))


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
