"""Examples: records as token ids, the only thing the engine sees. `data/chat.py` makes them from text; research code may make them by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

Ids = tuple[int, ...]
"""Token ids of a prompt or of a response."""


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """One comparison in tokens. The prompt ends where the reply begins; each reply ends with its end token, which is scored."""

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    id: str = ""
    weight: float = 1.0  # its loss is multiplied by this
    margin: float | None = None  # how much better the chosen one is, in the annotator's scale
    others: tuple[Ids, ...] = ()  # see `with_others`

    @property
    def replies(self) -> tuple[Ids, ...]:
        """(chosen, rejected)."""
        return self.chosen_ids, self.rejected_ids

    def __len__(self) -> int:
        """Tokens of the longer of its two sequences."""
        return len(self.prompt_ids) + max(map(len, self.replies))


@dataclass(frozen=True, slots=True)
class LabelledExample:
    """One unpaired judgement in tokens."""

    prompt_ids: Ids
    completion_ids: Ids
    label: bool
    id: str = ""
    weight: float = 1.0
    others: tuple[Ids, ...] = ()

    @property
    def replies(self) -> tuple[Ids, ...]:
        """The completion alone."""
        return (self.completion_ids,)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


Example = PreferenceExample | LabelledExample


def all_pairs(examples: Sequence[Example]) -> bool:
    """Whether each of `examples` is a comparison."""
    return all(isinstance(example, PreferenceExample) for example in examples)


TRIES = 64
"""Other examples that are looked at for replies to another prompt, before an example goes without."""


def with_others(examples: Sequence[Example]) -> list[Example]:
    """`examples` in their order, each with `others`: the replies of a random one with another prompt, as many as it has itself.

    KTO's reference point is estimated on prompts with such mismatched replies (pitfall 12). They are drawn once for the whole data set, always
    alike, so that the reference scores them once. Where no reply drawn keeps within the longest example's length, there are none.
    """
    longest = max(map(len, examples), default=0)
    draw, order = Random(0), list(range(len(examples)))
    draw.shuffle(order)
    found: dict[int, Example] = {}
    for place, index in enumerate(order):
        example = examples[index]
        following = (examples[order[(place + step) % len(order)]] for step in range(1, min(TRIES + 1, len(order))))
        replies = (reply for other in following if other.prompt_ids != example.prompt_ids for reply in draw.sample(other.replies, len(other.replies)))
        fitting = (reply for reply in replies if len(example.prompt_ids) + len(reply) <= longest)
        found[index] = replace(example, others=tuple(islice(fitting, len(example.replies))))
    return [found[index] for index in range(len(examples))]
