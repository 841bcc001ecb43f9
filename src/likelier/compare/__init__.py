"""Win rates: contestants reply to the same prompts, and a judge compares the replies.

contestants.py   runs, models, adapters, files of replies, system prompts
replies.py       their replies on disk
run.py           all of it, in order
terminal.py      the result as tables
"""

from likelier.compare.run import compare_models

__all__ = ["compare_models"]
