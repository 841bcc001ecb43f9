"""Who is compared: what a specification names, and how its replies come about.

runs/mine               a run's tuned model                       runs/mine@reference     the model that the run began with
embedded, a folder, a .gguf file, a hub name                      a model, as `model.name` in a recipe
adapter/                a PEFT adapter on the base that its config names
replies.jsonl           replies that exist already
SPEC+system=FILE        any of the models with the system prompt in FILE, in the place of the prompt's own
NAME=SPEC               any of them, under a name of your own
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from likelier.errors import DataError, ModelError, RequestError, RunError
from likelier.records import Message, Messages
from likelier.rundir import RunDir

REFERENCE, SYSTEM = "@reference", "+system="

REPLIES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
"""How files of replies end."""

OWN_SYSTEM = "{system}"
"""What a system prompt's file may hold where the prompt's own is to stand."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How models write."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RequestError(f"--max-new-tokens is {self.max_new_tokens}; a reply has one token or more.")
        if not 0 <= self.temperature < math.inf:
            raise RequestError(f"--temperature is {self.temperature:g}; it is 0 (the likeliest tokens) or a positive number.")


@dataclass(frozen=True, slots=True)
class Contestant:
    """One side of a comparison. `where` is a run, a model, an adapter or a file of replies."""

    name: str
    spec: str
    where: str
    reference: bool = False
    system: str | None = None

    @property
    def file(self) -> str:
        """The name of its file in OUT/replies."""
        return (re.sub(r"[^\w.@+-]+", "-", self.name).strip(".-") or "contestant") + ".jsonl"

    @property
    def replies(self) -> Path | None:
        """The file that holds its replies, where they exist already."""
        return Path(self.where) if self.where.lower().endswith(REPLIES) else None


def parse_contestants(specs: Sequence[str]) -> list[Contestant]:
    """What the specifications name, each under a name of its own. Raises RequestError for one that cannot be."""
    contestants = [_parse(spec) for spec in specs]
    if len(contestants) < 2:
        raise RequestError("a comparison is of two contestants or more, and then the prompts: likelier compare A B PROMPTS --judge J.")
    for contestant in contestants:
        if sum(other.file == contestant.file for other in contestants) > 1:
            raise RequestError(f"two contestants are called `{contestant.name}`. Give one a name of its own: NAME={contestant.spec}")
    return contestants


def _parse(spec: str) -> Contestant:
    before, has_system, file = spec.partition(SYSTEM)
    reference = before.endswith(REFERENCE)
    whole = before.removesuffix(REFERENCE)
    given, named, where = whole.partition("=")
    is_path = Path(whole).exists() or ("/" in given and Path(given).parent.is_dir())  # runs of a sweep have = in their names
    if not named or is_path:
        given, where = "", whole
    if not where:
        raise RequestError(f"`{spec}` names no contestant. Give a run directory, a model or a file of replies.")
    name = given or Path(where).name.removesuffix(".jsonl") + REFERENCE * reference + "+system" * bool(has_system)
    contestant = Contestant(name, spec, where, reference, _system(spec, file) if has_system else None)
    if contestant.replies:
        if reference or has_system:
            raise RequestError(
                f"`{spec}`: {where} holds replies, which have neither a reference nor a system prompt. Give the model that wrote them."
            )
        if not contestant.replies.is_file():
            raise RequestError(f"`{spec}`: {where}: there is no such file of replies.")
    elif reference and not _is_run(where):
        raise RequestError(f"`{spec}`: {where} is not a run directory (no recipe.yaml in it), and only runs have a reference.")
    elif Path(where).is_dir() and not any((Path(where) / file).is_file() for file in ("recipe.yaml", "config.json", "adapter_config.json")):
        raise RequestError(f"`{spec}`: the folder {where} holds no run (recipe.yaml), no model (config.json) and no adapter (adapter_config.json).")
    return contestant


def _system(spec: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise RequestError(f"`{spec}`: the system prompt {file} cannot be read ({problem}).") from None


def _is_run(where: str) -> bool:
    return RunDir(where).recipe.is_file()


def with_system(prompt: Messages, system: str) -> Messages:
    """The prompt under another system prompt. Where that holds {system}, the prompt's own stands in its place; else it gives way."""
    rest = prompt
    own = ""
    if prompt and prompt[0].role == "system":
        own, rest = prompt[0].content, prompt[1:]
    return (Message("system", system.replace(OWN_SYSTEM, own).strip()), *rest)


def named(contestant: Contestant, problem: RequestError) -> RequestError:
    """An error while a contestant wrote, with its name and this command's own settings."""
    text = str(problem).replace("Lower eval.max_new_tokens or data.max_length.", "Lower --max-new-tokens, or leave long prompts out.")
    kind = type(problem)
    return kind(f"{contestant.name}: {text}") if kind in (ModelError, DataError, RunError) else problem
