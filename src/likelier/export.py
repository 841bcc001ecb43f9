"""A run's model for others: one folder that transformers loads, or a PEFT adapter, compared with the run's own model before it is left behind.

    own        the run's model: weights, or the base's and the adapter beside them
    merged     the adapter in the weights
    rounded    the merged weights in the precision asked for
    exported   what was written, loaded again by its files alone

All are scored in fp32, on the CPU, by plain transformers. Own and merged must agree, and so must rounded and exported; what lies between
merged and rounded is rounding, which is measured and said.

Shape legend: T tokens of the replies of a few records, held-out ones first.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likelier.adapters import merge_adapter
from likelier.card import base_name, model_card
from likelier.data.chat import Encoder, template_hash, tokenizer_hash
from likelier.data.load import read_sides
from likelier.data.rendering import given_template
from likelier.errors import Refused, RunError
from likelier.examples import Example
from likelier.hashing import file_hash
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.scorer import DTYPES, Precision, Scorer, in_fp32
from likelier.model_files import hub_name
from likelier.models import LoadedModel, fingerprint, held_as, load_model, load_trained, save_trained
from likelier.recipe import ModelSettings, Recipe, load_recipe
from likelier.records import Record
from likelier.rundir import EXPORT, RunDir, provenance_notes, read_json, write_atomic, write_json

RECORDS = 8
"""Records on whose replies the models are compared, held-out ones first."""

TOLERANCE = 1e-4
"""Largest per-token difference, in nats, between models that must agree. Sums in another order stay near 1e-5."""

CPU = torch.device("cpu")

Say = Callable[[str], None]
Difference = dict[str, float]


def quiet(text: str) -> None:
    """Says nothing."""


def export_run(run: RunDir, dst: str | Path, *, adapter: bool = False, precision: Precision | None = None, say: Say = quiet) -> dict[str, Any]:
    """Write a run's model into the folder `dst`, with tokenizer, chat template, model card and export.json; return what that holds.

    A whole model, its adapter merged in fp32 into the base's weights as their files hold them, and rounded once to `precision` (None: that of
    the run); or with `adapter` the adapter as it was trained. A base that the run quantised is not what is merged into.

    Raises RunError where the run has not ended, has no adapter, or is not what its manifest says, and where `dst` holds something; Refused where
    the exported model is not the run's. Then nothing is left at `dst`.
    """
    recipe, manifest, dst = load_recipe(run.require().recipe), run.read_manifest(), Path(dst).resolve()
    _check_request(run, manifest, dst, adapter=adapter, precision=precision)
    precision = "fp32" if adapter else precision or manifest["numerics"]["precision"]
    own = load_trained(run.model, recipe.model, dtype=torch.float32, device=CPU)
    _require_unchanged(run, recipe, manifest, own)
    encoder = Encoder(own.tokenizer, chat_template=recipe.model.chat_template, max_length=recipe.data.max_length)
    records = _some_records(run, recipe, encoder)
    examples = encoder.encode(records).examples
    _carry_template(own.tokenizer, recipe)
    comparison = Comparison(examples, pad_id=encoder.end_token_id, tokens_per_batch=recipe.train.tokens_per_batch, say=say)
    comparison.begin(own.model)
    with _whole_folder(dst) as folder:
        if adapter:
            _write_adapter(run, recipe, own.tokenizer, folder)
        else:
            _write_model(own, comparison, precision, encoder.end_token_id, provenance_notes(manifest), folder)
        del own  # never two models at once
        exported = _load_exported(folder, recipe, adapter=adapter)
        comparison.must_agree("Loaded again", exported.model)
        _require_same_tokens(recipe, exported.tokenizer, records, examples)
        card = model_card(recipe, manifest, adapter=adapter, evaluation=run.read_eval(), remarks=[comparison.sentence(precision)])
        write_atomic(folder / "README.md", card)
        made = _account(recipe, manifest, folder, comparison, adapter=adapter, precision=precision)
        write_json(folder / EXPORT, made)
    say(f"{'Adapter' if adapter else f'Model in {precision}'}: {dst}")
    return made


def _account(
    recipe: Recipe, manifest: dict[str, Any], folder: Path, comparison: "Comparison", *, adapter: bool, precision: Precision
) -> dict[str, Any]:
    """What export.json holds."""
    return {
        "likelier": version("likelier"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": "adapter" if adapter else "model",
        "precision": precision,
        "base": {"name": base_name(recipe), "revision": recipe.model.revision},
        "provenance": provenance_notes(manifest),
        "made_of": manifest.get("saved", {}),
        "comparison": comparison.as_dict(),
        "files": {
            str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "README.md"
        },
    }


class Comparison:
    """Scores models on the same pairs, one after the other, and keeps how far each is from the one before."""

    def __init__(self, examples: Sequence[Example], *, pad_id: int, tokens_per_batch: int, say: Say) -> None:
        self._sequences = sequences_of(examples)
        self._pad_id = pad_id
        self._tokens_per_batch = tokens_per_batch
        self._say = say
        self._first_T = self._last_T = torch.empty(0)
        self.steps: dict[str, Difference] = {}

    def begin(self, model: Any) -> None:
        """The run's own model."""
        self._first_T = self._last_T = self._score(model)

    def must_agree(self, step: str, model: Any) -> None:
        """Raises Refused where the model's log-probabilities are not those of the one before."""
        found = self._go_on(step, model)
        self._say(f"{step}: {found['largest']:.1e} nats a token at most from the model before (tolerance {TOLERANCE:.0e}).")
        if not found["largest"] <= TOLERANCE:  # true for NaN
            raise Refused(
                f"the exported model is not the run's. {step}, its log-probabilities differ by {found['largest']:.2g} nats a token "
                f"(tolerance {TOLERANCE:.0e}) on {len(self._sequences)} replies, so it was not kept."
            )

    def measure(self, step: str, model: Any) -> None:
        """How far a model is from the one before, which it need not equal."""
        found = self._go_on(step, model)
        self._say(f"{step}: {found['largest']:.2g} nats a token at most, {found['mean']:.2g} on average.")

    def as_dict(self) -> dict[str, Any]:
        """What export.json says."""
        sizes = {"replies": len(self._sequences), "tokens": len(self._first_T)}
        return {**sizes, "tolerance": TOLERANCE, "steps": self.steps, "whole": _difference(self._first_T, self._last_T)}

    def sentence(self, precision: Precision) -> str:
        """What the card says."""
        whole = _difference(self._first_T, self._last_T)
        return (
            f"Exported in {precision}: on {len(self._sequences)} replies ({len(self._first_T)} tokens), scored in fp32, its log-probabilities are "
            f"{whole['mean']:.1e} nats a token from those of the run's model on average and {whole['largest']:.1e} at most."
        )

    def _go_on(self, step: str, model: Any) -> Difference:
        before_T, self._last_T = self._last_T, self._score(model)
        self.steps[step.lower()] = _difference(before_T, self._last_T)
        return self.steps[step.lower()]

    def _score(self, model: Any) -> Tensor:
        """(T,) log-probabilities, in fp32 whatever type the weights have."""
        values: dict[int, Tensor] = {}
        with in_fp32(model):
            scorer = Scorer(model, engine="plain", precision="fp32", pad_id=self._pad_id)
            for indices, scored in scorer.score_all(self._sequences, tokens_per_batch=self._tokens_per_batch):
                values.update(zip(indices, scored, strict=True))
        return torch.cat([values[i] for i in range(len(self._sequences))])


