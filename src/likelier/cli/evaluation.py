"""Commands that ask models and compare them."""

from collections.abc import Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal

from likelier.cli.common import progress


def eval_(arguments: Sequence[str]) -> None:
    """Ask a finished run's model, before and after: held-out accuracy, rewards, KL, calibration, probes. Or any model about any data.

    Without DATA a run is evaluated on what it held out, and eval.json, samples.jsonl and probes.jsonl are written into it. With DATA a run or an
    adapter is compared with its reference on these records, and a model ranks their replies by log-probability. RewardBench files are read as they
    are: what was measured is shown by their subsets.
    """
    import tyro

    def evaluate(
        model: tyro.conf.Positional[str],
        data: tyro.conf.Positional[tuple[str, ...]] = (),
        *,
        probes: tuple[str, ...] = (),
        out: Path | None = None,
        by: Literal["mean", "sum"] | None = None,
        reference: str = "",
        beta: float | None = None,
        max_length: int | None = None,
        chat_template: str = "own",
    ) -> None:
        """Evaluate.

        Args:
            model: a run directory; or, with DATA, an adapter folder, a model folder, a .gguf file, a hub name or `embedded`.
            data: files, folders or hf:owner/name of records in any shape that `convert` reads.
            probes: YAML files of your own probes to ask a run too, where no data is named (docs/probes.md).
            out: where the numbers go as JSON. A run's go into it as eval-NAME.json unless this is given, NAME from the first
                of DATA; a model's are only shown.
            by: what ranks replies where there is no reference: their log-probability by tokens (mean; so if left out), or its sum.
            reference: compare a model that is no run and no adapter with this one.
            beta: scale of the rewards (run: its own; else 0.1).
            max_length: leave longer records out (run: its data.max_length; else what the model has positions for).
            chat_template: of a model that is no run: own, none or a Jinja file.
        """
        options = {"reference": reference, "beta": beta, "max_length": max_length, "chat_template": chat_template}
        _evaluate(model, data, probes, out, by, options)

    tyro.cli(evaluate, prog="likelier eval", args=arguments, description=cleandoc(eval_.__doc__ or ""))


def _evaluate(
    model: str, data: tuple[str, ...], probes: tuple[str, ...], out: Path | None, by: Literal["mean", "sum"] | None, options: dict[str, Any]
) -> None:
    from likelier.data.files import refuse_input_as_output
    from likelier.errors import RequestError
    from likelier.evaluate import evaluate, evaluate_on, evaluation_path, show_evaluation
    from likelier.rundir import RunDir, write_json
    from likelier.subject import find_subject

    run = RunDir(model)
    with progress() as show:
        if not data:
            if not run.recipe.is_file():
                raise RequestError(f"{model}: this is not a run directory (no recipe.yaml in it), so name the data to evaluate it on.")
            if out or by or any(value not in (None, "", "own") for value in options.values()):
                raise RequestError("without data a run is evaluated as its recipe says. Name data, or leave the other options out.")
            result = evaluate(run, show.say, probe_files=probes)
        elif probes:
            raise RequestError("--probes are asked beside what a run held out: leave the data out.")
        else:
            own_file = evaluation_path(run, data) if run.recipe.is_file() and not out else None
            target = out or own_file
            if target:
                refuse_input_as_output(target, data)
                if target.resolve() == run.eval.resolve():
                    raise RequestError(f"{target}: this is the evaluation of the run itself. Name another file with --out.")
            result = evaluate_on(find_subject(model, **options), data, by=by, own_file=own_file, say=show.say)
            if target:
                write_json(target, result)
                show.say(f"Written: {target}")
    if result:
        show_evaluation(result)


def score(arguments: Sequence[str]) -> None:
    """Log-probabilities, implicit rewards and margins of any records, a row each; the hardest pairs as a file to train on.

    A run or an adapter is compared with its reference; a model is scored alone, or against --reference. Data is streamed.
    """
    import tyro

    def score_records(
        model: tyro.conf.Positional[str],
        data: tyro.conf.Positional[tuple[str, ...]],
        *,
        out: Path,
        reference: str = "",
        beta: float | None = None,
        tokens: bool = False,
        hardest: int = 0,
        pairs: Literal["best-worst", "all"] = "best-worst",
        max_length: int | None = None,
        chat_template: str = "own",
    ) -> None:
        """Score.

        Args:
            model: a run directory, an adapter folder, a model folder, a .gguf file, a hub name or `embedded`.
            data: files, folders or hf:owner/name of records in any shape that `convert` reads.
            out: a .jsonl, .jsonl.gz or .parquet file.
            reference: compare a model that is no run and no adapter with this one.
            beta: scale of the rewards (run: its own; else 0.1).
            tokens: add the ids and the log-probabilities of single tokens.
            hardest: write so many pairs whose margin is nearest to 0 as records, too, into NAME.hardest.jsonl beside OUT.
            pairs: which pairs a list of scored or ranked replies gives.
            max_length: leave longer records out (run: its data.max_length; else what the model has positions for).
            chat_template: of a model that is no run: own, none or a Jinja file.
        """
        from likelier.data.shapes.lists import Pairing
        from likelier.errors import RequestError
        from likelier.score import hardest_path
        from likelier.score import score as score_all
        from likelier.subject import find_subject
        from likelier.wording import count, number, quantity

        if not data:
            raise RequestError("no data was named. Usage: likelier score MODEL DATA --out F.")
        subject = find_subject(model, reference=reference, beta=beta, max_length=max_length, chat_template=chat_template)
        account = score_all(subject, data, out, pairing=Pairing(pairs), tokens=tokens, hardest=hardest, say=print)
        amounts = [(account.pairs, "pair", "pairs"), (account.replies, "single reply", "single replies")]
        print(f"{out}: {' and '.join(count(*amount) for amount in amounts if amount[0])}")
        if account.dropped:
            print(f"left out: {count(len(account.dropped), 'record')}; the first: {account.dropped[0].id}: {account.dropped[0].reason}")
        if account.pairs and subject.objective is not None:
            print(f"accuracy {quantity(account.right / account.pairs, 'share')}, mean margin {number(account.margins / account.pairs)}")
        if hardest:
            print(f"{hardest_path(out)}: {count(len(account.hardest), 'pair')} with the margins nearest to 0")

    tyro.cli(score_records, prog="likelier score", args=arguments, description=cleandoc(score.__doc__ or ""))
