"""How much memory a step takes: by arithmetic, and how much there is.

With T tokens and E scored edges in a batch, a bytes a number of the forward pass (4 in fp32, 2 in bf16), P parameters and Q trainable ones:

    weights        P numbers as they are held
    masters        4Q where the weights are trained in bf16, else none (train/master.py)
    gradients      4Q, and 2Q more in bf16, where a backward pass makes them before they are added up
    optimizer      8Q: two moments of AdamW
    activations    T · [a · Σ (inputs + outputs of a linear layer) + (4 − a) · Σ (widths of norms, which compute in fp32)], and as much again for
                   one layer, whose gradients stand beside them. With gradient checkpointing T · a · layers · width, and both for one layer.
    head           what logprobs/head.py keeps for the backward pass: slopes min(a·E·V, KEPT_BYTES), or with a frozen head a·E·D,
                   blocks of logits while it works, and a second gradient of its weight before the two are added
    program        interpreter and libraries on a CPU: PROGRAM

Σ over linear layers stands for what they keep: inputs, and outputs that attention and the activation function keep. It is exact to about a fifth for
models of Llama's kind, and a guess for mixtures of experts. Engine "plain" keeps all logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import torch
from torch import nn

from likelier.logprobs.head import KEPT_BYTES, SOFTMAX_BYTES, WORKING_BYTES
from likelier.models import trainable

PROGRAM = 600 * 10**6
"""Resident bytes of Python with torch, transformers and peft loaded and the data read, about."""

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Part:
    """One share of the memory: what it is of, the sum that gives it, and bytes."""

    name: str
    arithmetic: str
    bytes: int


@dataclass(frozen=True)
class BatchSize:
    """What a batch puts through the model: tokens (padding included where the engine pads) and scored edges."""

    tokens: int
    edges: int


def estimate(model: nn.Module, *, engine: str, precision: str, checkpointing: bool, batch: BatchSize) -> list[Part]:
    """The parts of the module's docstring for `batch`, the largest of the run."""
    narrow = 4 if precision == "fp32" else 2
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    changed = trainable(model).values()
    trained = sum(p.numel() for p in changed)
    held_narrow = sum(p.numel() for p in changed if p.dtype != torch.float32)
    adapted = any("lora_" in name for name, _ in model.named_parameters())
    parts = [
        Part("weights", f"{sum(p.numel() for p in model.parameters()):,} parameters{', adapter included' * adapted}", weights),
        Part("masters", f"{held_narrow:,} trained in bf16 × 4", 4 * held_narrow),
        Part("gradients", f"{trained:,} trained × 4" + (f" + {held_narrow:,} × 2" if held_narrow else ""), 4 * trained + 2 * held_narrow),
        Part("optimizer", f"{trained:,} trained × 8", 8 * trained),
        _activations(model, narrow, checkpointing, batch.tokens),
        _head(model, narrow, engine, batch),
        Part("program", "interpreter and libraries", PROGRAM if next(model.parameters()).device.type == "cpu" else 0),
    ]
    return [part for part in parts if part.bytes]


def _activations(model: nn.Module, narrow: int, checkpointing: bool, tokens: int) -> Part:
    config: Any = getattr(model, "config", None)
    shapes = list(_weight_shapes(model))
    linear, norms = (sum(sum(shape) for shape in shapes if len(shape) == dimensions) for dimensions in (2, 1))
    layers = getattr(config, "num_hidden_layers", 1)
    of_all = narrow * linear + (4 - narrow) * norms
    a_token = of_all + of_all // layers
    if checkpointing:
        a_token = narrow * layers * config.hidden_size + 2 * of_all // layers
    how = ", recomputed layer by layer" if checkpointing else ""
    return Part("activations", f"{tokens:,} tokens × {a_token:,}{how}", tokens * a_token)


def _weight_shapes(model: nn.Module) -> Iterator[torch.Size]:
    """Of linear layers and norms: not of embeddings, the head and adapters."""
    head = _head_of(model)
    for name, module in model.named_modules():
        if module is not head and not isinstance(module, nn.Embedding) and "lora_" not in name:
            yield from (weight.shape for what, weight in module.named_parameters(recurse=False) if what == "weight")


def _head(model: nn.Module, narrow: int, engine: str, batch: BatchSize) -> Part:
    if engine == "plain":
        config: Any = getattr(model, "config", None)
        vocabulary = getattr(config, "vocab_size", 0)
        return Part("logits", f"{batch.tokens:,} tokens × {vocabulary:,} × {narrow + 8}", batch.tokens * vocabulary * (narrow + 8))
    weight = _head_of(model).weight
    vocabulary, width = weight.shape
    device = weight.device.type
    logits = narrow * batch.edges * vocabulary
    working = 2 * min(logits, WORKING_BYTES.get(device, WORKING_BYTES["cuda"])) + min(2 * logits, SOFTMAX_BYTES.get(device, SOFTMAX_BYTES["cuda"]))
    if not weight.requires_grad:
        return Part("head", f"slopes {batch.edges:,} × {width:,} × {narrow}, working space", narrow * batch.edges * width + working)
    kept = min(logits, KEPT_BYTES)
    of_weight = 4 * vocabulary * width
    sums = f"slopes {kept / 1e6:.0f} MB, working space {working / 1e6:.0f} MB, gradient {of_weight / 1e6:.0f} MB"
    return Part("head", sums, kept + working + of_weight)


def _head_of(model: nn.Module) -> Any:
    wrapped: Any = model
    return wrapped.get_output_embeddings() if hasattr(wrapped, "get_output_embeddings") else None


def resident(device: torch.device) -> int:
    """Bytes that this process holds now: on a GPU in tensors, else resident in RAM."""
    held: int = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return held


def free(device: torch.device) -> int:
    """Bytes that this process could still take; within a container, of what it may."""
    if device.type == "cuda":
        unreserved, _ = torch.cuda.mem_get_info(device)
        return unreserved + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available: int = psutil.virtual_memory().available
    try:
        return min(available, int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return available


class Peak:
    """While entered, watches `resident`; `bytes` is the most that it saw."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self._done = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            self._done.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, resident(self.device))


@contextmanager
def no_more_than(size: int) -> Iterator[None]:
    """Within it, allocations beyond `size` bytes from now fail, where the kernel would else end the process. Does nothing where it cannot."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held = getattr(psutil.Process().memory_info(), "data", 0)
    if held:
        resource.setrlimit(resource.RLIMIT_DATA, (held + size if hard == resource.RLIM_INFINITY else min(held + size, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
