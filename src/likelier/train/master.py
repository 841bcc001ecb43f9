"""fp32 master weights: what the optimizer changes, whatever type the model computes in (Micikevicius et al. 2018, section 3.1).

A bf16 number has 8 bits of precision, so that an update of a weight by less than 1/256 of it would be lost. The model's bf16 weights are therefore
roundings of fp32 ones; batches add up their gradients, and AdamW steps, in fp32.

The fp32 ones begin as the model's files hold them. Widened bf16 would all begin on a number of bf16, and no weight would move in the model until its
updates add up to half the way to the next one; of weights between two numbers, some move at every step.

Or there are no masters: with stochastic rounding (train/optimizer.py) the optimizer changes the bf16 weights themselves. Batches still add up their
gradients in fp32.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from likelier.models import original_weights, trainable
from likelier.recipe import ModelSettings

PART = 2**20
"""Elements added at once on a CPU, where torch makes an fp32 copy to add bf16 to fp32: it had better be small. A GPU makes none."""


def originals_of(model: nn.Module, settings: ModelSettings) -> dict[str, Tensor] | None:
    """What masters begin as: `models.original_weights`, None where no weight that is trained is rounded."""
    rounded = any(parameter.dtype != torch.float32 for parameter in trainable(model).values())
    return original_weights(settings) if rounded else None


class MasterWeights:
    """The trainable weights of `model` in fp32, by name: itself where a weight is fp32 already (LoRA's, or a run in fp32), else the value in
    `originals` (`models.original_weights`), of which it is the rounding, or without that a widened copy. With `rounded_at_random` there is no
    master, and each weight is here as the model holds it."""

    def __init__(self, model: nn.Module, originals: Mapping[str, Tensor] | None = None, *, rounded_at_random: bool = False) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # held in bf16, its master, that one's gradient
        for name, parameter in trainable(model).items():
            if parameter.dtype == torch.float32:
                self.by_name[name] = parameter
            elif rounded_at_random:
                parameter.grad_dtype = torch.float32  # what each backward pass adds to
                self.by_name[name] = parameter
            else:
                original = parameter.detach() if originals is None else originals[name]
                self.by_name[name] = original.to(parameter.device, torch.float32).requires_grad_()
                self._held.append((parameter, self.by_name[name], torch.empty_like(parameter, dtype=torch.float32)))

    @classmethod
    def of(cls, model: nn.Module, settings: ModelSettings, bf16_weights: str = "fp32-master") -> "MasterWeights":
        """Those of a model loaded by `settings`, whose files are read again where bf16 has rounded what is trained."""
        if bf16_weights == "stochastic-rounding":
            return cls(model, rounded_at_random=True)
        return cls(model, originals_of(model, settings))

    @property
    def parameters(self) -> list[Tensor]:
        """For the optimizer and for clipping."""
        return list(self.by_name.values())

    def collect_gradients(self) -> None:
        """After a backward pass: add the model's gradients to the masters'."""
        for parameter, master, memory in self._held:
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = memory.copy_(parameter.grad)
            else:
                size = PART if parameter.device.type == "cpu" else max(1, parameter.numel())
                for total, added in zip(master.grad.view(-1).split(size), parameter.grad.reshape(-1).split(size), strict=True):
                    total += added
            parameter.grad = None

    def forget_gradients(self) -> None:
        """After a step, or to begin one again."""
        for master in self.by_name.values():
            master.grad = None
        for parameter, _, _ in self._held:
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """After the masters changed: round them into the model."""
        for parameter, master, _ in self._held:
            parameter.copy_(master)
