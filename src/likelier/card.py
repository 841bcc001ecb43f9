"""The model card: what a tuned model is, how to load it, what changed, and where it comes from. Written after training and with every export."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from likelier.changes import Finding, has_reference, held_out_amount, held_out_measures, list_changes, probe_row
from likelier.model_files import EMBEDDED, embedded_gguf, hub_name
from likelier.recipe import OBJECTIVES, Recipe
from likelier.wording import UNKNOWN, count

FOUR_BITS = "It was tuned on the base held in 4 bits (QLoRA), and is most like itself on a base that is loaded so."
QUANTISED_BASE = "It was tuned on a GGUF file of the base, whose weights may be quantised."


def model_card(
    recipe: Recipe,
    manifest: Mapping[str, Any],
    *,
    adapter: bool,
    evaluation: Mapping[str, Any] | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """Markdown with the front matter that model hubs read. `evaluation` is what eval.json holds; `remarks` are put at the top."""
    kind = f"A {'DoRA' if is_dora(recipe, manifest) else 'LoRA'} adapter for " if adapter else ""
    title = f"{kind}{base_name(recipe)}, tuned on preferences"
    from_gguf = recipe.model.name.endswith(".gguf") or (recipe.model.name == EMBEDDED and embedded_gguf() is not None)
    quantised = [QUANTISED_BASE] if from_gguf else []
    quantised += [FOUR_BITS] if adapter and recipe.train.method == "qlora" else []
    sections = [
        f"---\n{yaml.safe_dump(front_matter(recipe, adapter=adapter), sort_keys=False, allow_unicode=True)}---\n",
        f"# {title}\n",
        "\n\n".join([_summary(recipe, manifest), *quantised, *remarks]) + "\n",
        f"## How to load it\n\n```python\n{loading(recipe, adapter=adapter)}\n```\n",
        *(_evaluated(evaluation, manifest) if evaluation else ["It had not been evaluated beyond that when this was written.\n"]),
        "## Training\n\n" + _table(("setting", ""), _settings(recipe, manifest)),
        "## Data\n\n" + _table(("", "", "prompts", "dropped", "from"), _sides(manifest)) + _audit(manifest),
        "## Provenance\n\n" + _table(("", ""), _provenance(manifest)),
    ]
    return "\n".join(sections)


def is_dora(recipe: Recipe, manifest: Mapping[str, Any]) -> bool:
    """Whether the adapter is a DoRA one, as it is and not as the recipe asks: a run that continues an adapter takes that one's kind."""
    return bool(((manifest.get("training") or {}).get("adapter") or recipe.adapter.model_dump()).get("dora"))


def front_matter(recipe: Recipe, *, adapter: bool) -> dict[str, Any]:
    """The fields of model hubs that are known for sure: a base that is not of the hub has no name there."""
    of_hub = hub_name(recipe.model.name)
    datasets = [source.split(":")[1] for source in recipe.data.train if source.startswith("hf:")]  # hf:owner/name:split
    return {
        **({"base_model": of_hub, "base_model_relation": "adapter" if adapter else "finetune"} if of_hub else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"datasets": datasets} if datasets else {}),
        "tags": ["preference-tuning", *(word for word in recipe.objective.name.split() if word in OBJECTIVES), "likelier"],
    }


def base_name(recipe: Recipe) -> str:
    """The base as readers may know it: its name on the hub, or that of its folder or file without the way there."""
    return hub_name(recipe.model.name) or Path(recipe.model.name).name


def loading(recipe: Recipe, *, adapter: bool) -> str:
    """Python that loads the model and has it answer. (AutoPeftModel is not in it: it cuts embeddings to the tokenizer's length.)"""
    base, revision = hub_name(recipe.model.name) or "path/to/the/base", recipe.model.revision
    options = f", revision={revision!r}" if revision else ""
    four_bits = adapter and recipe.train.method == "qlora"
    options += ", quantization_config=four_bits" if four_bits else ""
    model = (
        f"base = AutoModelForCausalLM.from_pretrained({base!r}{options})\nmodel = PeftModel.from_pretrained(base, folder)"
        if adapter
        else "model = AutoModelForCausalLM.from_pretrained(folder)"
    )
    options = "return_tensors='pt'"
    prompt = (
        f"tokenizer('Hello.', {options})"
        if recipe.model.chat_template == "none"
        else f"tokenizer.apply_chat_template([{{'role': 'user', 'content': 'Hello.'}}], add_generation_prompt=True, return_dict=True, {options})"
    )
    lines = [
        *(["from peft import PeftModel"] if adapter else []),
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if four_bits else ''}",
        "",
        *(["four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True)"] if four_bits else []),
        "folder = 'path/to/this/folder'",
        model,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"prompt = {prompt}",
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0]))",
    ]
    return "\n".join(lines).replace("'", '"')


