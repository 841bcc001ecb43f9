"""Every recipe that ships runs: it is parsed, its data read, split, encoded and audited, a tiny model adapted in its way of training."""

from pathlib import Path

import pytest

from likelier.recipe import load_recipe, parse_recipe
from likelier.rundir import RunDir
from likelier.train.outlook import outlook
from likelier.train.progress import Progress
from likelier.train.session import prepare, train_recipe
from likelier.train.trial import try_out
from tests.train.conftest import model_folder  # noqa: F401

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
PROMISED = {"dpo-lora", "dpo-full", "qlora", "kto-thumbs", "orpo-from-base", "simpo", "ipo-noisy"}


def without_hub(path: Path, **sections):
    settings = load_recipe(path).model_dump(mode="json")
    for name, values in sections.items():
        settings[name] = {**settings[name], **values} if isinstance(values, dict) else values
    return parse_recipe(settings, where=path.name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all recipes: what the audit found of the shipped pairs is found once."""
    return tmp_path_factory.mktemp("cache")


def test_the_promised_recipes_are_there():
    assert {path.stem for path in RECIPES} == PROMISED


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_prepares_a_run_and_its_plan_fits(path, cache, model_folder, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LIKELIER_CACHE", str(cache))
    recipe = without_hub(path, model={"name": str(model_folder)}, data={"max_length": 1024})
    assert recipe.out == f"runs/{path.stem}"
    prepared = prepare(recipe, Progress())
    assert prepared.policy.engine == "nodes"
    assert len(prepared.train.examples) > 100
    assert len(prepared.held_out.examples) > 20
    _, batches = outlook(prepared, None)
    assert try_out(prepared.policy, prepared.objective, recipe, batches, accumulates=True).fits


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_on_its_own_model(path, tmp_path):
    run = train_recipe(without_hub(path, train={"max_steps": 2, "eval_every": 0}, out=str(tmp_path / "run")))
    assert isinstance(run, RunDir)
    assert [row["step"] for row in run.read_metrics("train")] == [1, 2]
