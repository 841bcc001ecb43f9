"""Which sequences go through the model together: as few batches as a budget of tokens allows, filled, and with what begins alike in the same one."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain

from likelier.examples import Ids
from likelier.logprobs.tree import PromptResponse, common_prefix

Unit = Sequence[PromptResponse]
"""What stays whole: the two sequences of a pair, or one sequence."""


def cut_into_batches(units: Sequence[Unit], tokens_per_batch: int) -> list[list[int]]:
    """Indices of `units` in batches of up to `tokens_per_batch` unique tokens, the largest batch first; a unit over that stands alone.

    Units whose prompts are alike for the most part are one family and stay together, as far as the budget goes. Families are packed best fit
    decreasing (Johnson 1974), and spread evenly over as many batches where that does as well.
    """
    order = sorted(range(len(units)), key=lambda i: units[i][0].prompt_ids)
    if not order:
        return []
    prompts = [units[i][0].prompt_ids for i in order]
    shared = common_prefix(prompts[0], prompts[-1])  # by all: sorted, what the ends share is what all share
    families = _families(units, order, shared, tokens_per_batch)
    sizes = [size for _, size in families]
    packed = _best_fit(sizes, shared, tokens_per_batch)
    even = _even(sizes, len(packed), shared)
    if all(len(batch) == 1 or _filled(batch, sizes, shared) <= tokens_per_batch for batch in even):
        packed = even
    packed.sort(key=lambda batch: -_filled(batch, sizes, shared))
    return [list(chain.from_iterable(families[i][0] for i in sorted(batch))) for batch in packed]


def _families(units: Sequence[Unit], order: Sequence[int], shared: int, limit: int) -> list[tuple[list[int], int]]:
    """Neighbours in `order` that share at least half of what is not shared by all, with the tokens of their tree; none over `limit` that could be
    less."""
    families: list[tuple[list[int], int]] = []
    known: list[Ids] = []
    last: Ids = ()
    for i in order:
        prompt = units[i][0].prompt_ids
        added = _added(units[i], known) if families and 2 * (common_prefix(last, prompt) - shared) >= len(prompt) - shared else -1
        if added == 0 or (added > 0 and families[-1][1] + added <= limit):
            families[-1] = (families[-1][0], families[-1][1] + added)
        else:
            known = []
            families.append(([], _added(units[i], known)))
        families[-1][0].append(i)
        for sequence in units[i]:
            insort(known, sequence.prompt_ids + sequence.response_ids)
        last = prompt
    return families


def _added(unit: Unit, known: Sequence[Ids]) -> int:
    """Tokens that `unit` adds to the prefix tree of `known`, which is sorted: of each sequence all but what it shares with a neighbour there."""
    together = list(known)
    total = 0
    for sequence in unit:
        ids = sequence.prompt_ids + sequence.response_ids
        place = bisect_left(together, ids)
        total += len(ids) - max((common_prefix(ids, other) for other in together[max(0, place - 1) : place + 1]), default=0)
        together.insert(place, ids)
    return total


def _filled(batch: Sequence[int], sizes: Sequence[int], shared: int) -> int:
    """Tokens of a batch of families: what all share counts once."""
    return sum(sizes[i] - shared for i in batch) + shared


def _best_fit(sizes: Sequence[int], shared: int, limit: int) -> list[list[int]]:
    """Each family, the largest first, into the batch that it fills best."""
    batches: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # sorted: how much is left, of which batch
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = bisect_left(rooms, (sizes[i] - shared, 0))
        if place < len(rooms):
            room, batch = rooms.pop(place)
            batches[batch].append(i)
            insort(rooms, (room - sizes[i] + shared, batch))
        else:
            insort(rooms, (limit - sizes[i], len(batches)))
            batches.append([i])
    return batches


def _even(sizes: Sequence[int], count: int, shared: int) -> list[list[int]]:
    """Each family, the largest first, into the batch that has least (Graham 1969)."""
    batches: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, batch) for batch in range(count)]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        load, batch = loads[0]
        batches[batch].append(i)
        heapq.heapreplace(loads, (load + sizes[i] - shared, batch))
    return batches
