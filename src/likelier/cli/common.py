"""What commands share: recipes with settings given beside them, and progress bars."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import cleandoc
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, get_args

if TYPE_CHECKING:
    from likelier.recipe import Recipe
    from likelier.train.progress import Progress


def with_recipe(name: str, usage: str, options: Any, arguments: Sequence[str], description: str | None) -> tuple[Any, "Recipe"]:
    """What `likelier NAME RECIPE …` was given: its own `options`, and the recipe with all settings that stand there."""
    import tyro

    from likelier.recipe import Recipe, load_recipe, parse_recipe

    path, rest = _leading_path(arguments, f"likelier {name} RECIPE {usage} [--section.name VALUE …]")
    loaded = load_recipe(path) if path else Recipe(data={"train": ("PAIRS.jsonl",)})  # type: ignore[arg-type]

    @dataclass(kw_only=True)
    class Command(options):
        recipe: Annotated[Recipe, tyro.conf.arg(name="")]
        accept: tuple[str, ...] = ()
        """Checks of the audit whose fatal findings are no reason not to train; written into manifest and report."""

    command = tyro.cli(
        Command, prog=f"likelier {name} RECIPE", args=_switches(rest), default=Command(recipe=loaded), description=cleandoc(description or "")
    )
    settings = command.recipe.model_dump(mode="json")
    settings["audit"]["accept"] += command.accept
    return command, parse_recipe(settings, where=str(path))


def _leading_path(arguments: Sequence[str], usage: str) -> tuple[str | None, list[str]]:
    """The recipe's path, which comes first; None where only help is asked for."""
    from likelier.errors import RequestError

    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    if any(word in ("-h", "--help") for word in arguments):
        return None, list(arguments)
    raise RequestError(f"no recipe was given. Usage: {usage}. The recipes/ folder has ones to start from.")


def _switches(words: Sequence[str]) -> list[str]:
    """`true` and `false` as recipes have them, in tyro's words: `--a.b` or `--a.no-b` for what is nothing else, `True` or `False` for what may be.
    A bare `--a.b` is true."""
    told: list[str] = []
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for word, following in pairwise([*words, "--"]):
        kind = _type_of(told[-1]) if told and word.lower() in ("true", "false") else None
        if kind is bool:
            told[-1] = told[-1] if word.lower() == "true" else told[-1].replace(".", ".no-", 1)
        else:
            told.append(word.capitalize() if kind not in (None, str) else word)
        if _type_of(word) not in (None, bool) and True in get_args(_type_of(word)) and following.startswith("--"):
            told.append("True")
    return told


def _type_of(word: str) -> Any:
    """Of the setting that `--section.name` names; None for any other word."""
    from likelier.recipe import Recipe

    section, _, name = word.removeprefix("--").replace("-", "_").partition(".")
    fields = getattr(Recipe.model_fields[section].annotation, "model_fields", {}) if section in Recipe.model_fields else {}
    return fields[name].annotation if word.startswith("--") and name in fields else None


@contextmanager
def progress() -> Iterator["Progress"]:
    """Progress bars that are taken down again, whatever happens."""
    from likelier.train.progress import Bars

    bars = Bars()
    try:
        yield bars
    finally:
        bars.close()
