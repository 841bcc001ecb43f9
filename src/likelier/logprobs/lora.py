"""LoRA on frozen linear layers with the update added within the matmul. As PEFT spells it each layer's outputs are read and written three times more
than its base needs, and its inputs' gradients once more.

    PEFT     narrow(W x) + narrow(s · narrow(B A x))
    fused    narrow(W x + narrow(B · narrow(s · A x)))              `addmm`

Reference: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3.

Shape legend: T tokens, I inputs of a layer, O outputs, r rank.
"""

from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from likelier.logprobs.swapping import with_forward

IN_PLACE: ContextVar[bool] = ContextVar("in_place", default=True)
"""Whether a product is added in place. False while operations are recorded one by one (recompute.py): what one of them changes cannot be kept."""


def fuse_lora(model: nn.Module) -> int:
    """From here on `model`'s LoRA layers are fused: those by PEFT on a plain linear layer, whenever one plain adapter of theirs is on. Returns how
    many."""
    if not hasattr(model, "peft_config"):
        return 0
    from peft.tuners.lora.layer import Linear

    own: Any = Linear
    layers: list[Any] = [module for module in model.modules() if type(module) is own]
    plain = [layer for layer in layers if type(layer.get_base_layer()) is nn.Linear]
    for layer in plain:
        layer.__class__ = _fused(own)
    return len(plain)


@cache
def _fused(own: Any) -> Any:
    """The class `own` with its forward pass fused."""

    def forward(self: Any, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        name = None if arguments or options else _plain_adapter(self)
        base = self.base_layer
        if name is None or base.weight.requires_grad or not _in_one_type(x, base.weight, self.lora_A[name].weight):
            result: Tensor = own.forward(self, x, *arguments, **options)
            return result
        a_rI, b_Or = self.lora_A[name].weight, self.lora_B[name].weight
        y_TO: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a_rI, b_Or, float(self.scaling[name]))
        return y_TO.view(*x.shape[:-1], -1)

    return with_forward(own, forward)


def _plain_adapter(layer: Any) -> str | None:
    """The one adapter that is on, if it does what equation 3 says and no more."""
    on = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(on) != 1:
        return None
    (name,) = on
    drops = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    return None if drops or name in layer.lora_variant or layer.lora_bias[name] else name


def _in_one_type(x: Tensor, weight: Tensor, low: Tensor) -> bool:
    """Whether input and frozen weight are of the type that is computed in, and the adapter too or cast to it by autocast."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return x.dtype == weight.dtype == torch.get_autocast_dtype(device)
    return x.dtype == weight.dtype == low.dtype


class _Linear(torch.autograd.Function):
    """y = W x + bias + s · B A x of a frozen W, in the type of x: A and B, and sums for their gradients, are cast to it as autocast does.

    The update is made first, and the base's product added onto it in place: out of place, `addmm` would copy what it adds to.
    """

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_rI: Tensor, b_Or: Tensor, scale: float) -> Tensor:
        ctx.dtypes = a_rI.dtype, b_Or.dtype
        a_rI, b_Or = a_rI.to(x_TI.dtype), b_Or.to(x_TI.dtype)
        low_Tr = x_TI @ a_rI.T * scale
        ctx.save_for_backward(x_TI, weight_OI, a_rI, b_Or, low_Tr)
        ctx.scale = scale
        return _added(low_Tr @ b_Or.T if bias_O is None else torch.addmm(bias_O, low_Tr, b_Or.T), x_TI, weight_OI.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TO: Tensor) -> Any:
        x_TI, weight_OI, a_rI, b_Or, low_Tr = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        dlow_Tr = dy_TO @ b_Or * ctx.scale
        dx_TI = _added(dlow_Tr @ a_rI, dy_TO, weight_OI) if needs_x else None
        da_rI = (dlow_Tr.T @ x_TI).to(ctx.dtypes[0]) if needs_a else None
        db_Or = (dy_TO.T @ low_Tr).to(ctx.dtypes[1]) if needs_b else None
        return dx_TI, None, None, da_rI, db_Or, None


def _added(to: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`to` with the product of both added. Not by `addmm_`, which PyTorch's counter of FLOPs does not know."""
    return torch.addmm(to, one, other, out=to if IN_PLACE.get() else None)
