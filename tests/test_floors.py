"""The layout holds: imports point down, stages do not know each other, and reading data costs no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import likelier

SOURCE = Path(likelier.__file__).parent
FLOORS = {
    **dict.fromkeys(
        ["allocator", "atomic", "chunks", "errors", "examples", "hashing", "model_files", "recipe", "records", "rundir", "section", "thresholds"], 0
    ),
    **dict.fromkeys(["user_code", "weights"], 0),
    **dict.fromkeys(["agreement", "data", "objectives", "metrics", "win_rates"], 1),
    **dict.fromkeys(
        [
            "adapters",
            "audit",
            "card",
            "changes",
            "four_bits",
            "judge",
            "logprobs",
            "models",
            "generation",
            "probes",
            "recompute",
            "subject",
            "wording",
        ],
        2,
    ),
    **dict.fromkeys(["train", "evaluate", "compare", "mine", "report", "label", "score", "verify", "export"], 3),
    **dict.fromkeys(["pipeline", "sweep"], 4),
    "cli": 5,
    "__main__": 6,
    "__init__": 6,
}
"""Packages and modules of `likelier`, from the ground up."""

STAGES = 3
"""The floor whose members meet in the run directory and nowhere else."""


@cache
def modules() -> list[tuple[str, ast.Module]]:
    """(dotted name below `likelier`, parsed source) of every file."""
    paths = sorted(SOURCE.rglob("*.py"))
    return [(".".join(path.relative_to(SOURCE).with_suffix("").parts), ast.parse(path.read_text(encoding="utf-8"), str(path))) for path in paths]


def imported_by(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere in it, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            if base == "likelier":
                yield from (f"likelier.{alias.name}" for alias in node.names)


def unit_of(name: str) -> str:
    return name.removeprefix("likelier.").split(".")[0]


@cache
def edges() -> set[tuple[str, str, str]]:
    """(module, its unit, unit that it imports) wherever the two units differ."""
    found = set()
    for name, tree in modules():
        for target in imported_by(tree):
            if target.startswith("likelier.") and unit_of(target) != unit_of(name):
                found.add((name, unit_of(name), unit_of(target)))
    return found


def test_imports_are_seen_wherever_they_stand():
    tree = ast.parse(
        "import torch.nn\nfrom likelier import pipeline\ndef f():\n  from likelier.data.chat import Encoder\nfrom . import x\nfrom .y import z"
    )
    assert set(imported_by(tree)) == {"torch.nn", "likelier", "likelier.pipeline", "likelier.data.chat", ".", ".y"}
    assert len(edges()) > 30


def test_every_module_has_a_floor():
    assert {unit_of(name) for name, _ in modules()} <= FLOORS.keys(), "give it a line in FLOORS"


def test_imports_are_absolute():
    assert not [(name, target) for name, tree in modules() for target in imported_by(tree) if target.startswith(".")]


def test_no_import_points_up():
    assert not {edge for edge in edges() if FLOORS[edge[2]] > FLOORS[edge[1]]}


def test_stages_never_import_each_other():
    assert not {edge for edge in edges() if FLOORS[edge[1]] == FLOORS[edge[2]] == STAGES}


def test_no_two_units_import_each_other_in_a_circle():
    above = {unit: {target for _, source, target in edges() if source == unit} for unit in FLOORS}
    settled: set[str] = set()
    while ready := {unit for unit in FLOORS if unit not in settled and above[unit] <= settled}:
        settled |= ready
    assert not FLOORS.keys() - settled


def test_data_never_imports_torch():
    heavy = {"torch", "transformers", "peft", "safetensors", "accelerate"}
    found = {(name, target) for name, tree in modules() if unit_of(name) == "data" for target in imported_by(tree) if target.split(".")[0] in heavy}
    assert not found


def test_data_runs_without_torch():
    """With all that it imports in turn: reading, splitting and checking data work on a machine that has no torch at all."""
    names = [f"likelier.{name}".removesuffix(".__init__") for name, _ in modules() if unit_of(name) == "data"]
    assert "likelier.data.formats" in names
    code = f"import sys; sys.modules['torch'] = None; import likelier, {', '.join(names)}; sys.exit('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_front_door_leads_somewhere_and_costs_nothing():
    for name in likelier.__all__:
        assert getattr(likelier, name).__name__ == name
    with pytest.raises(AttributeError, match="likelier has no `tune`; it offers Encoder, "):
        likelier.tune  # noqa: B018
    code = "import sys, likelier; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'yaml', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
