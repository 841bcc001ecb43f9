"""Checkpoints: what a killed run needs to end as if it had not been killed.

    checkpoints/step-000040/   weights.safetensors (what is trained, as its optimizer holds it), optimizer.safetensors, state.json
    checkpoints/best-000030/   weights.safetensors, state.json of the best held-out evaluation

Where ranks hold a model in parts each writes its own, shard-RANK-*.safetensors in place of these. Any number of ranks reads either.

A checkpoint is written beside and renamed: there is a whole one or none, and what it names as the best stays until a later checkpoint is whole.
The frozen weights and the reference are not in it; they are named by their fingerprint. Nothing is pickled.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from likelier.errors import RunError
from likelier.rundir import writing
from likelier.train.master import MasterWeights
from likelier.train.optimizer import restore_state, state_tensors
from likelier.train.parallel import ALONE, Ranks
from likelier.train.sharding import read_parts, write_parts

RNG = "rng"


@dataclass
class State:
    """Where a run stands between two optimizer steps."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # spent training, over all starts
    best: dict[str, Any] = field(default_factory=dict)  # the evaluation row that the best weights were taken at
    stale: int = 0  # evaluations since then
    skipped: int = 0  # steps left out because a value was not finite
    point: float = 0.0  # what `Logps.point` has moved to, for objectives whose point follows past steps
    evaluation_due: bool = False  # the run was stopped before the evaluation that belongs to this step
    first_loss: float | None = None
    first_loss_expected: float | None = None


def save(folder: Path, weights: MasterWeights, optimizer: torch.optim.Optimizer, state: State, ranks: Ranks = ALONE) -> None:
    """Write checkpoints/step-N, then drop older ones. Raises RunError, leaving earlier checkpoints whole, if the disk does not take it. All `ranks`
    call this."""
    tensors: dict[str, Tensor] = {RNG: torch.get_rng_state(), **state_tensors(weights, optimizer)}
    target = folder / f"step-{state.step:06d}"
    _write(target, {"weights": weights.by_name, "optimizer": tensors}, state, ranks)
    if ranks.leads:
        sweep(folder)


def save_best(folder: Path, weights: MasterWeights, state: State, ranks: Ranks = ALONE) -> None:
    """Write checkpoints/best-N. The one before stays if the newest checkpoint names it: a run resumed there may not find a better one. All `ranks`
    call this."""
    _write(best(folder, state), {"weights": weights.by_name}, state, ranks)
    if ranks.leads:
        sweep(folder, best(folder, state))


def best(folder: Path, state: State) -> Path:
    """Where the best weights of a run in this state are, which has evaluated."""
    return folder / f"best-{state.best['step']:06d}"


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    return max(folder.glob("step-*"), default=None, key=lambda path: int(path.name.removeprefix("step-")))


def restore(checkpoint: Path, weights: MasterWeights, optimizer: torch.optim.Optimizer) -> State:
    """Put model, optimizer and random numbers back to where they were. Raises RunError for a checkpoint that does not fit the model."""
    tensors = load_weights(checkpoint, weights.by_name)
    weights.publish()
    torch.set_rng_state(tensors.pop(RNG))
    restore_state(weights, optimizer, tensors)
    return _read_state(checkpoint)


def _read_state(checkpoint: Path) -> State:
    return State(**json.loads((checkpoint / "state.json").read_text()))


@torch.no_grad()
def load_weights(checkpoint: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a checkpoint's trained weights into `wanted`, rounding where that asks for it. Returns its other tensors: the optimizer's state, where it
    has one. Raises RunError where names or shapes differ."""
    tensors = read_parts(checkpoint, wanted)
    saved = {name: tensors.pop(name) for name in [*tensors] if "/" not in name and name != RNG}
    if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in wanted.items()}:
        raise RunError(f"{checkpoint}: this checkpoint is of another model or adapter. Start afresh with --fresh, or in another folder.")
    for name, tensor in wanted.items():
        tensor.copy_(saved[name])
    return tensors


def _write(target: Path, files: dict[str, Mapping[str, Tensor]], state: State, ranks: Ranks) -> None:
    """The leader writes, or where there are parts all ranks do; none goes on before the checkpoint has its name."""
    temporary = target.with_name(f".{target.name}.{ranks.gather(os.getpid())[0]}")
    tensors = {key: value.detach() for file in files.values() for key, value in file.items()}
    divided = any(isinstance(value, DTensor) for value in tensors.values())
    try:
        with writing(target):
            if ranks.leads:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            if divided:
                ranks.wait()
                write_parts(temporary, tensors)
            if ranks.leads:
                for name, keys in files.items() if not divided else ():
                    save_file({key: tensors[key].contiguous() for key in keys}, temporary / f"{name}.safetensors")
                (temporary / "state.json").write_text(json.dumps(asdict(state)))
                for path in temporary.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                temporary.rename(target)
    except RunError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    ranks.wait()


def sweep(folder: Path, *also_kept: Path) -> None:
    """Remove all but the newest checkpoint, the best weights that it names, and `also_kept`: what came before it, what a run that was killed
    after it wrote, and what a kill left half written."""
    kept = {*also_kept}
    if newest := latest(folder):
        state = _read_state(newest)
        kept |= {newest, best(folder, state)} if state.best else {newest}
    for path in folder.iterdir():
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