def _summary(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    outcome = manifest["outcome"]
    what = "records" if manifest["data"]["train"].get("unpaired") else "pairs"
    held_out = "replies" if (manifest["data"]["eval"] or {}).get("unpaired") else "pairs"
    accuracy = f"{outcome['best_accuracy']:.1%}" if outcome["best_accuracy"] is not None else "not measured"
    return (
        f"Objective `{recipe.objective.name}` ({_hyperparameters(recipe)}), "
        f"{count(outcome['steps'], 'step')} of {recipe.train.pairs_per_step} {what}. "
        f"Accuracy on held-out {held_out}: {accuracy} (step {outcome['best_step']})."
    )


def _hyperparameters(recipe: Recipe) -> str:
    return ", ".join(f"{name} {value}" for name, value in recipe.objective.given().items()) or "default settings"


def _evaluated(evaluation: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterable[str]:
    """What changed, what did not, and the numbers with 95% intervals over prompts."""
    changed, unchanged = list_changes(evaluation, has_reference=has_reference(manifest.get("reference")))
    yield "## What changed\n\n" + _findings(changed, "Nothing that was measured.")
    yield "## What did not\n\n" + _findings(unchanged, "Nothing that was measured.")
    measures = [(measure.title, measure.value, measure.ends, measure.note) for measure in held_out_measures(evaluation)]
    yield f"## On {held_out_amount(evaluation)}\n\n" + _table(("", "value", "95% interval", ""), measures)
    if probes := [probe_row(probe) for probe in evaluation.get("probes") or []]:
        rows = [
            (p.title, p.items, _with(p.before, p.before_ends), _with(p.after, p.after_ends), _with(p.difference, p.difference_ends)) for p in probes
        ]
        yield "## Before and after\n\n" + _table(("", "", "before (95% interval)", "after", "difference"), rows)


def _with(value: str, ends: str) -> str:
    return f"{value} ({ends})"


def _findings(findings: Sequence[Finding], nothing: str) -> str:
    return "".join(f"- {_cell(finding.title)}: {_cell(finding.text)} ({finding.verdict})\n" for finding in findings) or f"{nothing}\n"


def _settings(recipe: Recipe, manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    train = recipe.train
    names = ("epochs", "max_steps", "pairs_per_step", "schedule", "warmup", "weight_decay", "max_grad_norm", "seed")
    rows = [("objective", recipe.objective.name), *recipe.objective.given().items(), ("method", train.method)]
    training = manifest.get("training") or {"adapter": recipe.adapter.model_dump()}
    if train.method != "full":
        told = {name: ", ".join(value) if name == "targets" else value for name, value in training["adapter"].items() if name != "start"}
        rows += [(f"adapter {name}", value) for name, value in told.items()]
    rows += [("optimizer", train.optimizer)]
    rows += [("peak learning rate", f"{train.peak_learning_rate:g}"), *((name.replace("_", " "), getattr(train, name)) for name in names)]
    return [row for row in [*rows, ("precision", manifest["numerics"]["precision"])] if row[1] is not None]


def _sides(manifest: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    sides = {"training": manifest["data"]["train"], "held out": manifest["data"]["eval"]}
    return [
        (name, _amount(side), side.get("prompts", UNKNOWN), len(side.get("dropped") or []), ", ".join(map(_source, side.get("sources") or [])))
        for name, side in sides.items()
    ]


def _amount(side: Mapping[str, Any]) -> str:
    """120 pairs, or 200 replies judged alone, or both."""
    alone = sum((side.get("unpaired") or {}).values())
    pairs = [count(side["pairs"], "pair")] if side["pairs"] or not alone else []
    return " and ".join([*pairs, *([f"{count(alone, 'reply', 'replies')} judged alone"] if alone else [])])


def _source(source: str) -> str:
    """A source without the folders of the machine on which it lay."""
    return source if source.startswith(("hf:", "embedded:")) else Path(source).name


def _audit(manifest: Mapping[str, Any]) -> str:
    audit = manifest.get("audit") or {}
    if not audit:
        return "\nThe training pairs were not audited.\n"
    accepted = f" Trained in spite of: {', '.join(audit['accepted'])}." if audit.get("accepted") else ""
    rows = [(finding["title"], finding["verdict"], finding["summary"]) for finding in audit.get("findings") or []]
    if not manifest["data"]["train"]["pairs"]:
        return "\nThe audit looks at pairs; replies judged alone were not audited.\n"
    return f"\nVerdict of the audit of the training pairs: {audit['verdict']}.{accepted}\n\n" + (
        _table(("check", "verdict", ""), rows) if rows else ""
    )


def _provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, model, versions = manifest["data"], manifest["model"], manifest["versions"]
    return [
        ("training pairs", f"data set `{data['train']['id']}`"),
        ("held-out pairs", f"data set `{data['eval']['id']}`"),
        ("base weights", f"`{model['weights']}`"),
        ("tokenizer, chat template", f"`{model['tokenizer']}`, `{model['chat_template']}`"),
        ("recipe", f"`{manifest['recipe']}`"),
        ("made with", f"likelier {manifest['likelier']}, torch {versions['torch']}, transformers {versions['transformers']}"),
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_cell(str(value)) for value in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """Text that ends no cell and begins no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
