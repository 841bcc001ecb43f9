"""A training run from recipe to model folder: everything around the loop.

sole_use    no other process works in the run directory
prepare     read, split, encode · load · choose the engine        (touches no disk but caches)
open_run    the run directory: fresh, or resumed if it is the same recipe's
then        fill the reference store · fit · keep the best · save · write down what happened
"""

import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from likelier.adapters import start_files
from likelier.audit.gate import check_names, open_gate
from likelier.card import model_card
from likelier.chunks import say_damaged
from likelier.data.chat import Encoder, template_hash, tokenizer_hash
from likelier.data.kept_turns import KeptTurns
from likelier.data.load import Side, load_sides
from likelier.errors import RunError, TrainingStopped, lacks_memory
from likelier.examples import Example
from likelier.logprobs.examples import mismatched, sequences_of
from likelier.logprobs.reference import ReferenceStore, identity, numerics_of
from likelier.logprobs.scorer import DTYPES, TOLERANCE, Parity, Scorer, choose_engine
from likelier.model_files import cache_dir
from likelier.models import (
    LoadedModel,
    add_adapter,
    as_reference,
    base_fingerprint,
    count_parameters,
    fingerprint,
    load_model,
    pick_device,
    pick_precision,
    save_trained,
    trainable,
)
from likelier.objectives import Objective, make_objective
from likelier.recipe import Recipe
from likelier.recompute import recompute_activations
from likelier.rundir import RunDir, provenance_notes, write_json
from likelier.train import checkpoint
from likelier.train.folder import check_folder, clear, open_run
from likelier.train.lock import sole_use
from likelier.train.loop import fit
from likelier.train.master import MasterWeights, originals_of
from likelier.train.order import ExampleOrder
from likelier.train.outlook import announce
from likelier.train.parallel import ALONE, Ranks, fill_together
from likelier.train.progress import Progress
from likelier.train.sharding import shard, whole_weights
from likelier.train.step import refuse_unheeded, require_whole_steps
from likelier.train.stop import Stop, heed_signals
from likelier.train.trackers import require_trackers, tracked
from likelier.train.watch import Setup, Unwatched, Watch
from likelier.train.watch.prompts import WatchedPrompts
from likelier.train.watch.rules import reference_changed
from likelier.train.ways import packages, require_way, way
from likelier.weights import filed_fingerprint
from likelier.wording import count

LONG_AUDIT = 5000
"""Training pairs from which the audit is announced."""


@dataclass
class Prepared:
    """All that a run needs, checked, before it leaves a trace."""

    recipe: Recipe
    objective: Objective
    loaded: LoadedModel
    train: Side
    held_out: Side
    policy: Scorer
    parity: Parity
    weights: str  # fingerprint of the reference's weights
    numerics: dict[str, Any]  # what alters the reference's numbers beside its weights
    audit: dict[str, Any]  # what the manifest says about the audit of the training pairs


