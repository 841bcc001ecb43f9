"""What a model is asked beside the pairs, before and after: the probes that ship with Likelier, and a user's own.

definition.py    a probe, and how a YAML list of them is written: shipped ones and a user's are the same kind of file
measures.py      what a reply is measured by
tokens.py        a probe in tokens, as a model is asked
"""

from likelier.probes.definition import Item, Probe, probes_of, read_probes, shipped_probes
from likelier.probes.tokens import Asked, Question, in_tokens

__all__ = ["Asked", "Item", "Probe", "Question", "in_tokens", "probes_of", "read_probes", "shipped_probes"]
