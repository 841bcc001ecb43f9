"""What both models are asked."""

from likelier.evaluate.exam import make_exam
from tests.evaluate.conftest import EVAL


def test_probes_that_the_template_cannot_say_are_left_out_and_named(make_run, chat_tokenizer):
    _, recipe, _, held_out = make_run()
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    said = []
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2, say=said.append)
    assert exam.choices == []
    assert "reply_length" in [asked.probe.name for asked in exam.probes]
    assert "left out" in said[0]
    assert "(qa_accuracy)" in said[0]
    assert "reasoning" in said[0]


def test_shown_prompts_are_spread_over_the_held_out_ones(make_run, chat_tokenizer):
    _, recipe, _, held_out = make_run(eval={**EVAL, "samples": 99, "probes": False})
    exam = make_exam(recipe, chat_tokenizer, held_out, end_token_id=2)
    assert exam.shown == [0, 2, 4, 6, 8]
