"""The command that has models compared by a judge."""

from pathlib import Path

from likelier.cli.common import progress


def compare(
    contestants_and_prompts: tuple[str, ...],
    judge: str = "",
    out: Path = Path("runs/compare"),
    limit: int | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    base_url: str | None = None,
    rubric: Path | None = None,
    concurrency: int = 8,
    timeout: float = 60.0,
    answer_tokens: int = 1024,
    prices: tuple[float, float] | None = None,
) -> None:
    """Which model's replies are better? A judge compares them in both orders: win rates, also at equal lengths, with intervals.

    likelier compare A B [C ...] PROMPTS --judge J. The same command goes on where it was stopped: nothing is written or asked twice.

    Args:
        contestants_and_prompts: two contestants or more, then the prompts. A contestant is a run directory (its tuned model), RUN@reference (the
            model before), `embedded`, a model folder, a .gguf file, a hub name, an adapter folder or a file of replies; MODEL+system=FILE gives a
            model a system prompt of its own, NAME=CONTESTANT another name. Prompts are whatever `convert` reads, rows with a `prompt`, or a .txt
            file with one a line.
        judge: reward:FOLDER_OR_HUB_NAME (a sequence classifier with one logit), python:FILE.py:FUNCTION (prompt, reply a, reply b → "a", "b", "tie"
            or a number above 0 for a), or openai:MODEL (any OpenAI-compatible endpoint; the key is the environment's OPENAI_API_KEY).
        out: where replies, verdicts.jsonl and compare.json go.
        limit: only the first so many prompts.
        max_new_tokens: longest reply.
        temperature: 0 writes the likeliest tokens; above it replies are drawn.
        seed: of these draws.
        base_url: address of the endpoint, with its /v1; else the environment's OPENAI_BASE_URL, else OpenAI's.
        rubric: a text file by which an endpoint judges, instead of the shipped one.
        concurrency: requests to an endpoint at a time.
        timeout: seconds that an endpoint has for an answer.
        answer_tokens: the longest answer of an endpoint, its thoughts included.
        prices: of a million tokens in and out; the cost is then said.
    """
    from likelier.compare import compare_models
    from likelier.compare.contestants import Sampling
    from likelier.compare.terminal import show_comparison
    from likelier.errors import RequestError
    from likelier.judge import EndpointSettings
    from likelier.report.comparison_page import write_comparison_page

    if len(contestants_and_prompts) < 3:
        raise RequestError("a comparison is of two contestants or more, and then the prompts: likelier compare A B PROMPTS --judge J.")
    *contestants, prompts = contestants_and_prompts
    with progress() as show:
        result = compare_models(
            contestants,
            prompts,
            judge=judge,
            out=out,
            limit=limit,
            sampling=Sampling(max_new_tokens, temperature, seed),
            endpoint=EndpointSettings(base_url, rubric, concurrency, timeout, answer_tokens=answer_tokens),
            prices=prices,
            say=show.say,
        )
    show_comparison(result)
    print(f"{write_comparison_page(out)}, and beside it the numbers and every reply and verdict")
