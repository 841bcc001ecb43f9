"""The command that makes many runs of one recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from likelier.cli.common import progress, with_recipe


def sweep(arguments: Sequence[str]) -> None:
    """Train a recipe under many settings, compare, and recommend one. Goes on where it was interrupted; the reference is scored once for all.

    Writes OUT/sweep.json, OUT/sweep.html and a run in OUT/NAME/ for each setting. A run that does clearly worse than a finished one is given up.
    Without --out the sweep's folder is the recipe's with -sweep behind it. Exit code 1 if no run ended.
    """
    import tyro

    @dataclass
    class Options:
        grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
        """A setting and its values, like objective.beta=0.05,0.1,0.3; given again for another setting, it tries all combinations."""
        runs: Annotated[Path | None, tyro.conf.arg(name="list")] = None
        """A YAML list with the settings of each run, in place of --grid."""
        keep_all: bool = False
        """Give up no run, and go on with those that were."""

    options, recipe = with_recipe("sweep", "--grid SETTING=VALUE,VALUE", Options, arguments, sweep.__doc__)
    from likelier.sweep import sweep_recipe
    from likelier.sweep.grid import parse_axes, read_list
    from likelier.sweep.terminal import show_sweep

    out = recipe.out if _names_out(arguments) else f"{recipe.out.rstrip('/')}-sweep"
    grid, runs = parse_axes(options.grid), read_list(options.runs) if options.runs else []
    with progress() as show:
        made = sweep_recipe(recipe, grid=grid, runs=runs, out=out, keep_all=options.keep_all, show=show)
    show_sweep(made)
    print(f"{Path(out) / 'sweep.html'}")


def _names_out(arguments: Sequence[str]) -> bool:
    return any(word.split("=")[0] == "--out" for word in arguments)
