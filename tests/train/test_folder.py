"""What a run that begins must not find."""

from likelier.rundir import RunDir, write_json
from likelier.train.folder import forget


def test_evaluations_on_other_data_go_with_the_model_that_they_measured(tmp_path):
    run = RunDir(tmp_path)
    for path in (run.eval, tmp_path / "eval-bench.json", tmp_path / "notes.json"):
        write_json(path, {})
    forget(run)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]
