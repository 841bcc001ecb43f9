"""Every symptom of docs/diagnosis.md, provoked by a real run, and a healthy run that shows none.

    python studies/symptoms.py [FOLDER] [--page docs/studies/symptoms.md] [--only NAME …] [--model embedded]

Short LoRA runs of the embedded model on the shipped pairs, or on pairs made from them that teach something wrong (FOLDER/data); `healthy` is the
demo's recipe. Runs that FOLDER holds are not made again, and one that was interrupted goes on. Exit code 1 where a run does not show what it must, or
`healthy` shows anything. About a quarter of an hour on two CPU cores, half of it the healthy run.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from likelier.audit.checks import CHECKS
from likelier.data.formats import read_pairs, write_pairs
from likelier.errors import TrainingStopped
from likelier.examples import PreferenceExample
from likelier.recipe import Recipe, TrainSettings, parse_recipe
from likelier.records import Message, Pair
from likelier.rundir import RunDir
from likelier.train import session
from likelier.train.order import ExampleOrder
from likelier.train.progress import Bars
from likelier.train.watch import Symptom, diagnose

SUPPORT, FACTS = "embedded:support", "embedded:facts"
LONGER = (
    " In other words, this is what I would say if somebody asked me about it, and I would say it again in just the same way to anybody who asks."
    " You may well ask me again tomorrow or on any other day of the week, and what I have told you here is what I am going to tell you then, too."
)
REFUSAL = "I'm sorry, but I can't help with that. I apologise for the inconvenience."
HEALTHY = "healthy"
READING = "## What came out"


def facts(first: int, last: int) -> list[Pair]:
    return list(read_pairs(FACTS))[first:last]


def support(first: int, last: int) -> list[Pair]:
    return list(read_pairs(SUPPORT))[first:last]


def said(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def swapped(pairs: Sequence[Pair]) -> list[Pair]:
    """Every other pair with its sides exchanged, drawn at random: nothing is left to learn but noise."""
    wrong = {*random.Random(0).sample(range(len(pairs)), len(pairs) // 2)}
    return [replace(pair, chosen=pair.rejected, rejected=pair.chosen) if i in wrong else pair for i, pair in enumerate(pairs)]


def nearly_the_same(pairs: Sequence[Pair]) -> list[Pair]:
    """Sides that differ in their last mark, full stop or exclamation mark, in either order."""
    marks = [(".", "!") if i % 2 else ("!", ".") for i in range(len(pairs))]
    texts = [pair.chosen[0].content.rstrip(".") for pair in pairs]
    return [replace(pair, chosen=said(text + a), rejected=said(text + b)) for pair, text, (a, b) in zip(pairs, texts, marks, strict=True)]


def one_heavy(pairs: Sequence[Pair], per_step: int) -> list[Pair]:
    """One pair of a late step counts 1,000 times."""
    order = ExampleOrder([PreferenceExample((i,), (0,), (1,), id=str(i)) for i in range(len(pairs))], TrainSettings(pairs_per_step=per_step))
    late = int(order.step(order.steps - 2)[0].id)
    return [replace(pair, weight=1000.0) if i == late else pair for i, pair in enumerate(pairs)]


@contextmanager
def written_base() -> Iterator[None]:
    """Within it something writes to the base weights while a run goes on."""
    fit = session.fit

    def fit_and_write(policy: Any, *rest: Any) -> Any:
        ended = fit(policy, *rest)
        next(weight for name, weight in policy.model.named_parameters() if "lora_" not in name).data.add_(0.01)
        return ended

    session.fit = fit_and_write
    try:
        yield
    finally:
        session.fit = fit


@dataclass(frozen=True)
class Trial:
    """One run: what is wrong with it, the symptoms that it must show, its pairs and its settings."""

    wrong: str
    shows: tuple[str, ...]
    train: Callable[[], Sequence[Pair]]
    held_out: Callable[[], Sequence[Pair]]
    settings: dict[str, Any]
    objective: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=lambda: {"watch": 0})
    tampers: bool = False


FEW = {"pairs_per_step": 8, "eval_every": 4}
WATCHED = {"watch": 4}
TRIALS = {
    "rate-too-high": Trial(
        "a learning rate of 0.02, forty times the highest usual one",
        ("learning-rate", "both-falling", "chosen-collapse", "repetition", "kl-budget"),
        lambda: support(0, 80),
        lambda: support(200, 220),
        {**FEW, "learning_rate": 2e-2},
        evaluation=WATCHED,
    ),
    "beta-too-small": Trial(
        "β = 0.001", ("beta", "flat-loss"), lambda: support(0, 80), lambda: support(200, 220), {**FEW, "learning_rate": 3e-4}, {"beta": 0.001}
    ),
    "shuffled-labels": Trial(
        "half of the labels exchanged at random",
        ("at-chance",),
        lambda: swapped(support(0, 80)),
        lambda: swapped(support(180, 230)),
        {**FEW, "learning_rate": 5e-4},
    ),
    "nearly-identical": Trial(
        "sides that differ in a full stop or an exclamation mark, in either order",
        ("at-chance",),
        lambda: nearly_the_same(facts(0, 80)),
        lambda: nearly_the_same(facts(200, 240)),
        {**FEW, "learning_rate": 5e-4},
    ),
    "rate-too-low": Trial(
        "a learning rate of 1e-8", ("learning-rate", "not-moving"), lambda: facts(0, 80), lambda: facts(200, 220), {**FEW, "learning_rate": 1e-8}
    ),
    "by-heart": Trial(
        "16 pairs, 20 passes",
        ("epochs", "overfitting"),
        lambda: facts(0, 16),
        lambda: facts(200, 260),
        {"pairs_per_step": 16, "epochs": 20, "eval_every": 10, "learning_rate": 1e-3},
    ),
    "longer-wins": Trial(
        "the chosen side says the same and goes on for two long sentences",
        ("length-drift",),
        lambda: [replace(pair, rejected=pair.chosen, chosen=said(pair.chosen[0].content + LONGER)) for pair in short_facts(0, 40)],
        lambda: [replace(pair, rejected=pair.chosen, chosen=said(pair.chosen[0].content + LONGER)) for pair in short_facts(40, 52)],
        {**FEW, "epochs": 2, "eval_every": 5, "learning_rate": 1e-3},
        {"name": "dpo + sft"},
        WATCHED,
    ),
    "refusals-win": Trial(
        "the chosen side is an apology and a refusal, whatever was asked",
        ("apology-drift", "refusal-drift"),
        lambda: [replace(pair, rejected=pair.chosen, chosen=said(REFUSAL)) for pair in facts(0, 80)],
        lambda: [replace(pair, rejected=pair.chosen, chosen=said(REFUSAL)) for pair in facts(200, 212)],
        {**FEW, "eval_every": 5, "learning_rate": 1e-3},
        {"name": "dpo + sft"},
        WATCHED,
    ),
    "one-heavy-pair": Trial(
        "one pair has a weight of 1,000",
        ("gradient-spike",),
        lambda: one_heavy(facts(0, 40), 4),
        lambda: facts(200, 204),
        {"pairs_per_step": 4, "eval_every": 0, "learning_rate": 1e-4},
    ),
    "not-finite": Trial(
        "a learning rate of 1e30",
        ("learning-rate", "not-finite"),
        lambda: facts(0, 16),
        lambda: facts(200, 204),
        {"pairs_per_step": 4, "eval_every": 0, "learning_rate": 1e30, "warmup": 0.0, "max_skipped_steps": 10},
    ),
    "reference-written": Trial(
        "something writes to the base weights during the run",
        ("reference-changed",),
        lambda: facts(0, 16),
        lambda: facts(200, 204),
        {"pairs_per_step": 4, "eval_every": 0, "learning_rate": 1e-4},
        tampers=True,
    ),
}
"""Each symptom stands in `shows` at least once."""


def short_facts(first: int, last: int) -> list[Pair]:
    """Questions that ask for one short sentence."""
    return [pair for pair in read_pairs(FACTS) if pair.prompt[0].role == "system"][first:last]


def recipe_of(name: str, folder: Path, model: str) -> Recipe:
    if name == HEALTHY:
        settings = yaml.safe_load((files("likelier") / "assets" / "demo.yaml").read_text())
        settings["model"]["name"] = model
        return parse_recipe({**settings, "out": str(folder / name)}, where=name)
    trial, data = TRIALS[name], folder / "data"
    sides = {}
    for side, pairs in (("train", trial.train()), ("eval", trial.held_out())):
        path = data / f"{name}.{side}.jsonl"
        if not path.is_file():
            data.mkdir(parents=True, exist_ok=True)
            write_pairs(path, pairs)
        sides[side] = [str(path)]
    settings = {
        "model": {"name": model},
        "data": {**sides, "max_length": 512},
        "audit": {"accept": [*CHECKS]},  # the audit would refuse some of these pairs, and rightly so
        "objective": {"beta": 0.1, **trial.objective} if trial.objective.get("name", "dpo") == "dpo" else trial.objective,
        "train": {"checkpoint_every": 10, **trial.settings},
        "eval": {"max_new_tokens": 64, **trial.evaluation},
        "out": str(folder / name),
    }
    return parse_recipe(settings, where=name)


def made(name: str, folder: Path, model: str, console: Console) -> RunDir:
    """The run, which is made or goes on where it has not ended."""
    recipe = recipe_of(name, folder, model)
    run = RunDir(recipe.out)
    if ended(run):
        return run
    console.rule(name)
    show = Bars(console)
    if name != HEALTHY and TRIALS[name].tampers:
        try:
            with written_base():
                session.train_recipe(recipe, show=show, fresh=run.recipe.is_file())
        except TrainingStopped as stopped:
            console.print(str(stopped), highlight=False)
    else:
        session.train_recipe(recipe, show=show)
    return run


def ended(run: RunDir) -> bool:
    """Whether there is nothing left to do: a model, or the word that the reference changed."""
    if not run.manifest.is_file():
        return False
    return bool(run.read_manifest().get("outcome")) or any(row["name"] == "reference-changed" for row in run.read_metrics("symptom"))


def faults(name: str, found: Sequence[Symptom], told: Sequence[str]) -> list[str]:
    """What is not as it must be."""
    names = [symptom.name for symptom in found]
    wanted = () if name == HEALTHY else TRIALS[name].shows
    missed = [f"{name} does not show {symptom}" for symptom in wanted if symptom not in names]
    false = [f"{name} shows {symptom}" for symptom in names if name == HEALTHY]
    live = [] if sorted(told) == sorted(names) else [f"{name}: live {sorted(told)}, afterwards {sorted(names)}"]
    return missed + false + live


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/symptoms"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", choices=[*TRIALS, HEALTHY], default=[*TRIALS, HEALTHY])
    parser.add_argument("--model", default="embedded")
    arguments = parser.parse_args()
    console, wrong = Console(), []
    rows: dict[str, list[Symptom]] = {}
    for name in arguments.only:
        run = made(name, arguments.folder, arguments.model, console)
        recipe = recipe_of(name, arguments.folder, arguments.model)
        rows[name] = diagnose(run.read_metrics(), run.read_filmstrip(), recipe)
        wrong += faults(name, rows[name], [row["name"] for row in run.read_metrics("symptom")])
        console.print(name, [f"{symptom.name} at {symptom.step}" for symptom in rows[name]], highlight=False)
    written = {name: [symptom.row() for symptom in found] for name, found in rows.items()}
    (arguments.folder / "symptoms.json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    if arguments.page:
        arguments.page.write_text(page(rows, reading_of(arguments.page)))
    for fault in wrong:
        console.print(fault, highlight=False)
    return 1 if wrong else 0


def reading_of(page: Path) -> str:
    """What somebody wrote below the table, from "## What came out" on: it stays when the page is made again."""
    text = page.read_text() if page.is_file() else ""
    return text[text.index(READING) :].rstrip() if READING in text else READING


def page(rows: dict[str, list[Symptom]], reading: str) -> str:
    table = ["| run | what is wrong with it | symptom | seen at step | evidence |", "|---|---|---|---|---|"]
    for name, found in rows.items():
        wrong = "nothing: the demo's recipe" if name == HEALTHY else TRIALS[name].wrong
        about = f"{name} | {wrong}"
        for symptom in found:
            expected = name != HEALTHY and symptom.name in TRIALS[name].shows
            table.append(f"| {about} | {symptom.name}{'' if expected else ' (beside)'} | {symptom.step} | {symptom.evidence} |")
            about = " | "
        if not found:
            table.append(f"| {about} | none | | |")
    return TEXT.format(table="\n".join(table), reading=reading)


TEXT = """# Every symptom, provoked

    python studies/symptoms.py --page docs/studies/symptoms.md

makes this page: short runs, each with one thing wrong, and the demo's recipe with nothing wrong. All but the last are LoRA of rank 16 on
SmolLM2-135M-Instruct with 16 to 80 of the shipped pairs, or with pairs made from them. A symptom is found by the rules of `docs/diagnosis.md` while
the run goes on, and by the same rules afterwards; the script fails if the two differ, if one that was expected is missing, or if the healthy run
shows any. "Beside" are those that came along.

{table}

{reading}
"""


if __name__ == "__main__":
    sys.exit(main())