def prepare(recipe: Recipe, show: Progress, ranks: Ranks = ALONE) -> Prepared:
    """Check everything that can be checked before a run begins. A model that `ranks` will divide among them is loaded by the leader alone, on the
    CPU; the others learn from it what it found out (`tell_others`)."""
    objective = make_objective(recipe.objective.name, **recipe.objective.given())
    check_names(recipe.audit)
    settings = recipe.train
    device = pick_device()
    precision = pick_precision(settings.precision, device)
    require_way(recipe, precision)
    held_on = device if not divides(recipe, ranks) else torch.device("cpu" if ranks.leads else "meta")
    loaded = load_model(recipe.model, dtype=DTYPES[precision], device=held_on, in_four_bits=settings.method == "qlora")
    encoder = Encoder(loaded.tokenizer, chat_template=recipe.model.chat_template, max_length=recipe.data.max_length)
    kept = KeptTurns(cache_dir() / "tokens", encoder.identity)
    train, held_out = load_sides(recipe.data, encoder, unpaired=not objective.paired, kept=kept)
    say_damaged(kept.damaged, show.say)
    for side in (train, held_out):
        _announce(side, show)
    refuse_unheeded(train.examples, objective)
    _announce_unread(train, objective, show)
    if objective.point_is_kl:
        train, held_out = (side.with_others() for side in (train, held_out))
        if not any(example.others for example in train.examples):
            show.say("KTO's reference point will be 0: it is estimated on replies to other prompts, and the training records have but one prompt.")
    require_whole_steps(ExampleOrder(train.examples, settings), objective, settings.tokens_per_batch)
    if len(train.pairs) > LONG_AUDIT:
        show.say(f"Auditing {len(train.pairs):,} training pairs, which takes about a minute for 50,000 and is done once.")
    audit = open_gate(train.pairs, train.id, recipe.audit, cache=cache_dir() / "audits")
    for finding in audit["findings"]:
        if finding["verdict"] != "note":
            show.say(f"Audit, {finding['verdict']}: {finding['summary']}")
    if settings.method != "full":
        loaded.model = add_adapter(loaded.model, recipe.adapter, seed=settings.seed)
    recompute_activations(loaded.model, settings.gradient_checkpointing)
    told: tuple[str, Parity] | None = None
    if held_on.type != "meta":
        told = fingerprint(loaded.model), choose_engine(loaded.model, sequences_of(probe_examples(train.examples)), pad_id=encoder.end_token_id)
    weights, parity = told or ranks.from_leader(told)
    for reason in parity.passed_over:
        show.say(f"Not used: {reason}")
    policy = Scorer(loaded.model, engine=parity.engine, precision=precision, pad_id=encoder.end_token_id)
    return Prepared(recipe, objective, loaded, train, held_out, policy, parity, weights, numerics_of(policy, device), audit)


def tell_others(prepared: Prepared, ranks: Ranks) -> None:
    """What the leader alone can find out, who has the model, when the others begin to prepare."""
    if divides(prepared.recipe, ranks):
        ranks.from_leader((prepared.weights, prepared.parity))


def divides(recipe: Recipe, ranks: Ranks) -> bool:
    """Whether each rank will hold a part of the model."""
    return recipe.train.fsdp and ranks.size > 1


def probe_examples(examples: Sequence[Example]) -> list[Example]:
    """What the parity probe looks at: two short examples, and the longest, which alone may reach beyond a sliding window."""
    by_length = sorted(examples, key=len)
    return list(dict.fromkeys([*by_length[:2], by_length[-1]]))


def train_recipe(recipe: Recipe, *, show: Progress | None = None, fresh: bool = False, stop: Stop | None = None, ranks: Ranks = ALONE) -> RunDir:
    """Carry out `recipe` in its run directory, or go on where it was interrupted. `fresh` removes an earlier run there first. Of several `ranks`
    (parallel.py) each calls this, and all of them see the run directory.

    Raises RunError if another process is at work there, or if a disk is full, Interrupted where SIGTERM or Ctrl-C asked it to stop, and GivenUp
    where a program did, through `stop`.
    """
    try:
        return _train(recipe, show or Progress(), stop or Stop(), ranks, fresh=fresh)
    except (RuntimeError, MemoryError) as problem:
        if not lacks_memory(problem):
            raise
        raise RunError(
            f"not enough memory to train this model. Less is taken by a smaller train.tokens_per_batch (here {recipe.train.tokens_per_batch}) and by "
            "train.gradient_checkpointing: selective or true, with which the same command goes on from the last checkpoint; then by "
            f"train.method: lora, by a smaller data.max_length or model. ({' '.join(str(problem).split())[:200]})"
        ) from problem


def _train(recipe: Recipe, show: Progress, stop: Stop, ranks: Ranks, *, fresh: bool) -> RunDir:
    run = RunDir(recipe.out)
    if not ranks.leads:
        with ranks.leader_first():
            prepared = prepare(recipe, show, ranks)
        with heed_signals(stop):
            _carry_out(run, prepared, show, stop, ranks)
            stop.leave("when the model had been saved")
        return run
    require_trackers(recipe.log)
    with sole_use(run):
        check_folder(run, recipe, fresh=fresh)
        with ranks.leader_first():
            prepared = prepare(recipe, show, ranks)
            if fresh:
                clear(run)
            open_run(run, recipe, make_manifest(prepared))
        tell_others(prepared, ranks)
        with heed_signals(stop), tracked(show, recipe, run) as observed:
            _carry_out(run, prepared, observed, stop, ranks)
            stop.leave("when the model had been saved")
    return run


