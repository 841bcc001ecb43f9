"""Commands about data."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from likelier.thresholds import AuditSettings


def convert(
    src: str,
    dst: Path,
    to: Literal["trl", "openai", "llamafactory"] | None = None,
    format: str | None = None,
    pairs: Literal["best-worst", "all"] = "best-worst",
    min_gap: float = 0.0,
    skip_bad: bool = False,
) -> None:
    """Read preference data of any known shape and write it as canonical records, or for another tool.

    Args:
        src: a file, folder, glob, saved Hugging Face data set, hf:owner/name or embedded:support.
        dst: a .jsonl or .jsonl.gz file; canonical records also as .parquet.
        to: the tool to write for; what its format cannot hold is counted and named.
        format: the shape of src's rows, where it is not to be recognised: explicit-prompt, implicit-prompt, implicit-text, hh-rlhf,
            reward-bench, ultrafeedback-binarized, ultrafeedback, scored-list, ranked-list, unpaired, labelled-messages, openai, alpaca,
            sharegpt, kto, argilla, argilla-flat, label-studio, label-studio-min, edits or thumbs. docs/data.md has an example of each.
        pairs: which pairs a list of scored or ranked replies gives.
        min_gap: the least difference of scores (or ranks) in such a pair.
        skip_bad: leave bad rows out and list them beside dst, as NAME.bad.jsonl, instead of stopping at the first.
    """
    from likelier.data.convert import convert_file
    from likelier.data.shapes.lists import Pairing

    for line in convert_file(src, dst, to=to, shape=format, pairing=Pairing(pairs, min_gap), skip_bad=skip_bad):
        print(line)


def audit(
    data: tuple[str, ...],
    model: str = "",
    max_length: int = 1024,
    against: tuple[str, ...] = (),
    json: Path | None = None,
    html: Path | None = None,
    recipe: Path | None = None,
) -> None:
    """Say what preference pairs would really teach: bias, duplicates, contradictions, secrets, shortcuts. Exit code 1 on a fatal finding.

    Args:
        data: files of preference pairs.
        model: count tokens as this model does: `embedded`, a folder, a .gguf file or a hub name.
        max_length: the tokens of prompt and reply that the model is to be trained on; asked with --model.
        against: held-out files; a prompt that stands in both is a leak.
        json: write all findings here.
        html: write them as one page, with plots.
        recipe: take limits, accepted checks, model and data.max_length from this recipe.
    """
    from likelier.audit.run import audit as run_audit
    from likelier.audit.terminal import show_audit
    from likelier.data.files import refuse_input_as_output
    from likelier.data.version import note_audit
    from likelier.errors import Refused
    from likelier.report.audit_page import write_audit_json, write_audit_page

    for target in (json, html):
        if target:
            refuse_input_as_output(target, data)
    measure = _Measure.by(recipe, model, max_length)
    found = run_audit(data, **measure.options(tokens=True), against=against, workers=_processes())
    show_audit(found)
    for path in data:
        note_audit(path, dataset=found.dataset, audit=found.hash)
    if json:
        write_audit_json(found, json)
    if html:
        write_audit_page(found, html)
    if fatal := found.fatal(measure.limits.accept):
        raise Refused(f"{len(fatal)} fatal {'finding' if len(fatal) == 1 else 'findings'}: {', '.join(f.check for f in fatal)}.")


def fix(data: str, dst: Path, do: tuple[str, ...] = (), model: str = "", max_length: int = 1024, recipe: Path | None = None) -> None:
    """Apply safe mends to preference pairs, each by its name, and write what stays as a new version.

    Args:
        data: a file, folder, glob, saved Hugging Face data set, hf:owner/name or embedded:support.
        dst: a .jsonl, .jsonl.gz or .parquet file.
        do: drop-unusable, drop-near-identical, drop-duplicates, drop-near-duplicates, drop-contradictions, drop-cycles, drop-over-ratio,
            drop-over-long, drop-cut-off, balance-length, mask-secrets.
        model: count tokens as this model does, for drop-over-long.
        max_length: the tokens of prompt and reply that the model is to be trained on, for drop-over-long.
        recipe: take limits, model and data.max_length from this recipe.
    """
    from likelier.audit.fix import fix as mend

    measure = _Measure.by(recipe, model, max_length)
    fixed = mend([data], dst, do, **measure.options(tokens="drop-over-long" in do), workers=_processes())
    for name, count in fixed.counts.items():
        print(f"{name}: {count:,} {'row' if count == 1 else 'rows'}")
    print(f"{dst}: {fixed.manifest.counts}, data set {fixed.manifest.id}\nmade of {', '.join(fixed.manifest.parents)}")


def split(data: str, eval: float = 0.1, by: str = "prompt", stratify: str | None = None) -> None:
    """Split pairs into DATA.train.jsonl and DATA.eval.jsonl, each a version; equal and near-duplicate prompts stay on one side.

    Args:
        data: a file of preference pairs, or another source that `convert` reads.
        eval: the share of prompts (or groups, or values of the field) to hold out.
        by: what else stays on one side: prompt, group, source, annotator, reason or meta.NAME.
        stratify: a field, such as reason or source, each value of which gets both sides.
    """
    from likelier.data.version import split_version

    for path, made in split_version(data, eval_fraction=eval, by=by, stratify=stratify):
        print(f"{path}: {made.counts}, data set {made.id}")


def verify(path: str) -> None:
    """Prove that a data file is what its manifest says, or that a run's data, recipe, base and weights are those that it names.

    Args:
        path: a data file with a manifest beside it, a run directory or an exported model.
    """
    from likelier.errors import Refused
    from likelier.verify import verify as check

    checks = check(path)
    for made in checks:
        print(f"{made.verdict:<12}{made.what}{f': {made.detail}' if made.detail else ''}")
    if wrong := [made.what for made in checks if made.verdict == "differs"]:
        raise Refused(f"{path} is not what its manifest says: {', '.join(wrong)}.")


@dataclass(frozen=True)
class _Measure:
    """What an audit goes by: limits, and the model by which tokens are counted."""

    limits: "AuditSettings"
    model: str
    revision: str | None
    chat_template: str
    max_length: int

    @classmethod
    def by(cls, recipe: Path | None, model: str, max_length: int) -> "_Measure":
        """The recipe's, or the usual limits and what was asked for."""
        from likelier.recipe import load_recipe
        from likelier.thresholds import AuditSettings

        if not recipe:
            return cls(AuditSettings(), model, None, "own", max_length)
        loaded = load_recipe(recipe)
        return cls(loaded.audit, model or loaded.model.name, loaded.model.revision, loaded.model.chat_template, loaded.data.max_length)

    def options(self, *, tokens: bool) -> dict[str, Any]:
        """For `audit` and `fix`; the tokenizer is looked for only where tokens are to be counted."""
        from likelier.data.tokenizer_files import TokenCounter
        from likelier.model_files import tokenizer_folder

        counter = TokenCounter(tokenizer_folder(self.model, self.revision), self.chat_template) if tokens and self.model else None
        return {"limits": self.limits, "count_tokens": counter, "max_length": self.max_length}


def _processes() -> int:
    return os.cpu_count() or 1
