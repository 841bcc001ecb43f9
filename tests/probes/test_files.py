"""Probe files: what a user may write, and what is refused by name."""

import re
from pathlib import Path

import pytest

from likelier.errors import DataError, RecipeError
from likelier.probes import probes_of, read_probes, shipped_probes
from likelier.probes.measures import MEASURES
from likelier.recipe import PROBE_SETS, parse_recipe
from likelier.records import Message

GUIDE = Path(__file__).parents[2] / "docs" / "probes.md"


@pytest.fixture
def written(tmp_path):
    """written(text): the path of a probe file."""

    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def items(probe):
    return [(item.prompt[-1].content, item.choices, item.right, item.answers, item.pattern and item.pattern.pattern) for item in probe.items]


def test_what_stands_in_a_prompt_goes_before_what_stands_in_the_probe(written):
    path = written("""
- name: price
  want: higher
  pattern: euro
  prompts:
    - What does it cost?
    - {prompt: "And that?", pattern: dollar, id: that}
    - [{role: system, content: Be brief.}, {role: user, content: "And both?"}]
- {name: season, want: none, choices: [hot, cold], answer: cold, prompts: ["How is July?", {prompt: "How is August?", answer: 0}]}
- {name: capital, want: higher, answer: [Paris, Lutetia], prompts: ["Whose capital?", {prompt: "Germany's?", answer: Berlin}]}
""")
    price, season, capital = read_probes(path)
    assert [(item.id, item.pattern.pattern) for item in price.items] == [("price-1", "euro"), ("that", "dollar"), ("price-3", "euro")]
    assert price.items[2].prompt == (Message("system", "Be brief."), Message("user", "And both?"))
    assert items(season) == [("How is July?", ("hot", "cold"), 1, (), None), ("How is August?", ("hot", "cold"), 0, (), None)]
    assert items(capital) == [("Whose capital?", (), 0, ("Paris", "Lutetia"), None), ("Germany's?", (), 0, ("Berlin",), None)]
    assert (price.title, price.want, price.max_new_tokens) == ("price", "higher", None)


def test_prompts_may_come_from_a_file_beside_or_a_shipped_set(written):
    written(
        '{"prompt": "One?", "answer": "1"}\n{"id": "two", "prompt": [{"role": "user", "content": "Two?"}], "answer": ["2", "two"]}\n', "asked.jsonl"
    )
    path = written("""
- {name: count, want: higher, prompts: asked.jsonl}
- {name: grovels, want: lower, prompts: "embedded:injections", measure: apology, max_new_tokens: 9}
""")
    count, grovels = read_probes(path)
    assert items(count) == [("One?", (), 0, ("1",), None), ("Two?", (), 0, ("2", "two"), None)]
    assert [item.id for item in count.items] == ["count-1", "two"]
    assert (grovels.measure, grovels.max_new_tokens, len(grovels.items)) == (MEASURES["apology"], 9, 20)
    assert not any(item.pattern for item in grovels.items), "a measure goes before what the prompts say"


def test_the_version_follows_what_is_asked_and_what_counts(written):
    def version(text, code="def f(reply, prompt): return True"):
        written(code, "own.py")
        [probe] = read_probes(written(text))
        name, _, digits = probe.set.partition("@")
        assert name == "mine"
        return digits

    plain = "- {name: a, want: none, prompts: [Hello], pattern: x}"
    assert re.fullmatch("[0-9a-f]{8}", version(plain))
    assert version(plain) == version("- {name: b, title: B, want: lower, prompts: [Hello], pattern: x}")
    others = [
        plain.replace("Hello", "Hi"),
        plain.replace("x}", "y}"),
        plain.replace("x}", "x, max_new_tokens: 3}"),
        plain.replace("pattern: x", "measure: loop"),
    ]
    own = plain.replace("pattern: x", "function: 'own.py:f'")
    versions = [*map(version, [plain, *others]), version(own), version(own, "def f(reply, prompt): return False")]
    assert len(set(versions)) == len(versions)
    assert read_probes(written(plain.replace("pattern", "set: words@3, pattern")))[0].set == "words@3"


