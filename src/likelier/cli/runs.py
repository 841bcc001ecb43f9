"""Commands that make runs, and what they leave."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from likelier.cli.common import progress, with_recipe


def demo(model: str = "embedded", out: str = "runs/demo") -> None:
    """The whole tour on the embedded model: check pairs, train, compare before and after, write a report.

    Args:
        model: `embedded`, a folder, a .gguf file or a hub name.
        out: the run directory; an earlier demo there is replaced, an interrupted one goes on.
    """
    from likelier import pipeline

    with progress() as show:
        pipeline.demo(model=model, out=out, show=show)


def plan(arguments: Sequence[str]) -> None:
    """Say before a run what it will take: token lengths, steps, memory, time, and advice on method and settings.

    The recipe's data are read and audited, its model is loaded, a few batches of its real steps are timed, and the one with most tokens goes through
    forward and backward pass and an optimizer step; weights and run directory stay as they are. Exit code 1 if it does not fit into memory.
    """

    @dataclass
    class Options:
        json: Path | None = None
        """Write the plan here, too; bytes and seconds are plain numbers."""

    options, recipe = with_recipe("plan", "[--json FILE]", Options, arguments, plan.__doc__)
    from likelier.data.files import refuse_input_as_output
    from likelier.errors import Refused
    from likelier.rundir import write_json
    from likelier.train.plan import plan_recipe
    from likelier.train.plan_terminal import show_plan

    if options.json:
        refuse_input_as_output(options.json, [arguments[0], *recipe.data.train, *recipe.data.eval])
    with progress() as show:
        made = plan_recipe(recipe, show)
    show_plan(made, recipe)
    if options.json:
        write_json(options.json, made.as_dict())
    if not made.fits:
        raise Refused("the worst batch of this run does not fit into memory. What takes less stands at the head of the advice.")


def train(arguments: Sequence[str]) -> None:
    """Tune a model by a recipe; any setting can be given as --section.name VALUE. Goes on where an interrupted run stopped.

    Several processes train together: torchrun --nproc-per-node 4 -m likelier train recipe.yaml
    """

    @dataclass
    class Options:
        fresh: bool = False
        """Remove an earlier run in the same folder first."""
        report: bool = True
        """Evaluate and write the report when training has ended."""

    options, recipe = with_recipe("train", "[--fresh]", Options, arguments, train.__doc__)
    from likelier.train.parallel import ranks_of_torchrun
    from likelier.train.progress import Progress

    with ranks_of_torchrun() as ranks, progress() if ranks.leads else nullcontext(Progress()) as show:
        if options.report:
            from likelier.pipeline import train_and_report

            train_and_report(recipe, show=show, fresh=options.fresh, ranks=ranks)
        else:
            from likelier.train.session import train_recipe

            show.say(f"Model: {train_recipe(recipe, show=show, fresh=options.fresh, ranks=ranks).model}")


def report(run: str) -> None:
    """Write a run's report.html, one page that needs no network.

    Args:
        run: the run directory.
    """
    from likelier.report import write_report
    from likelier.rundir import RunDir

    print(write_report(RunDir(run).require()))


def export(run: str, dst: Path, adapter: bool = False, precision: Literal["bf16", "fp32"] | None = None) -> None:
    """Write a run's model for others: one transformers folder, or its PEFT adapter, with a model card, compared with the run's before it is kept.

    Args:
        run: the run directory.
        dst: a folder that is new or empty.
        adapter: the adapter alone, not merged into its base.
        precision: of the merged weights; that of the run, where it is not given.
    """
    from likelier.export import export_run
    from likelier.rundir import RunDir

    export_run(RunDir(run), dst, adapter=adapter, precision=precision, say=print)
