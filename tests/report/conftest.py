"""A made-up run directory: what a finished run leaves behind, without a run."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.audit import corpus

from likelier.audit.run import audit
from likelier.data.formats import write_pairs
from likelier.metrics import bootstrap, bootstrap_difference, calibration, correct, length_summary
from likelier.recipe import parse_recipe
from likelier.report import write_report
from likelier.report.audit_page import write_audit_page
from likelier.rundir import RunDir, write_json, write_jsonl

INJECTION = '<script>alert("no")</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """One finished run with its report, for tests that only read."""
    made = made_up_run(tmp_path_factory.mktemp("runs") / "support-dpo")
    assert write_report(made) == made.report
    return made


@pytest.fixture(scope="session")
def audit_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an audit that finds something of every kind, in rows with markup in them."""
    folder = tmp_path_factory.mktemp("audit")
    pairs = corpus.clean()
    for _, _, plant in corpus.PLANTERS:
        pairs = plant(pairs)[0]
    marked = [replace(pair, prompt=corpus.asked(f"{INJECTION} {'long' * 60} {corpus.said(pair.prompt)}")) for pair in pairs]
    write_pairs(folder / "pairs.jsonl", marked)
    with (folder / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "' + "x" * 50 + '", "chosen": "", "rejected": "b"}\n')
    write_audit_page(audit([folder / "pairs.jsonl"]), folder / "audit.html")
    return folder / "audit.html"


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    """Makes a run directory of its own for one test, to be changed at will."""
    return lambda **sizes: made_up_run(tmp_path / "run", **sizes)


@pytest.fixture(scope="session")
def injection() -> str:
    """Markup that stands in the samples of every made-up run."""
    return INJECTION


def made_up_run(path: Path, *, steps: int = 120, samples: int = 14) -> RunDir:
    """A run directory as a finished run leaves it, with made-up numbers."""
    run, rng = RunDir(path), np.random.default_rng(0)
    recipe = parse_recipe({"data": {"train": ["embedded:support"]}, "out": str(path)}, where="test")
    run.path.mkdir(parents=True)
    run.recipe.write_text(recipe.to_yaml(), encoding="utf-8")
    write_json(run.manifest, made_up_manifest(recipe.fingerprint(), rng, steps))
    write_jsonl(run.metrics, made_up_metrics(rng, steps))
    write_json(run.eval, made_up_evaluation(rng))
    write_jsonl(run.samples, made_up_samples(samples))
    return run


