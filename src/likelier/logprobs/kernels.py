"""Fused kernels: for which tensors there are some of our own in Triton, and whether a kernel does here what plain operations do. What runs on one GPU
may not compile on the next."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from likelier.errors import lacks_memory

NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.008, torch.float16: 0.001}
"""Largest difference between a kernel's values and PyTorch's, values being about 1: some may be rounded the other way."""


def are_for(tensor: Tensor) -> bool:
    """Whether there are kernels for tensors like this one."""
    return tensor.device.type == "cuda" and tensor.dtype in NEAR and _triton_is_there()


@cache
def _triton_is_there() -> bool:
    return find_spec("triton") is not None


def of_layers() -> Any:
    """logprobs/layer_kernels.py, which needs Triton."""
    from likelier.logprobs import layer_kernels

    return layer_kernels


def is_right(what: str, look: Callable[[], float], *, near: float, cost: str, than: str = "PyTorch's") -> bool:
    """Whether the kernel `what` runs, and is no further from PyTorch's operations than `near`, which `look` finds out. If not a warning says so, and
    what it costs. Raises where memory is lacking, which is no fault of the kernel.

    In a thread of its own: a layer that asks may be one that keeps what it computes, or computes it again, with gradients or without.
    """
    try:
        with ThreadPoolExecutor(max_workers=1) as aside:
            furthest = aside.submit(look).result()
    except Exception as problem:  # whatever a compiler, its cache or its driver may raise
        if lacks_memory(problem):
            raise
        fault = f"does not run here ({' '.join(str(problem).split())[:200]})"
    else:
        fault = "" if furthest <= near else f"is {furthest:.2g} away from {than} here"  # of NaN, too
    if fault:
        warnings.warn(f"{what} {fault}; {cost}", stacklevel=3)
    return not fault
