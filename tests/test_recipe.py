import ast
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

import likelier
from likelier.errors import RecipeError
from likelier.objectives import TABLE, make_objective
from likelier.objectives.table import taken_by
from likelier.recipe import (
    OBJECTIVES,
    AdapterSettings,
    DataSettings,
    EvalSettings,
    LogSettings,
    ModelSettings,
    ObjectiveSettings,
    Recipe,
    TrainSettings,
    load_recipe,
    parse_recipe,
)
from likelier.thresholds import AuditSettings

LEAST = {"data": {"train": ["pairs.jsonl"]}}
FULL = {
    "model": {"name": "./m", "revision": "main", "chat_template": "none", "trust_remote_code": True},
    "data": {"train": ["a.jsonl", "b.parquet"], "eval": ["c.csv"], "eval_fraction": 0.0, "max_length": 7},
    "audit": {
        "accept": ["secrets"],
        **{name: (field.default + 1) / 2 for name, field in AuditSettings.model_fields.items() if isinstance(field.default, float)},
        **{name: field.default + 1 for name, field in AuditSettings.model_fields.items() if isinstance(field.default, int)},
    },
    "objective": {
        "name": "ipo",
        "beta": 0.5,
        "label_smoothing": 0.1,
        "target_margin": 0.0,
        "per_token": True,
        "length_penalty": 0.0,
        "tail_weight": 0.0,
        "chosen_penalty": 5.0,
        "sft_weight": 0.2,
        "divergence": "alpha",
        "divergence_alpha": 0.3,
        "alignment": "none",
        "temperature": 0.1,
        "sensitivity": 0.0,
        "desirable_weight": 1.5,
        "undesirable_weight": 0.5,
        "margin_scale": 2.0,
    },
    "adapter": {"rank": 1, "alpha": 0.5, "targets": "q_proj", "dora": True, "rslora": True, "start": "runs/earlier/model"},
    "train": {
        "method": "full",
        "epochs": 0.5,
        "max_steps": 3,
        "pairs_per_step": 2,
        "tokens_per_batch": 99,
        "learning_rate": 1e-5,
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.1,
        "max_grad_norm": 2.0,
        "max_skipped_steps": 0,
        "optimizer": "adamw-8bit",
        "bf16_weights": "stochastic-rounding",
        "precision": "bf16",
        "gradient_checkpointing": "selective",
        "fsdp": True,
        "seed": 5,
        "eval_every": 7,
        "patience": 2,
        "checkpoint_every": 0,
    },
    "eval": {
        "probes": ["red-team", "qa"],
        "probe_files": ["mine.yaml"],
        "max_new_tokens": 3,
        "samples": 1,
        "watch": 2,
        "watch_every": 3,
        "kl_budget": 12.5,
    },
    "log": {"trackers": ["tensorboard", "mlflow"], "project": "mine", "name": "third"},
    "out": "runs/é",
}
"""Every setting there is, none at its default."""