ENTRY = "- {name: mine, want: higher, prompts: [Hello], pattern: x}"
WRONG = {
    "no list": ("name: mine", "a probe file is a list of probes"),
    "nothing": ("", "a probe file is a list of probes"),
    "no YAML": ("- {", "not valid YAML"),
    "no mapping": ("- mine", "probe 1: a mapping belongs here (given: 'mine')"),
    "unknown key": (ENTRY.replace("pattern", "patern"), "probe 1 (`mine`): `patern` is not known here. Did you mean `pattern`?"),
    "unknown key of a prompt": (
        ENTRY.replace("[Hello]", "[{prompt: Hello, anser: x}]"),
        "prompt 1: `anser` is not known here. Did you mean `answer`?",
    ),
    "bad regex": (ENTRY.replace(": x", ": '(x'"), "`pattern`: this is no regular expression (missing ), unterminated subpattern"),
    "pattern of a number": (ENTRY.replace(": x", ": 3"), "`pattern`"),
    "no want": (ENTRY.replace("want: higher, ", ""), "probe 1 (`mine`): `want` is missing."),
    "other want": (ENTRY.replace("higher", "more"), "`want`: Input should be 'higher', 'lower' or 'none' (given: 'more')"),
    "no name": (ENTRY.replace("name: mine, ", ""), "probe 1: `name` is missing."),
    "name of two words": (ENTRY.replace("mine", "my own"), "`name`"),
    "no prompts": (ENTRY.replace("prompts: [Hello], ", ""), "`prompts` is missing."),
    "empty prompts": (ENTRY.replace("[Hello]", "[]"), "`prompts` is a list of prompts, or the name of a file"),
    "empty prompt": (ENTRY.replace("[Hello]", "['  ']"), "probe 1 (`mine`), prompt 1: this prompt is empty."),
    "prompt of a number": (ENTRY.replace("[Hello]", "[Hello, 3]"), "prompt 2: `prompt`: `prompt` is a number."),
    "bad role": (ENTRY.replace("Hello", "[{role: boss, content: x}]"), "boss"),
    "no measure": (
        ENTRY.replace(", pattern: x", ""),
        "a probe measures one thing: `pattern`, `answer`, `choices` with `answer`, `function` or `measure`. It has none.",
    ),
    "two ways": (ENTRY.replace("pattern", "measure: loop, pattern"), None),
    "way and answer": (ENTRY.replace("pattern", "answer: yes sir, pattern"), "It has `answer` and `pattern`."),
    "ways differ by prompt": (ENTRY.replace("[Hello]", "[Hello, {prompt: Hi, answer: Hi}]"), "It has `answer` and `pattern`."),
    "unknown measure": (
        ENTRY.replace("pattern: x", "measure: politeness"),
        "`measure`: Input should be 'length', 'apology', 'refusal', 'loop' or 'ended'",
    ),
    "choices alone": (ENTRY.replace("pattern: x", "choices: [a, b]"), "prompt 1: `choices` stand without `answer`"),
    "choices beside a pattern": (ENTRY.replace("pattern", "choices: [a, b], pattern"), "prompt 1: `choices` stand without `answer`"),
    "one choice": (ENTRY.replace("pattern: x", "choices: [a], answer: a"), "`choices` are at least two, all different."),
    "equal choices": (ENTRY.replace("pattern: x", "choices: [a, a], answer: a"), "`choices` are at least two, all different."),
    "answer beside the choices": (
        ENTRY.replace("pattern: x", "choices: [a, b], answer: c"),
        "one of the choices, or its place from 0 to 1 (given: ('c',))",
    ),
    "place beyond the choices": (ENTRY.replace("pattern: x", "choices: [a, b], answer: 2"), "its place from 0 to 1 (given: 2)"),
    "choices that YAML took for truth": (ENTRY.replace("pattern: x", "choices: [yes, no], answer: 0"), "(given: True). Put it in quotes."),
    "answer that YAML took for truth": (
        ENTRY.replace("pattern: x", "choices: ['yes', 'no'], answer: yes"),
        "numbers for text only in quotes (given: True)",
    ),
    "answer that YAML took for a number": (ENTRY.replace("pattern: x", "answer: 42"), "Put a reply of digits in quotes."),
    "empty answer": (ENTRY.replace("pattern: x", "answer: ''"), "`answer`: text, a list of texts"),
    "no such function": (ENTRY.replace("pattern: x", "function: 'own.py:f'"), "own.py, and there is no such file"),
    "no tokens": (ENTRY.replace("pattern: x", "pattern: x, max_new_tokens: 0"), "`max_new_tokens`"),
}


