"""What the curves of a run say, while it goes on and afterwards.

history.py    what the rules look at: rows of metrics.jsonl and filmstrip.jsonl, and the settings
rules.py      one small rule a symptom, its thresholds beside it: pure
diagnosis.py  the rules applied row by row, each symptom told once; `diagnose` does it for a run that has ended
prompts.py    the watched prompts: replies and KL of the model in training
live.py       all of it beside a run: what is written, what is shown

docs/diagnosis.md lists the symptoms.
"""

from likelier.train.watch.diagnosis import Diagnosis, diagnose
from likelier.train.watch.history import Setup, Symptom
from likelier.train.watch.live import Unwatched, Watch

__all__ = ["Diagnosis", "Setup", "Symptom", "Unwatched", "Watch", "diagnose"]