def _difference(a_T: Tensor, b_T: Tensor) -> Difference:
    differences_T = (a_T - b_T).abs()
    return {"largest": float(differences_T.max()), "mean": float(differences_T.mean())}


# What is asked


def _check_request(run: RunDir, manifest: dict[str, Any], dst: Path, *, adapter: bool, precision: Precision | None) -> None:
    if not manifest.get("outcome"):
        raise RunError(f"{run.path}: this run has not ended. The command that began it goes on with it.")
    if dst.is_relative_to(run.path.resolve()) and dst != run.path.resolve():
        raise RunError(f"{dst}: this lies in the run's own folder, which the run keeps for itself. Give a folder outside of it.")
    if dst.exists() and not (dst.is_dir() and not any(dst.iterdir())):
        raise RunError(f"{dst}: something is here already. Give a folder that is new or empty.")
    if adapter and not (run.model / "adapter_config.json").is_file():
        raise RunError(f"{run.path}: this run tuned all weights, so it has no adapter. Leave --adapter out.")
    if adapter and precision:
        raise RunError("an adapter is exported as it was trained. Leave --precision out, or --adapter.")
    for name, said in manifest.get("saved", {}).items():
        if not (run.model / name).is_file() or file_hash(run.model / name) != said:
            raise RunError(f"{run.model / name}: this is not the file that the run saved. Put it back, or train again.")


