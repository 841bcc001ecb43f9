"""The jobs in recipes/cluster say to torchrun and to Likelier what both understand. Scripts that hand on what they are given play the schedulers."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

JOBS = Path(__file__).parent.parent / "recipes" / "cluster"


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Runs a shell command; returns the words that torchrun got."""
    tools = {
        "torchrun": f'printf "%s\\n" "$@" > {tmp_path}/words',
        "srun": 'shift; "$@"',
        "scontrol": "echo machine-1; echo machine-2",
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def run(*command: str, **environment: str) -> list[str]:
        subprocess.run(command, env={**os.environ, **environment}, check=True)
        return (tmp_path / "words").read_text().splitlines()

    return run


def starts_likelier(words: list[str], machines: str, recipe: str):
    """torchrun's own reading of `words`."""
    read = get_args_parser().parse_args(words)
    assert (read.nnodes, read.module, read.training_script) == (machines, True, "likelier")
    assert read.training_script_args[:2] == ["train", recipe]
    assert read.nproc_per_node == "8"
    return read


def test_slurm(played):
    environment = {"SLURM_JOB_NODELIST": "machine-[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77"}
    words = played("bash", str(JOBS / "slurm.sh"), "recipe.yaml", "--out", "runs/a b", **environment)
    read = starts_likelier(words, "2", "recipe.yaml")
    assert (read.rdzv_endpoint, read.rdzv_id) == ("machine-1:29500", "77")
    assert read.training_script_args[2:] == ["--out", "runs/a b"]


def test_kubernetes():
    service, job = yaml.safe_load_all((JOBS / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["torchrun"]
    read = starts_likelier(container["args"], str(job["spec"]["completions"]), "/shared/recipe.yaml")
    assert read.rdzv_endpoint == f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_skypilot(played):
    job = yaml.safe_load((JOBS / "skypilot.yaml").read_text())
    words = played("bash", "-c", job["run"].replace("cp -r", "echo"), SKYPILOT_NUM_GPUS_PER_NODE="8")
    read = starts_likelier(words, "1:1", "recipe.yaml")
    assert read.standalone
    assert f"cp -r {read.training_script_args[-1]} {next(iter(job['file_mounts']))}/" in job["run"]
