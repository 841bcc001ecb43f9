"""The top of the page: what was trained on what, the numbers to remember, and what must be known before believing them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likelier.changes import Finding
from likelier.metrics import Interval
from likelier.recipe import Recipe
from likelier.wording import change, count, duration, ends, quantity

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Tile:
    """One of the few numbers at the top."""

    label: str
    value: str
    note: str


def subtitle(recipe: Recipe, manifest: Manifest) -> str:
    """What was trained on what: dpo on embedded:support, SmolLM2 (135M parameters), LoRA of rank 16."""
    model = manifest.get("model") or {}
    adapter = (manifest.get("training") or {}).get("adapter") or recipe.adapter.model_dump()
    kind = f"{'DoRA' if adapter['dora'] else 'LoRA'} of rank {adapter['rank']}"
    method = {"lora": kind, "qlora": f"{kind} on 4 bits", "full": "all weights"}[recipe.train.method]
    size = f" ({_millions(model['parameters'])} parameters)" if model.get("parameters") else ""
    return f"{recipe.objective.name} on {', '.join(recipe.data.train)} · {model.get('name', recipe.model.name)}{size}, {method}"


def run_line(manifest: Manifest, changed: int, unchanged: int) -> str:
    """How long it trained and why it stopped, and how many measures moved."""
    outcome = manifest.get("outcome")
    trained = "Training has not ended; the page shows what there is so far."
    if _reference_changed(manifest):
        trained = "Training was stopped at its end, because the reference had changed; no model was saved."
    if outcome:
        trained = f"Trained for {count(outcome['steps'], 'step')} in {duration(outcome.get('seconds'))} ({outcome['stopped'].rstrip('.')})."
    if not changed + unchanged:
        return trained
    return f"{trained} Of {count(changed + unchanged, 'measure')} compared with the model before, {changed} changed and {unchanged} did not."


def tiles(manifest: Manifest, evaluation: Mapping[str, Any] | None) -> list[Tile]:
    """The numbers to remember."""
    held_out = evaluation["held_out"] if evaluation else {}
    wanted = (
        ("accuracy", "Held-out accuracy", "share", quantity),
        ("margin", "Margin", "", quantity),
        ("chosen_logp_change", "Log-probability of chosen", "nats", change),
        ("kl", "KL from the reference", "nats", quantity),
    )
    shown = []
    for name, label, unit, say in wanted:
        if held_out.get(name):
            interval = Interval.from_dict(held_out[name])
            shown.append(Tile(label, say(interval.value, unit, interval), ends(interval, unit)))
    train = manifest["data"]["train"]
    alone = sum((train.get("unpaired") or {}).values())
    if train["pairs"] or not alone:
        shown.append(Tile("Training pairs", f"{train['pairs']:,}", f"on {count(train['prompts'], 'prompt')}"))
    if alone:
        shown.append(Tile("Replies judged alone", f"{alone:,}", f"{train['unpaired']['good']:,} of them good"))
    if outcome := manifest.get("outcome"):
        shown.append(Tile("Training time", duration(outcome.get("seconds")), _reference_time(manifest.get("reference"), outcome)))
    return shown


def _reference_time(reference: Manifest | None, outcome: Manifest) -> str:
    if not reference:
        return ""
    if not reference["computed"]:
        return "the reference had been scored before"
    return f"{duration(outcome.get('reference_seconds'))} more for the reference"


def cautions(manifest: Manifest) -> list[str]:
    """What a reader must know before believing the rest."""
    found = []
    if _reference_changed(manifest):
        found.append("The reference scores changed during the run: rewards and margins are not to be trusted.")
    if (manifest.get("numerics") or {}).get("engine") == "plain":
        found.append("Prompts were not shared (plain engine): the result is the same, the run was slower than it need be.")
    if accepted := (manifest.get("audit") or {}).get("accepted"):
        found.append(f"Trained in spite of what the audit calls fatal: {', '.join(accepted)}.")
    for side, name in (("train", "training"), ("eval", "held-out")):
        data = manifest["data"].get(side) or {}
        alone = sum((data.get("unpaired") or {}).values())
        what = f"{name} {'record' if alone else 'pair'}"
        if dropped := data.get("dropped"):
            whole = data["pairs"] + alone + len(dropped)
            found.append(f"{count(len(dropped), what)} of {whole:,} could not be used; the data section names them.")
        if moved := data.get("boundary_mismatches"):
            found.append(f"In {count(moved, what)} prompt and reply are tokenised otherwise together than apart.")
    return found


def _reference_changed(manifest: Manifest) -> bool:
    return (manifest.get("reference") or {}).get("unchanged") is False


def judged_alone(manifest: Manifest) -> bool:
    """Whether any reply, trained on or held out, was judged without another beside it."""
    return any((side or {}).get("unpaired") for side in manifest["data"].values())


def no_findings(findings: Sequence[Finding], evaluation: Mapping[str, Any] | None, name: str) -> str:
    """What an empty list says instead of findings."""
    if findings:
        return ""
    return f"Nothing {name}." if evaluation else "Not known yet: the run has not been evaluated."


def _millions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
