"""Adapters (PEFT): which tensors of a model are theirs, and adapters that are read from a folder.

A run that continues a given adapter has it twice on its model: once to train, and once frozen, which belongs to the reference (pitfall 21). Only the
trained one is saved, and it stands for itself: it loads on the plain base.
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from likelier.errors import ModelError
from likelier.hashing import file_hash
from likelier.recipe import AdapterSettings
from likelier.weights import digest, fingerprint_of

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of lacking a kernel that `load_model` switches off

TRAINED = "default"
"""PEFT's own name for a single adapter: its files say nothing of it."""

REFERENCE = "reference"
"""The frozen copy of the adapter that a run continues."""

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

UNDERSTOOD = ("default", "gaussian", "eva", "orthogonal")
"""Ways to draw an adapter's first values that leave the base as it is. PiSSA and its like change the base on loading."""

NOTHING_ELSE = {
    "modules_to_save": "whole modules of its own",
    "trainable_token_indices": "embeddings of its own",
    "layer_replication": "repeated layers",
    "alora_invocation_tokens": "invocation tokens (aLoRA)",
    "target_parameters": "parameters that are not a layer's weight",
}
"""What a LoRA folder may hold beside LoRA, by its field in the config."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter is, however it came about."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # kinds of layers: their names without the layer's number
    dora: bool
    rslora: bool


def described(model: Any) -> Adapter | None:
    """The adapter that is trained, or None for a model without one."""
    config = getattr(model, "peft_config", {}).get(TRAINED)
    if config is None:
        return None
    named = config.target_modules
    targets = (named,) if isinstance(named, str) else tuple(sorted({name.rsplit(".", 1)[-1] for name in named}))
    return Adapter(config.r, config.lora_alpha, targets, config.use_dora, config.use_rslora)


def causal_lm_of(model: Any) -> Any:
    """The transformers model itself, without PEFT's wrapper where it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def belongs_to_adapter(model: nn.Module) -> Callable[[str], bool]:
    """Tells of a parameter's or buffer's name whether it is an adapter's, whatever PEFT calls it: everything in an adapted layer but its base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}

    def belongs(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:i]) in layers and parts[i] != "base_layer" for i in range(1, len(parts)))

    return belongs if layers else lambda name: False


def start_files(folder: str) -> dict[str, str]:
    """SHA-256 of each file that makes the adapter to continue, by name. Raises ModelError where there is none, or only a pickled one."""
    files = [Path(folder).expanduser() / name for name in (WEIGHTS, CONFIG)]
    for file in files:
        if not file.is_file():
            raise ModelError(f"adapter.start: {folder}: there is no {file.name} in it. Give the folder of a LoRA adapter held as safetensors.")
    return {file.name: file_hash(file) for file in files}


def continue_adapter(model: Any, settings: AdapterSettings) -> Any:
    """The model with the adapter in `settings.start`, once to train and once frozen. Raises ModelError for one that is no plain LoRA or DoRA, does
    not fit, or is not what the other settings say."""
    start_files(settings.start)
    folder = Path(settings.start).expanduser()
    config = _read_config(folder)
    for setting, default in AdapterSettings().model_dump(exclude={"start"}).items():
        given, its = getattr(settings, setting), _setting(config, setting)
        names = ", ".join(sorted(part.strip() for part in given.split(","))) if setting == "targets" else given
        if given != default and names != its:
            raise ModelError(
                f"adapter.{setting}: {given!r}, but the adapter in {settings.start} has {its!r}. Leave it out, the adapter brings its own."
            )
    name = model.name_or_path
    adapted = put_on(model, folder, name=TRAINED, train=True)
    adapted.peft_config[TRAINED].base_model_name_or_path = name  # what is saved belongs to the base of this run
    adapted.peft_config[TRAINED].revision = None
    return put_on(adapted, folder, name=REFERENCE)


def put_on(model: Any, folder: Path, *, name: str = TRAINED, train: bool = False) -> Any:
    """The model with the adapter in `folder`, fp32, under `name`. Raises ModelError where folder and model do not fit."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    try:
        with known_warnings_off():
            if hasattr(model, "peft_config"):
                model.load_adapter(str(folder), name, is_trainable=train)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=train)
        with safe_open(folder / WEIGHTS, "pt") as file:
            odd = set(file.keys()) ^ set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
        if odd:
            raise ValueError(f"{len(odd)} of its weights have no counterpart, among them {min(odd)}")
    except (RuntimeError, ValueError, KeyError) as problem:
        reason = " ".join(str(problem).split())[:400]
        raise ModelError(f"{folder}: this adapter does not fit `{model.name_or_path}` ({reason}).") from problem
    return leave_casting_to_autocast(model)