def _carry_out(run: RunDir, prepared: Prepared, show: Progress, stop: Stop, ranks: Ranks) -> None:
    """From an open run directory to one that holds a model."""

    def reference_scored(done: int, total: int) -> None:
        show.reference_scored(done, total)
        if ranks.size == 1:  # several leave together
            stop.leave(f"when {done} of {total} sequences had been scored under the reference")

    recipe = prepared.recipe
    policy, settings = prepared.policy, recipe.train
    examples = [*prepared.train.examples, *prepared.held_out.examples]
    everything = [*sequences_of(examples), *mismatched(examples)]
    started = time.perf_counter()
    digest = ""
    try:
        store = open_store(prepared, show) if prepared.objective.needs_reference else None
        announce(prepared, store, show)
        if divides(recipe, ranks):
            shard(policy, pick_device(), originals_of(policy.model, recipe.model) if ranks.leads else None)
        held = fingerprint(policy.model) if policy.is_divided else prepared.weights
        if store is not None:
            with as_reference(policy.model):
                computed = fill_together(
                    store, policy, everything, ranks, tokens_per_batch=settings.tokens_per_batch, on_progress=reference_scored, stop=stop
                )
            digest = store.digest(everything)
            if ranks.leads:
                _count_reference(run, computed, of=len(set(everything)))
        reference_seconds = time.perf_counter() - started
        masters = MasterWeights.of(policy.model, recipe.model, settings.bf16_weights)
        sides = prepared.train.examples, prepared.held_out.examples
        watch = _watch(run, prepared, show, ranks)
        state, ending = fit(policy, store, *sides, prepared.objective, settings, run, show, masters, stop, watch, ranks)
    finally:
        show.close()
    unchanged = None
    if store is not None:
        mine = store.digest(everything) == digest and (settings.method == "full" or fingerprint(policy.model) == held)
        unchanged = all(ranks.gather(mine))
    _require_unchanged(run, unchanged, state, watch, ranks)
    if state.best and (ranks.leads or policy.is_divided):
        checkpoint.load_weights(checkpoint.best(run.checkpoints, state), trainable(policy.model))
    model = _trained_model(prepared, ranks)
    if ranks.leads:
        _save(run, prepared, model, state, ending, reference_seconds)
    ranks.wait()


def _watch(run: RunDir, prepared: Prepared, show: Progress, ranks: Ranks) -> Watch:
    recipe = prepared.recipe
    watched = WatchedPrompts(prepared.policy, prepared.loaded.tokenizer, prepared.held_out, recipe, end_token_id=prepared.policy.pad_id)
    prompts = run.read_manifest()["data"]["eval"]["prompts"]
    setup = Setup(recipe.train, prepared.objective, recipe, prompts)
    if ranks.leads:
        return Watch(run, show, setup, watched)
    return Unwatched(run, setup, watched if prepared.policy.is_divided else None)


def _require_unchanged(run: RunDir, unchanged: bool | None, state: checkpoint.State, watch: Watch, ranks: Ranks) -> None:
    """Write down whether the reference is what it was; None: there is none. Raises TrainingStopped if it is not."""
    if unchanged is None:
        return
    if ranks.leads:
        if not unchanged:
            watch.tell([reference_changed(state.step)])
        manifest = run.read_manifest()
        write_json(run.manifest, manifest | {"reference": manifest["reference"] | {"unchanged": unchanged}})
    if not unchanged:
        raise TrainingStopped(
            "the reference changed during the run: its weights or stored values are not what they were. Nothing was saved as the model."
        )


def _trained_model(prepared: Prepared, ranks: Ranks) -> Any:
    """What is to be saved: the model as it was trained or, where its trained weights are in parts, for the leader another that holds them whole."""
    policy, recipe = prepared.policy, prepared.recipe
    if not policy.is_divided or recipe.train.method != "full":
        return policy.model
    dtype = DTYPES[policy.precision]
    weights = whole_weights(policy.model, dtype, keep=ranks.leads)
    if not ranks.leads:
        return None
    model = load_model(recipe.model, dtype=dtype, device=torch.device("cpu")).model
    model.load_state_dict(weights)
    return model


