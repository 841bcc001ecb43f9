"""A run directory as one page: read, phrase, fill in the template, write."""

import math
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from likelier.changes import has_reference, held_out_measures, list_changes, probe_row, reason_measures
from likelier.recipe import Recipe, load_recipe
from likelier.report import plots, view
from likelier.report.curves import Drawing, Key, draw_curves
from likelier.rundir import RunDir, write_atomic
from likelier.wording import count, quantity


def write_report(run: RunDir) -> Path:
    """Write `report.html`, one file without scripts or network, from what the run directory holds; return its path.

    What is not there yet (evaluation, samples, curves) is said to be missing. Raises RunError when it is no run directory or has no manifest.
    """
    recipe = load_recipe(run.require().recipe)
    write_atomic(run.report, template("page.html.jinja").render(_page(run, recipe)))
    return run.report


def template(name: str) -> jinja2.Template:
    """One of this folder's templates, with everything escaped but our own drawings."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = Markup  # for our own SVG only; all other text is escaped
    environment.filters["code"] = _with_code
    return environment.get_template(name)


def _with_code(text: str) -> Markup:
    """The text, escaped, with what stands between backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _page(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Everything the template shows."""
    manifest, evaluation, samples = run.read_manifest(), run.read_eval(), run.read_samples()
    train, held_out = run.read_metrics("train"), run.read_metrics("eval")
    compared = has_reference(manifest.get("reference"))
    changed, unchanged = list_changes(evaluation, has_reference=compared) if evaluation else ([], [])
    return {
        "name": run.path.resolve().name,
        "subtitle": view.subtitle(recipe, manifest),
        "created": str(manifest.get("created", ""))[:16].replace("T", " "),
        "headline": view.headline(manifest, evaluation, held_out, len(changed), len(unchanged)),
        "tiles": view.tiles(manifest, evaluation),
        "cautions": view.cautions(manifest),
        "changed": changed,
        "changed_empty": view.no_findings(changed, evaluation, "changed"),
        "unchanged": unchanged,
        "unchanged_empty": view.no_findings(unchanged, evaluation, "stayed the same"),
        "evaluation": evaluation,
        "measures": held_out_measures(evaluation) if evaluation else [],
        "reasons": reason_measures((evaluation.get("by") or {}).get("reason") or {}) if evaluation else [],
        "calibration": _calibration(evaluation.get("calibration")) if evaluation else None,
        "probes": [probe_row(probe) for probe in evaluation.get("probes") or []] if evaluation else [],
        "curves": draw_curves(
            train, held_out, expected_loss=_expected_loss(recipe, manifest), best_step=_best_step(manifest), alone=view.judged_alone(manifest)
        ),
        "held_out_curves": bool(held_out),
        "smoothed": len(train) >= plots.RUNNING_MEAN_FROM,
        "best_step": _best_step(manifest),
        "data": [view.data_view(side, manifest["data"][side]) for side in ("train", "eval") if manifest["data"].get(side)],
        "audit": view.audit_findings(manifest),
        "samples": [view.sample_view(row) for row in samples[: view.MOST_SAMPLES]],
        "samples_more": max(0, len(samples) - view.MOST_SAMPLES),
        "provenance": view.provenance(manifest),
        "recipe_yaml": run.recipe.read_text(encoding="utf-8"),
    }


def _expected_loss(recipe: Recipe, manifest: view.Manifest) -> float | None:
    """Loss of a policy that equals its reference: as the run worked it out, or log 2 for DPO."""
    expected = (manifest.get("outcome") or {}).get("first_loss_expected")
    if expected is not None:
        return float(expected)
    return math.log(2) if recipe.objective.name == "dpo" else None


def _best_step(manifest: view.Manifest) -> int | None:
    return (manifest.get("outcome") or {}).get("best_step")


def _calibration(calibration: dict[str, Any] | None) -> Drawing | None:
    if not calibration or not calibration["bins"]:
        return None
    columns = [[row[name] for row in calibration["bins"]] for name in ("confidence", "accuracy", "count")]
    error = quantity(calibration["ece"], "share")
    svg = plots.reliability("calibration", f"Reliability diagram; expected calibration error {error}", *columns)
    note = f"How often the ranking is right against σ(|margin|), how sure it is; {count(sum(columns[2]), 'pair')} in {count(len(columns[0]), 'bin')}."
    return Drawing("Calibration", note, (Key("accent", f"expected calibration error {error}"),), svg)