def leave_casting_to_autocast(adapted: Any) -> Any:
    """A copy of every input in fp32 would only cost memory."""
    for module in adapted.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    return adapted


def merge_adapter(model: Any) -> Any:
    """The model without adapter whose weights are W + its update, in the base's own type. Merge in fp32 and round afterwards.

    Embedding and head may be one tensor. An adapter of one of them alone must not move the other, so they are merged apart, and are one tensor
    again only if they are still equal.
    """
    base = model.get_base_model()
    embedding, head = (getattr(part, "base_layer", part) for part in (base.get_input_embeddings(), base.get_output_embeddings()))
    tied = embedding.weight is head.weight
    if tied:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False
    with known_warnings_off():
        merged = model.merge_and_unload()
    embedding, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if tied and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        merged.config.tie_word_embeddings = True
    return merged


def reference_fingerprint(model: nn.Module) -> str | None:
    """SHA-256 (hex) over the frozen adapter: name, shape and fp32 value of each weight, the scale of each layer. None where there is none."""
    if REFERENCE not in getattr(model, "peft_config", {}):
        return None
    from peft.tuners.lora import LoraLayer

    frozen = {name: tensor for name, tensor in model.state_dict().items() if REFERENCE in name.split(".")}
    digests = {name: digest(name, tensor.detach().to("cpu", torch.float32).contiguous().numpy()) for name, tensor in frozen.items()}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and REFERENCE in module.scaling:
            digests[f"{name}.scaling"] = hashlib.sha256(f"{name} {float(module.scaling[REFERENCE])}".encode()).digest()
    return fingerprint_of(digests)


@contextmanager
def known_warnings_off() -> Iterator[None]:
    """PEFT reads an attribute by a name that newer transformers warns of, and warns of heads that are embeddings, which `merge_adapter` minds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        yield


def _read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA or DoRA adapter and of nothing beside it."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        kind, drawn, bias = config["peft_type"], config.get("init_lora_weights", True), config.get("bias", "none")
    except (ValueError, KeyError, TypeError) as problem:
        raise ModelError(f"adapter.start: {folder / CONFIG}: this is no adapter's config ({problem}).") from None
    odd = [what for field, what in NOTHING_ELSE.items() if config.get(field)]
    odd += ["biases of its own"] if bias != "none" or config.get("lora_bias") else []
    odd += [f"weights taken out of the base ({drawn})"] if not isinstance(drawn, bool) and drawn not in UNDERSTOOD else []
    if kind != "LORA" or odd:
        raise ModelError(
            f"adapter.start: {folder}: only LoRA and DoRA adapters can be continued; this one has {', '.join(odd) or f'the type {kind}'}."
        )
    return config


def _setting(config: dict[str, Any], name: str) -> Any:
    """The value that the recipe's setting `name` would have for an adapter with this config."""
    field = {"rank": "r", "alpha": "lora_alpha", "targets": "target_modules", "dora": "use_dora", "rslora": "use_rslora"}[name]
    value = config.get(field, False)
    return ", ".join(sorted(value)) if isinstance(value, list) else value
