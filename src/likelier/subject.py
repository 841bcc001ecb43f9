"""What can be asked: the model of a run, an adapter or any model, and the reference that it is compared with, never two of them in memory at once.

run directory    its policy and its reference, in its own arithmetic
adapter folder   the adapter on its base; the reference is the base with the adapter off
model            alone, or against another model that is named
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from likelier.adapters import CONFIG, WEIGHTS
from likelier.data.chat import Encoder
from likelier.errors import ModelError, RequestError, RunError
from likelier.four_bits import quantisation
from likelier.hashing import file_hash
from likelier.logprobs.reference import identity, numerics
from likelier.logprobs.scorer import DTYPES, Engine, Precision, Scorer, choose_engine
from likelier.logprobs.tree import PromptResponse
from likelier.model_files import EMBEDDED, EMBEDDED_ON_HUB, embedded_gguf
from likelier.models import (
    LoadedModel,
    as_reference,
    fingerprint,
    held_as,
    load_model,
    load_tokenizer,
    load_trained,
    loading,
    locate,
    pick_device,
    pick_precision,
    weights_dtype,
)
from likelier.objectives import Objective, make_objective
from likelier.recipe import ModelSettings, Recipe, load_recipe
from likelier.rundir import RunDir

Who = Literal["policy", "reference"]
Found = TypeVar("Found")
Load = Callable[[], LoadedModel]

TOKENS_PER_BATCH = 2048
"""Unique tokens that go through a model at once where no recipe says."""

LONGEST = 1 << 20
"""Tokens of a sequence where neither a recipe nor the model's number of positions is a limit."""


@dataclass
class Subject:
    """A model to ask, and perhaps its reference. `reference` None: there is none, or it is the policy with its `adapter` off."""

    name: str
    settings: ModelSettings  # of the model that brings tokenizer and template
    policy: Load
    reference: Load | None
    adapter: Path | None  # the policy's, where it is one on a base
    objective: Objective | None  # whose reward counts; None where there is no reward
    precision: Precision
    dtype: torch.dtype
    max_length: int
    tokens_per_batch: int = TOKENS_PER_BATCH
    engine: Engine | None = None  # None until `settle` has tried which one is exact
    weights: str = ""  # fingerprint of the reference, where it is known before it is loaded
    recipe: Recipe | None = None  # of a run
    tokenizer: Any = field(init=False)
    encoder: Encoder = field(init=False)
    _held: tuple[Who, LoadedModel] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tokenizer = load_tokenizer(self.settings)
        self.encoder = Encoder(self.tokenizer, chat_template=self.settings.chat_template, max_length=self.max_length)

    @property
    def compared(self) -> bool:
        """Whether there is a reference."""
        return self.adapter is not None or self.reference is not None

    def ask(self, who: Who, work: Callable[[Scorer], Found]) -> Found:
        """What `work` finds out with the policy's or the reference's scorer, which it must not keep: the other model may have to be loaded then."""
        assert self.engine is not None, "settle comes first"
        with self.held(who) as model:
            return work(Scorer(model, engine=self.engine, precision=self.precision, pad_id=self.encoder.end_token_id))

    @contextmanager
    def held(self, who: Who) -> Iterator[Any]:
        """The policy's or the reference's model, while the block lasts."""
        loaded = self._load(who)
        with as_reference(loaded.model) if who == "reference" else nullcontext():
            yield loaded.model

    def settle(self, sequences: Sequence[PromptResponse]) -> None:
        """Choose the engine, if no run has: by the parity probe on the two shortest of `sequences` and the longest."""
        if self.engine is None:
            by_length = sorted(set(sequences), key=lambda sequence: len(sequence.prompt_ids) + len(sequence.response_ids))
            probe = list(dict.fromkeys([*by_length[:2], by_length[-1]]))
            self.engine = choose_engine(self._load("policy").model, probe, pad_id=self.encoder.end_token_id).engine

    def reference_name(self) -> str:
        """Under which name the reference's values are kept (`logprobs.reference.identity`)."""
        assert self.engine is not None, "settle comes first"
        if self.adapter is None and self.weights:
            return identity(weights=self.weights, numerics=self._numerics(str(self.dtype).removeprefix("torch.")))
        return self.writer_name("reference")

    def writer_name(self, who: Who) -> str:
        """Under which name the replies of either model are kept: its own weights, an adapter's among them, and the arithmetic."""
        with self.held(who) as model:
            weights = self.weights if who == "reference" and self.weights else fingerprint(model)
            if who == "policy" and self.adapter is not None:
                weights = " ".join([weights, *(file_hash(self.adapter / name) for name in (CONFIG, WEIGHTS))])
            return identity(weights=weights, numerics=self._numerics(str(weights_dtype(model)).removeprefix("torch."), quantisation(model)))

    def _numerics(self, dtype: str, packed: Any = None) -> dict[str, Any]:
        engine = self.engine or "unsettled"
        return numerics(precision=self.precision, weights_dtype=dtype, engine=engine, device=pick_device(), packed=packed)

    def _load(self, who: Who) -> LoadedModel:
        who = "policy" if self.adapter is not None else who
        if self._held is None or self._held[0] != who:
            self._held = None  # before the other one comes
            load = self.policy if who == "policy" else self.reference
            assert load is not None, "there is no reference"
            self._held = (who, load())
        return self._held[1]