def written(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(settings) -> str:
    with pytest.raises(RecipeError) as refused:
        parse_recipe(settings, where="r.yaml")
    return str(refused.value)


def with_setting(name: str, value: Any) -> dict[str, Any]:
    """LEAST with `section.name` set."""
    section, _, leaf = name.rpartition(".")
    return {**LEAST, section: {**LEAST.get(section, {}), leaf: value}} if section else {**LEAST, leaf: value}


def leaves() -> list[tuple[str, str]]:
    return [(section, name) for section, field in Recipe.model_fields.items() if section != "out" for name in field.annotation.model_fields]


def test_data_alone_makes_a_recipe(tmp_path):
    recipe = load_recipe(written(tmp_path, "data:\n  train: [pairs.jsonl]\n"))
    assert recipe.data.train == ("pairs.jsonl",)
    assert recipe == parse_recipe(LEAST, where="")
    assert recipe.objective.given() == {}


def test_the_full_example_holds_every_setting_off_its_default():
    plain = parse_recipe(LEAST, where="")
    for section, name in leaves():
        assert FULL[section][name] != getattr(getattr(plain, section), name), f"{section}.{name}"
    assert {(s, n) for s, fields in FULL.items() if s != "out" for n in fields} == set(leaves())


@pytest.mark.parametrize("settings", [LEAST, FULL])
def test_round_trip(settings, tmp_path):
    recipe = parse_recipe(settings, where="")
    again = load_recipe(written(tmp_path, recipe.to_yaml()))
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert again.fingerprint() == recipe.fingerprint()


def test_yaml_keeps_the_order_of_the_sections_and_plain_letters():
    text = parse_recipe(FULL, where="").to_yaml()
    assert [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and line[0] != " "] == list(FULL)[:-1]
    assert "runs/é" in text
    assert yaml.safe_load(text)["data"]["train"] == ["a.jsonl", "b.parquet"]


def test_the_names_of_objectives_are_those_of_the_table():
    assert tuple(TABLE) == OBJECTIVES


@pytest.mark.parametrize(
    "objective, name",
    [
        ({"dpo": 1.0, "sft": 0.2}, "dpo + 0.2 sft"),
        ({"dpo": 1, "sft": "2e-1"}, "dpo + 0.2 sft"),
        ({"sft": 0.5, "apo-zero": 2}, "0.5 sft + 2 apo-zero"),
        ({"ipo": 1}, "ipo"),
        ({"dpo": 0.123456789, "sft": 1234567}, "0.123456789 dpo + 1234567 sft"),
        ({"dpo": 1e-7}, "1e-07 dpo"),
        ({"name": "dpo + 0.2 sft"}, "dpo + 0.2 sft"),
    ],
)
def test_a_sum_of_objectives_as_a_mapping_or_a_name(objective, name, tmp_path):
    recipe = parse_recipe({**LEAST, "objective": {**objective, "beta": 0.3}}, where="")
    assert recipe.objective.name == name
    assert recipe.objective.given() == {"beta": 0.3}
    assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe
    by_name = parse_recipe({**LEAST, "objective": {"name": name, "beta": 0.3}}, where="")
    assert by_name.fingerprint() == recipe.fingerprint()
    make_objective(name, beta=0.3)


def test_the_fingerprint_is_of_the_weights_of_a_sum():
    one, other = (parse_recipe({**LEAST, "objective": {"dpo": 1.0, "sft": weight}}, where="").fingerprint() for weight in (0.2, 0.3))
    assert one != other


@pytest.mark.parametrize("weight", [0, -0.2, math.inf, math.nan, "much", None, [1]])
def test_weights_of_a_sum_are_numbers_above_0(weight):
    said = refusal({**LEAST, "objective": {"dpo": 1.0, "sft": weight}})
    assert "`objective`: the weights of dpo, sft must be numbers above 0" in said


def test_objectives_beside_a_name_or_unknown_ones_are_refused():
    assert "a sum has no name beside its weights. Leave `name` out, or `sft`" in refusal({**LEAST, "objective": {"name": "dpo", "sft": 0.2}})
    assert "`objective.sftt` is not a setting. Did you mean `sft`?" in refusal({**LEAST, "objective": {"dpo": 1.0, "sftt": 0.2}})
    assert "`objective.simp0` is not a setting. Did you mean `simpo`?" in refusal({**LEAST, "objective": {"simp0": 1.0}})


def test_numbers_as_people_write_them(tmp_path):
    """YAML 1.1 reads 1e-4 as text."""
    recipe = load_recipe(written(tmp_path, "data: {train: [p]}\ntrain: {learning_rate: 1e-4, epochs: 2}\nobjective: {beta: 5e-2}\n"))
    assert recipe.train.learning_rate == 1e-4
    assert recipe.objective.given() == {"beta": 0.05}
    assert recipe.train.epochs == 2.0


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            {**LEAST, "traim": {}},
            "r.yaml: `traim` is not a setting. Did you mean `train`? Known here: model, data, audit, objective, adapter, train, eval, log, out.",
        ),
        (
            with_setting("train.learning_rat", 1e-4),
            "r.yaml: `train.learning_rat` is not a setting. Did you mean `learning_rate`? Known here: method,",
        ),
        (with_setting("objective.betta", 0.1), "`objective.betta` is not a setting. Did you mean `beta`?"),
        ({**LEAST, "objective": "ipo"}, "`objective`: a mapping of settings belongs here, like `objective: {name: ipo}` (given: 'ipo')."),
        (with_setting("adapter.xyzzy", 1), "`adapter.xyzzy` is not a setting. Known here: rank, alpha"),
        ({**LEAST, 7: 1}, "`7`"),
        ({**LEAST, "train": {True: 1}}, "Keys should be strings (given: True)"),
    ],
)
def test_unknown_settings_are_named_with_a_suggestion(settings, said):
    assert said in refusal(settings)


