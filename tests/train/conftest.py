"""A tiny model on disk, a file of pairs, and recipes that tie them together: a whole run takes a second."""

import json

import pytest

from likelier.recipe import Recipe, parse_recipe
from likelier.rundir import RunDir
from likelier.train import checkpoint
from likelier.train.session import train_recipe

PLACES = ["harbour", "lighthouse", "market", "library", "station", "museum", "bridge", "garden", "theatre", "bakery", "mill", "school"]


def pair_rows(count: int = 36) -> list[dict]:
    """Pairs of unlike lengths; every third shares its prompt with the one before."""
    return [
        {
            "id": f"pair-{n}",
            "prompt": f"Where is the {PLACES[(n - n % 3 // 2) % 12]}, and what is behind house {n - n % 3 // 2}?",
            "chosen": f"Behind house {n} is the {PLACES[n % 12]}." + " Go on." * (n % 4),
            "rejected": f"I am so sorry, I do not know the {PLACES[(n + 5) % 12]}." + " Sorry!" * (n % 5),
            "reason": "apology" if n % 2 else "verbose",
        }
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    from tests.conftest import built_model, built_tokenizer

    folder = tmp_path_factory.mktemp("tiny-model")
    built_model().save_pretrained(folder)
    built_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(model_folder, tmp_path, monkeypatch) -> Recipe:
    """A fp32 LoRA run of a dozen steps with its own cache."""
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pair_rows()))
    settings = {
        "model": {"name": str(model_folder)},
        "data": {"train": [str(data)], "eval_fraction": 0.25},
        "train": {"pairs_per_step": 4, "epochs": 2, "precision": "fp32", "learning_rate": 1e-3, "eval_every": 3, "checkpoint_every": 2},
        "eval": {"max_new_tokens": 8, "samples": 2},
        "out": str(tmp_path / "run"),
    }
    return parse_recipe(settings, where="test")


def changed(recipe: Recipe, **sections) -> Recipe:
    """The recipe with some settings of some sections replaced."""
    settings = recipe.model_dump(mode="json")
    for section, values in sections.items():
        settings[section] = {**settings[section], **values} if isinstance(values, dict) else values
    return parse_recipe(settings, where="test")


def interrupted(recipe, monkeypatch, after: int = 1) -> RunDir:
    """A run that died after so many checkpoints."""
    count = 0
    save = checkpoint.save

    def save_and_die(*arguments):
        nonlocal count
        save(*arguments)
        count += 1
        if count == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe)
    return RunDir(recipe.out)
