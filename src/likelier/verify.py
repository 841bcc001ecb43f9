"""Proof that a data file, a run or an exported model is what it says: everything is worked out again from what is on disk, without torch.

What cannot be worked out (sources that are gone, a model of the hub) is said to be not checked; it never counts as proved.
"""

from pathlib import Path
from typing import Any

from likelier.data import version
from likelier.data.files import SCHEMES
from likelier.data.load import read_sides
from likelier.data.version import Check, compare, dataset_id
from likelier.errors import DataError, ModelError, RecipeError, RequestError, RunError
from likelier.hashing import file_hash
from likelier.model_files import local_folder
from likelier.recipe import Recipe, load_recipe
from likelier.rundir import EXPORT, RunDir, metrics_header, provenance_notes, read_json
from likelier.weights import filed_fingerprint, read_notes

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
"""How files end from which loaders take weights."""

AS_FILED = ("gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Kinds of models (`model_type` in config.json) whose weights are called in the files what they are called in the model."""


def verify(path: str | Path) -> list[Check]:
    """Check a run directory, an exported model, or a data file with a manifest beside it. Raises RequestError (DataError, RunError) where there is
    none of them."""
    path = Path(path)
    if (path / EXPORT).is_file():
        return verify_export(path)
    if path.is_dir():
        return verify_run(RunDir(path).require())
    if not path.exists():
        raise RequestError(f"{path}: there is no such file or folder. Give a data file with a manifest, a run directory or an exported model.")
    return version.verify(path)


def verify_run(run: RunDir) -> list[Check]:
    """Recipe, data ids, base weights, saved weights with their notes, model card and metrics of a run against its manifest."""
    manifest = run.read_manifest()
    try:
        recipe = load_recipe(run.recipe)
    except RecipeError as problem:
        return [Check("recipe", "differs", str(problem))]
    try:
        return [
            compare("recipe", manifest["recipe"], recipe.fingerprint()),
            *_check_data(recipe, manifest),
            _check_base(recipe, manifest),
            *_check_start(recipe, manifest),
            *_check_saved(run, manifest),
            _check_metrics(run, manifest),
        ]
    except (KeyError, TypeError, AttributeError) as problem:
        raise RunError(f"{run.manifest}: this is not a run's whole manifest ({type(problem).__name__}: {problem}).") from None


def _check_data(recipe: Recipe, manifest: dict[str, Any]) -> list[Check]:
    """The ids of both sides, from the recipe's sources less the pairs that the run dropped."""
    names = {"train": "training pairs", "eval": "held-out pairs"}
    gone = [source for source in (*recipe.data.train, *recipe.data.eval) if _is_gone(source)]
    if gone:
        why = f"{', '.join(gone)} cannot be read from here (relative paths are those of the folder in which the run was started)"
        return [Check(name, "not checked", why) for name in names.values()]
    try:
        sides = read_sides(recipe.data, unpaired=True)
    except DataError as problem:
        return [Check(name, "differs", str(problem)) for name in names.values()]
    checks = []
    for pairs, (side, name) in zip(sides, names.items(), strict=True):
        dropped = {row["id"] for row in manifest["data"][side]["dropped"]}
        checks.append(compare(name, manifest["data"][side]["id"], dataset_id(pair for pair in pairs if pair.id not in dropped)))
    return checks


def _is_gone(source: str) -> bool:
    """Whether there is nothing to read at a source. Data of the hub is not fetched for a proof."""
    scheme, colon, _ = source.partition(":")
    if colon and scheme in SCHEMES:
        return scheme == "hf"
    path = Path(source)
    return not path.exists() and not any(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _check_base(recipe: Recipe, manifest: dict[str, Any]) -> Check:
    """The fingerprint of the base weights, where they lie on this machine."""
    what, said = "base weights", manifest["model"].get("base", manifest["model"]["weights"])
    if "quantisation" in manifest["numerics"] and "base" not in manifest["model"]:
        return Check(what, "not checked", "the run's are in 4 bits, and what they were made of was in no folder")
    folder = local_folder(recipe.model.name)
    if folder is None or not (folder / "config.json").is_file():
        return Check(what, "not checked", f"`{recipe.model.name}` is not in a folder on this machine")
    try:
        found = filed_fingerprint(folder, loaded_as=manifest["numerics"]["weights_dtype"])
        kind = read_json(folder / "config.json").get("model_type")
    except RequestError as problem:
        return Check(what, "differs", str(problem))
    if found == said or (found and kind in AS_FILED):
        return compare(what, said, found)
    return Check(what, "not checked", f"the files of this kind of model ({kind}) do not say what its weights are once it is loaded")


def _check_start(recipe: Recipe, manifest: dict[str, Any]) -> list[Check]:
    """The files of the adapter that the run continued, if it continued one."""
    folder = Path(recipe.adapter.start).expanduser()
    checks = []
    for name, said in manifest["model"].get("start", {}).items():
        gone = not (folder / name).is_file()
        what = f"start adapter's {name}"
        checks.append(Check(what, "not checked", f"it is not in {folder} any more") if gone else compare(what, said, file_hash(folder / name)))
    return checks


def _check_saved(run: RunDir, manifest: dict[str, Any]) -> list[Check]:
    """The weight files by their bytes and their notes, and the card by the ids in it."""
    if not manifest.get("outcome"):
        return [Check("saved weights", "not checked", "the run has not ended")]
    if "saved" not in manifest:
        return [Check("saved weights", "not checked", "the run was made by a version of Likelier that did not record them")]
    checks = []
    for name, said in manifest["saved"].items():
        file = run.model / name
        if not file.is_file():
            checks.append(Check(f"model/{name}", "differs", "it is missing"))
            continue
        checks.append(compare(f"model/{name}", said, file_hash(file)))
        checks.append(_check_notes(f"notes in model/{name}", file, provenance_notes(manifest)))
    return [*checks, _check_card(run.model, provenance_notes(manifest))]


def verify_export(folder: Path) -> list[Check]:
    """Every file of an exported model by its bytes, weights also by their notes, and the card by the ids in it. A weight file that was not
    exported is a difference, too: a loader might take it."""
    said = read_json(folder / EXPORT)
    try:
        files, notes = dict(said["files"]), dict(said["provenance"])
    except (KeyError, TypeError, ValueError) as problem:
        raise RunError(f"{folder / EXPORT}: this is not what an export writes ({type(problem).__name__}: {problem}).") from None
    checks = []
    for name, hashed in files.items():
        file = folder / name
        checks.append(compare(name, hashed, file_hash(file)) if file.is_file() else Check(name, "differs", "it is missing"))
        if file.is_file() and file.suffix == ".safetensors":
            checks.append(_check_notes(f"notes in {name}", file, notes))
    strange = [path.name for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS and path.name not in files]
    return [*checks, *(Check(name, "differs", "it was not exported") for name in strange), _check_card(folder, notes)]


def _check_card(folder: Path, notes: dict[str, str]) -> Check:
    """The model card by the ids that it must name."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    missing = [name for name in notes.values() if name not in text]
    return Check("model card", "differs", f"it does not name {', '.join(missing)}") if missing else Check("model card", "holds")


def _check_notes(what: str, file: Path, wanted: dict[str, str]) -> Check:
    try:
        notes = read_notes(file)
    except ModelError as problem:
        return Check(what, "differs", str(problem))
    return compare(what, wanted, {name: notes.get(name) for name in wanted})


def _check_metrics(run: RunDir, manifest: dict[str, Any]) -> Check:
    """The row that says what the metrics are of."""
    said = run.read_metrics("run")
    return compare("metrics", [metrics_header(manifest)], said) if said else Check("metrics", "not checked", "no row of them names the run")
