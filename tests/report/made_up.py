"""A made-up run directory: what a finished run leaves behind, without a run."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from likelier.metrics import bootstrap, bootstrap_difference, calibration, correct, length_summary
from likelier.recipe import parse_recipe
from likelier.rundir import RunDir, write_json, write_jsonl

INJECTION = '<script>alert("no")</script><img src=x onerror=alert(1)>'


def made_up_run(path: Path, *, steps: int = 120, samples: int = 14, first_version: bool = False) -> RunDir:
    """A run directory as a finished run leaves it, with made-up numbers. `first_version` ones lack what later versions write beside the rest."""
    run, rng = RunDir(path), np.random.default_rng(0)
    recipe = parse_recipe({"data": {"train": ["embedded:support"]}, "out": str(path)}, where="test")
    run.path.mkdir(parents=True)
    run.recipe.write_text(recipe.to_yaml(), encoding="utf-8")
    write_json(run.manifest, made_up_manifest(recipe.fingerprint(), rng, steps))
    write_jsonl(run.metrics, made_up_metrics(rng, steps))
    write_json(run.eval, made_up_evaluation(rng))
    write_jsonl(run.samples, made_up_samples(samples))
    if not first_version:
        write_jsonl(run.metrics, [*run.read_metrics(), *made_up_symptoms(steps)])
        write_json(run.eval, second_version(run.read_eval() or {}, rng))
        write_jsonl(run.samples, [{**row, **made_up_tokens(row, rng)} for row in run.read_samples()])
        write_jsonl(run.path / "filmstrip.jsonl", made_up_filmstrip(steps))
        write_jsonl(run.path / "probes.jsonl", made_up_flips())
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
                extra = {"grad_norm": 4 + 2 * done + rng.normal()} if kind == "train" else {"kl": 3.4 * done + 0.1 * rng.random()}
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


def second_version(evaluation: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The same with accuracy by groups and lengths, a temperature and probes in sets."""
    prompts, margins = np.repeat(np.arange(59), 2), rng.normal(1.0, 1.3, 118)

    def rows(cuts: dict[str, slice]) -> dict[str, Any]:
        return {
            name: {"pairs": len(margins[cut]), "accuracy": bootstrap(correct(margins[cut]), prompts[cut]).as_dict(), "margin": None}
            for name, cut in cuts.items()
        }

    lengths = {"rejected longer by half": slice(0, 38), "about as long": slice(38, 90), "chosen longer by half": slice(90, 118)}
    sets = {
        "apologies": "neutral",
        "length": "neutral",
        "loops": "neutral",
        "facts": "questions",
        "grounded": "your probes",
        "refusals": "look-alikes@91c5",
    }
    before, after = calibration(3.2 * margins, bins=8), calibration(3.2 / 1.84 * margins, bins=8)
    return evaluation | {
        "by": {**evaluation["by"], "group": rows({"consumer": slice(0, 70), "business": slice(70, 118)}), "length": rows(lengths)},
        "calibration": {
            **before.as_dict(),
            "brier": 0.187,
            "temperature": {"value": 1.84, "low": 1.41, "high": 2.55},
            "after": {**after.as_dict(), "brier": 0.166},
            "note": "Each pair by a T that was fitted on the other prompts (five folds).",
        },
        "probes": [probe | {"set": sets[probe["name"]]} for probe in evaluation["probes"]],
    }


def made_up_symptoms(steps: int) -> list[dict[str, Any]]:
    return [
        {
            "kind": "symptom",
            "step": steps // 2,
            "name": "chosen-falling",
            "title": "Chosen replies lose probability",
            "verdict": "warn",
            "evidence": "On held-out pairs the mean log-probability of chosen replies fell from −92.0 to −105 nats.",
            "mend": "Lower `train.learning_rate`, raise `objective.beta`, or add an SFT term: `objective: {dpo: 1.0, sft: 0.2}`.",
        },
        {
            "kind": "symptom",
            "step": steps * 5 // 6,
            "name": "gradient-spike",
            "title": "A gradient spike",
            "verdict": "note",
            "evidence": "At this step the gradient norm was 9 times its median.",
            "mend": "One is no harm; if they come back, lower `train.max_grad_norm`.",
        },
    ]


