"""Settings to try: checked before anything runs, named so that a folder says what is in it, and in an order of use."""

import pytest

from likelier.errors import RecipeError
from likelier.recipe import parse_recipe
from likelier.sweep.grid import by_value, combinations, make_trials, parse_axes, read_list


@pytest.fixture
def recipe():
    return parse_recipe({"data": {"train": ["embedded:support"]}, "objective": {"beta": 0.1}}, where="test")


def trials_of(recipe, tmp_path, *axes):
    return make_trials(recipe, combinations(parse_axes(axes)), tmp_path)


def test_a_grid_is_the_product_and_values_have_the_recipes_types(recipe, tmp_path):
    trials = trials_of(recipe, tmp_path, "objective.beta=0.1,0.3", "train.learning_rate=1e-4,2e-4", "train.epochs=2")
    assert [trial.name for trial in trials] == [f"beta={beta},learning_rate={rate},epochs=2" for beta in ("0.1", "0.3") for rate in ("1e-4", "2e-4")]
    assert trials[1].settings == {"objective.beta": 0.1, "train.learning_rate": 2e-4, "train.epochs": 2.0}
    assert trials[1].recipe.train.learning_rate == 2e-4  # 1e-4 is a text in YAML 1.1
    assert trials[1].folder == tmp_path / trials[1].name
    assert len({trial.recipe.fingerprint() for trial in trials}) == 4


FAULTS = [
    (["objective.bta=0.1"], ["objective.bta", "Did you mean `beta`?"]),
    (["objectiv.beta=0.1"], ["objectiv"]),
    (["objective.beta=0.1,-1"], ["objective.beta=-1", "greater than 0"]),
    (["train.method=lora,lore"], ["train.method=lore"]),
    (["objective.label_smoothing=0.1", "objective.name=dpo,ipo"], ["objective.label_smoothing", "ipo"]),
    (["beta=0.1"], ["`beta`", "section"]),
    (["objective.beta"], ["names no values"]),
    (["objective.beta="], ["names no values"]),
    (["objective.beta=[0.1"], ["names no values"]),
    (["objective.beta=0.1", "objective.beta=0.3"], ["twice"]),
    (["objective.beta=0.1,0.10"], ["`beta=0.1` is there twice"]),
    (["train.tokens_per_batch=512,1024"], ["would be the same", "tokens_per_batch=512"]),
    (["objective.beta=0.1,0.2,0.1"], ["`beta=0.1` is there twice"]),
]


@pytest.mark.parametrize("axes, words", FAULTS)
def test_a_fault_anywhere_in_the_grid_is_named(recipe, tmp_path, axes, words):
    with pytest.raises(RecipeError) as fault:
        trials_of(recipe, tmp_path, *axes)
    assert all(word in str(fault.value) for word in words), str(fault.value)


def test_names_are_safe_folders_and_differ_on_any_file_system(recipe, tmp_path):
    (tmp_path / "A.jsonl").touch()
    names = [trial.name for trial in trials_of(recipe, tmp_path, "data.train=[../a b.jsonl],[../A b.jsonl],[x/ä.jsonl]", "model.name=embedded,x/y:z")]
    assert len({name.casefold() for name in names}) == 6
    assert not [name for name in names if set("/\\: ") & set(name) or not name.isascii()]
    [long] = trials_of(recipe, tmp_path, f"model.name={'m' * 300}")
    assert len(long.name) <= 100
    sections = trials_of(recipe, tmp_path, "model.name=a", "objective.name=dpo,ipo")
    assert [trial.name for trial in sections] == ["model.name=a,objective.name=dpo", "model.name=a,objective.name=ipo"]
    [exact] = trials_of(recipe, tmp_path, "train.learning_rate=0.000015", "train.seed=10", "adapter.dora=true")
    assert exact.name == "learning_rate=1.5e-5,seed=10,dora=true"


def test_a_list_names_runs_one_by_one(recipe, tmp_path):
    path = tmp_path / "runs.yaml"
    path.write_text("- {objective.beta: 0.3}\n- {objective: {name: ipo, beta: 0.2}, train.epochs: 2}\n- {}\n")
    trials = make_trials(recipe, read_list(path), tmp_path)
    assert [trial.name for trial in trials] == ["beta=0.3", "epochs=2,name=ipo,beta=0.2", "recipe"]
    assert trials[1].recipe.objective.name == "ipo"
    path.write_text("- {objective.beta: 0.1, objective: {beta: 0.2}}\n")
    with pytest.raises(RecipeError, match=r"`objective\.beta` is there twice in one run, as 0\.1 and as 0\.2"):
        read_list(path)


@pytest.mark.parametrize("text", ["", "{}", "objective.beta: 0.1", "- 3", "- [", "[]"])
def test_what_is_no_list_of_runs_is_refused_by_name(tmp_path, text):
    path = tmp_path / "runs.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"runs\.yaml"):
        read_list(path)
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        read_list(tmp_path / "none.yaml")


def betas(trials):
    return [trial.settings["objective.beta"] for trial in trials]


def test_the_recipes_own_value_comes_first_and_then_what_is_farthest(recipe, tmp_path):
    trials = trials_of(recipe, tmp_path, "objective.beta=0.01,0.03,0.1,0.3,1.0")
    assert betas(by_value(trials, recipe)) == [0.1, 0.01, 1.0, 0.03, 0.3]


def test_a_default_counts_as_the_recipes_own_value(recipe, tmp_path):
    plain = parse_recipe({"data": {"train": ["embedded:support"]}}, where="test")
    assert betas(by_value(trials_of(plain, tmp_path, "objective.beta=0.1,0.2,0.3,0.4"), plain))[0] == 0.1
    rates = by_value(trials_of(plain, tmp_path, "train.learning_rate=1e-5,2e-5,1e-4"), plain)
    assert rates[0].settings == {"train.learning_rate": 1e-4}


def test_without_it_the_middle_of_the_grid_comes_first(recipe, tmp_path):
    ordered = by_value(trials_of(recipe, tmp_path, "objective.beta=0.2,0.3,0.4", "train.epochs=2,3,4"), recipe)
    assert ordered[0].settings == {"objective.beta": 0.3, "train.epochs": 3.0}
    assert {(t.settings["objective.beta"], t.settings["train.epochs"]) for t in ordered[1:5]} == {(0.2, 2.0), (0.2, 4.0), (0.4, 2.0), (0.4, 4.0)}
    assert len({trial.name for trial in ordered}) == 9
