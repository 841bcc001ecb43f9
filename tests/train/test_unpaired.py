"""Runs on replies that are judged one by one, and on mixtures with pairs."""

import json
import math
import re
from pathlib import Path

import pytest

from likelier.errors import DataError, RecipeError
from likelier.evaluate import evaluate
from likelier.logprobs.examples import mismatched
from likelier.rundir import RunDir
from likelier.train.progress import Progress
from likelier.train.session import open_store, prepare, train_recipe
from likelier.verify import verify
from tests.train.conftest import PLACES, changed, interrupted, pair_rows

SINGLE = ["kto", "bco", "apo-zero-unpaired"]


class Heard(Progress):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def unseen_rows(count: int) -> list[dict]:
    """Pairs with the same kinds of replies to prompts that are unlike those of `pair_rows`."""
    return [{**row, "id": f"unseen-{n}", "prompt": f"Please name {n} sights near the {PLACES[n]}."} for n, row in enumerate(pair_rows(count))]


def judged_rows(rows: list[dict]) -> list[dict]:
    """Every pair as a good and a bad reply."""
    return [
        {"id": f"{row['id']}-{side}", "prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]


@pytest.fixture
def judged(recipe, tmp_path):
    """judged(rows, **sections): the recipe over these rows, held-out pairs in a file of their own."""

    def made(rows, held_out=None, **sections):
        for name, content in (("train", rows), ("eval", unseen_rows(6) if held_out is None else held_out)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        data = {"train": [str(tmp_path / "train.jsonl")], "eval": [str(tmp_path / "eval.jsonl")]}
        return changed(recipe, **{"data": data, "objective": {"name": "kto"}, "train": {"learning_rate": 3e-3, "epochs": 4}, **sections})

    return made


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("kind", ["single replies", "mixture", "pairs"])
def test_any_mixture_trains_and_is_measured_on_held_out_pairs(judged, name, kind):
    pairs = pair_rows(30)
    rows = {"single replies": judged_rows(pairs), "mixture": [*pairs[:10], *judged_rows(pairs[10:])], "pairs": pairs}[kind]
    run = train_recipe(judged(rows, objective={"name": name}))
    manifest, evaluations = run.read_manifest(), run.read_metrics("eval")
    assert manifest["outcome"]["first_loss"] == pytest.approx(math.log(2) if name == "bco" else 0.5, rel=1e-4)
    assert manifest["reference"]["unchanged"] is True
    assert evaluations[-1]["accuracy"] > 0.8
    alone = {"single replies": {"good": 30, "bad": 30}, "mixture": {"good": 20, "bad": 20}, "pairs": None}[kind]
    assert manifest["data"]["train"].get("unpaired") == alone
    assert manifest["data"]["train"]["pairs"] == {"single replies": 0, "mixture": 10, "pairs": 30}[kind]
    result = evaluate(run)
    assert result["pairs"] == 6
    [best] = [row for row in evaluations if row["step"] == manifest["outcome"]["best_step"]]
    assert result["held_out"]["accuracy"]["value"] == pytest.approx(best["accuracy"])
    assert {check.verdict for check in verify(run.path)} == {"holds"}


def test_held_out_replies_without_a_partner(judged):
    """Accuracy then is the share of good replies that became likelier, and of bad ones that became less likely."""
    run = train_recipe(judged(judged_rows(pair_rows(30)), judged_rows(unseen_rows(6)), objective={"name": "bco"}))
    result = evaluate(run)
    assert (result["pairs"], result["replies"]) == (0, 12)
    assert result["held_out"]["accuracy"]["value"] > 0.7
    assert result["held_out"]["chosen_reward"]["value"] > 0 > result["held_out"]["rejected_reward"]["value"]
    assert "margin" not in result["held_out"]
    assert all(row["chosen"] is None or row["chosen"].startswith("Behind") for row in run.read_samples())
    from likelier.report import write_report

    page = write_report(run).read_text()
    assert "12 held-out replies" in page
    words = re.sub(r"<[^>]*>", " ", page)
    assert {"Reward of good replies", "Held-out replies", "Mean over replies"} <= set(
        re.findall("Reward of good replies|Held-out replies|Mean over replies", words)
    )
    assert not re.search(r"0 (held-out )?pairs|whose chosen reply gets the higher reward; chance|Chosen replies are|Pairs by number", words)
    card = (run.model / "README.md").read_text()
    for sentence in ("steps of 4 records", "Accuracy on held-out replies", "replies judged alone were not audited"):
        assert sentence in card


@pytest.mark.parametrize("label", [True, False])
def test_held_out_replies_of_one_kind(judged, label):
    """The other kind has no rewards, and accuracy is of those that there are."""
    held_out = [row for row in judged_rows(unseen_rows(6)) if row["label"] == label]
    run = train_recipe(judged(judged_rows(pair_rows(30)), held_out))
    result = evaluate(run)
    assert result["replies"] == 6
    assert ("chosen_reward" in result["held_out"], "rejected_reward" in result["held_out"]) == (label, not label)
    from likelier.report import write_report

    page = write_report(run).read_text()
    assert "of 6 held-out replies" in page
    assert "lengths were not recorded" not in page


def test_steps_of_one_side_only_have_no_margin(judged):
    good = [row for row in judged_rows(pair_rows(30)) if row["label"]]
    run = train_recipe(judged(good, objective={"name": "apo-zero-unpaired"}, train={"max_steps": 3}))
    rows = run.read_metrics("train")
    assert all(row["margin"] is None and row["rejected_reward"] is None and row["chosen_reward"] is not None for row in rows)
    assert "NaN" not in run.metrics.read_text()


def test_pairs_are_asked_for_by_name_where_an_objective_needs_them(judged):
    with pytest.raises(DataError, match=r"train.jsonl, line 1: .*pairs are needed here.*kto, bco or apo-zero-unpaired"):
        train_recipe(judged(judged_rows(pair_rows(30)), objective={"name": "dpo"}))


def test_what_nothing_looks_at_is_said(judged):
    show = Heard()
    prepare(judged([*judged_rows(pair_rows(10)), {**pair_rows(12)[11], "margin": 2.0}]), show)
    assert "1 margin of pairs in the data" in " ".join(show.said)
    assert "20 replies judged alone" in " ".join(show.said)


def test_weights_and_margins_that_cannot_be_heeded_are_refused(judged, tmp_path):
    rows = pair_rows(20)
    with pytest.raises(RecipeError, match=r"cannot heed the records' `weight`"):
        train_recipe(judged([{**rows[0], "weight": 2.0}, *rows[1:]], objective={"name": "aot"}, train={"tokens_per_batch": 4096}))
    with pytest.raises(RecipeError, match=r"objective.margin_scale: no training record has a `margin`"):
        train_recipe(judged(rows, objective={"name": "dpo", "margin_scale": 0.5}))
    assert not (tmp_path / "run").exists()


def test_margins_of_records_are_asked_for(judged):
    """At the start h is 0, so that the first loss is that of the offsets alone."""
    rows = [{**row, "margin": 1.0 + n % 3} for n, row in enumerate(pair_rows(30))]
    run = train_recipe(judged(rows, objective={"name": "dpo", "beta": 0.5, "margin_scale": 2.0}, train={"pairs_per_step": 30, "max_steps": 1}))
    wanted = sum(math.log1p(math.exp(0.5 * 2.0 * margin)) for margin in (1, 2, 3)) / 3
    assert run.read_manifest()["outcome"]["first_loss"] == pytest.approx(wanted, rel=1e-4)


def test_weighted_sums_train(judged):
    run = train_recipe(judged(pair_rows(30), objective={"name": "dpo + 0.2 sft", "beta": 0.3}))
    first, last = run.read_metrics("train")[0], run.read_metrics("train")[-1]
    assert first["loss"] > math.log(2) + 0.1
    assert last["chosen_logp"] > first["chosen_logp"]


def test_kill_and_resume_keeps_the_moving_point(judged, tmp_path, monkeypatch):
    from tests.train.test_session import same_bits, weights

    recipe = judged(judged_rows(pair_rows(30)), objective={"name": "bco"})
    whole = train_recipe(changed(recipe, out=str(tmp_path / "whole")))
    interrupted(recipe, monkeypatch, after=3)
    assert same_bits(weights(train_recipe(recipe)), weights(whole))
    rows = [RunDir(Path(folder)).read_metrics("train") for folder in (recipe.out, tmp_path / "whole")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_the_point_of_kto_is_never_that_of_the_replies_themselves(judged):
    """Pitfall 12: no reply is compared with itself; the mismatched ones stand in the reference store, of held-out pairs too."""
    recipe = judged(judged_rows(pair_rows(30)), train={"max_steps": 1})
    prepared = prepare(recipe, Progress())
    for example in prepared.train.examples:
        others = {e.prompt_ids for e in prepared.train.examples for reply in example.others if reply in e.replies}
        assert example.others
        assert example.prompt_ids not in others
    wanted = mismatched([*prepared.train.examples, *prepared.held_out.examples])
    assert len(wanted) == 60 + 12
    assert not any(sequence in open_store(prepared, Progress()) for sequence in wanted)
    train_recipe(recipe)
    store = open_store(prepared, Progress())
    assert all(sequence in store for sequence in wanted)


def test_a_step_that_is_not_finite_is_skipped_and_named(recipe, monkeypatch):
    from likelier.train import step as module

    real = module.score_examples

    def poisoned(policy, reference, batch, **options):
        logps = real(policy, reference, batch, **options)
        if batch[0].id == "pair-7" and RunDir(recipe.out).read_metrics("train") and logps.chosen.policy_N.requires_grad:
            logps.chosen.policy_N.data[:] = float("inf")
        return logps

    monkeypatch.setattr(module, "score_examples", poisoned)
    show = Heard()
    run = train_recipe(changed(recipe, data={"eval_fraction": 0.0}, train={"pairs_per_step": 6, "epochs": 2, "tokens_per_batch": 8}), show=show)
    skipped = run.read_metrics("skipped")
    assert skipped
    assert all(row["ids"] == ["pair-7"] for row in skipped)
    steps = [row["step"] for row in run.read_metrics() if row["kind"] in ("train", "skipped")]
    assert steps == list(range(1, 13))
    assert sum("Skipped step" in text and "pair-7" in text for text in show.said) == len(skipped)
