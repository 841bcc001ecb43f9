"""A sweep from recipe to sweep.json and sweep.html, resumable at any moment.

Each trial is a run like any other in a folder of its own. Runs follow each other in one process; the reference is scored by the first and read by
the rest, the audit likewise. What sweep.json says of a finished run is read from the run's own files, every time.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from likelier.audit.gate import check_names
from likelier.changes import length_probe, worse_probes
from likelier.data.files import require_source
from likelier.errors import GivenUp, Interrupted, Refused, RequestError, RunError, disk_fault, lacks_memory
from likelier.metrics import Interval
from likelier.models import pick_device, pick_precision
from likelier.objectives import make_objective
from likelier.pipeline import train_and_report
from likelier.recipe import Recipe, load_recipe, parse_recipe
from likelier.report import write_report
from likelier.report.frontier import DISTANCES, EXACT, SAMPLED
from likelier.report.sweep_page import write_sweep_page
from likelier.rundir import SWEEP, RunDir, read_json, write_json
from likelier.sweep.choice import Result, choose
from likelier.sweep.grid import Settings, Trial, by_value, combinations, make_trials
from likelier.sweep.hopeless import GivingUp, Rival
from likelier.train.folder import differences
from likelier.train.lock import sole_use
from likelier.train.progress import Progress
from likelier.train.stop import Stop
from likelier.train.trackers import require_trackers
from likelier.train.ways import require_way

State = Mapping[str, str]
"""`state` and `why` of a trial."""


@dataclass(frozen=True)
class Sweep:
    """A sweep under way."""

    folder: Path
    recipe: Recipe
    grid: Mapping[str, Sequence[Any]]
    trials: Sequence[Trial]

    def write(self, states: Mapping[str, State]) -> dict[str, Any]:
        """sweep.json and sweep.html as things stand. Returns what sweep.json holds."""
        rows = [describe(trial, states[trial.name]) for trial in self.trials]
        finished = [(trial, row) for trial, row in zip(self.trials, rows, strict=True) if row["accuracy"]]
        distance = EXACT if all(row[EXACT] for _, row in finished) else SAMPLED
        choice = choose([result_of(trial, distance) for trial, _ in finished], DISTANCES[distance])
        begun = [run for trial in self.trials if (run := RunDir(trial.folder)).manifest.is_file()]
        passes = [run.read_manifest().get("reference") or {} for run in begun]
        reference = {name: sum(each.get(name, 0) for each in passes) for name in ("computed", "reused")}
        about = {"distance": distance, "reference": reference, "recipe": self.recipe.model_dump(mode="json")}
        content = {"grid": self.grid, "runs": rows, **choice.as_dict(), **about}
        write_json(self.folder / SWEEP, content)
        write_sweep_page(self.folder)
        return content


def sweep_recipe(
    recipe: Recipe,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    runs: Sequence[Settings] = (),
    out: str | Path,
    keep_all: bool = False,
    show: Progress | None = None,
) -> dict[str, Any]:
    """Train `recipe` under each combination of the values in `grid` ({"objective.beta": [0.05, 0.1]}), or under each of the settings in `runs`, and
    compare. Returns what OUT/sweep.json holds. Given again it goes on: finished runs stay, an interrupted one resumes.

    A run that does clearly worse than a finished one is given up (hopeless.py), unless `keep_all`. One that fails is noted, and the next begins.
    Raises RecipeError before the first run for a setting that is unknown or out of range and DataError for data that are missing, RunError where the
    folder holds something else, another process is at work there or a disk is full, and Refused where no run ended.
    """
    show, folder = show or Progress(), Path(out)
    if bool(grid) == bool(runs):
        raise RequestError("a sweep takes a grid of values or a list of runs: give one of the two, like --grid objective.beta=0.05,0.1,0.3")
    trials = make_trials(recipe, combinations(grid) if grid else runs, folder)
    for trial in trials:
        _check(trial.recipe)
    ordered = by_value(trials, recipe) if grid else trials
    with sole_use(RunDir(folder)):
        before = _opened(folder, recipe, trials)
        sweep = Sweep(folder, recipe, {setting: _distinct([trial.settings[setting] for trial in trials]) for setting in grid or {}}, trials)
        states = {trial.name: _state(trial, before.get(trial.name, {}), keep_all=keep_all) for trial in ordered}
        said: set[str] = set()
        went_on = False
        for number, trial in enumerate(ordered, 1):
            if states[trial.name]["state"] in ("done", "stopped"):
                continue
            went_on = True
            sweep.write(states)
            show.say(f"Run {number} of {len(ordered)}: {trial.name}")
            states[trial.name] = _carry_out(trial, [] if keep_all else rivals(trial, ordered), show, said)
            if why := states[trial.name]["why"]:
                show.say(f"{trial.name}: {why}")
        content = sweep.write(states)
        for trial in ordered if went_on else ():
            if states[trial.name]["state"] == "done":
                write_report(RunDir(trial.folder))  # again, as it shows the run's place among the others
    if not any(row["state"] == "done" for row in content["runs"]):
        raise Refused("no run of this sweep ended: " + " ".join(f"{row['name']}: {row['why']}" for row in content["runs"]))
    return content


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _check(recipe: Recipe) -> None:
    """What can be known of a run before it begins, without reading data or model."""
    for source in (*recipe.data.train, *recipe.data.eval):
        require_source(source)
    check_names(recipe.audit)
    require_trackers(recipe.log)
    require_way(recipe, pick_precision(recipe.train.precision, pick_device()))


def _opened(folder: Path, recipe: Recipe, trials: Sequence[Trial]) -> dict[str, State]:
    """What an earlier start of this sweep wrote of its runs. Raises RunError if the folder is not this sweep's."""
    if (folder / "recipe.yaml").exists():
        raise RunError(f"{folder}: this folder holds a run, not a sweep. Choose another with --out.")
    if not (folder / SWEEP).is_file():
        return {}
    before = read_json(folder / SWEEP)
    then = parse_recipe(before["recipe"], where=str(folder / SWEEP))
    changed = differences(then, recipe) + [
        f"eval.{name}" for name in type(then.eval).model_fields if getattr(then.eval, name) != getattr(recipe.eval, name)
    ]
    for trial in trials:
        path = RunDir(trial.folder).recipe
        differing = differences(load_recipe(path), trial.recipe) if path.is_file() else []
        changed += [f"{name} of {trial.name}" for name in differing if name not in changed]
    if changed:
        raise RunError(
            f"{folder}: the sweep here is of another recipe ({', '.join(dict.fromkeys(changed))}), so its runs cannot be compared with new ones. "
            "Put the recipe back, or choose another folder with --out. Values may be added to --grid."
        )
    return {row["name"]: row for row in before["runs"]}


