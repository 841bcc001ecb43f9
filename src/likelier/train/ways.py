"""Which way a run trains: refused before it begins where it cannot, and told apart in the manifest."""

from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from likelier.adapters import described, start_files
from likelier.errors import ModelError, RecipeError
from likelier.recipe import AdapterSettings, Recipe, TrainSettings


def require_way(recipe: Recipe, precision: str) -> None:
    """Raises RecipeError for settings that mean nothing together, ModelError for a package that is not installed or an adapter that is not there."""
    settings = recipe.train
    if settings.method == "full" and recipe.adapter != AdapterSettings():
        default = AdapterSettings()
        given = next(name for name in AdapterSettings.model_fields if getattr(recipe.adapter, name) != getattr(default, name))
        mend = ", or merge the adapter into the base first" if given == "start" else " or leave it out"
        raise RecipeError(f"adapter.{given}: train.method: full trains no adapter. Take lora or qlora{mend}.")
    if recipe.adapter.start:
        start_files(recipe.adapter.start)
    if settings.bf16_weights != "fp32-master" and (settings.method != "full" or precision != "bf16"):
        raise RecipeError(
            f"train.bf16_weights: {settings.bf16_weights} is for train.method: full in bf16. Here the method is {settings.method} and the precision "
            f"{precision}, and what is trained is held in fp32. Set train.method: full and train.precision: bf16, or leave train.bf16_weights out."
        )
    refused = {"method": "qlora", "optimizer": "adamw-8bit", "bf16_weights": "stochastic-rounding"}
    for name, value in refused.items() if settings.fsdp else ():
        if getattr(settings, name) == value:
            raise RecipeError(f"train.fsdp: with it train.{name} cannot be {value}: packed numbers are not divided. Leave one of the two out.")
    if settings.optimizer == "adamw-8bit" and find_spec("bitsandbytes") is None:
        raise ModelError("train.optimizer: adamw-8bit is bitsandbytes', which is not installed: pip install 'likelier[eight-bit]'")


def way(recipe: Recipe, model: Any, precision: str) -> dict[str, Any]:
    """`training` in the manifest: method, the adapter as it is, the optimizer, and how the weights that it changes are held."""
    settings, adapter = recipe.train, described(model)
    held = "fp32" if adapter or precision == "fp32" else {"fp32-master": "bf16 with fp32 masters"}.get(settings.bf16_weights, settings.bf16_weights)
    return {
        "method": settings.method,
        "adapter": None if adapter is None else {**asdict(adapter), "targets": list(adapter.targets), "start": recipe.adapter.start or None},
        "optimizer": settings.optimizer,
        "trained_weights": held,
    }


def packages(settings: TrainSettings) -> tuple[str, ...]:
    """Whose versions the manifest names."""
    return ("torch", "transformers", "peft", *(("bitsandbytes",) if settings.method == "qlora" or settings.optimizer == "adamw-8bit" else ()))
