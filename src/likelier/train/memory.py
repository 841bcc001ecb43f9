"""How much memory a step takes: by arithmetic, and how much there is.

With T tokens and E scored edges in a batch, a bytes a number of the forward pass (4 in fp32, 2 in bf16), P parameters and Q trainable ones:

    weights        P numbers as they are held: in 4 bits with their blocks' scales, and with both copies of an adapter that is continued
    masters        4Q where weights held in bf16 are trained, none with stochastic rounding (train/master.py)
    gradients      4Q, and 2Q more beside masters, where a backward pass makes them in bf16 before they are added up
    optimizer      8Q: two moments of AdamW; in 8 bits 2.03Q (train/optimizer.py)
    activations    T · [a · Σ (inputs + outputs of a linear layer) + (4 − a) · Σ (widths of norms, which compute in fp32)], and as much again for
                   one layer, whose gradients stand beside them. DoRA keeps 2a · T · Σ outputs more. With gradient checkpointing both for one
                   layer, and of all layers T · a · width; `selective` besides T · (a · outputs of linear layers + width of attention ·
                   (a; 4 on a CPU)); `offload` nothing on a GPU (recompute.py)
    one weight     the largest linear one as a pass uses it: a bytes a number where it is unpacked, 3a where DoRA works out its norm
    head           what logprobs/head.py keeps for the backward pass: slopes min(a·E·V, KEPT_BYTES), or with a frozen head a·E·D,
                   blocks of logits while it works, and a second gradient of its weight before the two are added
    step           what the optimizer needs while it steps the largest trained weight, as far as that is more than the passes need
    program        interpreter and libraries on a CPU: PROGRAM

Σ over linear layers stands for what they keep: inputs, and outputs that attention and the activation function keep. It is exact to about a fifth for
models of Llama's kind, and a guess for mixtures of experts. Engine "plain" keeps all logits.

On a GPU the same is counted but for what a CPU alone needs (attention in fp32, the program, bitsandbytes' steps), and the head's blocks are larger.
Attention is counted as one fused kernel's, which keeps queries, keys, values and outputs. Where keys and values of a prompt are copied for each of
its replies, the copies come on top: 2a · key width for each token of a reply's path, in each layer. The context of CUDA and what its allocator cannot
use are in no sum.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import torch
from torch import nn

from likelier.adapters import belongs_to_adapter
from likelier.four_bits import held_bytes, packing, true_shape
from likelier.logprobs.head import KEPT_BYTES, WORKING_BYTES
from likelier.logprobs.softmax import SOFTMAX_BYTES, allowed
from likelier.models import count_parameters, trainable
from likelier.recipe import TrainSettings
from likelier.section import Recomputing
from likelier.train.optimizer import expected_state_bytes, step_bytes

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


def estimate(model: nn.Module, settings: TrainSettings, *, engine: str, precision: str, batch: BatchSize) -> list[Part]:
    """The parts of the module's docstring for `batch`, the largest of the run."""
    narrow = 4 if precision == "fp32" else 2
    changed = list(trainable(model).values())
    sizes = [p.numel() for p in changed]
    trained = sum(sizes)
    at_random = settings.bf16_weights == "stochastic-rounding"
    mastered = 0 if at_random else sum(p.numel() for p in changed if p.dtype != torch.float32)
    base, whole = count_parameters(model), sum(true_shape(p).numel() for p in model.parameters())
    packed = any(packing(p) is not None for p in model.parameters())
    moments = expected_state_bytes(sizes, settings)
    passes = [
        _activations(model, narrow, settings.gradient_checkpointing, batch.tokens),
        _one_weight(model, narrow),
        _head(model, narrow, engine, batch),
    ]
    largest = max(changed, key=lambda p: p.numel())
    needs = largest.numel() * step_bytes(largest, settings)
    parts = [
        Part("weights", f"{whole:,} parameters{', packed in 4 bits' * packed}{', adapter included' * (whole > base)}", weights_bytes(model)),
        Part("masters", f"{mastered:,} trained in bf16 × 4", 4 * mastered),
        Part("gradients", f"{trained:,} trained × 4" + (f" + {mastered:,} × 2" if mastered else ""), 4 * trained + 2 * mastered),
        Part("optimizer", f"{trained:,} trained × {moments / trained:.3g}", moments),
        *passes,
        Part("step", f"{needs / 1e6:.0f} MB for the largest weight, more than a pass", max(0, needs - sum(part.bytes for part in passes))),
        Part("program", "interpreter and libraries", PROGRAM if next(model.parameters()).device.type == "cpu" else 0),
    ]
    return [part for part in parts if part.bytes]


