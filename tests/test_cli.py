"""The command line: help at once, errors as one paragraph with exit code 2, nothing half-written."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from likelier.cli import COMMANDS, main
from likelier.cli.common import _switches, with_recipe
from likelier.data.formats import write_pairs
from tests.audit import corpus
from tests.train.conftest import model_folder, pair_rows  # noqa: F401  (a fixture)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def recipe_file(model_folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows()))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {model_folder}}}\ndata: {{train: [pairs.jsonl], eval_fraction: 0.25}}\n"
        "train: {precision: fp32, pairs_per_step: 8, eval_every: 0}\neval: {max_new_tokens: 4, samples: 2}\nout: run\n"
    )
    return path


def test_help_lists_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", ["", "convert", "split", "verify", "plan", "train", "sweep"])
def test_help_imports_no_torch(command):
    code = (
        "import sys\nfrom likelier.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code, *command.split(), "--help"], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "words, name, value",
    [
        ("--train.gradient_checkpointing true", "gradient_checkpointing", True),
        ("--train.gradient-checkpointing false", "gradient_checkpointing", False),
        ("--train.gradient_checkpointing selective", "gradient_checkpointing", "selective"),
        ("--train.gradient_checkpointing --train.seed 3", "gradient_checkpointing", True),
        ("--train.seed 3 --train.gradient_checkpointing", "gradient_checkpointing", True),
        ("--train.fsdp true", "fsdp", True),
        ("--train.fsdp False", "fsdp", False),
        ("--train.fsdp=true", "fsdp", True),
        ("--train.seed=3 --train.gradient_checkpointing=selective", "gradient_checkpointing", "selective"),
        ("--train.fsdp", "fsdp", True),
        ("--train.no-fsdp", "fsdp", False),
    ],
)
def test_what_is_true_or_false_is_said_as_in_a_recipe(words, name, value, recipe_file):
    @dataclass(kw_only=True)
    class Nothing:
        pass

    recipe = with_recipe("train", "", Nothing, [str(recipe_file), *words.split()], "")[1]
    assert getattr(recipe.train, name) == value


def test_words_that_happen_to_be_true_stay_words(recipe_file):
    assert _switches(["--log.name", "true", "--eval.probes", "false", "--fresh"]) == ["--log.name", "true", "--eval.probes", "False", "--fresh"]


def test_train_evaluate_report(capsys, recipe_file, tmp_path):
    code, _, err = run(capsys, "train", str(recipe_file), "--objective.beta", "0.3", "--train.epochs", "2")
    assert code == 0, err
    assert "beta: 0.3" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["pairs"] > 0
    (tmp_path / "mine.yaml").write_text("- {name: says_e, want: none, prompts: [Hello], pattern: e}")
    assert run(capsys, "eval", "run", "--probes", "mine.yaml")[0] == 0
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["probes"][-3]["set"].startswith("mine@")
    assert run(capsys, "report", "run")[0] == 0


def test_a_probe_file_is_looked_at_before_training(capsys, recipe_file, tmp_path):
    (tmp_path / "mine.yaml").write_text("- {name: says_e, want: none, prompts: [Hello], pattern: '('}")
    code, _, err = run(capsys, "train", str(recipe_file), "--eval.probe-files", "mine.yaml", "--eval.probes", "False")
    assert (code, err.count("\n")) == (2, 1)
    assert "mine.yaml: probe 1 (`says_e`): `pattern`: this is no regular expression" in err
    assert not (tmp_path / "run").exists()


def faulty(tmp_path, **changes) -> None:
    rows = pair_rows()
    rows[16] = {**rows[16], **changes}
    text = [json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join(text) + "\n")


DATA_FAULTS = [
    ({"rejected": None}, ["pairs.jsonl", "17", "rejected"]),
    ({"chosen": "  "}, ["pairs.jsonl", "17", "chosen", "empty"]),
    ({"chosen": "Same.", "rejected": "Same."}, ["pairs.jsonl", "17", "identical"]),
]


@pytest.mark.parametrize("changes, words", DATA_FAULTS)
def test_faulty_rows_are_named(capsys, recipe_file, tmp_path, changes, words):
    faulty(tmp_path, **changes)
    code, _, err = run(capsys, "train", str(recipe_file))
    assert code == 2
    assert all(word in err for word in words), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_bad_json_on_line_17(capsys, recipe_file, tmp_path):
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    lines[16] = lines[16][:-3]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    code, _, err = run(capsys, "train", str(recipe_file))
    assert code == 2
    assert "pairs.jsonl" in err
    assert "17" in err
    assert not (tmp_path / "run").exists()


def test_missing_files(capsys, recipe_file, tmp_path):
    code, _, err = run(capsys, "train", "no-such.yaml")
    assert (code, "no-such.yaml" in err) == (2, True)
    (tmp_path / "pairs.jsonl").rename(tmp_path / "pears.jsonl")
    code, _, err = run(capsys, "train", str(recipe_file))
    assert code == 2
    assert "pears.jsonl" in err, "a near miss is suggested"


def test_unknown_settings_are_refused_with_a_suggestion(capsys, recipe_file):
    recipe_file.write_text(recipe_file.read_text().replace("pairs_per_step", "pairs_per_stp"))
    code, _, err = run(capsys, "train", str(recipe_file))
    assert code == 2
    assert "train.pairs_per_stp" in err
    assert "Did you mean `pairs_per_step`?" in err


def test_unknown_option_exits_2_with_a_suggestion(capsys, recipe_file):
    with pytest.raises(SystemExit) as left:
        main(["train", str(recipe_file), "--train.learning-rat", "1"])
    assert left.value.code == 2
    assert "--train.learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["sweep", "--help"]])
def test_a_reader_who_leaves_early_is_no_fault(words):
    shown = subprocess.Popen([sys.executable, "-m", "likelier", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    shown.stdout.close()
    assert shown.stderr.read() == b""
    assert shown.wait() == 128 + signal.SIGPIPE


def test_an_unknown_command_is_refused_with_a_suggestion(capsys):
    code, _, err = run(capsys, "trian")
    assert code == 2
    assert "Did you mean `train`?" in err


def test_a_model_without_template(capsys, recipe_file, tmp_path, model_folder):  # noqa: F811
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare)
    (bare / "chat_template.jinja").unlink()
    code, _, err = run(capsys, "train", str(recipe_file), "--model.name", str(bare))
    assert code == 2
    assert "template" in err
    assert "model.chat_template" in err
    assert not (tmp_path / "run").exists()


def test_objective_settings_that_it_does_not_take(capsys, recipe_file):
    code, _, err = run(capsys, "train", str(recipe_file), "--objective.target-margin", "1")
    assert code == 2
    assert "target_margin" in err


def test_no_memory_for_a_command_is_one_line(capsys, monkeypatch):
    def report(run: str) -> None:
        torch.empty(2**50)

    monkeypatch.setitem(COMMANDS, "report", report)
    code, _, error = run(capsys, "report", "runs/x")
    assert (code, error.count("\n")) == (2, 1)
    assert "not enough memory" in error


def test_debug_shows_the_traceback(recipe_file):
    from likelier.errors import LikelierError

    with pytest.raises(LikelierError):
        main(["train", "no-such.yaml", "--debug"])


def test_convert_says_what_it_saw_and_what_it_left_out(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, 4]},
        {"prompt": "q", "chosen": "a", "rejected": "b", "meta": {"n": {"deep": 1}}},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "q", "response": "a", "feedback": "up"},
    ]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = run(capsys, "convert", "mixed.jsonl", "out.jsonl")
    assert code == 2
    assert "mixed.jsonl, line 3: `chosen` and `rejected` are identical" in err
    assert not (tmp_path / "out.jsonl").exists()

    code, out, err = run(capsys, "convert", "mixed.jsonl", "out.v2.jsonl", "--skip-bad", "--pairs", "all", "--min-gap", "2")
    assert code == 0, err
    shapes, written, left_out = out.splitlines()
    assert shapes == "mixed.jsonl: 4 rows: 2 explicit-prompt, 1 scored-list, 1 thumbs"
    assert written.startswith("out.v2.jsonl: 3 pairs and 1 unpaired record, data set ")
    assert left_out == "left out: 1 fault: identical; listed in out.v2.bad.jsonl"
    [line] = (tmp_path / "out.v2.bad.jsonl").read_text().splitlines()
    assert {name: json.loads(line)[name] for name in ("where", "kind")} == {"where": "mixed.jsonl, line 3", "kind": "identical"}
    assert json.loads(line)["fault"].startswith("`chosen` and `rejected` are identical")

    code, out, err = run(capsys, "convert", "out.v2.jsonl", "out.v2.jsonl.gz", "--skip-bad", "--to", "llamafactory")
    assert code == 0, err
    assert "3 pairs, for llamafactory" in out
    assert "llamafactory cannot hold: meta.n (1)" in out
    assert '"ranking": true' in out
    assert json.loads((tmp_path / "out.v2.bad.jsonl").read_text())["kind"] == "unpaired", "a target's own refusals are listed too"

    code, out, _ = run(capsys, "convert", "out.v2.jsonl", "again.jsonl", "--skip-bad")
    assert code == 0
    assert "left out" not in out
    assert not (tmp_path / "again.bad.jsonl").exists()


def test_convert_refuses_what_it_cannot_do(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    code, _, err = run(capsys, "convert", "a.jsonl", "b.jsonl", "--format", "open-ai")
    assert (code, "Did you mean `openai`?" in err) == (2, True)
    code, _, err = run(capsys, "convert", "a.jsonl", "b.jsonl", "--format", "openai", "--skip-bad")
    assert (code, "a.jsonl: no row of it is usable, so nothing was written" in err) == (2, True)
    assert not (tmp_path / "b.jsonl").exists()
    assert (tmp_path / "b.bad.jsonl").exists(), "the list says why"
    code, _, err = run(capsys, "convert", "a.jsonl", "b.csv", "--to", "trl")
    assert (code, "records are written as .jsonl" in err) == (2, True)


def test_convert_split_and_verify(capsys, recipe_file, tmp_path):
    code, out, _ = run(capsys, "convert", "pairs.jsonl", "pairs.parquet")
    assert code == 0
    assert "36 pairs" in out
    whole = json.loads((tmp_path / "pairs.parquet.manifest.json").read_text())
    assert whole["id"] in out
    assert whole["step"] == "convert pairs.jsonl"
    code, out, _ = run(capsys, "split", "pairs.parquet", "--eval", "0.25")
    assert code == 0
    sides = [[json.loads(line) for line in (tmp_path / f"pairs.{side}.jsonl").read_text().splitlines()] for side in ("train", "eval")]
    assert sum(map(len, sides)) == 36
    prompts = [{json.dumps(row["prompt"]) for row in side} for side in sides]
    assert not prompts[0] & prompts[1]
    for side in ("train", "eval"):
        manifest = json.loads((tmp_path / f"pairs.{side}.jsonl.manifest.json").read_text())
        assert manifest["id"] in out
        assert manifest["parents"] == [whole["id"]]
        assert run(capsys, "verify", f"pairs.{side}.jsonl")[0] == 0
    (tmp_path / "pairs.eval.jsonl").write_text((tmp_path / "pairs.eval.jsonl").read_text().replace("sorry", "happy", 1))
    code, out, err = run(capsys, "verify", "pairs.eval.jsonl")
    assert code == 1
    assert "pairs.eval.jsonl is not what its manifest says: bytes of the file, data set id." in err
    assert "holds       counts" in out


def test_split_by_a_field_and_stratified(capsys, recipe_file, tmp_path):
    def values(side, field):
        return {json.loads(line)[field] for line in (tmp_path / f"pairs.{side}.jsonl").read_text().splitlines()}

    code, _, err = run(capsys, "split", "pairs.jsonl", "--by", "reason")
    assert (code, "by reason all 36 records hang together" in err) == (1, True), "each prompt has replies of both kinds"
    rows = [{**row, "prompt": f"Question {n}?", "source": f"file {n % 9}"} for n, row in enumerate(pair_rows())]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(capsys, "split", "pairs.jsonl", "--eval", "0.2", "--by", "source")[0] == 0
    assert not values("train", "source") & values("eval", "source")
    assert run(capsys, "split", "pairs.jsonl", "--eval", "0.2", "--stratify", "reason")[0] == 0
    assert values("train", "reason") == values("eval", "reason") == {"apology", "verbose"}
    code, _, err = run(capsys, "split", "pairs.jsonl", "--by", "reasn")
    assert (code, "Did you mean `reason`?" in err) == (2, True)


def test_training_on_a_near_duplicate_of_a_held_out_prompt_is_refused(capsys, recipe_file, tmp_path):
    said = " ".join(f"word{n}" for n in range(40))
    held_out = {**pair_rows()[0], "id": "held", "prompt": f"{said} please"}
    (tmp_path / "eval.jsonl").write_text(json.dumps(held_out) + "\n")
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({**held_out, "id": "near", "prompt": f"{said} now"}) + "\n")
    code, _, err = run(capsys, "train", str(recipe_file), "--data.eval", "eval.jsonl")
    assert code == 1
    assert "near-duplicate is trained on" in err
    assert "held (trained on as near)" in err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pairs_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", corpus.with_a_key(corpus.clean(200))[0])
    return tmp_path / "pairs.jsonl"


def test_audit_says_no_to_a_fatal_finding_and_writes_what_it_found(capsys, pairs_file, tmp_path):
    code, out, err = run(capsys, "audit", "pairs.jsonl", "--json", "found.json", "--html", "found.html")
    assert code == 1
    assert "1 fatal finding: secrets." in err
    assert "200 pairs over 200 prompts" in out
    assert json.loads((tmp_path / "found.json").read_text())["verdict"] == "fatal"
    assert "<h1>pairs.jsonl</h1>" in (tmp_path / "found.html").read_text()


def test_fix_mends_what_audit_found_and_names_the_parent(capsys, pairs_file, tmp_path):
    code, out, _ = run(capsys, "fix", "pairs.jsonl", "mended.jsonl", "--do", "mask-secrets", "drop-duplicates")
    assert code == 0
    assert "mask-secrets: 2 rows" in out
    manifest = json.loads((tmp_path / "mended.jsonl.manifest.json").read_text())
    assert manifest["step"] == "fix drop-duplicates mask-secrets"
    assert f"made of {manifest['parents'][0]}" in out
    assert manifest["audit"] is None
    assert run(capsys, "audit", "mended.jsonl", "--json", "found.json")[0] == 0
    noted = json.loads((tmp_path / "mended.jsonl.manifest.json").read_text())
    assert len(noted.pop("audit")) == 64
    assert noted == {name: value for name, value in manifest.items() if name != "audit"}
    assert run(capsys, "verify", "mended.jsonl")[0] == 0


def test_audit_against_held_out_prompts(capsys, pairs_file):
    write_pairs("held-out.jsonl", corpus.clean(3))
    code, out, err = run(capsys, "audit", "pairs.jsonl", "--against", "held-out.jsonl")
    assert code == 1
    assert "leakage" in err
    assert "clean-0 is clean-0" in out


def test_audit_by_the_limits_and_the_model_of_a_recipe(capsys, pairs_file, recipe_file):
    recipe_file.write_text(recipe_file.read_text().replace("eval_fraction: 0.25", "max_length: 20") + "audit: {over_long_fatal: 0.01}\n")
    code, _, err = run(capsys, "audit", "pairs.jsonl", "--recipe", str(recipe_file))
    assert code == 1
    assert "over-long" in err


def test_train_refuses_fatal_findings_and_can_be_told_otherwise(capsys, recipe_file, tmp_path):
    rows = pair_rows()
    rows[0]["chosen"] += " Use " + "sk-" + "proj-" + "a1B2c3D4e5F6g7H8i9J0k1L2"
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = run(capsys, "train", str(recipe_file), "--no-report")
    assert code == 1
    assert "secrets: 1 × credential" in err
    assert "--accept secrets" in err
    assert not (tmp_path / "run").exists()
    code, _, err = run(capsys, "train", str(recipe_file), "--accept", "secrets")
    assert code == 0, err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["audit"]["accepted"] == ["secrets"]
    assert "in spite of what the audit calls fatal: secrets" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["audit"], "no data was named"),
        (["audit", "pairs.jsonl", "--json", "pairs.jsonl"], "destroy"),
        (["audit", "pairs.jsonl", "--json", "."], "cannot be written"),
        (["fix", "pairs.jsonl", "pairs.jsonl", "--do", "mask-secrets"], "destroy"),
        (["fix", "pairs.jsonl", "b.jsonl"], "no mend was named"),
        (["convert", "pairs.jsonl", "pairs.jsonl"], "destroy"),
        (["convert", "pairs.jsonl", "b.jsonl", "--min-gap", "-1"], "--min-gap is -1"),
        (["split", "pairs.jsonl", "--eval", "0"], "--eval is 0"),
        (["split", "pairs.jsonl", "--eval", "1.5"], "--eval is 1.5"),
    ],
)
def test_requests_that_would_do_harm_or_nothing(capsys, pairs_file, arguments, said):
    before = pairs_file.read_bytes()
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in err
    assert pairs_file.read_bytes() == before


def test_accepted_checks_of_a_recipe_count_in_audit_too(capsys, pairs_file, recipe_file):
    write_pairs("pairs.jsonl", corpus.with_a_key(corpus.clean(200))[0])
    recipe_file.write_text(recipe_file.read_text() + "audit: {accept: [secrets]}\n")
    assert run(capsys, "audit", "pairs.jsonl", "--recipe", str(recipe_file))[0] == 0


def test_a_name_with_brackets_is_printed_as_it_is(capsys, pairs_file):
    write_pairs("a[b].jsonl", corpus.clean(20))
    code, out, _ = run(capsys, "audit", "a[b].jsonl")
    assert code == 0
    assert "a[b].jsonl: 20 pairs" in out


def test_a_file_that_becomes_another_tools_is_no_version_any_more(capsys, pairs_file, tmp_path):
    assert run(capsys, "convert", "pairs.jsonl", "o.jsonl")[0] == 0
    assert (tmp_path / "o.jsonl.manifest.json").exists()
    assert run(capsys, "convert", "pairs.jsonl", "o.jsonl", "--to", "trl")[0] == 0
    assert not (tmp_path / "o.jsonl.manifest.json").exists()


DATA_COMMANDS = """
convert embedded:facts a.jsonl
audit a.jsonl --html a.html
split a.jsonl
fix a.jsonl b.jsonl --do drop-duplicates
verify b.jsonl
"""


def test_the_data_commands_need_no_torch(tmp_path):
    code = (
        "import sys\nfrom likelier.cli import main\n"
        "for line in sys.stdin.read().strip().splitlines():\n    assert main(line.split()) == 0, line\n"
        "assert 'torch' not in sys.modules"
    )
    options = {"cwd": tmp_path, "input": DATA_COMMANDS, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.returncode == 0, done.stderr
