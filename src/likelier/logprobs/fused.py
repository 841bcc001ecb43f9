"""Layers of a model with fewer passes over memory than models spell them with: the same functions, modules, weights and names.

    LoRA            on every device                 within the matmul                   lora.py
    RMS norms       on CUDA                         PyTorch's own kernel                norms.py
    SwiGLU          on CUDA, with Triton            activation and product at once      gates.py
    rotations       on CUDA, with Triton            of queries and keys, at once        rotary.py

Each module says which layers of a model are just that.
"""

from torch import nn

from likelier.logprobs.gates import fuse_gates
from likelier.logprobs.lora import fuse_lora
from likelier.logprobs.norms import fuse_norms
from likelier.logprobs.rotary import fuse_rotations


def fuse(model: nn.Module, *, on_gpu: bool) -> None:
    """From here on the layers of `model` are fused that do just what is known here; others stay as they are."""
    fuse_lora(model)
    for fuse_kind in (fuse_norms, fuse_gates, fuse_rotations) if on_gpu else ():
        fuse_kind(model)
