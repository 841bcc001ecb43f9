"""The comparison with TRL runs as it is called, on a tiny model, both tools for real."""

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks.conftest import FOLDER
from tests.conftest import built_model, built_tokenizer
from tests.train.conftest import pair_rows

pytest.importorskip("trl", reason="TRL is not installed; `pip install -e '.[dev]'` brings it")


def test_both_tools_do_the_same_work_and_are_timed(tmp_path):
    built_model().save_pretrained(tmp_path / "model")
    built_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(16)))
    words = ["pairs.jsonl", "--pairs", "8", "--steps", "1", "--model", "model", "--opponent", "best", "--precision", "fp32", "--json", "found.json"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, FOLDER / "vs_trl.py", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=one_thread)
    assert not done.returncode, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["matches"]["best"]
    assert found["largest_difference_of_losses"] < 1e-4
    assert [len(found["steps"][tool]) for tool in ("trl", "likelier")] == [3, 3]  # two that warm up, one that is timed
    assert all(turn["seconds"] > 0 for turn in found["steps"]["trl"] + found["steps"]["likelier"])
    assert 0 < found["flops_per_pair"]["likelier"] < found["flops_per_pair"]["trl"]
    assert 0 < found["flops_per_pair"]["likelier_reference"] < found["flops_per_pair"]["likelier"]
