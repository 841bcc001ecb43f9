"""Commands that ask models and compare them."""

from likelier.cli.common import progress


def eval_(run: str) -> None:
    """Ask a finished run's model, before and after: held-out accuracy, rewards, KL, calibration, probes. Writes eval.json.

    Args:
        run: the run directory.
    """
    from likelier.evaluate import evaluate
    from likelier.rundir import RunDir

    with progress() as show:
        evaluate(RunDir(run).require(), show.say)