@pytest.mark.parametrize("text, words", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused_with_file_and_entry(written, text, words):
    path = written(text)
    with pytest.raises(RecipeError) as refused:
        read_probes(path)
    assert str(refused.value).startswith(str(path))
    assert (words or "It has `measure` and `pattern`.") in str(refused.value)


def test_code_is_named_before_it_runs(written, tmp_path):
    written("raise SystemError('it ran')", "own.py")
    path, said = written(ENTRY.replace("pattern: x", "function: 'own.py:f'")), []
    with pytest.raises(RecipeError, match="it ran"):
        read_probes(path, said.append)
    assert said == [f"Running {tmp_path / 'own.py'}, which {path} names."]


def test_missing_files_are_named(written, tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: there is no such probe file"):
        read_probes(tmp_path / "nowhere.yaml")
    written('{"prompt": "a"}\n', "asked.jsonl")
    with pytest.raises(DataError, match=r"aksed\.jsonl: there is no such file\. Did you mean `asked\.jsonl`"):
        read_probes(written(ENTRY.replace("[Hello]", "aksed.jsonl")))
    written('{"prompt": "a"}\n{"prompt"}\n', "asked.jsonl")
    with pytest.raises(DataError, match=r"asked\.jsonl, line 2"):
        read_probes(written(ENTRY.replace("[Hello]", "asked.jsonl")))
    written('{"prompt": "a"}\n{"promt": "b"}\n', "asked.jsonl")
    with pytest.raises(RecipeError, match=r"asked\.jsonl, line 2 \(.*mine\.yaml: probe 1 \(`mine`\)\): `prompt` is missing"):
        read_probes(written(ENTRY.replace("[Hello]", "asked.jsonl")))


def test_sets_and_files_together(written):
    path = written(ENTRY)
    everything = [probe.name for probe in shipped_probes()]
    assert [probe.name for probe in probes_of(True, [path])] == [*everything, "mine"]
    assert [probe.name for probe in probes_of(False, [path])] == ["mine"]
    assert [probe.name for probe in probes_of(("qa", "red-team"), ())] == ["qa_accuracy", "red_team_refusal_rate"]
    assert probes_of(False, ()) == []
    for taken in ("qa_accuracy", "held_out_loop_rate"):
        with pytest.raises(RecipeError, match=f"`{taken}` is taken"):
            probes_of(False, [written(ENTRY.replace("mine", taken))])
    written(ENTRY)
    with pytest.raises(RecipeError, match="`mine` is taken"):
        probes_of(False, [path, written(ENTRY, "others.yaml")])


@pytest.mark.parametrize(
    "given, words",
    [(["quiz"], "no set of probes is called 'quiz'"), ("qa", "true, false, or a list of qa,"), (["redteam"], "Did you mean `red-team`?")],
)
def test_a_recipe_names_sets_that_exist(given, words):
    recipe = {"data": {"train": ["pairs.jsonl"]}, "eval": {"probes": given}}
    with pytest.raises(RecipeError, match=rf"^r\.yaml: `eval\.probes`: .*{re.escape(words)}"):
        parse_recipe(recipe, where="r.yaml")
    assert parse_recipe({**recipe, "eval": {"probes": list(PROBE_SETS)}}, where="r.yaml").eval.probes == PROBE_SETS


def test_the_examples_of_the_guide_can_be_read(tmp_path):
    (tmp_path / "checks.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)))
    blocks = re.findall(r"```yaml\n(- name.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 1
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.yaml").write_text(block)
        assert read_probes(tmp_path / f"{number}.yaml")
