"""Settings to try: read, checked by the recipe's own types, named, and put in an order."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from likelier.errors import RecipeError
from likelier.objectives import make_objective
from likelier.recipe import Recipe, parse_recipe

LONGEST_NAME = 100

Settings = Mapping[str, Any]
"""Values by the names of settings: {"objective.beta": 0.1}."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep. `settings` are those that it names, with values as the recipe holds them; `recipe.out` is its folder."""

    name: str
    settings: Settings
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return Path(self.recipe.out)


def parse_axes(axes: Sequence[str]) -> dict[str, list[Any]]:
    """A grid from texts like "objective.beta=0.05,0.1,0.3". Values are YAML, so a list is [a.jsonl, b.jsonl]. Raises RecipeError.

    >>> parse_axes(["objective.beta=0.1,0.3", "data.train=[a.jsonl]"])
    {'objective.beta': [0.1, 0.3], 'data.train': [['a.jsonl']]}
    """
    grid: dict[str, list[Any]] = {}
    for axis in axes:
        setting, _, text = axis.partition("=")
        try:
            values = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError:
            values = None
        if not values or not setting:
            raise RecipeError(f"--grid {axis}: this names no values. Write it like --grid objective.beta=0.05,0.1,0.3")
        if setting in grid:
            raise RecipeError(f"--grid {axis}: `{setting}` is there twice. Give all of its values at once.")
        grid[setting] = values
    return grid


def read_list(path: Path) -> list[dict[str, Any]]:
    """Runs from a YAML list, one mapping a run, with names like objective.beta or sections as in a recipe. Raises RecipeError."""
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise RecipeError(f"{path}: the list of runs cannot be read ({problem}).") from None
    except yaml.YAMLError as problem:
        raise RecipeError(f"{path}: this is not valid YAML: {problem}") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise RecipeError(f"{path}: this must be a list with the settings of each run, like `- {{objective.beta: 0.1, train.epochs: 2}}`.")
    return [_flat(row) for row in rows]


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The product of all settings' values, the last setting changing fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def make_trials(recipe: Recipe, runs: Sequence[Settings], out: Path) -> list[Trial]:
    """One trial for each of `runs`, in folders of `out`. Raises RecipeError for an unknown setting, for a value out of its range, and for two runs
    that would be the same."""
    made: dict[str, Trial] = {}
    names: set[str] = set()
    for run in runs:
        changed = _with(recipe, run)
        settings = {setting: _value(changed, setting) for setting in run}
        name = _name(settings)
        if same := made.get(changed.fingerprint()):
            both = f"`{name}` is there twice" if same.name == name else f"the runs `{same.name}` and `{name}` would be the same"
            raise RecipeError(
                f"{both} in this sweep. Leave one out; where a model is written, how it is evaluated and what fits in memory make no other model."
            )
        if name.casefold() in names:
            name = f"{name}-{sha256(repr(settings).encode()).hexdigest()[:6]}"
        trial = Trial(name, settings, changed.model_copy(update={"out": str(out / name)}))
        made[changed.fingerprint()] = trial
        names.add(name.casefold())
    return list(made.values())


def by_value(trials: Sequence[Trial], recipe: Recipe) -> list[Trial]:
    """The trials of a grid in an order whose first few already say most, so that an interrupted sweep is of use.

    First the recipe's own setting, which all others are measured against, or the one nearest to the middle of the grid; then always the one
    that is farthest from all before it. A setting's values stand evenly apart, whatever they are; equal distances go in the order of the grid.
    """
    values = {setting: list(dict.fromkeys(map(repr, (trial.settings[setting] for trial in trials)))) for setting in trials[0].settings}

    def place(trial: Trial) -> list[float]:
        return [of.index(repr(trial.settings[setting])) / max(1, len(of) - 1) for setting, of in values.items()]

    places = [place(trial) for trial in trials]
    own = [i for i, trial in enumerate(trials) if _effective(trial.recipe) == _effective(recipe)]
    order = own or [min(range(len(trials)), key=lambda i: _distance(places[i], [0.5] * len(values)))]
    while len(order) < len(trials):
        left = [i for i in range(len(trials)) if i not in order]
        order.append(max(left, key=lambda i: (round(min(_distance(places[i], places[j]) for j in order), 9), -i)))
    return [trials[i] for i in order]


def _distance(here: Sequence[float], there: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(here, there, strict=True))


def _effective(recipe: Recipe) -> str:
    """What shapes a run, with defaults of objective and learning rate filled in."""
    objective = {"name": recipe.objective.name, **make_objective(recipe.objective.name, **recipe.objective.given()).hyperparameters}
    train = recipe.train.model_copy(update={"learning_rate": recipe.train.peak_learning_rate})
    return repr(sorted(objective.items())) + recipe.model_copy(update={"train": train, "objective": type(recipe.objective)()}).fingerprint()


def _with(recipe: Recipe, run: Settings) -> Recipe:
    settings = recipe.model_dump(mode="json")
    for setting, value in run.items():
        section, _, name = setting.partition(".")
        if not name or not isinstance(settings.get(section, {}), dict):
            raise RecipeError(f"`{setting}` cannot be swept over. Name a setting with its section, like objective.beta or train.learning_rate.")
        settings.setdefault(section, {})[name] = value
    changed = parse_recipe(settings, where=", ".join(f"{setting}={value}" for setting, value in run.items()) or "the recipe")
    make_objective(changed.objective.name, **changed.objective.given())
    return changed


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"train": {"epochs": 2}} and {"train.epochs": 2} are the same."""
    nested = {f"{key}.{name}": value for key, inner in row.items() if isinstance(inner, dict) for name, value in inner.items()}
    plain = {str(key): value for key, value in row.items() if not isinstance(value, dict)}
    if twice := [setting for setting in plain if setting in nested]:
        raise RecipeError(f"--list: `{twice[0]}` is there twice in one run, as {plain[twice[0]]} and as {nested[twice[0]]}.")
    return plain | nested


def _value(recipe: Recipe, setting: str) -> Any:
    section, name = setting.split(".")
    return recipe.model_dump(mode="json")[section][name]


def _name(settings: Settings) -> str:
    """ "beta=0.1,learning_rate=2e-4": what the run names, with sections only where two settings would be called the same."""
    short = [setting.split(".")[1] for setting in settings]
    parts = [f"{setting if short.count(last) > 1 else last}={_text(settings[setting])}" for setting, last in zip(settings, short, strict=True)]
    name = re.sub(r"[^\w.+=,-]+", "-", ",".join(parts), flags=re.ASCII) or "recipe"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    """A value as a person would write it: 0.05, 2e-4, lora."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        exact = Decimal(repr(value)).normalize()
        return f"{exact:e}" if value and not 1e-3 <= abs(value) < 1e6 else f"{exact:f}"
    return "+".join(map(_text, value)) if isinstance(value, list) else str(value)
