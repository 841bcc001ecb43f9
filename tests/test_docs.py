"""Docs and code move together: links lead somewhere, recipes parse, commands and settings that the docs name exist."""

import re
from pathlib import Path

import pytest

from likelier.cli import COMMANDS
from likelier.recipe import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("benchmarks/*.md"))]
RECIPES = [*sorted(ROOT.glob("recipes/*.yaml")), ROOT / "src/likelier/assets/demo.yaml"]
IDS = [str(path.relative_to(ROOT)) for path in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_a_page_names_exist(page):
    for name in re.findall(r"`((?:src|docs|tests|studies|benchmarks|recipes|logprobs|data|train)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists() or (ROOT / "src/likelier" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_that_a_page_shows_exist(page):
    for command in re.findall(r"^likelier (\w+)", page.read_text(), flags=re.MULTILINE):
        assert command in COMMANDS, command


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_parse(path):
    recipe = load_recipe(path)
    assert recipe.out != "runs/latest", "a recipe names its own folder"


def test_the_readme_recipe_is_valid():
    import yaml

    from likelier.recipe import parse_recipe

    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        parse_recipe(yaml.safe_load(block), where="README.md")


def test_the_front_door_opens():
    import likelier

    for name in likelier.__all__:
        assert getattr(likelier, name) is not None
    shown = re.search(r"from likelier import (.*)", (ROOT / "README.md").read_text())
    assert shown
    assert set(shown[1].split(", ")) <= set(likelier.__all__)
