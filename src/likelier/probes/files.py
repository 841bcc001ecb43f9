"""The YAML lists in which probes are written: `assets/probes.yaml` for those that ship, and a user's own files.

- name: mentions_price                  # what eval.json calls it
  title: Replies that name a price      # what the report calls it
  want: higher                          # higher, lower or none
  prompts:                              # texts, lists of messages, mappings with what is right for that prompt, or the name of a file of these
    - What does the Pier plan cost?
    - {prompt: "What does the Quay plan cost?", pattern: "12 euros"}
  pattern: "euros?"                     # found in the reply? Or one of:
  # function: checks.py:is_polite       # (reply, messages) → true, false or a number
  # answer: [12 euros, twelve euros]    # the whole reply, as measures.is_answer compares
  # choices: [cheap, dear]              # with `answer`: which of them is the likeliest beginning of the reply?
  # measure: refusal                    # length, apology, refusal, loop, ended
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from likelier.data.files import SCHEMES, read_rows
from likelier.data.messages import prompt_messages
from likelier.errors import DataError, RecipeError, did_you_mean
from likelier.hashing import file_hash
from likelier.probes.definition import Item, Probe, Want
from likelier.probes.measures import MEASURES, MeasureName, own_function, own_number
from likelier.records import Messages
from likelier.section import Count, Section

SectionKind = TypeVar("SectionKind", bound=Section)
Say = Callable[[str], object]

TRIAL = "Yes, of course."
"""A reply on which a user's function is tried before any model is asked."""


