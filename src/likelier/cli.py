"""The command line: parse, call, print. Heavy imports wait until a command needs them, so that help answers at once."""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from likelier.allocator import keep_freed_memory
from likelier.errors import LikelierError, did_you_mean, lacks_memory

if TYPE_CHECKING:
    from likelier.recipe import Recipe
    from likelier.thresholds import AuditSettings
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
        out: the run directory; an earlier demo there is replaced, an interrupted one goes on.
    """
    from likelier import pipeline

    with _progress() as show:
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

    options, recipe = _with_recipe("plan", "[--json FILE]", Options, arguments, plan.__doc__)
    from likelier.data.files import refuse_input_as_output
    from likelier.errors import Refused
    from likelier.rundir import write_json
    from likelier.train.plan import plan_recipe
    from likelier.train.plan_terminal import show_plan

    if options.json:
        refuse_input_as_output(options.json, [arguments[0], *recipe.data.train, *recipe.data.eval])
    with _progress() as show:
        made = plan_recipe(recipe, show)
    show_plan(made, recipe)
    if options.json:
        write_json(options.json, made.as_dict())
    if not made.fits:
        raise Refused("the worst batch of this run does not fit into memory. What takes less stands at the head of the advice.")


def train(arguments: Sequence[str]) -> None:
    """Tune a model by a recipe; any setting can be given as --section.name VALUE. Goes on where an interrupted run stopped."""

    @dataclass
    class Options:
        fresh: bool = False
        """Remove an earlier run in the same folder first."""
        report: bool = True
        """Evaluate and write the report when training has ended."""

    options, recipe = _with_recipe("train", "[--fresh]", Options, arguments, train.__doc__)
    with _progress() as show:
        if options.report:
            from likelier.pipeline import train_and_report

            train_and_report(recipe, show=show, fresh=options.fresh)
        else:
            from likelier.train.session import train_recipe

            show.say(f"Model: {train_recipe(recipe, show=show, fresh=options.fresh).model}")


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


def audit(
    data: tuple[str, ...],
    model: str = "",
    max_length: int = 1024,
    against: tuple[str, ...] = (),
    json: Path | None = None,
    html: Path | None = None,
    recipe: Path | None = None,
) -> None:
    """Say what preference pairs would really teach: bias, duplicates, contradictions, secrets, shortcuts. Exit code 1 on a fatal finding.

    Args:
        data: files of preference pairs.
        model: count tokens as this model does: `embedded`, a folder, a .gguf file or a hub name.
        max_length: the tokens of prompt and reply that the model is to be trained on; asked with --model.
        against: held-out files; a prompt that stands in both is a leak.
        json: write all findings here.
        html: write them as one page, with plots.
        recipe: take limits, accepted checks, model and data.max_length from this recipe.
    """
    from likelier.audit.run import audit as run_audit
    from likelier.audit.terminal import show_audit
    from likelier.data.files import refuse_input_as_output
    from likelier.data.version import note_audit
    from likelier.errors import Refused
    from likelier.report.audit_page import write_audit_json, write_audit_page

    for target in (json, html):
        if target:
            refuse_input_as_output(target, data)
    measure = _Measure.by(recipe, model, max_length)
    found = run_audit(data, **measure.options(tokens=True), against=against, workers=_processes())
    show_audit(found)
    for path in data:
        note_audit(path, dataset=found.dataset, audit=found.hash)
    if json:
        write_audit_json(found, json)
    if html:
        write_audit_page(found, html)
    if fatal := found.fatal(measure.limits.accept):
        raise Refused(f"{len(fatal)} fatal {'finding' if len(fatal) == 1 else 'findings'}: {', '.join(f.check for f in fatal)}.")


def fix(data: str, dst: Path, do: tuple[str, ...] = (), model: str = "", max_length: int = 1024, recipe: Path | None = None) -> None:
    """Apply safe mends to preference pairs, each by its name, and write what stays as a new version.

    Args:
        data: a file, folder, glob, saved Hugging Face data set, hf:owner/name or embedded:support.
        dst: a .jsonl, .jsonl.gz or .parquet file.
        do: drop-unusable, drop-near-identical, drop-duplicates, drop-near-duplicates, drop-contradictions, drop-cycles, drop-over-ratio,
            drop-over-long, drop-cut-off, balance-length, mask-secrets.
        model: count tokens as this model does, for drop-over-long.
        max_length: the tokens of prompt and reply that the model is to be trained on, for drop-over-long.
        recipe: take limits, model and data.max_length from this recipe.
    """
    from likelier.audit.fix import fix as mend

    measure = _Measure.by(recipe, model, max_length)
    fixed = mend([data], dst, do, **measure.options(tokens="drop-over-long" in do), workers=_processes())
    for name, count in fixed.counts.items():
        print(f"{name}: {count:,} {'row' if count == 1 else 'rows'}")
    print(f"{dst}: {fixed.manifest.counts}, data set {fixed.manifest.id}\nmade of {', '.join(fixed.manifest.parents)}")


def split(data: str, eval: float = 0.1, by: str = "prompt", stratify: str | None = None) -> None:
    """Split pairs into DATA.train.jsonl and DATA.eval.jsonl, each a version; equal and near-duplicate prompts stay on one side.

    Args:
        data: a file of preference pairs, or another source that `convert` reads.
        eval: the share of prompts (or groups, or values of the field) to hold out.
        by: what else stays on one side: prompt, group, source, annotator, reason or meta.NAME.
        stratify: a field, such as reason or source, each value of which gets both sides.
    """
    from likelier.data.version import split_version

    for path, made in split_version(data, eval_fraction=eval, by=by, stratify=stratify):
        print(f"{path}: {made.counts}, data set {made.id}")


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


def verify(path: str) -> None:
    """Prove that a data file is what its manifest says, or that a run's data, recipe, base and weights are those that it names.

    Args:
        path: a data file with a manifest beside it, a run directory or an exported model.
    """
    from likelier.errors import Refused
    from likelier.verify import verify as check

    checks = check(path)
    for made in checks:
        print(f"{made.verdict:<12}{made.what}{f': {made.detail}' if made.detail else ''}")
    if wrong := [made.what for made in checks if made.verdict == "differs"]:
        raise Refused(f"{path} is not what its manifest says: {', '.join(wrong)}.")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "audit": audit,
    "fix": fix,
    "convert": convert,
    "split": split,
    "plan": plan,
    "train": train,
    "eval": eval_,
    "report": report,
    "export": export,
    "verify": verify,
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
    except OSError as problem:
        if debug or problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"likelier: the disk is full ({problem}). What was written before is whole; free space and run again.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("likelier: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def _dispatch(name: str, arguments: list[str]) -> None:
    from likelier.errors import RequestError

    if name not in COMMANDS:
        raise RequestError(f"there is no command `{name}`.{did_you_mean(name, COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    if name in ("plan", "train"):
        COMMANDS[name](arguments)
        return
    import tyro

    command: Any = COMMANDS[name]
    tyro.cli(command, prog=f"likelier {name}", args=arguments, config=(tyro.conf.PositionalRequiredArgs,))


def _with_recipe(name: str, usage: str, options: Any, arguments: Sequence[str], description: str | None) -> tuple[Any, "Recipe"]:
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

    command = tyro.cli(Command, prog=f"likelier {name} RECIPE", args=rest, default=Command(recipe=loaded), description=cleandoc(description or ""))
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


@dataclass(frozen=True)
class _Measure:
    """What an audit goes by: limits, and the model by which tokens are counted."""

    limits: "AuditSettings"
    model: str
    revision: str | None
    chat_template: str
    max_length: int

    @classmethod
    def by(cls, recipe: Path | None, model: str, max_length: int) -> "_Measure":
        """The recipe's, or the usual limits and what was asked for."""
        from likelier.recipe import load_recipe
        from likelier.thresholds import AuditSettings

        if not recipe:
            return cls(AuditSettings(), model, None, "own", max_length)
        loaded = load_recipe(recipe)
        return cls(loaded.audit, model or loaded.model.name, loaded.model.revision, loaded.model.chat_template, loaded.data.max_length)

    def options(self, *, tokens: bool) -> dict[str, Any]:
        """For `audit` and `fix`; the tokenizer is looked for only where tokens are to be counted."""
        from likelier.data.tokenizer_files import TokenCounter
        from likelier.model_files import tokenizer_folder

        counter = TokenCounter(tokenizer_folder(self.model, self.revision), self.chat_template) if tokens and self.model else None
        return {"limits": self.limits, "count_tokens": counter, "max_length": self.max_length}


def _processes() -> int:
    return os.cpu_count() or 1


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
