"""A run's model, before and after, as eval.json, samples.jsonl and probes.jsonl; and any model on any data.

exam.py       what is asked, in tokens: the held-out pairs, prompts to reply to, the probes
answers.py    both models' answers; they are asked by the same code, in the same arithmetic, one after the other
held_out.py   how held-out replies are ranked, as numbers with intervals: pure
drift.py      KL to the reference, on the policy's own replies and on the data
probes.py     what replies and answers show beside that: pure
samples.py    replies before and after, side by side, token by token
run.py        all of it for a run directory
elsewhere.py  what takes no replies, for a run, an adapter or a model on other data
terminal.py   tables of what was measured
"""

from likelier.evaluate.elsewhere import evaluate_on, evaluation_path
from likelier.evaluate.run import compare, evaluate
from likelier.evaluate.terminal import show_evaluation

__all__ = ["compare", "evaluate", "evaluate_on", "evaluation_path", "show_evaluation"]