def _pattern(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return re.compile(value)
    except re.error as problem:
        raise ValueError(f"this is no regular expression ({problem})") from None


def _answer(value: Any) -> Any:
    """Texts, or a place among the choices. YAML reads a bare `yes` as true, which must not become the place 1."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    texts = value if isinstance(value, list | tuple) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("text, a list of texts, or the place of the right choice, from 0. YAML takes yes, no and numbers for text only in quotes")
    return tuple(texts)


class Right(Section):
    """What is right. It may stand in a probe, for all of its prompts, and in a prompt, which goes first."""

    choices: tuple[str, ...] = ()
    """Possible beginnings of the reply, of which the likeliest is taken for the answer."""
    answer: Annotated[int | tuple[str, ...] | None, BeforeValidator(_answer)] = None
    """The right choice, as text or by its place from 0; without choices, all texts that are right as a whole reply."""
    pattern: Annotated[re.Pattern[str] | None, BeforeValidator(_pattern)] = None
    """A Python regular expression that is looked for in the reply."""


class WrittenPrompt(Right):
    """A prompt as a probe file writes it."""

    prompt: Annotated[Messages, BeforeValidator(prompt_messages)]
    id: str = ""
    """Names the prompt in probes.jsonl. Empty: the probe's name and a number."""
    group: str = ""
    """What kind of prompt it is: for readers of the file."""


class WrittenProbe(Right):
    """A probe as a probe file writes it."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    title: str = ""
    set: str = ""
    """name@version of the prompts. Empty: the name of the file and a hash of what the probe asks."""
    want: Want
    prompts: Any
    measure: MeasureName | None = None
    function: str | None = None
    max_new_tokens: Count | None = None
    """Longest reply, if it shall be shorter than eval.max_new_tokens."""


def probes_of(sets: bool | Sequence[str], files: Sequence[str | Path], say: Say = lambda _: None) -> list[Probe]:
    """The probes that `eval.probes` and `eval.probe_files` ask for; `say` is told what `read_probes` tells it. Raises RecipeError or DataError for a
    file that is missing or wrong, and where two probes have one name."""
    own = [probe for file in files for probe in read_probes(file, say)]
    taken = [probe.name for probe in (*shipped_probes(), *own)]
    for name in taken:
        if taken.count(name) > 1 or name.startswith("held_out_"):
            raise RecipeError(
                f"eval.probe_files ({', '.join(map(str, files))}): the name `{name}` is taken, by another of these probes or by one that ships. "
                "Give each its own."
            )
    return [*(probe for probe in shipped_probes() if sets is True or (sets and probe.set.partition("@")[0] in sets)), *own]


@cache
def shipped_probes() -> tuple[Probe, ...]:
    """The probes that ship with Likelier."""
    with resources.as_file(resources.files("likelier") / "assets" / "probes.yaml") as path:
        return tuple(read_probes(path))


def read_probes(path: str | Path, say: Say = lambda _: None) -> list[Probe]:
    """The probes of one file. Before a Python file that it names is run, `say` is told which. Raises RecipeError, or DataError for a file of
    prompts, naming file and entry and the mend."""
    path = Path(path)
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such probe file (eval.probe_files). A path is relative to where the command runs.") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise RecipeError(f"{path}: the probe file cannot be read ({problem}).") from None
    except yaml.YAMLError as problem:
        raise RecipeError(f"{path}: this is not valid YAML: {problem}") from None
    if not isinstance(written, list) or not written:
        raise RecipeError(f"{path}: a probe file is a list of probes, each `- name: …` with `prompts`, `want` and what is right.")
    return [_probe(entry, path, number, say) for number, entry in enumerate(written, 1)]


def _probe(entry: Any, path: Path, number: int, say: Say) -> Probe:
    name = f" (`{entry['name']}`)" if isinstance(entry, dict) and isinstance(entry.get("name"), str) else ""
    where = f"{path}: probe {number}{name}"
    written = _checked(WrittenProbe, entry, where)
    own = [way for way in ("measure", "function") if getattr(written, way)]
    items = tuple(_items(written, path.parent, where, judged=not own))
    if own:  # what single prompts say is right for another probe
        ways = {*own, *(way for way in ("pattern", "answer", "choices") if getattr(written, way) not in (None, ()))}
    else:
        ways = {way for item in items for way in _ways(item)}
    if len(ways) != 1:
        found = f"It has {' and '.join(f'`{way}`' for way in sorted(ways))}" if ways else "It has none"
        raise RecipeError(f"{where}: a probe measures one thing: `pattern`, `answer`, `choices` with `answer`, `function` or `measure`. {found}.")
    function = None
    if written.function:
        say(f"Running {path.parent / written.function.rpartition(':')[0]}, which {path} names.")
        function = own_function(written.function, folder=path.parent, where=where)
        for item in items[:1]:
            own_number(function, TRIAL, [message.as_dict() for message in item.prompt], where=f"{where}, tried on a made-up reply")
    return Probe(
        name=written.name,
        title=written.title or written.name,
        set=written.set or f"{path.stem}@{_version(written, items, path.parent)}",
        want=written.want,
        items=items,
        max_new_tokens=written.max_new_tokens,
        measure=MEASURES[written.measure] if written.measure else None,
        function=function,
    )


def _ways(item: Item) -> list[str]:
    return [way for way, given in (("choices", item.choices), ("answer", item.answers), ("pattern", item.pattern)) if given]


def _items(probe: WrittenProbe, folder: Path, where: str, *, judged: bool) -> Iterable[Item]:
    """The prompts of a probe, each with what is right for it; `judged` False: by a function or measure, whatever the prompts say themselves."""
    for number, (value, place) in enumerate(_prompts(probe.prompts, folder, where), 1):
        written = _checked(WrittenPrompt, value if isinstance(value, dict) else {"prompt": value}, place)
        if not any(message.content.strip() for message in written.prompt):
            raise RecipeError(f"{place}: this prompt is empty.")
        right = _right(written, probe, place) if judged else {}
        yield Item(written.id or f"{probe.name}-{number}", written.prompt, **right)


def _prompts(prompts: Any, folder: Path, where: str) -> Iterable[tuple[Any, str]]:
    """(what is written, where it stands) of each prompt."""
    if isinstance(prompts, str):
        source = prompts if prompts.partition(":")[0] in SCHEMES else str(folder / prompts)
        for row in read_rows(source):
            if isinstance(row.value, DataError):
                raise row.value
            yield row.value, f"{row.where} ({where})"
        return
    if not isinstance(prompts, list) or not prompts:
        raise RecipeError(f"{where}: `prompts` is a list of prompts, or the name of a file that holds one (given: {prompts!r}).")
    yield from ((prompt, f"{where}, prompt {number}") for number, prompt in enumerate(prompts, 1))


def _right(prompt: WrittenPrompt, probe: WrittenProbe, where: str) -> dict[str, Any]:
    """Fields of an Item. What a prompt says itself replaces what its probe says."""
    own = prompt.pattern is not None or prompt.answer is not None
    pattern = prompt.pattern if own else probe.pattern
    choices, answer = prompt.choices or probe.choices, prompt.answer if prompt.answer is not None or own else probe.answer
    if answer is None:
        if prompt.choices or (choices and not own):
            raise RecipeError(f"{where}: `choices` stand without `answer`, which says the right one.")
        return {"pattern": pattern}
    if not choices:
        if isinstance(answer, int):
            raise RecipeError(f"{where}: `answer` is the number {answer}, but there are no `choices` to count. Put a reply of digits in quotes.")
        return {"answers": answer, "pattern": pattern}
    if len(set(choices)) < max(2, len(choices)):
        raise RecipeError(f"{where}: `choices` are at least two, all different.")
    place = answer if isinstance(answer, int) else choices.index(answer[0]) if len(answer) == 1 and answer[0] in choices else -1
    if not 0 <= place < len(choices):
        raise RecipeError(f"{where}: `answer` is one of the choices, or its place from 0 to {len(choices) - 1} (given: {answer!r}).")
    return {"choices": choices, "right": place, "pattern": pattern}


def _version(probe: WrittenProbe, items: Sequence[Item], folder: Path) -> str:
    """The first 8 digits of a SHA-256 over what is asked and what counts: two evaluations with equal ones can be compared."""
    asked = [[[m.as_dict() for m in i.prompt], i.choices, i.right, i.answers, i.pattern and [i.pattern.pattern, i.pattern.flags]] for i in items]
    code = file_hash(folder / probe.function.rpartition(":")[0]) if probe.function else None
    return hashlib.sha256(json.dumps([asked, probe.measure, probe.function, code, probe.max_new_tokens]).encode()).hexdigest()[:8]


def _checked(kind: type[SectionKind], value: Any, where: str) -> SectionKind:
    """Raises RecipeError with one line for each fault."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: a mapping belongs here (given: {value!r}).")
    try:
        return kind.model_validate(value)
    except ValidationError as faults:
        raise RecipeError("\n".join(f"{where}: {_explained(fault, kind)}" for fault in faults.errors())) from None


def _explained(fault: Any, kind: type[Section]) -> str:
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"`{key}` is not known here.{did_you_mean(key, kind.model_fields)} Known: {', '.join(kind.model_fields)}."
    if fault["type"] == "missing":
        return f"`{key}` is missing."
    quotes = " Put it in quotes." if fault["type"] == "string_type" and isinstance(fault["input"], bool | int | float) else ""
    return f"`{key}`: {fault['msg'].removeprefix('Value error, ')} (given: {fault['input']!r}).{quotes}"
