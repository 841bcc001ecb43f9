"""`likelier verify`: a run as it was left holds; whatever is changed in it afterwards is named."""

import json
import subprocess
import sys

import pytest

from likelier.cli import main
from likelier.errors import RequestError, RunError
from likelier.recipe import load_recipe
from likelier.rundir import RunDir
from likelier.train.session import train_recipe
from likelier.verify import verify
from likelier.weights import add_notes
from tests.train.conftest import changed, model_folder, recipe  # noqa: F401  (fixtures)

METHODS = ["lora", "full"]


@pytest.fixture
def make_run(recipe):  # noqa: F811
    """Carries out a short run of its own copy of the model."""

    def make(method: str = "lora", **sections) -> RunDir:
        short = {"train": {"method": method, "max_steps": 2, **sections.pop("train", {})}}
        return train_recipe(changed(recipe, **short, **sections))

    return make


def verdicts(run):
    return {check.what: check.verdict for check in verify(run.path)}


def weight_file(run):
    return next(run.model.glob("*.safetensors"))


def rewrite(path, change):
    """Change the JSON of a file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_as_it_was_left_holds(method, precision, make_run):
    run = make_run(method, train={"precision": precision})
    name = f"model/{weight_file(run).name}"
    everything = ["recipe", "training pairs", "held-out pairs", "base weights", name, f"notes in {name}", "model card", "metrics"]
    assert verdicts(run) == dict.fromkeys(everything, "holds")


def test_dropped_pairs_and_held_out_files_count(make_run, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text("".join(json.dumps(row | {"prompt": f"Why {n}?"}) + "\n" for n, row in enumerate(rows[:4])))
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(row | {"chosen": row["chosen"] * (1 + 90 * (n == 5))}) + "\n" for n, row in enumerate(rows))
    )
    run = make_run(data={"eval": [str(held_out)], "max_length": 300})
    assert len(run.read_manifest()["data"]["train"]["dropped"]) == 1
    assert set(verdicts(run).values()) == {"holds"}
    held_out.write_text(held_out.read_text().replace("Why 2?", "Why 3?"))
    assert {name for name, verdict in verdicts(run).items() if verdict == "differs"} == {"held-out pairs"}


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


NOTES = "notes in model/adapter_model.safetensors"
ADAPTER = "model/adapter_model.safetensors"
TAMPERINGS = [
    (lambda run: edit(run.path.parent / "pairs.jsonl", "Behind house 7 is", "Before house 7 is"), {"training pairs"}),
    (lambda run: edit(run.path.parent / "pairs.jsonl", '{"id": "pair-7"', '{"id": pair-7"'), {"training pairs", "held-out pairs"}),
    (lambda run: edit(run.recipe, "learning_rate: 0.001", "learning_rate: 0.002"), {"recipe"}),
    (lambda run: edit(run.recipe, "learning_rate: 0.001", "learning_rat: 0.002"), {"recipe"}),
    (lambda run: flip_last_byte(weight_file(run)), {ADAPTER}),
    (lambda run: add_notes(weight_file(run), {"likelier.dataset": "00" * 32}), {ADAPTER, NOTES}),
    (lambda run: weight_file(run).write_bytes(b"short"), {ADAPTER, NOTES}),
    (lambda run: weight_file(run).unlink(), {ADAPTER}),
    (lambda run: (run.model / "README.md").unlink(), {"model card"}),
    (lambda run: edit(run.metrics, '"held_out": "', '"held_out": "0'), {"metrics"}),
    (lambda run: rewrite(run.manifest, lambda manifest: manifest.update(recipe="00" * 32)), {"recipe", NOTES, "model card", "metrics"}),
    (
        lambda run: rewrite(run.manifest, lambda manifest: manifest["data"]["train"].update(id="00" * 32)),
        {"training pairs", NOTES, "model card", "metrics"},
    ),
    (
        lambda run: rewrite(run.manifest, lambda manifest: manifest["model"].update(weights="00" * 32)),
        {"base weights", NOTES, "model card", "metrics"},
    ),
]


@pytest.mark.parametrize("tamper, wrong", TAMPERINGS)
def test_whatever_was_changed_is_named(tamper, wrong, make_run, capsys):
    run = make_run()
    tamper(run)
    found = verdicts(run)
    assert {name for name, verdict in found.items() if verdict == "differs"} == wrong
    assert set(found.values()) <= {"holds", "differs"}
    assert main(["verify", str(run.path)]) == 1
    said = capsys.readouterr()
    assert all(name in said.err for name in wrong)
    assert said.out.count("differs") == len(wrong)


def test_changed_base_weights_are_named(make_run, model_folder, tmp_path):  # noqa: F811
    import shutil

    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    run = make_run(model={"name": str(base)})
    flip_last_byte(base / "model.safetensors")
    assert verdicts(run)["base weights"] == "differs"
    (base / "model.safetensors").write_bytes(b"cut")
    assert verdicts(run)["base weights"] == "differs"
    (base / "model.safetensors").unlink()
    assert verdicts(run)["base weights"] == "differs"
    (base / "config.json").write_text("{")
    assert verdicts(run)["base weights"] == "differs"
    shutil.rmtree(base)
    assert verdicts(run)["base weights"] == "not checked"


def test_a_kind_of_model_that_may_rename_its_weights_is_not_called_changed(make_run, model_folder, tmp_path):  # noqa: F811
    import shutil

    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    run = make_run(model={"name": str(base)})
    edit(base / "config.json", '"model_type": "llama"', '"model_type": "rare"')
    assert verdicts(run)["base weights"] == "holds"
    flip_last_byte(base / "model.safetensors")
    assert verdicts(run)["base weights"] == "not checked"


def test_sources_that_are_gone_are_said_to_be_unchecked(make_run, tmp_path):
    run = make_run()
    (tmp_path / "pairs.jsonl").unlink()
    found = {check.what: check for check in verify(run.path)}
    assert found["training pairs"].verdict == found["held-out pairs"].verdict == "not checked"
    assert str(tmp_path / "pairs.jsonl") in found["training pairs"].detail
    assert main(["verify", str(run.path)]) == 0


def test_a_run_that_did_not_end(make_run):
    run = make_run()
    rewrite(run.manifest, lambda manifest: manifest.update(outcome=None))
    assert verdicts(run)["saved weights"] == "not checked"


def test_what_cannot_be_asked(make_run, tmp_path, capsys):
    run = make_run()
    with pytest.raises(RequestError, match="there is no such file or folder"):
        verify(tmp_path / "nowhere")
    with pytest.raises(RunError, match="not a run directory"):
        verify(run.model)
    rewrite(run.manifest, lambda manifest: manifest.pop("data"))
    with pytest.raises(RunError, match=r"manifest.json: this is not a run's whole manifest \(KeyError: 'data'\)"):
        verify(run.path)
    for path in (run.path, tmp_path / "nowhere", tmp_path / "pairs.jsonl"):
        assert main(["verify", str(path)]) == 2
    assert "pairs.jsonl.manifest.json" in capsys.readouterr().err


def test_the_recipe_in_the_run_is_the_one_that_is_verified(make_run):
    run = make_run()
    assert load_recipe(run.recipe).fingerprint() == run.read_manifest()["recipe"]
    edit(run.recipe, f"out: {run.path}", "out: elsewhere")
    assert verdicts(run)["recipe"] == "holds"


def test_a_file_and_a_run_are_verified_without_torch(make_run, tmp_path):
    run = make_run()
    code = (
        "import sys\nfrom likelier.cli import main\n"
        "codes = [main(words.split()) for words in sys.argv[1:]]\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'\n"
        "sys.exit(str(codes) if any(codes) else 0)"
    )
    version = tmp_path / "version.jsonl"
    commands = [f"convert {tmp_path / 'pairs.jsonl'} {version}", f"split {version} --eval 0.2", f"verify {version}", f"verify {run.path}"]
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not checked" not in done.stdout
    assert done.stdout.count("holds") == 4 + 8
