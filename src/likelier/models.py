"""Models: load, adapt, fingerprint, save. Weights are read and written as safetensors only; code that comes with a model runs only if asked."""

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor

from likelier.adapters import (
    REFERENCE,
    TRAINED,
    belongs_to_adapter,
    continue_adapter,
    known_warnings_off,
    leave_casting_to_autocast,
    put_on,
    reference_fingerprint,
    start_files,
)
from likelier.errors import ModelError
from likelier.four_bits import compute_as_asked, loaded_in_four_bits, true_shape
from likelier.hashing import file_hash
from likelier.model_files import EMBEDDED, EMBEDDED_ON_HUB, embedded_gguf, hub_name, imported_folder
from likelier.recipe import AdapterSettings, ModelSettings, Recipe
from likelier.rundir import writing
from likelier.weights import add_notes, digest, fingerprint_of


@dataclass
class LoadedModel:
    """A causal language model and its tokenizer. `path` is where both load from again: a folder or a hub name."""

    model: Any
    tokenizer: Any
    name: str
    path: str


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_precision(wanted: str, device: torch.device) -> Any:
    """ "bf16" or "fp32"; `auto` takes bf16 where the processor has arithmetic for it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags() else "fp32"


def _cpu_flags() -> str:
    try:
        return next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    except OSError:
        return ""


def load_model(settings: ModelSettings, *, dtype: torch.dtype, device: torch.device | None = None, in_four_bits: bool = False) -> LoadedModel:
    """Load weights and tokenizer; on request all linear layers but the head `in_four_bits`. On the device `meta` the model has shapes and no weights.
    Raises ModelError naming the model and the mend."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    path, device = locate(settings.name), device or pick_device()
    options = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    held = loaded_in_four_bits(dtype, device) if in_four_bits else {"device_map": {"": "meta"}} if device.type == "meta" else {}
    tokenizer = load_tokenizer(settings)
    with loading(settings):
        model, report = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options, **held)
        _refuse_gaps(report)
    model.name_or_path = hub_name(settings.name) or settings.name  # what an adapter's config calls its base: others have no such cache
    compute_as_asked(model)
    return LoadedModel(model.to(device).eval(), tokenizer, settings.name, path)


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer alone. Raises ModelError as `load_model` does."""
    from transformers import AutoTokenizer

    path = locate(settings.name)
    with loading(settings):
        return AutoTokenizer.from_pretrained(path, revision=settings.revision, trust_remote_code=settings.trust_remote_code)


@contextmanager
def loading(settings: ModelSettings) -> Iterator[None]:
    """Within it whatever transformers stumbles over is a ModelError."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())[:400]
        raise ModelError(
            f"model.name: `{settings.name}` cannot be loaded ({reason}). "
            "Give a hub name, a folder with config.json and safetensors weights, or a .gguf file."
        ) from problem


def weights_dtype(model: nn.Module) -> torch.dtype:
    """The type of the base's numbers, of those that are not packed."""
    belongs = belongs_to_adapter(model)
    return next(p.dtype for name, p in model.named_parameters() if p.is_floating_point() and not belongs(name))


def count_parameters(model: nn.Module) -> int:
    """Numbers that the base has, however many of them are packed into one."""
    belongs = belongs_to_adapter(model)
    return sum(true_shape(parameter).numel() for name, parameter in model.named_parameters() if not belongs(name))


def original_weights(settings: ModelSettings) -> dict[str, torch.Tensor]:
    """The weights in fp32 by name, on the CPU, as the files hold them: what a model loaded in bf16 is the rounding of."""
    model = load_model(settings, dtype=torch.float32, device=torch.device("cpu")).model
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _refuse_gaps(report: dict[str, Any]) -> None:
    """transformers draws weights that a file lacks at random, and only says so. Raises ValueError."""
    if report["missing_keys"]:
        raise ValueError(f"{len(report['missing_keys'])} of its weights are missing, among them {min(report['missing_keys'])}")


def locate(name: str) -> str:
    """Where the model called `name` loads from; GGUF files are dequantised once into the cache."""
    if name == EMBEDDED:
        gguf = embedded_gguf()
        return EMBEDDED_ON_HUB if gguf is None else str(import_gguf(gguf))
    if name.endswith(".gguf"):
        file = Path(name).expanduser()
        if not file.is_file():
            raise ModelError(f"model.name: {name}: there is no such GGUF file.")
        return str(import_gguf(file))
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(f"model.name: {name}: this is not a model folder (no config.json in it).")
        return str(folder)
    return name


