"""The command line: parse, call, print. Heavy imports wait until a command needs them, so that help answers at once.

data.py        convert, audit, fix, split, verify
runs.py        demo, plan, train, report, export
sweeps.py      sweep
evaluation.py  eval, score
comparison.py  compare
common.py      what they share: recipes with settings, progress bars
"""

import errno
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from likelier.allocator import keep_freed_memory
from likelier.cli.comparison import compare
from likelier.cli.data import audit, convert, fix, split, verify
from likelier.cli.evaluation import eval_, score
from likelier.cli.runs import demo, export, plan, report, train
from likelier.cli.sweeps import sweep
from likelier.errors import LikelierError, did_you_mean, lacks_memory

USAGE = """likelier makes preferred answers likelier: it checks comparisons, tunes a language model on them, and shows what changed.

usage: likelier COMMAND [arguments]      `likelier COMMAND --help` explains one command

{commands}

options: --debug shows the traceback of an error      --version
exit codes: 0 done, 1 the answer is no (a gate, a failed check), 2 the request was wrong"""


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "audit": audit,
    "fix": fix,
    "convert": convert,
    "split": split,
    "plan": plan,
    "train": train,
    "sweep": sweep,
    "eval": eval_,
    "score": score,
    "compare": compare,
    "report": report,
    "export": export,
    "verify": verify,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed here has left, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _run(words: list[str]) -> int:
    keep_freed_memory()
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
    if name != "train" and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1":
        raise RequestError(f"torchrun is for `likelier train` alone: each of its processes would do all of `likelier {name}`. Start it without.")
    if [*inspect.signature(COMMANDS[name]).parameters] == ["arguments"]:  # it parses these itself
        COMMANDS[name](arguments)
        return
    import tyro

    command: Any = COMMANDS[name]
    tyro.cli(command, prog=f"likelier {name}", args=arguments, config=(tyro.conf.PositionalRequiredArgs,))


def _first_line(command: Callable[..., None]) -> str:
    return (command.__doc__ or "").strip().splitlines()[0]
