"""The model card: what a trained model is, where it comes from, and how to load it."""

from typing import Any

from likelier.recipe import Recipe

LOADING = {
    "lora": """```python
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
```""",
    "qlora": """```python
import torch
from peft import AutoPeftModelForCausalLM
from transformers import BitsAndBytesConfig
four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder", quantization_config=four_bits)
```""",
    "full": """```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```""",
}


def adapter_kind(manifest: dict[str, Any]) -> str:
    """A LoRA adapter, a DoRA adapter; in 4 bits."""
    adapter = manifest["training"]["adapter"]
    kind = "A DoRA adapter" if adapter["dora"] else "A LoRA adapter"
    return f"{kind} (on the base in 4 bits)" if manifest["training"]["method"] == "qlora" else kind


def model_card(recipe: Recipe, manifest: dict[str, Any]) -> str:
    """Markdown with the front matter that model hubs read."""
    outcome, data = manifest["outcome"], manifest["data"]
    kind = "All weights of" if recipe.train.method == "full" else f"{adapter_kind(manifest)} for"
    accuracy = f"{outcome['best_accuracy']:.1%}" if outcome["best_accuracy"] is not None else "not measured"
    hyperparameters = ", ".join(f"{name} {value}" for name, value in recipe.objective.given().items()) or "default settings"
    return f"""---
base_model: {recipe.model.name}
library_name: {"transformers" if recipe.train.method == "full" else "peft"}
tags: [preference-tuning, {recipe.objective.name}, likelier]
---

# {kind} {recipe.model.name}, tuned on preferences

Objective `{recipe.objective.name}` ({hyperparameters}), {outcome["steps"]} steps of {recipe.train.pairs_per_step} pairs,
peak learning rate {recipe.train.peak_learning_rate:g}. Accuracy on held-out pairs: {accuracy} (step {outcome["best_step"]}).

{LOADING[recipe.train.method]}

## Provenance

| | |
|---|---|
| training pairs | {data["train"]["pairs"]}, data set `{data["train"]["id"]}` |
| held-out pairs | {data["eval"]["pairs"]}, data set `{data["eval"]["id"]}` |
| base weights | `{manifest["model"]["weights"]}` |
| tokenizer, chat template | `{manifest["model"]["tokenizer"]}`, `{manifest["model"]["chat_template"]}` |
| recipe | `{manifest["recipe"]}` |
| made with | likelier {manifest["likelier"]}, torch {manifest["versions"]["torch"]}, transformers {manifest["versions"]["transformers"]} |
"""
