"""The gate before training: an audit of the training pairs, remembered by what was audited, that refuses fatal findings."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from likelier.atomic import atomic_file
from likelier.audit.checks import CHECKS
from likelier.audit.run import audit_pairs
from likelier.errors import RecipeError, Refused, did_you_mean
from likelier.records import Pair
from likelier.rundir import writing
from likelier.thresholds import AuditSettings

REVISION = 2
"""Counts up when a check changes what it finds: audits that an older one remembered are then made again."""


def open_gate(pairs: Sequence[Pair], dataset: str, limits: AuditSettings, *, cache: Path) -> dict[str, Any]:
    """What a manifest says about the audit of `pairs`, whose data set id is `dataset`: verdict, findings, what was accepted, hash.

    Raises Refused with the list if a finding is fatal and not accepted, and RecipeError for an accepted check that does not exist.
    """
    check_names(limits)
    found = _remembered(pairs, dataset, limits, cache)
    fatal = [finding for finding in found["findings"] if finding["verdict"] == "fatal"]
    refused = [finding for finding in fatal if finding["check"] not in limits.accept]
    if refused:
        listed = "\n".join(f"  {finding['check']}: {finding['summary']} {finding['mend']}" for finding in refused)
        names = " ".join(finding["check"] for finding in refused)
        raise Refused(f"the audit of the training pairs says no:\n{listed}\nMend the data, or train all the same with --accept {names}.")
    told = [finding for finding in found["findings"] if finding["verdict"] in ("fatal", "warn", "note")]
    return {
        "verdict": found["verdict"],
        "accepted": sorted({finding["check"] for finding in fatal}),
        "findings": [{name: finding[name] for name in ("check", "title", "verdict", "summary", "count")} for finding in told],
        "hash": found["hash"],
    }


def check_names(limits: AuditSettings) -> None:
    """Raises RecipeError for an accepted check that does not exist, which is better known before a model is loaded."""
    for name in limits.accept:
        if name not in CHECKS:
            raise RecipeError(f"audit.accept: there is no check `{name}` of pairs.{did_you_mean(name, CHECKS)} Checks: {', '.join(CHECKS)}.")


def _remembered(pairs: Sequence[Pair], dataset: str, limits: AuditSettings, cache: Path) -> dict[str, Any]:
    """The audit from the cache, else made and put there."""
    asked = json.dumps([REVISION, dataset, limits.model_dump(exclude={"accept"})], sort_keys=True)
    path = cache / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        if {"findings", "verdict", "hash"} <= found.keys():
            return found
        raise ValueError
    except (OSError, ValueError, TypeError):  # not there, or damaged
        audit = audit_pairs(pairs, limits=limits)
        found = {**audit.as_dict(), "hash": audit.hash}
    with writing(path), atomic_file(path) as file:
        file.write(json.dumps(found).encode())
    return found