def made_up_manifest(recipe: str, rng: np.random.Generator, steps: int) -> dict[str, Any]:
    return {
        "likelier": "0.1.0",
        "created": "2026-03-14T15:09:26+00:00",
        "versions": {"python": "3.12.4", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.19.0"},
        "recipe": recipe,
        "command": "likelier train recipes/support.yaml --objective.beta 0.1",
        "data": {"train": made_up_data(rng, "3f", 960), "eval": made_up_data(rng, "9c", 118)},
        "model": {
            "name": "SmolLM2-135M-Instruct",
            "parameters": 134_515_008,
            "trainable_parameters": 4_884_480,
            "weights": "5a" * 32,
            "tokenizer": "c0" * 32,
            "chat_template": "d1" * 32,
        },
        "numerics": {"precision": "bf16", "device": "cpu", "engine": "tree", "parity": {"largest_difference": 2.1e-5, "tolerance": 1e-4}},
        "reference": {"computed": 2156, "reused": 0, "unchanged": True},
        "outcome": {
            "steps": steps,
            "stopped": "all epochs done",
            "best_step": steps * 5 // 6 // 10 * 10,
            "best_accuracy": 0.788,
            "first_loss": 0.69314,
            "first_loss_expected": math.log(2),
            "seconds": 1104.0,
            "reference_seconds": 71.0,
        },
    }


def made_up_data(rng: np.random.Generator, digits: str, pairs: int) -> dict[str, Any]:
    lengths = {side: rng.lognormal(mean, 0.45, pairs).round() for side, mean in (("prompt", 3.9), ("chosen", 4.2), ("rejected", 4.0))}
    edges = np.linspace(0, max(values.max() for values in lengths.values()), 31)
    return {
        "id": digits * 32,
        "sources": ["embedded:support"],
        "pairs": pairs,
        "prompts": pairs // 2,
        "dropped": [{"id": f"support-{i}", "reason": "longer than max_length (1203 tokens)"} for i in range(pairs // 300)],
        "boundary_mismatches": 0,
        "tokens": {side: length_summary(values) for side, values in lengths.items()},
        "histogram": {"edges": edges.tolist(), **{side: np.histogram(values, edges)[0].tolist() for side, values in lengths.items()}},
        "reasons": {"makes something up": pairs // 2, "too long": pairs // 3, "rude": pairs // 6},
    }


def made_up_metrics(rng: np.random.Generator, steps: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        done = 1 - math.exp(-3 * step / steps)
        for kind, noise in (("train", 0.08), ("eval", 0.01)):
            if kind == "train" or step % 10 == 0:
                extra = {"grad_norm": 4 + 2 * done + rng.normal()} if kind == "train" else {}
                rows.append({"kind": kind, "step": step, **made_up_numbers(rng, done, noise), **extra})
    return rows


def made_up_numbers(rng: np.random.Generator, done: float, noise: float) -> dict[str, Any]:
    chosen, rejected = -0.15 * done + noise * rng.normal(), -1.1 * done + noise * rng.normal()
    return {
        "loss": 0.693 - 0.25 * done + noise * rng.normal() * done,
        "accuracy": min(1.0, 0.5 + 0.28 * done + noise * rng.normal()),
        "margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_logp": -92 + 10 * chosen,
        "rejected_logp": -88 + 10 * rejected,
        "pairs": 16,
    }


def made_up_evaluation(rng: np.random.Generator) -> dict[str, Any]:
    prompts = np.repeat(np.arange(59), 2)
    margins = rng.normal(1.0, 1.3, 118)
    of = {"margin": margins, "chosen_reward": rng.normal(-0.15, 0.8, 118), "rejected_reward": rng.normal(-1.1, 0.9, 118)}
    return {
        "dataset": "9c" * 32,
        "pairs": 118,
        "held_out": {
            "accuracy": bootstrap(correct(margins), prompts).as_dict(),
            **{name: bootstrap(values, prompts).as_dict() for name, values in of.items()},
            "chosen_logp_change": bootstrap(rng.normal(-1.5, 8, 118), prompts).as_dict(),
            "kl": {**bootstrap(rng.normal(3.4, 1.1, 118), prompts).as_dict(), "note": "estimated on 118 sampled replies, k3"},
        },
        "by": {
            "reason": {
                reason: {"accuracy": bootstrap(correct(margins[rows]), prompts[rows]).as_dict(), "pairs": len(margins[rows])}
                for reason, rows in (("makes something up", slice(0, 60)), ("too long", slice(60, 100)), ("rude", slice(100, 118)))
            }
        },
        "calibration": calibration(margins, bins=8).as_dict(),
        "probes": made_up_probes(rng),
    }


def made_up_probes(rng: np.random.Generator) -> list[dict[str, Any]]:
    prompts = np.arange(80)
    apology, loops = rng.random(80) < 0.4, rng.random(80) < 0.06
    lengths, facts = rng.normal(96, 30, 80), rng.random(80) < 0.55
    return [
        made_up_probe("apologies", "Replies that apologise", "share", "none", apology, apology & (prompts % 2 == 0), prompts),
        made_up_probe("length", "Reply length", "tokens", "none", lengths, lengths - rng.normal(24, 10, 80), prompts),
        made_up_probe("facts", "Factual questions answered", "share", "higher", facts, np.roll(facts, 0) ^ (prompts == 7), prompts),
        made_up_probe("loops", "Replies caught in a loop", "share", "lower", loops, loops, prompts),
        made_up_probe("grounded", "Replies that stay with the given text", "share", "higher", prompts % 3 == 0, prompts % 3 != 1, prompts),
        made_up_probe("refusals", "Refusals of harmless requests", "share", "lower", prompts < 2, prompts < 11, prompts),
    ]


def made_up_probe(name: str, title: str, unit: str, better: str, before: Any, after: Any, prompts: Any) -> dict[str, Any]:
    intervals = {"before": bootstrap(before, prompts), "after": bootstrap(after, prompts), "difference": bootstrap_difference(before, after, prompts)}
    sides = {side: interval.as_dict() for side, interval in intervals.items()}
    return {"name": name, "title": title, "unit": unit, "better": better, "items": len(prompts), **sides}


def made_up_samples(how_many: int) -> list[dict[str, Any]]:
    def prompt(i: int) -> list[dict[str, str]]:
        return [
            {"role": "system", "content": "You answer for a small shop. Use only the order details you are given."},
            {"role": "user", "content": f"Order {4100 + i} was due on Tuesday and has not come.\nWhere is it, and can I still change the address?"},
        ]

    rows = [
        {
            "id": f"support-{i}",
            "prompt": prompt(i),
            "before": "I'm so sorry to hear that! I apologize for any inconvenience. " + "Please contact our support team for help. " * (1 + i % 5),
            "after": "Your order left our warehouse on Monday and is with the carrier. The address can no longer be changed, but you can "
            "have it held at a pick-up point: reply “hold” and I will arrange it.",
            "chosen": None if i % 3 else "It is with the carrier since Monday. Reply “hold” to have it kept at a pick-up point.",
        }
        for i in range(how_many)
    ]
    if rows:
        rows[-1]["after"] = rows[-1]["before"]
        rows[1 % how_many]["before"] = INJECTION
        rows[1 % how_many]["prompt"] = [{"role": "user", "content": INJECTION + "x" * 300}]
    return rows
