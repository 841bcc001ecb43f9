"""Replies that are wanted, of any kinds at once: to which prompt, of how many tokens, greedy or drawn."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from likelier.examples import Ids
from likelier.generation.sample import Reply, generate
from likelier.logprobs.scorer import Precision

Replies = Mapping["Request", Reply]


class Request(NamedTuple):
    """One reply that is wanted. A greedy one (temperature 0) depends on prompt and limit alone; of drawn ones, `place` tells draws apart."""

    prompt: Ids
    limit: int  # tokens, the end token among them
    temperature: float = 0.0
    seed: int = 0
    place: int = 0


def requests_for(prompts: Sequence[Ids], *, limit: int, temperature: float = 0.0, seed: int = 0) -> list[Request]:
    """One a prompt, each drawn by its place in the list; equal prompts have one greedy reply."""
    if not temperature:
        return [Request(prompt, limit) for prompt in prompts]
    return [Request(prompt, limit, temperature, seed, place) for place, prompt in enumerate(prompts)]


def write_replies(
    model: Any,
    tokenizer: Any,
    requests: Sequence[Request],
    *,
    end_token_id: int,
    precision: Precision = "fp32",
    on_batch: Callable[[Replies], object] = lambda batch: None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[Request, Reply]:
    """A reply to each request, those of one kind together. `on_batch` is given each batch as it is written, `on_progress` (done, total)."""
    kinds: dict[tuple[int, float, int], list[Request]] = {}
    for request in dict.fromkeys(requests):
        kinds.setdefault((request.limit, request.temperature, request.seed), []).append(request)
    total = sum(map(len, kinds.values()))
    replies: dict[Request, Reply] = {}

    def written(some: Sequence[Request], batch: Mapping[int, Reply]) -> None:
        fresh = {some[i]: reply for i, reply in batch.items()}
        replies.update(fresh)
        on_batch(fresh)
        on_progress(len(replies), total)

    for (limit, temperature, seed), some in kinds.items():
        generate(
            model,
            tokenizer,
            [request.prompt for request in some],
            places=[request.place for request in some],
            end_token_id=end_token_id,
            max_new_tokens=limit,
            temperature=temperature,
            seed=seed,
            precision=precision,
            on_batch=partial(written, some),
        )
    return replies
