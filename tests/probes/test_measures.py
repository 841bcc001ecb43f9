"""What a reply is measured by."""

import doctest
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likelier.errors import RecipeError
from likelier.probes import measures
from likelier.probes.measures import ARTICLES, MEASURES, is_answer, normalised, own_function, own_number


def test_docstring_examples():
    result = doctest.testmod(measures)
    assert (result.attempted, result.failed) == (2, 0)


@pytest.mark.parametrize(
    "reply, answers, right",
    [
        ("Paris", ["Paris"], True),
        ("  the PARIS. ", ["Paris"], True),
        ("«Paris»!", ["Paris"], True),
        ("Paris, France", ["Paris"], False),
        ("It is Paris.", ["Paris"], False),
        ("forty two", ["42", "forty-two"], False),
        ("forty-two", ["42", "forty-two"], True),
        ("", ["Paris"], False),
        ("An apple a day", ["apple day"], True),
        ("Türkiye", ["Türkiye"], True),
    ],
)
def test_exact_match(reply, answers, right):
    assert is_answer(reply, answers) is right


def test_all_of_ascii_punctuation_goes():
    assert normalised(f"a{string.punctuation}b") == "ab"


@given(st.text())
def test_normalising_twice_changes_nothing_unless_it_bares_an_article(text):
    once = normalised(text)
    assert once == " ".join(once.split())
    assert not set(once.split()) & set(ARTICLES)
    assert is_answer(text, [once])


def test_every_measure_says_what_its_name_says():
    said = {name: measure.of("I'm sorry, I cannot help. " * 8, 40, False) for name, measure in MEASURES.items()}
    assert said == {"length": 40, "apology": True, "refusal": True, "loop": True, "ended": False}
    said = {name: measure.of("Yes.", 2, True) for name, measure in MEASURES.items()}
    assert said == {"length": 2, "apology": False, "refusal": False, "loop": False, "ended": True}


def test_a_users_function_may_return_truth_or_a_finite_number():
    def function(reply, prompt):
        return {"yes": True, "no": False, "three": 3, "half": 0.5}.get(reply, reply)

    assert [own_number(function, word, [], where="p") for word in ("yes", "no", "three", "half")] == [True, False, 3, 0.5]
    of_numpy = [own_number(lambda *_, found=found: found, "", [], where="p") for found in (np.bool_(True), np.int64(3), np.float32(0.5))]
    assert [(found, type(found)) for found in of_numpy] == [(True, bool), (3, int), (0.5, float)]
    with pytest.raises(RecipeError, match="p: its function returned 'maybe'"):
        own_number(function, "maybe", [], where="p")
    with pytest.raises(RecipeError, match="p: its function returned nan"):
        own_number(lambda *_: float("nan"), "", [], where="p")
    with pytest.raises(RecipeError, match=r"p: its function raised TypeError: .*The reply was 'hello'"):
        own_number(lambda reply: True, "hello", [], where="p")


@pytest.mark.parametrize(
    "name, code, words",
    [
        ("own.py", "", r"`function` is written file\.py:name \(given: 'own\.py'\)"),
        ("own:right", "", r"file\.py:name"),
        ("nowhere.py:right", "", r"nowhere\.py, and there is no such file"),
        ("own.py:right", "def right(", r"does not run \(SyntaxError"),
        ("own.py:right", "import no_such_module", r"does not run \(ModuleNotFoundError"),
        ("own.py:right", "def wright(reply, prompt): return 1", r"no function `right`\. Did you mean `wright`"),
        ("own.py:right", "right = 3", r"no function `right`"),
    ],
)
def test_functions_that_cannot_be_used_are_named(tmp_path, name, code, words):
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(RecipeError, match=f"^mine: .*{words}"):
        own_function(name, folder=tmp_path, where="mine")