def import_gguf(path: Path) -> Path:
    """A folder of safetensors, config and tokenizer made of a GGUF file, kept in the cache under the file's hash. Raises ModelError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = imported_folder(path)
    if (folder / "config.json").is_file():
        return folder
    try:
        quantised, report = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True)
        _refuse_gaps(report)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as problem:  # a damaged file makes its readers stumble in any way
        raise ModelError(f"model.name: {path}: this GGUF file cannot be imported ({problem}).") from problem
    # transformers refuses to save a model that it read from GGUF, so the same weights go into a fresh one.
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    with writing(folder):
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    if folder.exists():  # another process was faster
        shutil.rmtree(temporary)
    else:
        temporary.rename(folder)
    return folder


def add_adapter(model: Any, settings: AdapterSettings, *, seed: int) -> Any:
    """The model with an adapter in fp32, which alone is trainable: the one in `settings.start`, or a fresh one whose B is zero. At the start the
    policy is the reference either way."""
    from peft import LoraConfig, get_peft_model

    if settings.start:
        return continue_adapter(model, settings)
    targets: Any = settings.targets if settings.targets == "all-linear" else [t.strip() for t in settings.targets.split(",")]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=targets,
            use_dora=settings.dora,
            use_rslora=settings.rslora,
            task_type="CAUSAL_LM",
        )
        try:
            with known_warnings_off():
                adapted = get_peft_model(model, config)
        except ValueError as problem:
            raise ModelError(f"adapter.targets: {problem}") from problem
    return leave_casting_to_autocast(adapted)


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """Within it the model is its reference: the adapter is off, or is the one that the run began with. A model without an adapter is as it is."""
    if REFERENCE in getattr(model, "peft_config", {}):
        trained = bool(trainable(model))
        model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter(TRAINED, inference_mode=not trained)
    else:
        with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
            yield


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) of the reference's weights: over those of the base, and over the adapter that the run began with where there is one."""
    base, start = base_fingerprint(model), reference_fingerprint(model)
    return base if start is None else sha256(f"{base} {start}".encode()).hexdigest()


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over name, shape and fp32 value of every weight but the adapters': the same for a base alone and under LoRA, in whatever
    type its numbers are held. Of packed weights the packed bytes count, and what unpacks them; of a divided one (train/sharding.py) what is here."""
    belongs = belongs_to_adapter(model)
    weights = {_base_name(name): tensor for name, tensor in model.state_dict().items() if not belongs(name)}

    def digest_one(item: tuple[str, torch.Tensor]) -> bytes:
        return digest(item[0], here(item[1]).detach().to("cpu", torch.float32).contiguous().numpy())

    with ThreadPoolExecutor() as pool:
        return fingerprint_of(dict(zip(weights, pool.map(digest_one, weights.items()), strict=True)))


def here(tensor: torch.Tensor) -> torch.Tensor:
    """The part of it that this process holds: all of it, unless it is a DTensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_trained(model: Any, tokenizer: Any, folder: Path, *, card: str, notes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write adapter or weights (safetensors), tokenizer with template, and model card; the whole folder or nothing of it.

    `notes` go into the header of each weight file. Returns the SHA-256 of each weight file by its name. Raises RunError if the disk does not
    take it.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    # Of an adapter of the head PEFT would save the base's own embedding, too.
    adapter = {"selected_adapters": [TRAINED], "save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    for config in getattr(model, "peft_config", {}).values():
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)  # a set is written in any order, and equal runs leave equal files
    try:
        with writing(folder):
            model.save_pretrained(temporary, **adapter)
            tokenizer.save_pretrained(temporary)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            files = sorted(temporary.glob("*.safetensors"))
            for file in files:
                add_notes(file, notes or {})
            hashes = {file.name: file_hash(file) for file in files}
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return hashes


def held_as(recipe: Recipe) -> dict[str, Any]:
    """How `load_trained` has to hold the base of a run by this recipe, and which adapter is part of its reference."""
    return {} if recipe.train.method == "full" else {"in_four_bits": recipe.train.method == "qlora", "start": recipe.adapter.start}


def load_trained(
    folder: Path,
    settings: ModelSettings,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
    in_four_bits: bool = False,
    start: str = "",
) -> LoadedModel:
    """What `save_trained` wrote: the adapter on the base that `settings` name, or the weights. `start` is the adapter that the run began with, if
    any. Raises ModelError naming the folder."""
    if not (folder / "adapter_config.json").is_file():
        own = settings.model_copy(update={"name": str(folder.absolute()), "revision": None})
        return load_model(own, dtype=dtype, device=device)
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder}: this adapter has no adapter_model.safetensors. Its run did not end, or it comes from another tool.")
    loaded = load_model(settings, dtype=dtype, device=device, in_four_bits=in_four_bits)
    adapted = put_on(loaded.model, folder)
    for name, parameter in adapted.named_parameters():  # autocast would round the adapter's fp32 weights alike, but at every call; buffers stay fp32
        if parameter.is_floating_point() and "magnitude" not in name:  # by which DoRA multiplies, outside of what autocast rounds
            parameter.data = parameter.data.to(dtype)
    if start:
        start_files(start)
        adapted = put_on(adapted, Path(start).expanduser(), name=REFERENCE)
    loaded.model = adapted.eval()
    return loaded
