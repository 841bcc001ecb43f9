"""Stages in order: the only place that knows what comes after what. Each stage meets the next in the run directory."""

from importlib.resources import as_file, files

from likelier.errors import RunError
from likelier.evaluate import evaluate
from likelier.probes import probes_of
from likelier.recipe import Recipe, load_recipe
from likelier.report import write_report
from likelier.rundir import RunDir
from likelier.train.folder import check_folder
from likelier.train.lock import sole_use
from likelier.train.parallel import ALONE, Ranks
from likelier.train.progress import Progress
from likelier.train.session import train_recipe
from likelier.train.stop import Stop


def train_and_report(recipe: Recipe, *, show: Progress, fresh: bool = False, stop: Stop | None = None, ranks: Ranks = ALONE) -> RunDir:
    """Train, ask the model before and after, and write the report; or what an interrupted run has left to do of these. Of several `ranks` all
    train, and the leader does the rest."""
    run = RunDir(recipe.out)
    probes_of(recipe.eval.probes, recipe.eval.probe_files)  # a file that is wrong is refused now, not after the training
    trains = ranks.gather(fresh or not _lacks_only_its_report(run, recipe))[0]
    if not ranks.leads:
        return train_recipe(recipe, show=show, fresh=fresh, stop=stop, ranks=ranks) if trains else run
    with sole_use(run):
        if trains:
            train_recipe(recipe, show=show, fresh=fresh, stop=stop, ranks=ranks)
        evaluate(run, show.say)
        show.say(f"Report: {write_report(run)}")
    return run


def demo(*, model: str, out: str, show: Progress) -> RunDir:
    """The whole tour on the shipped pairs: what `likelier demo` does."""
    with as_file(files("likelier") / "assets" / "demo.yaml") as path:
        recipe = load_recipe(path)
    recipe = recipe.model_copy(update={"out": out, "model": recipe.model.model_copy(update={"name": model})})
    return train_and_report(recipe, show=show, fresh=not _goes_on(RunDir(out), recipe))


def _lacks_only_its_report(run: RunDir, recipe: Recipe) -> bool:
    if not (run.recipe.is_file() and run.manifest.is_file()) or run.report.is_file():
        return False
    return bool(run.read_manifest().get("outcome")) and load_recipe(run.recipe).fingerprint() == recipe.fingerprint()


def _goes_on(run: RunDir, recipe: Recipe) -> bool:
    """Whether the folder is free for this recipe, or holds a run by it that was interrupted."""
    try:
        check_folder(run, recipe, fresh=False)
    except RunError:
        return _lacks_only_its_report(run, recipe)
    return True
