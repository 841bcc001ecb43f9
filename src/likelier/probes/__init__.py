"""What a model is asked beside the pairs, before and after: the probes that ship with Likelier, and a user's own.

definition.py    what a probe is
files.py         how a YAML list of them is written: those that ship and a user's own are the same kind of file
measures.py      what a reply is measured by
tokens.py        a probe in tokens, as a model is asked
"""

from likelier.probes.definition import Item, Probe
from likelier.probes.files import probes_of, read_probes, shipped_probes
from likelier.probes.tokens import Asked, Question, in_tokens

__all__ = ["Asked", "Item", "Probe", "Question", "in_tokens", "probes_of", "read_probes", "shipped_probes"]
