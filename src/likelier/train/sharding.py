"""A model in parts: each rank holds its part of every layer, and a layer is whole only while it computes (FSDP2; Zhao et al. 2023, section 3).

    torchrun --nproc-per-node 8 -m likelier train recipe.yaml --train.fsdp true

Weights that are trained are in parts with their gradients and moments; an adapter is small and stays whole on every rank, its base is in parts. What
is computed is what `parallel.py` says, whichever way the weights are held.

A layer is gathered by all ranks or by none. So ranks go through as many batches as the one that has most of them (`in_step`).
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from likelier.adapters import belongs_to_adapter, causal_lm_of
from likelier.errors import ModelError
from likelier.logprobs.fused import fuse
from likelier.logprobs.scorer import DTYPES, Scorer, decoder_layers
from likelier.logprobs.tree import PromptResponse
from likelier.models import trainable


def shard(policy: Scorer, device: torch.device, originals: Mapping[str, Tensor] | None = None) -> None:
    """Divide the model of `policy` among all ranks; from here on it computes on `device` and with all of them at once. The first rank has the
    weights; those of the others are not looked at and may be on the device `meta`.

    What is trained of the base is held in fp32, as the first rank's `originals` have it where they are given (train/master.py), and computes in the
    precision of `policy`. Raises ModelError for a model that does not say which of its modules are its layers.
    """
    model: Any = policy.model
    causal_lm = causal_lm_of(model)
    belongs = belongs_to_adapter(model)
    adapter = {parameter for name, parameter in model.named_parameters() if belongs(name)}
    trained = {name: parameter for name, parameter in trainable(model).items() if parameter not in adapter}
    for name, parameter in trained.items():
        parameter.data = (parameter.data if originals is None else originals[name]).to(torch.float32)
    given = {name: parameter.data for name, parameter in model.named_parameters()}
    for parameter in adapter:
        if not parameter.is_meta:
            parameter.data = parameter.data.to(device)
    computed_in = DTYPES[policy.precision] if trained else None
    types = MixedPrecisionPolicy(param_dtype=computed_in, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers: list[Any] = decoder_layers(causal_lm)
    if not layers:
        raise ModelError(f"train.fsdp: {type(causal_lm).__name__} does not name its layers (_no_split_modules), so that they cannot be divided.")
    fuse(model, on_gpu=device.type == "cuda")  # it may have been made elsewhere
    for module in (*layers, causal_lm):
        # Nothing stays gathered between two calls, not even the head: whoever looks at the weights finds the parts.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=types, ignored_params=adapter)
        module.set_gradient_divide_factor(1.0)  # gradients are summed over ranks
        module.set_force_sum_reduction_for_comms(True)
    _hand_out(model, given, device)
    causal_lm.call_gathered = MethodType(lambda _, function: function(), causal_lm)
    register_fsdp_forward_method(causal_lm, "call_gathered")
    policy.divided(causal_lm.call_gathered)


@torch.no_grad()
def _hand_out(model: nn.Module, given: Mapping[str, Tensor], device: torch.device) -> None:
    """The first rank sends what it was `given`: to each its part of every tensor, and to all what is not divided."""
    leads = dist.get_rank() == 0
    if not leads:
        model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            _scatter(parameter.to_local(), given[name].to(device) if leads else None, rows=len(parameter))
        else:
            dist.broadcast(parameter, src=0)
    loose = [{(path, name): tensor.cpu() for path, name, tensor in _loose(model)} if leads else {}]
    dist.broadcast_object_list(loose)
    for (path, name), tensor in loose[0].items() if not leads else ():
        setattr(model.get_submodule(path), name, tensor.to(device))


def _scatter(part: Tensor, tensor: Tensor | None, *, rows: int) -> None:
    """Each rank's `part` of a `tensor` of so many rows, which the first rank has, divided as by `torch.chunk`: the last may be shorter, or empty."""
    size = dist.get_world_size()
    each = -(-rows // size)
    received = part.new_empty(each, *part.shape[1:])
    if tensor is None:
        dist.scatter(received, src=0)
    else:
        padded = tensor.new_zeros(each * size, *tensor.shape[1:])
        padded[:rows] = tensor
        dist.scatter(received, [*padded.chunk(size)], src=0)
    part.copy_(received[: len(part)])


def _loose(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Tensors that are no parameters, by their module and name: buffers and plain attributes."""
    for path, module in model.named_modules():
        for name, value in (*module.named_buffers(recurse=False), *vars(module).items()):
            if isinstance(value, Tensor):
                yield path, name, value


@contextmanager
def in_step(policy: Scorer, *, backward: bool = False) -> Iterator[None]:
    """Within it each rank scores as many batches as it likes, each followed by a backward pass or none of them. At its end who had fewer computes
    along on one token, for a gradient of 0, until all are through. Nothing where each rank holds the whole model."""
    if not policy.is_divided:
        yield
        return
    policy.before_batch = partial(_any, True)
    try:
        yield
    finally:
        policy.before_batch = lambda: None
    with torch.set_grad_enabled(backward):
        while _any(False):
            (values_L,) = policy.token_logps([PromptResponse((0,), (0,))])
            if backward:
                (values_L.sum() * 0).backward()


def _any(mine: bool) -> bool:
    """Whether any rank says so. All must ask."""
    found = torch.tensor(int(mine), dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def whole(tensor: Tensor) -> Tensor:
    """All of it. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, dtype: torch.dtype, *, keep: bool) -> dict[str, Tensor]:
    """`model.state_dict()` in whole tensors of `dtype` on the CPU, for who is to `keep` them; empty for others. All ranks must ask. Tied weights stay
    one tensor."""
    found: dict[int, Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for tensor in state.values():
        if id(tensor) not in found:
            gathered = whole(tensor.detach())
            found[id(tensor)] = gathered.to("cpu", dtype) if keep else gathered.new_empty(0)
    return {name: found[id(tensor)] for name, tensor in state.items()} if keep else {}


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Each rank writes its parts, the first the tensors that are whole, as safetensors that say where a part belongs. All ranks must call."""
    try:
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as problem:  # derived from BaseException
        raise next(iter(problem.failures.values()))[0] from problem


def read_parts(folder: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of the safetensors files in `folder`, in parts or whole, written by any number of ranks. Those of a divided weight of that name,
    and its moments, called `weight/moment`, come in the parts that this rank holds."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    entries: dict[str, Any] = reader.read_metadata().state_dict_metadata
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        weight, dtype = weights.get(name.rpartition("/")[0] or name), entry.properties.dtype
        if isinstance(weight, DTensor) and weight.shape == entry.size:
            found[name] = torch.empty_like(weight.detach(), dtype=dtype)
        else:
            found[name] = torch.empty(entry.size, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each rank reads for itself, knowingly
        dcp.load(found, storage_reader=reader, no_dist=True)
    return found
