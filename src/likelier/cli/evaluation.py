"""Commands that ask models and compare them."""

from likelier.cli.common import progress


def eval_(run: str, probes: tuple[str, ...] = ()) -> None:
    """Ask a finished run's model, before and after: held-out accuracy, rewards, KL, calibration, probes. Writes eval.json.

    Args:
        run: the run directory.
        probes: YAML files of your own probes to ask too (docs/probes.md).
    """
    from likelier.evaluate import evaluate
    from likelier.rundir import RunDir

    with progress() as show:
        evaluate(RunDir(run).require(), show.say, probe_files=probes)
