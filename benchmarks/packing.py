"""How full batches are, and how many tokens are computed twice: made-up pairs, lengths log-normal (`python benchmarks/packing.py`)."""

import math
import random
from itertools import combinations

from likelier.logprobs.batches import cut_into_batches
from likelier.logprobs.tree import PromptResponse, count_unique_tokens

CASES = [(256, 300, 300, 2, 8192), (256, 2000, 150, 2, 8192), (64, 300, 300, 4, 8192), (40, 60, 60, 4, 1024)]
"""Prompts, tokens of a prompt and of a reply (about), replies to a prompt, tokens a batch."""


def main() -> None:
    print("| prompts | tokens | replies | budget | batches (least) | computed twice |\n|---|---|---|---|---|---|")
    for prompts, of_prompt, of_reply, replies, budget in CASES:
        units = pairs(prompts, of_prompt, of_reply, replies)
        batches = cut_into_batches(units, budget)
        computed = sum(count_unique_tokens(sequence for i in batch for sequence in units[i]) for batch in batches)
        unique = count_unique_tokens(sequence for unit in units for sequence in unit)
        fewest, twice = math.ceil(unique / budget), computed / unique - 1
        print(f"| {prompts} | {of_prompt} + {of_reply} | {replies} | {budget:,} | {len(batches)} ({fewest}) | {twice:.0%} |")


def pairs(prompts: int, of_prompt: int, of_reply: int, replies: int) -> list[list[PromptResponse]]:
    """All pairs of the replies to each prompt."""
    draw = random.Random(0)

    def ids(mean: int) -> tuple[int, ...]:
        return tuple(draw.randrange(50_000) for _ in range(max(4, int(draw.lognormvariate(math.log(mean) - 0.18, 0.6)))))

    units = []
    for _ in range(prompts):
        prompt, answers = ids(of_prompt), [ids(of_reply) for _ in range(replies)]
        units += [[PromptResponse(prompt, one), PromptResponse(prompt, other)] for one, other in combinations(answers, 2)]
    return units


if __name__ == "__main__":
    main()
