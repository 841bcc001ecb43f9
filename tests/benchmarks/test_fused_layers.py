"""What compares fused layers with those that models spell, in small."""

import pytest

from likelier.logprobs import scorer
from likelier.logprobs.fused import fuse


@pytest.mark.parametrize("method", ["lora", "full"])
def test_fused_layers_are_compared_with_those_as_they_are_spelled(method, monkeypatch, capsys):
    from fused_layers import main

    monkeypatch.setattr(scorer, "fuse", fuse)  # the benchmark changes it for good
    main(["--method", method, "--width", "192", "--rounds", "2"])
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in capsys.readouterr().out.splitlines()[4:]]
    assert rows[0] == ["nothing", "1.000", "1.000", "0.0e+00", "0.0e+00"]
    assert [row[0] for row in rows[1:]][: method == "lora"] == ["LoRA"] * (method == "lora")
    for _, forward, passed, values, gradients in rows[1:]:
        assert float(forward) > 0
        assert float(passed) > 0
        assert float(values) < 1e-5
        assert 0 < float(gradients) < 1e-4
