"""Stages in order: the only place that knows what comes after what. Each stage meets the next in the run directory."""

from importlib.resources import as_file, files
from pathlib import Path

from likelier.evaluate import evaluate
from likelier.recipe import Recipe, load_recipe
from likelier.report import write_report
from likelier.rundir import RunDir
from likelier.train.progress import Progress
from likelier.train.session import train_recipe


def train_and_report(recipe: Recipe, *, show: Progress, fresh: bool = False) -> RunDir:
    """Train, ask the model before and after, and write the report."""
    run = train_recipe(recipe, show=show, fresh=fresh)
    evaluate(run, show.say)
    show.say(f"Report: {write_report(run)}")
    return run


def demo(*, model: str, out: str, show: Progress) -> RunDir:
    """The whole tour on the shipped pairs: what `likelier demo` does."""
    with as_file(files("likelier") / "assets" / "demo.yaml") as path:
        recipe = load_recipe(path)
    recipe = recipe.model_copy(update={"out": out, "model": recipe.model.model_copy(update={"name": model})})
    return train_and_report(recipe, show=show, fresh=Path(out).exists())