def find_subject(name: str, *, reference: str = "", beta: float | None = None, max_length: int | None = None, chat_template: str = "own") -> Subject:
    """What stands at `name`: a run directory, an adapter folder, or a model as a recipe's `model.name` says it. `beta` scales its rewards, the
    recipe's or DPO's own if None. Raises RequestError for a reference, or a run's template, beside one that it has already, RunError for a run that
    has not ended."""
    folder = Path(name).expanduser()
    run = RunDir(folder)
    has_its_own = run.recipe.is_file() or (folder / CONFIG).is_file()
    if has_its_own and reference:
        raise RequestError(f"--reference {reference}: {name} is compared with the model that it was trained from. Leave it out.")
    if run.recipe.is_file():
        if chat_template != "own":
            raise RequestError(f"--chat-template {chat_template}: {name} is asked with the template that it was trained with. Leave it out.")
        return subject_of_run(run, beta=beta, max_length=max_length)
    settings = ModelSettings(name=_base_of(folder) if has_its_own else name, chat_template=chat_template)
    precision: Precision = pick_precision("auto", pick_device())
    dtype = DTYPES[precision]
    compared = has_its_own or bool(reference)
    if beta is not None and not compared:
        raise RequestError(f"--beta {beta:g}: {name} has no reference, so it has no reward. Leave it out, or name one with --reference.")
    of_reference = settings.model_copy(update={"name": reference})
    return Subject(
        name,
        settings,
        policy=partial(load_trained, folder, settings, dtype=dtype) if has_its_own else partial(load_model, settings, dtype=dtype),
        reference=partial(load_model, of_reference, dtype=dtype) if reference else None,
        adapter=folder if has_its_own else None,
        objective=make_objective("dpo", **({} if beta is None else {"beta": beta})) if compared else None,
        precision=precision,
        dtype=dtype,
        max_length=max_length or positions(settings),
    )


def subject_of_run(run: RunDir, *, beta: float | None = None, max_length: int | None = None) -> Subject:
    """A run's policy and its reference, in the run's own arithmetic. Asking the reference raises RunError where the base is not what it was.

    Raises RunError where the run did not end.
    """
    recipe, manifest = load_recipe(run.require().recipe), run.read_manifest()
    if not manifest.get("outcome"):
        raise RunError(f"{run.path}: this run has not ended. The command that began it goes on with it.")
    numerics, weights = manifest["numerics"], manifest["model"]["weights"]
    dtype = getattr(torch, numerics["weights_dtype"])
    full = recipe.train.method == "full"

    def checked(load: Load) -> LoadedModel:
        loaded = load()
        if fingerprint(loaded.model) != weights:
            raise RunError(
                f"{run.path}: `{loaded.name}` no longer has the weights that this run began with, so it is not its reference. Put them back."
            )
        return loaded

    trained = partial(load_trained, run.model, recipe.model, dtype=dtype, **held_as(recipe))
    own = recipe.model.model_copy(update={"name": str(run.model.absolute()), "revision": None})
    return Subject(
        str(run.path),
        own if full else recipe.model,
        policy=trained if full else partial(checked, trained),
        reference=partial(checked, partial(load_model, recipe.model, dtype=dtype)) if full else None,
        adapter=None if full else run.model,
        objective=make_objective(recipe.objective.name, **recipe.objective.given() | ({} if beta is None else {"beta": beta})),
        precision=numerics["precision"],
        dtype=dtype,
        max_length=max_length or recipe.data.max_length,
        tokens_per_batch=recipe.train.tokens_per_batch,
        engine=numerics["engine"],
        weights=weights,
        recipe=recipe,
    )


def _base_of(folder: Path) -> str:
    """The model that an adapter's config names. Raises ModelError."""
    try:
        base = json.loads((folder / CONFIG).read_bytes()).get("base_model_name_or_path")
    except (ValueError, AttributeError) as problem:
        raise ModelError(f"{folder / CONFIG}: this is no adapter's config ({problem}).") from None
    if not base:
        raise ModelError(f"{folder / CONFIG}: this adapter does not say which model it belongs to. Write it there as `base_model_name_or_path`.")
    return EMBEDDED if base == EMBEDDED_ON_HUB and embedded_gguf() else str(base)


def positions(settings: ModelSettings) -> int:
    """How many positions the model has."""
    from transformers import AutoConfig

    path = locate(settings.name)
    with loading(settings):
        config = AutoConfig.from_pretrained(path, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    return int(getattr(config, "max_position_embeddings", None) or LONGEST)