@pytest.mark.parametrize(
    "name, value",
    [
        ("train.epochs", "many"),
        ("train.epochs", 0),
        ("train.pairs_per_step", 0),
        ("train.pairs_per_step", 1.5),
        ("train.max_steps", 0),
        ("train.learning_rate", -1e-4),
        ("train.learning_rate", math.nan),
        ("train.learning_rate", math.inf),
        ("train.warmup", 1.1),
        ("train.schedule", "cosin"),
        ("train.precision", "fp16"),
        ("train.gradient_checkpointing", "maybe"),
        ("train.patience", -1),
        ("data.max_length", 0),
        ("data.eval_fraction", 1.0),
        ("objective.beta", 0),
        ("objective.beta", math.inf),
        ("objective.label_smoothing", 0.5),
        ("objective.target_margin", -0.1),
        ("objective.length_penalty", -0.1),
        ("objective.tail_weight", 1.1),
        ("objective.chosen_penalty", -1),
        ("objective.sft_weight", math.inf),
        ("objective.divergence", "kl"),
        ("objective.divergence_alpha", 1.0),
        ("objective.temperature", 0),
        ("objective.sensitivity", -1),
        ("objective.desirable_weight", 0),
        ("objective.undesirable_weight", math.inf),
        ("objective.margin_scale", -0.5),
        ("train.max_skipped_steps", -1),
        ("adapter.rank", 0),
        ("eval.samples", 0),
        ("log.trackers", "wandb"),
        ("log.project", ""),
        ("model", "gpt2"),
        ("train", [1]),
        ("out", 3),
    ],
)
def test_wrong_values_are_named_and_quoted(name, value):
    said = refusal(with_setting(name, value))
    assert said.startswith(f"r.yaml: `{name}`: ")
    assert f"(given: {value!r})" in said


def test_patience_without_evaluations_on_the_way_is_refused():
    said = refusal({"data": {"train": ["a"]}, "train": {"eval_every": 0, "patience": 3}})
    assert said.startswith("r.yaml: `train.patience`: with eval_every: 0 the only evaluation is at the end")


def test_a_single_file_is_told_to_stand_in_a_list():
    assert refusal({"data": {"train": "pairs.jsonl"}}) == "r.yaml: `data.train`: Input should be a list (given: 'pairs.jsonl')."
    assert "`data.train.1`" in refusal({"data": {"train": ["a", 3]}})


def test_every_fault_has_a_line():
    lines = refusal({"data": {"train": ["a"], "max_length": 0}, "train": {"epochs": "x", "sed": 1}}).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("r.yaml: `") for line in lines)