def _save(run: RunDir, prepared: Prepared, model: Any, state: checkpoint.State, ending: str, reference_seconds: float) -> None:
    """The best weights, which `model` has, as the run's model, and what happened into its manifest."""
    recipe, manifest = prepared.recipe, run.read_manifest()
    outcome = {
        "steps": state.step,
        "stopped": ending,
        "best_step": state.best.get("step"),
        "best_accuracy": state.best.get("accuracy"),
        "first_loss": state.first_loss,
        "first_loss_expected": state.first_loss_expected,
        "seconds": round(state.seconds, 1),
        "reference_seconds": round(reference_seconds, 1),
    }
    manifest |= {"outcome": outcome}
    card = model_card(recipe, manifest, adapter=recipe.train.method != "full")
    notes = provenance_notes(manifest)
    saved = save_trained(model, prepared.loaded.tokenizer, run.model, card=card, notes=notes)
    write_json(run.manifest, manifest | {"saved": saved})
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _count_reference(run: RunDir, computed: int, *, of: int) -> None:
    """Add to the manifest how many sequences this start of the run scored under the reference, `of` so many; the others are reused."""
    manifest = run.read_manifest()
    computed += (manifest.get("reference") or {}).get("computed", 0)
    write_json(run.manifest, manifest | {"reference": {"computed": computed, "reused": max(0, of - computed), "unchanged": None}})


def open_store(prepared: Prepared, show: Progress) -> ReferenceStore:
    """The reference's store in the cache, by weights and numerics."""
    store = ReferenceStore(cache_dir() / "reference", identity(weights=prepared.weights, numerics=prepared.numerics))
    say_damaged(store.damaged, show.say)
    return store


def make_manifest(prepared: Prepared) -> dict[str, Any]:
    """Provenance, as rundir.py lists it; `reference` and `outcome` come later."""
    recipe, model = prepared.recipe, prepared.policy.model
    return {
        "likelier": version("likelier"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(sys.argv),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages(recipe.train)}},
        "recipe": recipe.fingerprint(),
        "data": {"train": prepared.train.summary(), "eval": prepared.held_out.summary()},
        "audit": prepared.audit,
        "model": {
            "name": prepared.loaded.name,
            "parameters": count_parameters(model),
            "trainable_parameters": sum(p.numel() for p in trainable(model).values()),
            "weights": prepared.weights,
            **_parts(prepared),
            "tokenizer": tokenizer_hash(prepared.loaded.tokenizer),
            "chat_template": template_hash(prepared.loaded.tokenizer, recipe.model.chat_template),
        },
        "training": way(recipe, model, prepared.policy.precision),
        "numerics": {**prepared.numerics, "parity": {"largest_difference": prepared.parity.difference, "tolerance": TOLERANCE}},
        "reference": None,
        "outcome": None,
    }


def _parts(prepared: Prepared) -> dict[str, Any]:
    """What `weights` were made of, where they are not simply the base as its files hold it: `base`, the fingerprint of those files, and the files of
    the adapter in `start`."""
    model, start, folder = prepared.policy.model, prepared.recipe.adapter.start, Path(prepared.loaded.path)
    parts: dict[str, Any] = {"start": start_files(start)} if start else {}
    if "quantisation" in prepared.numerics:
        return parts | ({"base": filed_fingerprint(folder, loaded_as=prepared.numerics["weights_dtype"])} if folder.is_dir() else {})
    return parts | ({"base": base_fingerprint(model)} if start else {})


def _announce(side: Side, show: Progress) -> None:
    for dropped in side.encoded.dropped[:10]:
        show.say(f"Dropped {dropped.id}: {dropped.reason}")
    if len(side.encoded.dropped) > 10:
        show.say(f"Dropped {len(side.encoded.dropped)} records in all; the manifest names each.")
    if odd := side.encoded.boundary_mismatches:
        show.say(f"{len(odd)} records do not decode to the template's text, first {odd[0]}.")


def _announce_unread(train: Side, objective: Objective, show: Progress) -> None:
    """What the records say that nothing looks at."""
    margins = sum(pair.margin is not None for pair in train.pairs)
    if margins and not objective.margin_scale:
        show.say(f"{count(margins, 'margin')} of pairs in the data, which this run does not look at (objective.margin_scale, docs/objectives.md).")
    if alone := len(train.records) - len(train.pairs):
        show.say(f"{count(alone, 'reply', 'replies')} judged alone; the audit looks at pairs only.")


def _command(arguments: Sequence[str]) -> str:
    return " ".join(["likelier", *arguments[1:]])
