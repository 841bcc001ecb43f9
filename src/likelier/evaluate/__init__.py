"""A run's model, before and after, as eval.json, samples.jsonl and probes.jsonl.

exam.py       what is asked, in tokens: the held-out pairs, prompts to reply to, the probes
answers.py    one model's answers; both models are asked by the same code, in the same arithmetic, one after the other
held_out.py   how held-out replies are ranked, as numbers with intervals: pure
probes.py     what replies and answers show beside that: pure
samples.py    replies before and after, side by side
run.py        all of it for a run directory
"""

from likelier.evaluate.run import compare, evaluate

__all__ = ["compare", "evaluate"]
