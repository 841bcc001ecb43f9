"""Models: load, adapt, fingerprint, save. Weights are read and written as safetensors only; code that comes with a model runs only if asked."""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from likelier.errors import ModelError
from likelier.hashing import file_hash
from likelier.model_files import EMBEDDED, EMBEDDED_ON_HUB, embedded_gguf, hub_name, imported_folder
from likelier.recipe import AdapterSettings, ModelSettings
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


def load_model(settings: ModelSettings, *, dtype: torch.dtype, device: torch.device | None = None) -> LoadedModel:
    """Load weights and tokenizer. Raises ModelError naming the model and the mend."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = locate(settings.name)
    options = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model, report = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options)
        _refuse_gaps(report)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())[:400]
        raise ModelError(
            f"model.name: `{settings.name}` cannot be loaded ({reason}). "
            "Give a hub name, a folder with config.json and safetensors weights, or a .gguf file."
        ) from problem
    model.name_or_path = hub_name(settings.name) or settings.name  # what an adapter's config calls its base: others have no such cache
    return LoadedModel(model.to(device or pick_device()).eval(), tokenizer, settings.name, path)


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
    """The model with a fresh LoRA adapter, in fp32, whose B is zero: at the start the policy is the reference. Only the adapter is trainable."""
    from peft import LoraConfig, get_peft_model

    targets: Any = settings.targets if settings.targets == "all-linear" else [t.strip() for t in settings.targets.split(",")]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, task_type="CAUSAL_LM")
        try:
            with _known_warnings_off():
                adapted = get_peft_model(model, config)
        except ValueError as problem:
            raise ModelError(f"adapter.targets: {problem}") from problem
    for module in adapted.modules():
        if hasattr(module, "cast_input_dtype_enabled"):  # autocast decides; a copy of every input in fp32 would only cost memory
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
    with _known_warnings_off():
        merged = model.merge_and_unload()
    embedding, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if tied and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        merged.config.tie_word_embeddings = True
    return merged


@contextmanager
def _known_warnings_off() -> Iterator[None]:
    """PEFT reads an attribute by a name that newer transformers warns of, and warns of heads that are embeddings, which `merge_adapter` minds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        yield


def recompute_activations(model: Any) -> None:
    """Turn on activation checkpointing, under the name that the installed transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """Within it the model is its reference: the adapter is off. A model without an adapter is as it is."""
    with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        yield


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over name, shape and fp32 value of every weight but the adapter's: the same for a base alone and under LoRA, in whatever
    type its numbers are held."""
    weights = {_base_name(name): tensor for name, tensor in model.state_dict().items() if "lora_" not in name}

    def digest_one(item: tuple[str, torch.Tensor]) -> bytes:
        return digest(item[0], item[1].detach().to("cpu", torch.float32).contiguous().numpy())

    with ThreadPoolExecutor() as pool:
        return fingerprint_of(dict(zip(weights, pool.map(digest_one, weights.items()), strict=True)))


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
    adapted = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}  # PEFT would put the base's own into an adapter of the head
    try:
        with writing(folder):
            model.save_pretrained(temporary, **adapted)
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


def load_trained(folder: Path, settings: ModelSettings, *, dtype: torch.dtype, device: torch.device | None = None) -> LoadedModel:
    """What `save_trained` wrote: the adapter on the base that `settings` name, or the weights. Raises ModelError naming the folder."""
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        own = settings.model_copy(update={"name": str(folder.absolute()), "revision": None})
        return load_model(own, dtype=dtype, device=device)
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder}: this adapter has no adapter_model.safetensors. Its run did not end, or it comes from another tool.")
    loaded = load_model(settings, dtype=dtype, device=device)
    try:
        with _known_warnings_off():
            adapted = PeftModel.from_pretrained(loaded.model, folder)
        for parameter in adapted.parameters():  # autocast would round the adapter's fp32 weights alike, but at every call; buffers stay fp32
            parameter.data = parameter.data.to(dtype)
        loaded.model = adapted.eval()
    except (RuntimeError, ValueError) as problem:
        reason = " ".join(str(problem).split())[:400]
        raise ModelError(f"{folder}: this adapter does not fit `{settings.name}` ({reason}).") from problem
    return loaded