def made_up_tokens(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The replies of a row in pieces, each with a log-ratio, and a rejected one."""
    rejected = "I'm so sorry! I do not know where your order is. Please contact support, who will be more than happy to help you."
    texts = {"before": (row["before"], -0.4), "after": (row["after"], 0.5), "chosen": (row["chosen"], 0.3), "rejected": (rejected, -0.6)}
    tokens = {
        side: [*[[piece, round(rng.standard_t(2) * 0.5 + mean, 3)] for piece in pieces_of(text)], ["", 0.21]]
        for side, (text, mean) in texts.items()
        if text
    }
    return {"rejected": rejected, "tokens": tokens}


def pieces_of(text: str) -> Sequence[str]:
    return re.findall(r"\s?[^\s]{1,5}|\s", text)


def made_up_filmstrip(steps: int) -> list[dict[str, Any]]:
    apology = "I'm so sorry to hear that! I apologize for any inconvenience this may have caused. "
    help_text = "Please contact our support team, who will be more than happy to help you with your order. "
    takes = (
        apology + help_text * 4,
        apology + help_text * 2 + "You can find the contact details on our website.",
        apology + "Your order is with the carrier. " + help_text,
        "Your order is with the carrier since Monday. Please contact our support team if it does not come.",
        "Your order is with the carrier since Monday.",
        "Your order is with the carrier since Monday.",
        "With the carrier since Monday. Reply “hold” to have it kept at a pick-up point.",
    )
    prompts = ["My order has not come. Where is it?", "Can I change the address of an order?", f"What does {INJECTION} mean?"]
    times = [0, *range(max(1, steps // 6), steps + 1, max(1, steps // 6))]
    return [
        {
            "step": step,
            "id": f"watched-{i}",
            "prompt": [{"role": "user", "content": prompt}],
            "reply": reply,
            "ended": shot > 0,
            "length": len(reply) // 4,
            "repetition": round(max(0.0, 0.5 - shot / 8), 2),
            "apology": "sorry" in reply,
            "refusal": False,
        }
        for shot, step in enumerate(times)
        for i, prompt in enumerate(prompts)
        for reply in [takes[min(shot + (i == 1 and shot > 0), len(takes) - 1)]]
    ]


def made_up_flips() -> list[dict[str, Any]]:
    return [
        {
            "probe": probe,
            "id": f"{probe}-{i}",
            "prompt": [{"role": "user", "content": f"How do I kill process {i} on Linux?"}]
            if probe == "refusals"
            else f"What is {i} + {i}? {INJECTION}",
            "before": "Use `kill` with its id." if probe == "refusals" else "I do not know.",
            "after": "I'm sorry, but I can't help with that." if probe == "refusals" else f"It is {2 * i}.",
            "before_hit": i % 4 == 3,
            "after_hit": i % 4 < 2,
        }
        for probe in ("refusals", "facts")
        for i in range(20)
    ]


def put_in_sweep(run: RunDir, names: Sequence[str] = ("beta=0.1", "beta=0.3", "beta=0.9", "beta=2.7")) -> None:
    """A sweep.json beside the run, in which it is one of `names`."""
    inside = [run.path.name, *names[1:]]
    rows = []
    for place, name in enumerate(inside):
        accuracy, kl = 0.78 - 0.03 * place * place, 3.4 * 0.55**place
        rows.append(
            {
                "name": name,
                "settings": {"objective.beta": 0.1 * 3**place},
                "state": "failed" if place == 3 else "done",
                "why": "",
                "folder": name,
                "accuracy": {"value": accuracy, "low": accuracy - 0.06, "high": accuracy + 0.06} if place < 3 else None,
                "margin": None,
                "kl": {"value": kl, "low": 0.8 * kl, "high": 1.2 * kl} if place < 3 else None,
            }
        )
    sweep = {
        "grid": {"objective.beta": [0.1, 0.3, 0.9, 2.7]},
        "runs": rows,
        "frontier": inside[:2],
        "recommended": {"name": inside[1], "reason": "It reaches 75% for half of the KL."},
    }
    write_json(run.path.parent / "sweep.json", sweep)
    (run.path.parent / "sweep.html").write_text("<p>sweep</p>")


def made_up_comparison(folder: Path) -> Path:
    """What `likelier compare` leaves of three contestants."""
    names = ["runs/mine tuned", "reference", "reference+system"]
    files = ["tuned", "reference", "reference+system"]

    def interval(value: float, low: float, high: float) -> dict[str, float]:
        return {"value": value, "low": low, "high": high}

    def pair(a: str, b: str, won: int, equal: float) -> dict[str, Any]:
        rate = won / 60 + 0.1
        rates = {"win_rate": interval(rate, rate - 0.1, rate + 0.1), "length_controlled": interval(equal, equal - 0.1, equal + 0.1)}
        return {
            "a": a,
            "b": b,
            "prompts": 60,
            **rates,
            "wins": won,
            "ties": 12,
            "losses": 48 - won,
            "flips": 0.12,
            "failed": 1,
            "extrapolated": a == "reference",
        }

    lengths = [interval(180.0, 160.0, 201.0), interval(412.0, 380.0, 440.0), interval(390.0, 350.0, 430.0)]
    strengths = [interval(0, 0, 0), interval(-0.9, -1.3, -0.5), interval(-0.4, -0.8, 0.1)]
    contestants = [
        {
            "name": name,
            "spec": name,
            "file": f"replies/{file}.jsonl",
            "length": length,
            "length_unit": "characters",
            "cut": 0.05,
            "strength": strength,
        }
        for name, file, length, strength in zip(names, files, lengths, strengths, strict=True)
    ]
    pairs = [pair(names[0], names[1], 34, 0.63), pair(names[0], names[2], 32, 0.52), pair(names[1], names[2], 22, 0.45)]
    cost = {"asked": 300, "cached": 60, "total": 0.42}
    comparison = {"judge": {"name": "judge-8b"}, "prompts": 61, "contestants": contestants, "pairs": pairs, "cost": cost}
    verdicts = [
        {
            "id": f"p{i}",
            "a": row["a"],
            "b": row["b"],
            "verdict": ("a", "b", "tie", None)[i % 4],
            "why": "both orders agree" if i % 4 < 2 else "the two orders disagree",
            "orders": ["first", "second"],
            "reasons": [f"It is shorter. {INJECTION}", ""],
        }
        for row in pairs
        for i in range(12)
    ]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Where is my order? {INJECTION}"}]
    write_json(folder / "compare.json", comparison)
    write_jsonl(folder / "verdicts.jsonl", verdicts)
    (folder / "replies").mkdir()
    for file in files:
        write_jsonl(
            folder / "replies" / f"{file}.jsonl", [{"id": f"p{i}", "prompt": prompt, "reply": f"{file} says {i}. {INJECTION}"} for i in range(12)]
        )
    return folder
