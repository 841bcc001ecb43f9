"""Several processes that train one model: every step is shared out, and after it all of them hold the same weights.

    torchrun --nproc-per-node 4 -m likelier train recipe.yaml

Each rank adds up the gradient of its share, divided by the count of the whole step; the sum over ranks is the gradient that one process would have,
up to the order in which numbers are added. All ranks read the same data and draw the same random numbers. The leader alone writes and speaks.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from likelier.logprobs.reference import ReferenceValues, fill, key_of
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse, count_unique_tokens
from likelier.train.sharding import in_step
from likelier.train.stop import NEVER, Stop

Item = TypeVar("Item")

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others: one of them may be writing a large model, or the watched prompts' replies."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and which of them this one is. A run in one process is of one rank, for which all of this is nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item], cost: Callable[[Item], int]) -> list[Item]:
        """This rank's part of `items`, in their order: the costliest first, each to whoever has least to do (Graham 1969). All ranks agree on it."""
        if self.size == 1:
            return list(items)
        loads, owners = [0] * self.size, [0] * len(items)
        for cost_of, i in sorted(((cost(item), i) for i, item in enumerate(items)), key=lambda each: (-each[0], each[1])):
            owners[i] = min(range(self.size), key=lambda rank: (loads[rank], rank))
            loads[owners[i]] += cost_of
        return [item for item, owner in zip(items, owners, strict=True) if owner == self.rank]

    def gather(self, value: Item) -> list[Item]:
        """What each rank has, in the order of ranks. Values are pickled, and come from nobody but these processes."""
        if self.size == 1:
            return [value]
        found = [value] * self.size
        dist.all_gather_object(found, value)
        return found

    def from_leader(self, value: Item | None) -> Item:
        """What the leader has, whose `value` is not None. All ranks must ask."""
        found = self.gather(value)[0]
        assert found is not None
        return found

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Put the sum over ranks into the place of each gradient. One that no rank has stays None, as it would in a single process. Of weights that
        are divided among ranks FSDP has summed it."""
        parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if self.size == 1 or not parameters:
            return
        has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        dist.all_reduce(has, dist.ReduceOp.MAX)
        for parameter, some in zip(parameters, has.tolist(), strict=True):
            if some and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        waiting = [dist.all_reduce(parameter.grad, async_op=True) for parameter in parameters if parameter.grad is not None]
        for work in waiting:
            assert work is not None
            work.wait()

    def stop_together(self, stop: Stop) -> bool:
        """Whether any rank was asked to stop; then all of them are. A request that comes later than all have agreed is met the next time."""
        asked = [each for each in self.gather((stop.signal, stop.reason)) if any(each)]
        if asked:
            stop.signal, stop.reason = asked[0]
        return bool(asked)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.gather(None)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader goes through the block before the others begin with it: they find what it left in the cache."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


ALONE = Ranks()


def fill_together(
    store: ReferenceValues,
    scorer: Scorer,
    sequences: Iterable[PromptResponse],
    ranks: Ranks,
    *,
    tokens_per_batch: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Stop = NEVER,
) -> int:
    """`logprobs.reference.fill` by all ranks: what none of their stores has is shared out, and then each has all. Returns how many were scored.
    Raises Interrupted on all ranks if one was asked to `stop`.

    A rank writes what it scored itself, so that ranks on one disk write nothing twice; what it got from others it keeps in memory.
    """
    wanted = list(dict.fromkeys(sequences))
    held = ranks.gather([sequence in store for sequence in wanted])
    missing = [sequence for sequence, *has in zip(wanted, *held, strict=True) if not any(has)]
    mine = ranks.share(missing, lambda sequence: count_unique_tokens([sequence]))
    with in_step(scorer):
        fill(store, scorer, mine, tokens_per_batch=tokens_per_batch, on_progress=on_progress, until=stop.until)
    if ranks.stop_together(stop):
        stop.leave("while the reference was scored")
    if ranks.size > 1:
        owners = [next((rank for rank, has in enumerate(known) if has), -1) for known in zip(*held, strict=True)]
        asked_for = [sequence for sequence, owner, *has in zip(wanted, owners, *held, strict=True) if owner == ranks.rank and not all(has)]
        for packed in ranks.gather(store.packed([key_of(sequence) for sequence in (*mine, *asked_for)])):
            store.unpack(packed)
    return len(missing)


@contextmanager
def ranks_of_torchrun() -> Iterator[Ranks]:
    """The ranks that torchrun has started, as its environment variables tell; one where it has not. CUDA ranks take the card of their number."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
