"""The run directory before a run writes into it: whether it may, what it must not find, and what makes it a run's."""

import shutil
from pathlib import Path
from typing import Any

from likelier.errors import RunError
from likelier.recipe import NOT_SHAPING, Recipe, load_recipe
from likelier.rundir import RunDir, metrics_header, write_atomic, write_json, write_jsonl, writing
from likelier.train import checkpoint


def check_folder(run: RunDir, recipe: Recipe, *, fresh: bool) -> None:
    """Raises RunError if the folder holds something that this recipe must not continue or overwrite."""
    for setting, source in (("model.name", recipe.model.name), ("adapter.start", recipe.adapter.start)):
        if source and Path(source).expanduser().resolve() == run.model.resolve():
            raise RunError(f"{run.path}: {setting} is the model in this folder, which the run would overwrite. Choose another folder with --out.")
    if fresh or not run.path.exists() or not {*run.path.iterdir()} - {run.lock} - run.unfinished():
        return
    if not run.recipe.is_file():
        raise RunError(f"{run.path}: this folder holds other files and is no run directory. Choose another with --out.")
    if load_recipe(run.recipe).fingerprint() != recipe.fingerprint():
        changed = ", ".join(differences(load_recipe(run.recipe), recipe))
        raise RunError(f"{run.path}: the run here has another recipe ({changed}). Choose another folder with --out, or --fresh to replace it.")
    if run.manifest.is_file() and run.read_manifest().get("outcome"):
        raise RunError(f"{run.path}: this run has ended. Choose another folder with --out, or --fresh to do it again.")


def clear(run: RunDir) -> None:
    """Remove what a run wrote, and nothing else: the manifest first, without which nothing is resumed, and the recipe last, without which the
    folder is not a run's."""
    forget(run)
    with writing(run.path):
        if run.model.exists():
            shutil.rmtree(run.model)
        run.recipe.unlink(missing_ok=True)


def forget(run: RunDir) -> None:
    """Remove all but recipe and model: what a run that begins must not find."""
    with writing(run.path):
        for path in (run.manifest, run.metrics, run.filmstrip, run.eval, run.samples, run.probes, run.report, *run.path.glob("eval-*.json")):
            path.unlink(missing_ok=True)
        for folder in (run.checkpoints, run.trackers):
            if folder.exists():
                shutil.rmtree(folder)


def sweep(run: RunDir) -> None:
    """Remove what a kill in the middle of writing left behind."""
    for path in run.unfinished():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if run.checkpoints.exists():
        checkpoint.sweep(run.checkpoints)


def open_run(run: RunDir, recipe: Recipe, manifest: dict[str, Any]) -> None:
    """Write recipe and manifest, or check that a resumed run still has the same data and weights. Raises RunError where it has not."""
    if run.manifest.is_file():
        before = run.read_manifest()
        for what in ("data", "model"):
            if before[what] != manifest[what]:
                raise RunError(f"{run.path}: the {what} are no longer those that this run began with; it cannot go on. Use --fresh or another --out.")
        sweep(run)
        return
    forget(run)  # of an earlier run that somebody began to remove
    sweep(run)
    write_atomic(run.recipe, recipe.to_yaml())
    write_jsonl(run.metrics, [metrics_header(manifest)])
    write_json(run.manifest, manifest)


def differences(before: Recipe, now: Recipe) -> list[str]:
    """Names of the settings that shape a run and are not the same."""
    then, today = (recipe.model_dump(exclude=NOT_SHAPING) for recipe in (before, now))
    return [f"{section}.{name}" for section, settings in then.items() for name, value in settings.items() if value != today[section][name]]