def _state(trial: Trial, before: State, *, keep_all: bool) -> State:
    if _is_done(trial):
        return {"state": "done", "why": ""}
    if before.get("state") == "stopped" and not keep_all:
        return {"state": "stopped", "why": before["why"]}
    return {"state": "waiting", "why": ""}


def _is_done(trial: Trial) -> bool:
    run = RunDir(trial.folder)
    return run.report.is_file() and run.manifest.is_file() and bool(run.read_manifest().get("outcome"))


def _carry_out(trial: Trial, others: Sequence[Rival], show: Progress, said: set[str]) -> State:
    """One run, and how it ended. What it cannot be carried out for is noted: another run's settings may be without it. A disk that fails, which the
    next run would meet too, and a signal go through."""
    stop = Stop()
    try:
        train_and_report(trial.recipe, show=GivingUp(show, RunDir(trial.folder), others, stop, said), stop=stop)
    except GivenUp as reason:
        return {"state": "stopped", "why": str(reason)}
    except Interrupted as problem:
        raise Interrupted(f"{trial.name}: {str(problem).replace(', without --fresh,', '')}", problem.exit_code - 128) from None
    except (RequestError, Refused) as problem:
        if problem.__cause__ and disk_fault(problem.__cause__) and isinstance(problem, RunError):
            raise  # a full disk is full for the next run, too
        return {"state": "failed", "why": str(problem)}
    except (RuntimeError, MemoryError) as problem:
        if not lacks_memory(problem):
            raise
        return {"state": "failed", "why": "not enough memory to evaluate this model."}
    finally:
        gc.collect()  # the model that the run held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return {"state": "done", "why": ""}


def rivals(trial: Trial, trials: Sequence[Trial]) -> list[Rival]:
    """Finished runs whose steps are comparable with this one's: as many on the same data, judged in the same way."""
    found = []
    for other in trials:
        run = RunDir(other.folder)
        if other is not trial and _pace(other.recipe) == _pace(trial.recipe) and _is_done(other):
            prompts = run.read_manifest()["data"]["eval"]["prompts"]
            same_loss = other.recipe.objective == trial.recipe.objective
            found.append(Rival(other.name, run.read_metrics("eval"), prompts, same_loss))
    return found


def _pace(recipe: Recipe) -> tuple[Any, ...]:
    train = recipe.train
    paired = make_objective(recipe.objective.name, **recipe.objective.given()).paired
    return recipe.data, train.epochs, train.max_steps, train.pairs_per_step, paired


def describe(trial: Trial, state: State) -> dict[str, Any]:
    """A row of `runs` in sweep.json; what is not known yet is null."""
    run = RunDir(trial.folder)
    steps = run.read_metrics("train")
    evaluation = (run.read_eval() if state["state"] == "done" else None) or {}
    measured = {name: _interval(evaluation.get("held_out", {}).get(name)) for name in ("accuracy", "margin", SAMPLED, EXACT)}
    return {
        "name": trial.name,
        "settings": dict(trial.settings),
        **state,
        "folder": trial.name,
        **measured,
        "length": _length(evaluation),
        "steps": steps[-1]["step"] if steps else 0,
        "seconds": round(sum(row["seconds"] for row in steps), 1),
        "symptoms": len(symptoms(run)),
        "worse": [probe["title"] for probe in worse_probes(evaluation)],
    }


def result_of(trial: Trial, distance: str) -> Result:
    """What the choice is made by, with eval.json's measure `distance` as its KL. Per-pair margins are in eval.json's `margins`, if it has them."""
    run = RunDir(trial.folder)
    evaluation = run.read_eval() or {}
    held_out, margins = evaluation["held_out"], evaluation.get("margins") or {"value": (), "prompt": ()}
    return Result(
        trial.name,
        Interval.from_dict(held_out["accuracy"]),
        Interval.from_dict(held_out[distance]) if held_out.get(distance) else None,
        prompts=run.read_manifest()["data"]["eval"]["prompts"],
        dataset=evaluation["dataset"],
        symptoms=symptoms(run),
        worse=tuple(probe["title"] for probe in worse_probes(evaluation)),
        margins=tuple(margins["value"]),
        of_prompt=tuple(margins["prompt"]),
    )


def symptoms(run: RunDir) -> tuple[str, ...]:
    """Titles of what training warned of."""
    return tuple(dict.fromkeys(row["title"] for row in run.read_metrics("symptom") if row["verdict"] == "warn"))


def _interval(measured: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {name: measured[name] for name in ("value", "low", "high")} if measured else None


def _length(evaluation: Mapping[str, Any]) -> dict[str, float] | None:
    """Reply lengths before and after."""
    probe = length_probe(evaluation)
    return {side: probe[side]["value"] for side in ("before", "after")} if probe else None