@pytest.mark.parametrize("settings", [{}, {"data": {}}, {"data": {"train": []}}, {"data": {"eval": ["a"]}}])
def test_a_recipe_without_data_is_refused(settings):
    assert "data.train names no file" in refusal(settings)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "data.train names no file"),
        ("data: [unclosed", "this is not valid YAML"),
        ("data: {train: [a]}\n\ttrain: {}", "this is not valid YAML"),
        ("- data\n- train", r"a recipe is a mapping of sections \(model, data, .*\), not a list"),
        ("just words", "not a str"),
        ("data: {train: [a]}\nout: !!python/object/apply:os.system [true]", "this is not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(text, said, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(RecipeError, match=said) as refused:
        load_recipe(path)
    assert str(path) in str(refused.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match=r"absent.yaml: there is no such recipe file. The recipes/ folder"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("out: é".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin.yaml: the recipe cannot be read"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_recipe_does_not_change():
    recipe = parse_recipe(LEAST, where="")
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.seed = 3  # type: ignore[misc]


def test_the_fingerprint_is_of_what_shapes_the_training_and_nothing_else():
    memory = {name: FULL["train"][name] for name in ("tokens_per_batch", "gradient_checkpointing", "fsdp", "max_skipped_steps")}
    base = parse_recipe(LEAST, where="")
    unread = {section: FULL[section] for section in ("eval", "log", "audit")}
    ignored = parse_recipe({**LEAST, **unread, "out": "elsewhere", "train": memory}, where="")
    assert ignored.fingerprint() == base.fingerprint()
    shaping = [(section, name) for section, name in leaves() if section not in unread and name not in memory]
    seen = {parse_recipe(with_setting(f"{section}.{name}", FULL[section][name]), where="").fingerprint() for section, name in shaping}
    assert len(seen | {base.fingerprint()}) == 1 + len(shaping)


def test_peak_learning_rates():
    assert TrainSettings().peak_learning_rate == 1e-4
    assert TrainSettings(method="full").peak_learning_rate == 1e-6
    assert TrainSettings(method="full", learning_rate=3e-6).peak_learning_rate == 3e-6


def test_every_setting_is_explained():
    for section, name in leaves():
        assert Recipe.model_fields[section].annotation.model_fields[name].description, f"{section}.{name}"


SECTIONS = {
    cls.__name__: cls.model_fields
    for cls in (ModelSettings, DataSettings, AuditSettings, ObjectiveSettings, AdapterSettings, TrainSettings, EvalSettings, LogSettings, Recipe)
}
SECTION_OF = {name: field.annotation.__name__ for name, field in Recipe.model_fields.items() if name != "out"}


def settings_read_in(tree: ast.Module) -> set[tuple[str, str]]:
    """(class, setting) for each `recipe.train.seed`, `settings.seed` where `settings: TrainSettings`, and `self.seed` in the class itself."""
    kinds: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Name | ast.Constant | ast.BinOp):
            for cls in SECTIONS:
                if cls in ast.unparse(node.annotation):
                    kinds.setdefault(node.arg, set()).add(cls)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr in SECTION_OF:
            for target in node.targets:
                kinds.setdefault(ast.unparse(target), set()).add(SECTION_OF[node.value.attr])
        elif isinstance(node, ast.ClassDef) and node.name in SECTIONS:
            kinds.setdefault("self", set()).add(node.name)
    read = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            classes = kinds.get(owner, set()) | kinds.get(owner.removeprefix("self."), set())
            classes |= {SECTION_OF[owner.rpartition(".")[2]]} if owner.rpartition(".")[2] in SECTION_OF else set()
            classes |= {"Recipe"} if owner.rpartition(".")[2] == "recipe" else set()
            read |= {(cls, node.attr) for cls in classes if node.attr in SECTIONS[cls]}
    return read


def test_what_counts_as_reading_a_setting():
    code = """
def a(recipe, settings: TrainSettings, other: "AdapterSettings | None"):
    recipe.data.max_length, settings.seed, other.rank, unrelated.warmup, recipe.out
    data = recipe.data
    return data.eval
"""
    assert settings_read_in(ast.parse(code)) == {
        ("DataSettings", "max_length"),
        ("TrainSettings", "seed"),
        ("AdapterSettings", "rank"),
        ("DataSettings", "eval"),
        ("Recipe", "data"),
        ("Recipe", "out"),
    }


def test_no_setting_is_there_that_nothing_reads():
    source = Path(likelier.__file__).parent
    read = set().union(*(settings_read_in(ast.parse(path.read_text(encoding="utf-8"))) for path in source.rglob("*.py")))
    read |= {("ObjectiveSettings", name) for row in TABLE.values() for name in taken_by(row)}  # handed on whole by `given`
    wanted = {(SECTION_OF[section], name) for section, name in leaves()} | {("Recipe", "out")}
    assert wanted - read == set()
