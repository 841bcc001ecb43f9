"""How many of the shipped questions the embedded model answers right, by four ways to score a choice. Usage: python studies/choice_scores.py"""

import torch
from common import embedded

from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.probes import in_tokens, shipped_probes


def main() -> None:
    loaded = embedded(torch.float32)
    end = loaded.tokenizer.eos_token_id
    asked = in_tokens(shipped_probes()[0], loaded.tokenizer, max_new_tokens=1).questions
    plain = [choice for question in asked for choice in question.choices]
    ended = [PromptResponse(choice.prompt_ids, (*choice.response_ids, end)) for choice in plain]
    scorer = Scorer(loaded.model, engine="nodes", precision="fp32")
    logps = {i: values for batch in scorer.score_all([*plain, *ended], tokens_per_batch=2048) for i, values in zip(*batch, strict=True)}
    for name, first in (("without the end token", 0), ("with the end token", len(plain))):
        for statistic in ("sum", "mean"):
            scores = torch.stack([getattr(logps[first + i], statistic)() for i in range(len(plain))]).view(len(asked), -1)
            right = (scores.argmax(1) == torch.tensor([question.answer for question in asked])).sum().item()
            print(f"{statistic:4} over tokens, {name:22} {right:3} of {len(asked)}: {right / len(asked):.0%}")


if __name__ == "__main__":
    main()
