"""AdamW in the forms that a recipe may ask for, and its state as plain tensors.

    adamw                              torch's, fused: two moments in fp32                    8 bytes a weight
    adamw-8bit                         bitsandbytes': two moments in 8 bits, blocks of 256    2.03 bytes a weight
    either, with stochastic rounding   the weights themselves are bf16, no fp32 master        4 bytes a weight less

A bf16 number has 8 bits of precision: rounded to the nearest, an update by less than 1/512 of a weight is lost, every time. Stochastic rounding
goes up or down with the odds that make the result right on average (Gupta et al. 2015, section 3). Moments stay in fp32 or 8 bits: a second moment
in bf16 could not shrink, because 0.999 of it rounds back to itself.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from likelier.recipe import TrainSettings
from likelier.train.master import MasterWeights

BETAS, EPSILON = (0.9, 0.999), 1e-8

BLOCK, NARROW_FROM = 256, 4096
"""bitsandbytes: 8-bit numbers that share a scale in fp32; numbers of a weight from which its moments are held so, fewer stay in fp32."""


def make_optimizer(parameters: list[Tensor], settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of `parameters`: all of `MasterWeights.parameters`, or some."""
    options: dict[str, Any] = {"lr": settings.peak_learning_rate, "betas": BETAS, "eps": EPSILON, "weight_decay": settings.weight_decay}
    at_random = settings.bf16_weights == "stochastic-rounding"
    if settings.optimizer == "adamw-8bit":
        return _eight_bits(parameters, options, seed=settings.seed if at_random else None)
    if at_random:
        return RoundedAdamW(parameters, options, seed=settings.seed)
    return torch.optim.AdamW(parameters, fused=True, **options)


def round_at_random(wide: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 → bf16: one of the two neighbours, each with the odds that make the mean `wide` itself.

    bf16 is the upper half of fp32. A random number added to the lower half carries into the upper one as often as the lower half is large.
    """
    noise = torch.randint(0, 1 << 16, wide.shape, dtype=torch.int32, device=wide.device, generator=generator)
    return ((wide.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).bfloat16()


def stream(device: torch.device, *key: int) -> torch.Generator:
    """Random numbers that depend on `key` alone: a resumed run draws what the unbroken one would have drawn, on any device."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence([part % 2**64 for part in key]).generate_state(1, np.uint64)[0] >> 1))


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW over bf16 weights with fp32 gradients and fp32 moments: each weight is widened, stepped as torch does it, and rounded at random. A weight
    that the model holds in fp32 is stepped as it is."""

    def __init__(self, parameters: list[Tensor], options: dict[str, Any], *, seed: int) -> None:
        super().__init__(parameters, options)
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change every weight that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for index, weight in enumerate(group["params"]):
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
                    state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(weight, dtype=torch.float32) for _ in range(2))
                wide = weight.float()  # itself where it is fp32
                first, second = [state["exp_avg"]], [state["exp_avg_sq"]]
                rest: dict[str, Any] = {"beta1": beta1, "beta2": beta2} | {name: group[name] for name in ("lr", "weight_decay", "eps")}
                rest |= {"fused": True, "amsgrad": False, "maximize": False}
                adamw([wide], [weight.grad], first, second, max_exp_avg_sqs=[], state_steps=[state["step"]], **rest)
                if wide is not weight:
                    weight.copy_(round_at_random(wide, stream(weight.device, self.seed, int(state["step"]), index)))


def _eight_bits(parameters: list[Tensor], options: dict[str, Any], *, seed: int | None) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW with moments in 8 bits. `seed`: hold bf16 weights and round them at random."""
    from bitsandbytes.optim import AdamW8bit

    class RoundedAdamW8bit(AdamW8bit):
        """Each bf16 weight is widened while it is stepped."""

        def update_step(self, group: dict[str, Any], weight: Tensor, gindex: int, pindex: int) -> None:
            narrow = weight.data
            weight.data = narrow.float()
            super().update_step(group, weight, gindex, pindex)
            wide, weight.data = weight.data, narrow
            if narrow.dtype != torch.float32:
                narrow.copy_(round_at_random(wide, stream(weight.device, seed or 0, self.state[weight]["step"], pindex)))

    made: torch.optim.Optimizer = (AdamW8bit if seed is None else RoundedAdamW8bit)(parameters, **options)
    return made


def state_tensors(weights: MasterWeights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors, called `weight/moment`. A plain number is a tensor of no dimension; tables that moments share are copied."""
    tensors = {}
    for name, weight in weights.by_name.items():
        for moment, value in optimizer.state.get(weight, {}).items():
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
            tensors[f"{name}/{moment}"] = tensor.clone() if moment.startswith("qmap") else tensor
    return tensors


def restore_state(weights: MasterWeights, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` returned, bit for bit. KeyError for the state of a weight that is not there."""
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        weight = weights.by_name[name]
        optimizer.state[weight][moment] = value.item() if value.dtype == torch.int64 else value.to(weight.device)


def expected_state_bytes(numbers: Iterable[int], settings: TrainSettings) -> int:
    """What `state_bytes` will be for weights of so many numbers each, up to the step counts and tables of 8-bit values."""
    if settings.optimizer == "adamw":
        return sum(8 * n for n in numbers)
    return sum(2 * (n + 4 * math.ceil(n / BLOCK)) if n >= NARROW_FROM else 8 * n for n in numbers)


def step_bytes(weight: Tensor, settings: TrainSettings) -> int:
    """Bytes for each number of `weight` that a step needs beside the state while it is at it: the widened weight and the random numbers of its
    rounding; bitsandbytes' step on a CPU, which works in fp32."""
    wide = 4 if settings.bf16_weights == "stochastic-rounding" and weight.dtype != torch.float32 else 0
    rounding = wide and 12
    stepping = 20 if settings.optimizer == "adamw-8bit" and weight.device.type == "cpu" else 0
    return wide + max(rounding, stepping)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the state takes; a table that many moments share counts once."""
    seen = {value.data_ptr(): value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)}
    return sum(seen.values())
