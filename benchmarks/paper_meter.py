"""What the kernels of a step cost on paper: FLOPs, bytes moved, bytes held, and the least time that a GPU of given rates needs for them.

    seconds  =  Σ over kernels  max(FLOPs / FLOP rate of the type, bytes read and written / bandwidth)

the roofline of Williams, Waterman & Patterson 2009. Real kernels are slower: matmuls reach perhaps three quarters of the data sheet's rate, and small
kernels wait to be started. So this is a bound, good for saying what cannot be reached and what takes the time, not a forecast.

Each tensor that a kernel reads or writes counts once, whole; of gathered rows only those. Bytes held are those of all tensors that are alive, in
blocks of 512 as CUDA's allocator gives them; what a kernel needs inside of itself and what the allocator cannot use is not seen.
"""

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten: Any = torch.ops.aten

GATHERING = {aten.embedding.default, aten.index_select.default, aten.index.Tensor, aten.gather.default}
"""Of what they are given they read as much as they return."""

NOTHING_MOVES = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::_local_scalar_dense"}
WRITES_ONLY = {"aten::copy_", "aten::zero_", "aten::fill_"}


@dataclass(frozen=True)
class Rates:
    """FLOP/s by the type of the numbers, and bytes a second."""

    flops: dict[torch.dtype, float]
    bandwidth: float


H200 = Rates({torch.bfloat16: 989.5e12, torch.float32: 67e12}, 4.8e12)
"""By its data sheet."""


@dataclass
class Cost:
    """Of one kind of kernel, or of all."""

    kernels: int = 0
    flops: float = 0
    bytes: float = 0
    seconds: float = 0

    def add(self, flops: float, moved: float, seconds: float) -> None:
        self.kernels += 1
        self.flops += flops
        self.bytes += moved
        self.seconds += seconds


@dataclass
class Spent:
    """What was measured since `Meter.begin`."""

    total: Cost = field(default_factory=Cost)
    by_kernel: dict[str, Cost] = field(default_factory=dict)
    reads: int = 0  # tensors that the host waited for
    peak_bytes: int = 0


class Meter(TorchDispatchMode):
    """While entered, within `paper_device.on_paper`, counts what happens on devices of one type. A value that the host reads is 1."""

    def __init__(self, device_type: str, rates: Rates = H200) -> None:
        super().__init__()
        self.device_type, self.rates = device_type, rates
        self.attention_flops = 0.0  # of `varlen_attn` forward, whose sequences' lengths are not known on paper
        self.chosen = 0  # rows that a mask picks, which are not known either
        self.held_bytes = 0
        self._storages: dict[int, Any] = {}
        self._read = 0
        self.begin()

    def begin(self) -> None:
        """Measure anew from here."""
        self.spent = Spent(peak_bytes=self.held_bytes)

    def hold(self, *tensors: Tensor) -> None:
        """Count tensors that are there already."""
        for tensor in self._here(tensors):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._storages:
                size = -(-storage.nbytes() // 512) * 512
                self.held_bytes += size
                self.spent.peak_bytes = max(self.spent.peak_bytes, self.held_bytes)
                self._storages[storage._cdata] = weakref.ref(storage, lambda _, key=storage._cdata, size=size: self._let_go(key, size))

    def account(self, kernel: str, *, moved: float, flops: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        """Add a kernel; those that PyTorch does not know are added by hand."""
        seconds = max(flops / self.rates.flops[dtype], moved / self.rates.bandwidth)
        for cost in (self.spent.total, self.spent.by_kernel.setdefault(kernel, Cost())):
            cost.add(flops, moved, seconds)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        given = self._here(tree_leaves((arguments, options)))
        self.hold(*given)
        if function is aten._local_scalar_dense.default and given:
            self.spent.reads += given[0].untyped_storage()._cdata != self._read  # those of one tensor are read together
            self._read = given[0].untyped_storage()._cdata
            return 1.0 if given[0].is_floating_point() else 1
        made = self._chosen_rows(function, arguments) if given else None
        made = function(*arguments, **options) if made is None else made
        found = self._here(tree_leaves(made))
        self.spent.reads += function is aten._to_copy.default and bool(given) and not found
        self.hold(*found)
        self._count(function, arguments, options, given, found, made)
        return made

    def _chosen_rows(self, function: Any, arguments: Any) -> Tensor | None:
        """What a mask of bool picks: on paper as many rows as `chosen` says."""
        if function is not aten.index.Tensor or not any(index is not None and index.dtype == torch.bool for index in arguments[1]):
            return None
        states, (mask,) = arguments
        return states.new_empty((self.chosen, *states.shape[mask.dim() :]))

    def _count(self, function: Any, arguments: Any, options: Any, given: list[Tensor], found: list[Tensor], made: Any) -> None:
        name = function._schema.name
        there = {tensor.untyped_storage()._cdata for tensor in given}
        fresh = [tensor for tensor in found if tensor.untyped_storage()._cdata not in there]
        changed = self._here(tree_leaves(_changed(function._schema, arguments, options)))
        if name in NOTHING_MOVES or not (fresh or changed):  # of views, too
            return
        read, written = sum(map(_size, given)), sum(map(_size, [*fresh, *changed]))
        if function in GATHERING:
            read = written
        elif name in WRITES_ONLY:
            read -= sum(map(_size, changed))
        elif "index_add" in name:
            read, written = 2 * _size(arguments[3]), _size(arguments[3])
        kinds = [tensor.dtype for tensor in [*given, *fresh] if tensor.dtype in self.rates.flops]
        flops = self._flops(function, arguments, options, made)
        self.account(name.removeprefix("aten::"), moved=read + written, flops=flops, dtype=kinds[0] if kinds else torch.float32)

    def _flops(self, function: Any, arguments: Any, options: Any, made: Any) -> float:
        name = function._schema.name
        if "varlen" in name:
            return self.attention_flops * (2.5 if "backward" in name else 1)  # flash attention multiplies queries and keys again on its way back
        counted = flop_registry.get(function._overloadpacket)
        return counted(*arguments, **options, out_val=made) if counted else 0.0

    def _let_go(self, key: int, size: int) -> None:
        self.held_bytes -= size
        del self._storages[key]

    def _here(self, values: Any) -> list[Tensor]:
        return [value for value in values if isinstance(value, Tensor) and value.device.type == self.device_type]


def _changed(schema: Any, arguments: Any, options: Any) -> list[Any]:
    """The arguments that an operation writes to."""
    written = [each.alias_info is not None and each.alias_info.is_write for each in schema.arguments]
    in_order = [value for value, writes in zip(arguments, written, strict=False) if writes]
    return in_order + [options[each.name] for each, writes in zip(schema.arguments, written, strict=True) if writes and each.name in options]


def _size(tensor: Tensor) -> int:
    """Bytes; of what is expanded those that are there."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
