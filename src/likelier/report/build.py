"""A run directory as one page: read, phrase, fill in the template, write."""

import math
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from likelier.changes import Measure, has_reference, held_out_measures, list_changes, measures_by
from likelier.recipe import Recipe, load_recipe
from likelier.report import data_sides, filmstrip, plots, samples, summary
from likelier.report.calibration import view_calibration
from likelier.report.curves import draw_curves
from likelier.report.diagnosis import view_symptoms
from likelier.report.in_sweep import place_in_sweep
from likelier.report.probes import view_flips, view_probes
from likelier.report.provenance import provenance, reproduce
from likelier.report.verdict import reach_verdict
from likelier.rundir import RunDir, read_jsonl, write_atomic

PARTS = (
    ("reason", "by the reason why the rejected reply is worse, hardest first"),
    ("group", "by group, hardest first"),
    ("length", "by which reply is longer"),
)
"""The cuts of the held-out pairs in eval.json."""


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
    manifest, evaluation, replies = run.read_manifest(), run.read_eval(), run.read_samples()
    train, held_out = run.read_metrics("train"), run.read_metrics("eval")
    watched = run.read_filmstrip()
    symptoms = view_symptoms(run.read_metrics("symptom"))
    compared = has_reference(manifest.get("reference"))
    changed, unchanged = list_changes(evaluation, has_reference=compared) if evaluation else ([], [])
    best = (manifest.get("outcome") or {}).get("best_step")
    return {
        "name": run.path.resolve().name,
        "subtitle": summary.subtitle(recipe, manifest),
        "created": str(manifest.get("created", ""))[:16].replace("T", " "),
        "verdict": reach_verdict(manifest, evaluation, held_out, symptoms),
        "run_line": summary.run_line(manifest, len(changed), len(unchanged)),
        "tiles": summary.tiles(manifest, evaluation),
        "cautions": summary.cautions(manifest),
        "changed": changed,
        "changed_empty": summary.no_findings(changed, evaluation, "changed"),
        "unchanged": unchanged,
        "unchanged_empty": summary.no_findings(unchanged, evaluation, "stayed the same"),
        "symptoms": symptoms,
        "curves": draw_curves(
            train,
            held_out,
            expected_loss=_expected_loss(recipe, manifest),
            best_step=best,
            alone=summary.judged_alone(manifest),
            symptoms=symptoms,
        ),
        "held_out_curves": bool(held_out),
        "smoothed": len(train) >= plots.RUNNING_MEAN_FROM,
        "best_step": best,
        "strips": filmstrip.view_filmstrip(watched),
        "watched": filmstrip.draw_filmstrip(watched),
        "evaluation": evaluation,
        "measures": held_out_measures(evaluation) if evaluation else [],
        "parts": _parts(evaluation or {}),
        "calibration": view_calibration((evaluation or {}).get("calibration")),
        "probe_sets": view_probes(evaluation or {}),
        "flips": view_flips(list(read_jsonl(run.probes)), evaluation or {}),
        "samples": samples.view_samples(replies),
        "samples_more": max(0, len(replies) - samples.MOST_SAMPLES),
        "coloured": any(row.get("tokens") for row in replies),
        "legend": samples.legend(),
        "data": [data_sides.data_view(side, manifest["data"][side]) for side in ("train", "eval") if manifest["data"].get(side)],
        "audit": data_sides.audit_findings(manifest),
        "place": place_in_sweep(run.path),
        "provenance": provenance(manifest),
        "reproduce": reproduce(recipe, manifest),
        "recipe_yaml": run.recipe.read_text(encoding="utf-8"),
    }


def _parts(evaluation: dict[str, Any]) -> list[tuple[str, list[Measure]]]:
    """Accuracy by the cuts that have rows."""
    by = evaluation.get("by") or {}
    return [(title, measures_by(by[name], ordered=name == "length")) for name, title in PARTS if by.get(name)]


def _expected_loss(recipe: Recipe, manifest: summary.Manifest) -> float | None:
    """Loss of a policy that equals its reference: as the run worked it out, or log 2 for DPO."""
    expected = (manifest.get("outcome") or {}).get("first_loss_expected")
    if expected is not None:
        return float(expected)
    return math.log(2) if recipe.objective.name == "dpo" else None
