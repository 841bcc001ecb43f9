"""Which activations a layer keeps for the backward pass, and which are computed once more there: `train.gradient_checkpointing`.

    false       everything is kept
    selective   kept is what takes many operations a byte: products with weights, and what was attended; computed again are norms, rotations,
                activation functions, sums, and adapters
    true        kept are the inputs of layers; a layer is computed again up to the last value that its gradient needs
    offload     the same, and the inputs wait in main memory

The gradient is the same, bit for bit on the CPU. Reference: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; what is kept
selectively, Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from likelier.logprobs import lora
from likelier.section import Recomputing

PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::_grouped_mm": 0, "bitsandbytes::gemm_4bit": 0}
"""Products with a weight, and which of their arguments holds the activations, (…, inner)."""

ATTENTION = {
    *(f"aten::_scaled_dot_product_{kernel}_attention" for kernel in ("flash", "efficient", "cudnn")),
    *("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_flash_attention_forward", "torch_attn::_varlen_attn"),
}

PLAIN: Any = {"use_reentrant": False, "preserve_rng_state": False}
"""torch's options: dropout is off (pitfall 10), so that no layer draws a random number."""


def recompute_activations(model: Any, how: Recomputing = True) -> None:
    """From here on the layers of `model` keep what `how` says."""
    if not how:
        return
    # The installed transformers has one of two names for it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(dict(PLAIN))
    ranks = {weight.shape[1] for name, weight in model.named_parameters() if "lora_B" in name}
    runs: dict[Any, Callable[..., Any]] = {"selective": partial(_keep_selected, ranks), "offload": _keep_elsewhere}
    for module in model.modules() if how in runs else ():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = runs[how]


def _keep_selected(ranks: set[int], layer: Callable[..., Any], *inputs: Any) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, partial(_is_kept, ranks))
    return checkpoint(partial(_recorded, layer), *inputs, **PLAIN, context_fn=contexts)


def _is_kept(ranks: set[int], _: Any, operation: Any, *arguments: Any, **options: Any) -> bool:
    """Whether what an operation inside of a layer made is kept. torch asks. An adapter's second product is as large as what it is added to, and costs
    little: it is one over the adapter's rank. A product of the base that is as narrow is taken for one."""
    name = operation.name()
    return name in ATTENTION or (name in PRODUCTS and arguments[PRODUCTS[name]].shape[-1] not in ranks)


def _recorded(layer: Callable[..., Any], *inputs: Any) -> Any:
    """Call `layer` so that torch can keep some of its operations by their number. There must be as many when it is computed again, so that autocast
    must remember no cast; and none may change what another made."""
    cached, token = torch.is_autocast_cache_enabled(), lora.IN_PLACE.set(False)
    torch.set_autocast_cache_enabled(False)
    try:
        return layer(*inputs)
    finally:
        torch.set_autocast_cache_enabled(cached)
        lora.IN_PLACE.reset(token)


def _keep_elsewhere(layer: Callable[..., Any], *inputs: Any) -> Any:
    with save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(layer, *inputs, **PLAIN)