def _require_unchanged(run: RunDir, recipe: Recipe, manifest: dict[str, Any], own: LoadedModel) -> None:
    """Raises RunError where tokenizer, template or base are not those of the run any more."""
    then = manifest["model"]
    if recipe.train.method != "full":  # all weights are in the run itself
        dtype = getattr(torch, manifest["numerics"]["weights_dtype"])
        trained_on = load_trained(run.model, recipe.model, dtype=dtype, device=CPU, **held_as(recipe))
        if fingerprint(trained_on.model) != then["weights"]:
            raise RunError(f"{run.path}: `{recipe.model.name}` no longer has the weights that this run's adapter was trained on. Put them back.")
    now = tokenizer_hash(own.tokenizer), template_hash(own.tokenizer, recipe.model.chat_template)
    if now != (then["tokenizer"], then["chat_template"]):
        raise RunError(f"{run.path}: the tokenizer or the chat template is not that of the run any more. Put it back, or train again.")


def _some_records(run: RunDir, recipe: Recipe, encoder: Encoder) -> list[Record]:
    """The first records that fit: those that were held out, then those trained on."""
    train, held_out = read_sides(recipe.data, unpaired=True)
    records: list[Record] = []
    for record in (*held_out, *train):
        records += [record] if encoder.encode([record]).examples else []
        if len(records) == RECORDS:
            return records
    if not records:
        raise RunError(f"{run.path}: none of its records can be scored any more, so the export could not be compared with the run.")
    return records


def _carry_template(tokenizer: Any, recipe: Recipe) -> None:
    """A template that the recipe names becomes the tokenizer's own."""
    if recipe.model.chat_template not in ("own", "none"):
        tokenizer.chat_template = given_template(tokenizer, recipe.model.chat_template)


# What is written


def _write_model(own: LoadedModel, comparison: Comparison, precision: Precision, end_token_id: int, notes: dict[str, str], folder: Path) -> None:
    """The whole model. `own` is used up: its weights become those that are written."""
    if hasattr(own.model, "peft_config"):
        own.model = merge_adapter(own.model)
        comparison.must_agree("Merged", own.model)
    if precision != "fp32":
        for parameter in own.model.parameters():  # buffers, such as rotary frequencies, are never rounded
            parameter.data = parameter.data.to(DTYPES[precision])
        comparison.measure(f"Rounded to {precision}", own.model)
    _end_replies(own.model.generation_config, end_token_id)
    save_trained(own.model, own.tokenizer, folder, card="", notes=notes)


def _end_replies(generation: Any, end_token_id: int) -> None:
    """Generation stops at the token that ended replies in training."""
    known = generation.eos_token_id
    ends = [] if known is None else known if isinstance(known, list) else [known]
    if end_token_id not in ends:
        generation.eos_token_id = [*ends, end_token_id] if ends else end_token_id


def _write_adapter(run: RunDir, recipe: Recipe, tokenizer: Any, folder: Path) -> None:
    """The adapter's own files, byte for byte, with a config that calls the base what others call it."""
    shutil.copytree(run.model, folder)
    tokenizer.save_pretrained(folder)
    config = folder / "adapter_config.json"
    base = {"base_model_name_or_path": hub_name(recipe.model.name) or recipe.model.name, "revision": recipe.model.revision}
    write_json(config, read_json(config) | base)


def _load_exported(folder: Path, recipe: Recipe, *, adapter: bool) -> LoadedModel:
    if adapter:
        return load_trained(folder, recipe.model, dtype=torch.float32, device=CPU)
    settings = ModelSettings(name=str(folder), trust_remote_code=recipe.model.trust_remote_code)
    return load_model(settings, dtype=torch.float32, device=CPU)


def _require_same_tokens(recipe: Recipe, tokenizer: Any, records: Sequence[Record], examples: Sequence[Example]) -> None:
    """The exported tokenizer, with the template that it carries, makes the run's ids."""
    template = "none" if recipe.model.chat_template == "none" else "own"
    if Encoder(tokenizer, chat_template=template, max_length=recipe.data.max_length).encode(records).examples != examples:
        raise Refused("the exported tokenizer does not make the tokens that the run was trained on, so the export was not kept.")


@contextmanager
def _whole_folder(dst: Path) -> Iterator[Path]:
    """A folder that takes `dst`'s place when the block ends well, and leaves no trace otherwise."""
    dst.parent.mkdir(parents=True, exist_ok=True)
    temporary = dst.with_name(f".{dst.name}.{os.getpid()}.exporting")
    try:
        yield temporary
        temporary.rename(dst)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
