"""Likelier makes preferred answers likelier: check comparisons, tune a language model on them, and show what changed.

The names below are the front door; each is imported when it is first used, so that `import likelier` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "read_pairs": "likelier.data.formats",
    "read_records": "likelier.data.formats",
    "split_pairs": "likelier.data.split",
    "Encoder": "likelier.data.chat",
    "Pair": "likelier.records",
    "PreferenceExample": "likelier.examples",
    "LabelledExample": "likelier.examples",
    "Recipe": "likelier.recipe",
    "load_recipe": "likelier.recipe",
    "dpo": "likelier.objectives",
    "make_objective": "likelier.objectives",
    "Scorer": "likelier.logprobs.scorer",
    "ReferenceStore": "likelier.logprobs.reference",
    "Trainer": "likelier.train.trainer",
    "plan_recipe": "likelier.train.plan",
    "train_recipe": "likelier.train.session",
    "train_and_report": "likelier.pipeline",
    "sweep_recipe": "likelier.sweep",
    "compare_models": "likelier.compare",
    "write_report": "likelier.report",
    "export_run": "likelier.export",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"likelier has no `{name}`; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
