"""A recipe of a run that takes a second, most of it spent elsewhere than in its evaluation."""

import pytest

from tests.train.conftest import changed, model_folder, recipe  # noqa: F401  (fixtures)


@pytest.fixture
def short(recipe):  # noqa: F811
    """Eight steps, three evaluations, no probes."""
    train = {"max_steps": 8, "eval_every": 3, "checkpoint_every": 2}
    return changed(recipe, train=train, eval={"probes": False, "samples": 1, "max_new_tokens": 4})
