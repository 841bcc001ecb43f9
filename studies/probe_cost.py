"""What each shipped set of probes costs a model, in tokens of the embedded one. Usage: python studies/probe_cost.py"""

from transformers import PreTrainedTokenizerBase

from likelier.model_files import EMBEDDED
from likelier.models import load_tokenizer
from likelier.probes import Asked, in_tokens, shipped_probes
from likelier.recipe import EvalSettings, ModelSettings


def cost(asked: list[Asked]) -> tuple[int, int]:
    """Tokens read and, at most, written; what several probes ask is asked once."""
    scored = {choice for each in asked for question in each.questions for choice in question.choices}
    requests = {request for each in asked for request in each.requests}
    prompts = {choice.prompt_ids for choice in scored}  # read once for all choices of a question
    read = sum(map(len, prompts)) + sum(len(choice.response_ids) for choice in scored) + sum(len(request.prompt) for request in requests)
    return read, sum(request.limit for request in requests)


def main() -> None:
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(ModelSettings(name=EMBEDDED))
    sets: dict[str, list[Asked]] = {}
    for probe in shipped_probes():
        sets.setdefault(probe.set, []).append(in_tokens(probe, tokenizer, max_new_tokens=EvalSettings().max_new_tokens))
    for name, asked in sets.items():
        read, written = cost(asked)
        print(f"{name:16} {read:6,} read, {written:6,} written at most")


if __name__ == "__main__":
    main()