def added(parts: Iterable[Part]) -> int:
    """Bytes of what a run takes beside its model and the program: what must be free once the model is there."""
    return sum(part.bytes for part in parts if part.name not in ("weights", "program"))


def takes_less(settings: TrainSettings, device: torch.device) -> list[Recomputing]:
    """What `gradient_checkpointing` may be that takes less memory than now, what costs least time first. Offloading is for memory that is not main
    memory."""
    ways: tuple[Recomputing, ...] = (False, "selective", True, "offload")
    further = ways[ways.index(settings.gradient_checkpointing) + 1 :]
    return [how for how in further if how != "offload" or device.type == "cuda"]


def weights_bytes(model: nn.Module) -> int:
    """Bytes of all weights as the model holds them."""
    return sum(held_bytes(p) for p in model.parameters())


def _activations(model: nn.Module, narrow: int, recomputing: Recomputing, tokens: int) -> Part:
    config: Any = getattr(model, "config", None)
    shapes = [true_shape(weight) for _, weight in _weights_of_layers(model)]
    linear, norms = (sum(sum(shape) for shape in shapes if len(shape) == dimensions) for dimensions in (2, 1))
    layers = getattr(config, "num_hidden_layers", 1)
    of_all = narrow * linear + (4 - narrow) * norms + 2 * narrow * _lengths_trained(model)
    if recomputing:
        kept = _kept_between(model, narrow, recomputing)
        a_token = kept - kept // layers + 2 * of_all // layers  # one layer is whole again, with its gradients
        how = f", recomputed {'but for products' if recomputing == 'selective' else 'layer by layer'}"
    else:
        a_token, how = of_all + of_all // layers, ""
    return Part("activations", f"{tokens:,} tokens × {a_token:,}{how}", tokens * a_token)


def _kept_between(model: nn.Module, narrow: int, recomputing: Recomputing) -> int:
    """Bytes a token that wait for the backward pass where layers are computed again (recompute.py)."""
    config: Any = model.config
    device = next(model.parameters()).device.type
    if recomputing == "offload" and device != "cpu":  # where main memory is another
        return 0
    inputs: int = narrow * config.num_hidden_layers * config.hidden_size
    if recomputing != "selective":
        return inputs
    outputs = sum(getattr(module, "nf", true_shape(weight)[0]) for module, weight in _weights_of_layers(model) if len(true_shape(weight)) == 2)
    heads = config.num_attention_heads
    attended: int = config.num_hidden_layers * heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return inputs + narrow * outputs + (4 if device == "cpu" else narrow) * attended  # on a CPU attention computes in fp32


def _one_weight(model: nn.Module, narrow: int) -> Part:
    largest = max((weight for _, weight in _weights_of_layers(model)), key=lambda weight: true_shape(weight).numel())
    copies = 3 if _lengths_trained(model) else 1 if packing(largest) is not None else 0
    numbers = true_shape(largest).numel()
    return Part("one weight", f"{numbers:,} × {copies * narrow}, while it is used", numbers * copies * narrow)


def _weights_of_layers(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Of linear layers and norms, each with its module: not of embeddings, the head and adapters."""
    head, belongs = _head_of(model), belongs_to_adapter(model)
    heads = (head, getattr(head, "base_layer", head))
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) and all(module is not each for each in heads):
            yield from ((module, w) for what, w in module.named_parameters(recurse=False) if what == "weight" and not belongs(f"{name}.{what}"))


def _lengths_trained(model: nn.Module) -> int:
    """Rows whose length DoRA trains: the outputs of all its layers."""
    return sum(p.numel() for name, p in trainable(model).items() if "magnitude" in name)


def _head(model: nn.Module, narrow: int, engine: str, batch: BatchSize) -> Part:
    if engine == "plain":
        config: Any = getattr(model, "config", None)
        vocabulary = getattr(config, "vocab_size", 0)
        return Part("logits", f"{batch.tokens:,} tokens × {vocabulary:,} × {narrow + 8}", batch.tokens * vocabulary * (narrow + 8))
    head = _head_of(model)
    weight = head.weight
    vocabulary, width = weight.shape
    logits = narrow * batch.edges * vocabulary
    working = 2 * min(logits, allowed(WORKING_BYTES, weight.device)) + min(2 * logits, allowed(SOFTMAX_BYTES, weight.device))
    if not any(p.requires_grad for p in head.parameters()):
        return Part("head", f"slopes {batch.edges:,} × {width:,} × {narrow}, working space", narrow * batch.edges * width + working)
    kept = min(logits, allowed(KEPT_BYTES, weight.device))
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
