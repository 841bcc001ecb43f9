"""Examples: records as token ids, the only thing the engine sees. `data/chat.py` makes them from text; research code may make them by hand."""

from dataclasses import dataclass

Ids = tuple[int, ...]
"""Token ids of a prompt or of a response."""


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """One comparison in tokens. The prompt ends where the reply begins; each reply ends with its end token, which is scored."""

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    id: str = ""

    def __len__(self) -> int:
        """Tokens of the longer of its two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True, slots=True)
class LabelledExample:
    """One unpaired judgement in tokens."""

    prompt_ids: Ids
    completion_ids: Ids
    label: bool
    id: str = ""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)
