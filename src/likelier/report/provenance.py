"""Where a run comes from, and how to make it again and check it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from likelier.changes import has_reference
from likelier.recipe import Recipe
from likelier.wording import UNKNOWN, count, number

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Fact:
    """A named value of the provenance; `code` ones (hashes, commands) are set in a fixed-width face."""

    name: str
    value: str
    code: bool = False


def provenance(manifest: Manifest) -> list[tuple[str, list[Fact]]]:
    """Where the run comes from, in named groups: enough to make it again and to check it."""
    data, model, numerics, outcome = (manifest.get(part) or {} for part in ("data", "model", "numerics", "outcome"))
    versions = (manifest.get("versions") or {}).items()
    return [
        ("Data", [Fact(f"{name} id", data[side]["id"], code=True) for side, name in (("train", "training"), ("eval", "held-out")) if data.get(side)]),
        (
            "Model",
            [
                Fact("name", _text(model.get("name"))),
                Fact("parameters", number(model.get("parameters"))),
                Fact("trained", number(model.get("trainable_parameters"))),
                *(Fact(name.replace("_", " "), _text(model.get(name)), code=True) for name in ("weights", "tokenizer", "chat_template")),
            ],
        ),
        (
            "Numerics",
            [
                *(Fact(name, _text(numerics.get(name))) for name in ("precision", "device", "engine")),
                Fact("parity", _parity(numerics.get("parity"))),
                Fact("first loss", _first_loss(outcome)),
                Fact("reference", _reference(manifest.get("reference"))),
            ],
        ),
        (
            "Run",
            [
                *(Fact(name, _text(manifest.get(name)), code=True) for name in ("command", "recipe")),
                Fact("created", _text(manifest.get("created"))),
                Fact("Likelier", _text(manifest.get("likelier"))),
                *(Fact(name, _text(version)) for name, version in versions),
            ],
        ),
    ]


def _parity(parity: Mapping[str, float] | None) -> str:
    if not parity:
        return "not measured"
    return f"tree and plain differ by {parity['largest_difference']:.1e} at most (tolerance {parity['tolerance']:.0e})"


def _first_loss(outcome: Mapping[str, Any]) -> str:
    if outcome.get("first_loss") is None:
        return UNKNOWN
    expected = outcome.get("first_loss_expected")
    return f"{outcome['first_loss']:.4f}" + (f" (expected {expected:.4f})" if expected is not None else "")


def _reference(reference: Mapping[str, Any] | None) -> str:
    if reference is None or not has_reference(reference):
        return "none"
    state = {True: "unchanged at the end", False: "changed by the end", None: "not checked again"}[reference.get("unchanged")]
    return f"{count(reference['computed'], 'response')} scored, {reference['reused']:,} reused, {state}"


def reproduce(recipe: Recipe, manifest: Manifest) -> list[tuple[str, str]]:
    """(what for, commands) that make the run again and check it. Paths are those that the run was given."""
    versions = manifest.get("versions") or {}
    packages = [f"{name}=={version}" for name, version in versions.items() if name != "python" and version]
    beside = f"Likelier {_text(manifest.get('likelier'))} on Python {_text(versions.get('python'))}"
    steps = [(f"The same versions, beside {beside}", " ".join(["pip install", *packages]))] if packages else []
    if manifest.get("command"):
        steps.append(("The run, as it was started", str(manifest["command"])))
    steps.append(("The run from its resolved recipe, into a new folder", f"likelier train {recipe.out}/recipe.yaml --out {recipe.out}-again"))
    steps.append(("Proof that data, weights and this run belong together", f"likelier verify {recipe.out}"))
    return steps


def _text(value: Any) -> str:
    return UNKNOWN if value in (None, "") else str(value)
