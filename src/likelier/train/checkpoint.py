"""Checkpoints: what a killed run needs to end as if it had not been killed.

    checkpoints/step-000040/   weights.safetensors (what is trained, as its optimizer holds it), optimizer.safetensors, state.json
    checkpoints/best/          weights.safetensors, state.json of the best held-out evaluation

A checkpoint is written beside and renamed: there is a whole one or none. The frozen weights and the reference are not in it; they are named by
their fingerprint. Nothing is pickled.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from likelier.errors import RunError
from likelier.train.master import MasterWeights
from likelier.train.optimizer import restore_state, state_tensors

RNG = "rng"


@dataclass
class State:
    """Where a run stands between two optimizer steps."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # spent training, over all starts
    best: dict[str, Any] = field(default_factory=dict)  # the evaluation row that checkpoints/best was taken at
    stale: int = 0  # evaluations since then
    first_loss: float | None = None
    first_loss_expected: float | None = None


def save(folder: Path, weights: MasterWeights, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write checkpoints/step-N, then drop older ones. Raises RunError, leaving earlier checkpoints whole, if the disk does not take it."""
    tensors: dict[str, Tensor] = {RNG: torch.get_rng_state(), **state_tensors(weights, optimizer)}
    target = folder / f"step-{state.step:06d}"
    _write(target, {"weights": weights.by_name, "optimizer": tensors}, state)
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old)


def save_best(folder: Path, weights: MasterWeights, state: State) -> None:
    """Write checkpoints/best in place of the one before."""
    _write(folder / "best", {"weights": weights.by_name}, state)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    return max(folder.glob("step-*"), default=None)


def restore(checkpoint: Path, weights: MasterWeights, optimizer: torch.optim.Optimizer) -> State:
    """Put model, optimizer and random numbers back to where they were. Raises RunError for a checkpoint that does not fit the model."""
    load_weights(checkpoint, weights.by_name)
    weights.publish()
    tensors = load_file(checkpoint / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop(RNG))
    restore_state(weights, optimizer, tensors)
    return State(**json.loads((checkpoint / "state.json").read_text()))


@torch.no_grad()
def load_weights(checkpoint: Path, wanted: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's trained weights into `wanted`, rounding where that asks for it. Raises RunError where names or shapes differ."""
    saved = load_file(checkpoint / "weights.safetensors")
    if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in wanted.items()}:
        raise RunError(f"{checkpoint}: this checkpoint is of another model or adapter. Start afresh with --fresh, or in another folder.")
    for name, tensor in wanted.items():
        tensor.copy_(saved[name])


def _write(target: Path, files: dict[str, Mapping[str, Tensor]], state: State) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        for name, tensors in files.items():
            save_file({key: value.detach().contiguous() for key, value in tensors.items()}, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(asdict(state)))
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.exists():
            target.rename(temporary.with_suffix(".old"))
        temporary.rename(target)
    except OSError as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"{target}: the checkpoint could not be written ({problem}). Earlier checkpoints are whole; free space and run again."
        ) from problem
    shutil.rmtree(temporary.with_suffix(".old"), ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a kill in the middle of writing left behind."""
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
