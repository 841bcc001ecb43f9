"""The command line: parse, call, print. Heavy imports wait until a command needs them, so that help answers at once."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from likelier.allocator import keep_freed_memory
from likelier.errors import LikelierError, did_you_mean, lacks_memory

if TYPE_CHECKING:
    from likelier.train.progress import Progress

USAGE = """likelier makes preferred answers likelier: it checks comparisons, tunes a language model on them, and shows what changed.

usage: likelier COMMAND [arguments]      `likelier COMMAND --help` explains one command

{commands}

options: --debug shows the traceback of an error      --version
exit codes: 0 done, 1 the answer is no (a gate, a failed check), 2 the request was wrong"""


def demo(model: str = "embedded", out: str = "runs/demo") -> None:
    """The whole tour on the embedded model: check pairs, train, compare before and after, write a report.

    Args:
        model: `embedded`, a folder, a .gguf file or a hub name.
        out: the run directory; an earlier demo there is replaced.
    """
    from likelier import pipeline

    with _progress() as show:
        pipeline.demo(model=model, out=out, show=show)


def train(arguments: Sequence[str]) -> None:
    """Tune a model by a recipe; any setting can be given as --section.name VALUE. Goes on where an interrupted run stopped."""
    import tyro

    from likelier.recipe import Recipe, load_recipe, parse_recipe

    path, rest = _leading_path(arguments, "likelier train RECIPE [--fresh] [--section.name VALUE …]")
    loaded = load_recipe(path) if path else Recipe(data={"train": ("PAIRS.jsonl",)})  # type: ignore[arg-type]

    @dataclass
    class Command:
        recipe: Annotated[Recipe, tyro.conf.arg(name="")]
        fresh: bool = False
        """Remove an earlier run in the same folder first."""
        report: bool = True
        """Evaluate and write the report when training has ended."""

    command = tyro.cli(Command, prog="likelier train RECIPE", args=rest, default=Command(loaded), description=train.__doc__)
    recipe = parse_recipe(command.recipe.model_dump(mode="json"), where=str(path))
    with _progress() as show:
        if command.report:
            from likelier.pipeline import train_and_report

            train_and_report(recipe, show=show, fresh=command.fresh)
        else:
            from likelier.train.session import train_recipe

            show.say(f"Model: {train_recipe(recipe, show=show, fresh=command.fresh).model}")


def eval_(run: str) -> None:
    """Ask a finished run's model, before and after: held-out accuracy, rewards, KL, calibration, probes. Writes eval.json.

    Args:
        run: the run directory.
    """
    from likelier.evaluate import evaluate
    from likelier.rundir import RunDir

    with _progress() as show:
        evaluate(RunDir(run).require(), show.say)


def report(run: str) -> None:
    """Write a run's report.html, one page that needs no network.

    Args:
        run: the run directory.
    """
    from likelier.report import write_report
    from likelier.rundir import RunDir

    print(write_report(RunDir(run).require()))


def convert(
    src: str,
    dst: Path,
    to: Literal["trl", "openai", "llamafactory"] | None = None,
    format: str | None = None,
    pairs: Literal["best-worst", "all"] = "best-worst",
    min_gap: float = 0.0,
    skip_bad: bool = False,
) -> None:
    """Read preference data of any known shape and write it as canonical records, or for another tool.

    Args:
        src: a file, folder, glob, saved Hugging Face data set, hf:owner/name or embedded:support.
        dst: a .jsonl or .jsonl.gz file; canonical records also as .parquet.
        to: the tool to write for; what its format cannot hold is counted and named.
        format: the shape of src's rows, where it is not to be recognised: explicit-prompt, implicit-prompt, implicit-text, hh-rlhf,
            ultrafeedback-binarized, ultrafeedback, scored-list, ranked-list, unpaired, labelled-messages, openai, alpaca, sharegpt, kto,
            argilla, argilla-flat, label-studio, label-studio-min, edits or thumbs. docs/data.md has an example of each.
        pairs: which pairs a list of scored or ranked replies gives.
        min_gap: the least difference of scores (or ranks) in such a pair.
        skip_bad: leave bad rows out and list them beside dst, as NAME.bad.jsonl, instead of stopping at the first.
    """
    from likelier.data.convert import convert_file
    from likelier.data.shapes.lists import Pairing

    for line in convert_file(src, dst, to=to, shape=format, pairing=Pairing(pairs, min_gap), skip_bad=skip_bad):
        print(line)


def split(data: str, eval: float = 0.1, by: Literal["prompt", "group"] = "prompt") -> None:
    """Split pairs into DATA.train.jsonl and DATA.eval.jsonl, all pairs of a prompt (or group) on one side.

    Args:
        data: a file of preference pairs.
        eval: the share of prompts (or groups) to hold out.
        by: what stays on one side.
    """
    from likelier.data.formats import read_all, write_pairs
    from likelier.data.split import check_leaks, split_pairs

    train_side, held_out = split_pairs(read_all([data]), eval_fraction=eval, by=by)
    check_leaks(train_side, held_out)
    stem = Path(data.removeprefix("embedded:").removesuffix(".gz")).with_suffix("")
    for name, pairs in (("train", train_side), ("eval", held_out)):
        target = stem.with_name(f"{stem.name}.{name}.jsonl")
        write_pairs(target, pairs)
        print(f"{target}: {len(pairs)} pairs")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "convert": convert,
    "split": split,
    "train": train,
    "eval": eval_,
    "report": report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    keep_freed_memory()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:<10}{_first_line(command)}" for name, command in COMMANDS.items())))
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("likelier"))
        return 0
    try:
        _dispatch(words[0], words[1:])
    except LikelierError as problem:
        if debug:
            raise
        print(f"likelier: {problem}", file=sys.stderr)
        return problem.exit_code
    except (RuntimeError, MemoryError) as problem:
        if debug or not lacks_memory(problem):
            raise
        print("likelier: not enough memory. Take a smaller model, or end what else holds memory.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("likelier: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def _dispatch(name: str, arguments: list[str]) -> None:
    from likelier.errors import RequestError

    if name not in COMMANDS:
        raise RequestError(f"there is no command `{name}`.{did_you_mean(name, COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    if name == "train":
        train(arguments)
        return
    import tyro

    command: Any = COMMANDS[name]
    tyro.cli(command, prog=f"likelier {name}", args=arguments, config=(tyro.conf.PositionalRequiredArgs,))


def _leading_path(arguments: Sequence[str], usage: str) -> tuple[str | None, list[str]]:
    """The recipe's path, which comes first; None where only help is asked for."""
    from likelier.errors import RequestError

    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    if any(word in ("-h", "--help") for word in arguments):
        return None, list(arguments)
    raise RequestError(f"no recipe was given. Usage: {usage}. The recipes/ folder has ones to start from.")


@contextmanager
def _progress() -> Iterator["Progress"]:
    """Progress bars that are taken down again, whatever happens."""
    from likelier.train.progress import Bars

    bars = Bars()
    try:
        yield bars
    finally:
        bars.close()


def _first_line(command: Callable[..., None]) -> str:
    return (command.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
