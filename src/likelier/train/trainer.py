"""Training of any `torch.nn.Module` that maps token ids (B, T) to logits (B, T, V), from Python and without a run directory.

The loop, the objectives, the order of examples and the master weights are those of `likelier train`; the scorer is the plain one, which pads. What a
run keeps on disk is kept in memory: the reference's log-probabilities, the metrics, the best weights.
"""

import copy
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from likelier.errors import DataError, LikelierError, ModelError, RecipeError, RunError, did_you_mean, lacks_memory
from likelier.examples import Example, Ids, LabelledExample, PreferenceExample, with_others
from likelier.logprobs.examples import mismatched, sequences_of
from likelier.logprobs.reference import ReferenceValues, fill
from likelier.logprobs.scorer import Scorer, dropout_off
from likelier.logprobs.tree import PromptResponse
from likelier.models import trainable
from likelier.objectives import Objective, make_objective
from likelier.recipe import NOT_SHAPING, TrainSettings
from likelier.train.checkpoint import State
from likelier.train.loop import DRIFT_TOLERANCE, Training
from likelier.train.master import MasterWeights
from likelier.train.order import ExampleOrder, learning_rate
from likelier.train.progress import Progress
from likelier.train.step import Task, evaluate_held_out, refuse_unheeded, require_whole_steps
from likelier.train.watch import Diagnosis, Setup

UNREAD = ("method", "precision", "gradient_checkpointing", "checkpoint_every")
"""What a recipe decides and the module itself does here: which of its weights are trained and in which type, and when to save it."""

History = list[dict[str, Any]]
"""Rows of metrics, as in a run's metrics.jsonl: of each step (kind "train" or "skipped"), of each evaluation (kind "eval"), and of what the curves
say (kind "symptom", docs/diagnosis.md)."""


class Trainer:
    """Tunes `model` in place on `examples`, against `ref_model` or, where that is None, against the model as it is now.

    `examples` are PreferenceExample, or LabelledExample for an unpaired objective; `objective` is a name, a sum of names ("dpo + 0.2 sft") or what
    `make_objective` makes, `beta` its β (None: the objective's own, 0.1 for dpo). Other settings have the names, the defaults and the meaning of
    `train` in a recipe: pairs_per_step, epochs, max_steps, learning_rate, schedule, warmup, weight_decay, max_grad_norm, max_skipped_steps, seed,
    tokens_per_batch, eval_every, patience. The learning rate is by default 1e-6, which suits a language model and is little for a small module.

    The reference is scored here, once, and so the first loss is known (log 2 for dpo) and checked where the two models are the same. Weights are
    float32, or bfloat16 with float32 masters; those that do not require a gradient stay as they are. The model is scored and trained without
    dropout, and between calls it has the training flags that it had. `pad_id` fills up shorter sequences and changes nothing. `show` is told how
    far it is: train.progress.Bars() draws that.

    Raises DataError, RecipeError or ModelError for examples, settings or a model that cannot be trained. docs/plain-modules.md has whole programs.
    """

    def __init__(
        self,
        model: nn.Module,
        ref_model: nn.Module | None,
        examples: Sequence[Example],
        *,
        objective: str | Objective = "dpo",
        beta: float | None = None,
        pad_id: int = 0,
        show: Progress | None = None,
        **settings: Any,
    ) -> None:
        self.model = model
        self.objective = _made(objective, beta)
        self.history: History = []
        self._settings = _checked(settings)
        _refuse_untrainable(model, ref_model)
        policy = _scorer(model, pad_id)
        self._ref_scorer = _scorer(ref_model, pad_id) if ref_model is not None and self.objective.needs_reference else policy
        self._reference = ReferenceValues() if self.objective.needs_reference else None
        self._task = Task(policy, self._reference, self.objective, self._settings.tokens_per_batch, show or Progress())
        self._best: dict[str, Tensor] = {}

        self._begun = False
        examples = self._admit(examples)
        refuse_unheeded(examples, self.objective)
        order = ExampleOrder(examples, self._settings)
        require_whole_steps(order, self.objective, self._settings.tokens_per_batch)
        alike = ref_model is None or _same_weights(model, ref_model)
        self._diagnosis = Diagnosis(Setup(self._settings, self.objective))
        self._training = Training(self._task, MasterWeights(model), order, self._settings, self._log, begins_at_reference=alike)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._training.state.step

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self._training.order.steps

    def lr(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0: a linear rise, then a cosine that ends at 0, unless `schedule` says other."""
        return learning_rate(step, self.steps, self._settings)

    def train_step(self) -> dict[str, Any]:
        """One optimizer step on the next pairs; returns its row of metrics. Raises RunError when all steps are done, and TrainingStopped where
        the first loss is not that of an untrained policy or too many steps had a value that is not finite."""
        if self.step == self.steps:
            raise RunError(f"all {self.steps} steps are done. For more, make a Trainer with more `epochs` or without `max_steps`.")
        self._begun = True
        self._training.weights.forget_gradients()  # of backward passes that are not ours
        with dropout_off(self.model):
            self._training.step()
        return next(row for row in reversed(self.history) if row["kind"] != "symptom")

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float | None]:
        """Means over `examples`: loss, accuracy, margin, rewards, log-probabilities. Changes nothing.

        Raises RunError where the reference is the model as it was and has never seen `examples`.
        """
        admitted = self._admit(examples)
        with dropout_off(self.model):
            row = evaluate_held_out(self._task, admitted, self._training.state.point)
        assert row is not None  # nobody asks it to stop
        return row

    def train(self, eval_examples: Sequence[Example] | None = None) -> History:
        """All steps that are left. With `eval_examples` the model is evaluated every `eval_every` steps and at the end, training stops after
        `patience` evaluations without a better accuracy, and the model ends with its best weights. Returns the history."""
        training, show = self._training, self._task.show
        held_out = self._admit(eval_examples) if eval_examples is not None else []
        show.begin_training(self.step, self.steps)
        try:
            while not training.ended:
                self.train_step()
                if held_out and training.due(self._settings.eval_every):
                    with dropout_off(self.model):
                        best = training.evaluate(held_out)
                    if best:
                        self._best = {name: weight.detach().clone() for name, weight in training.weights.by_name.items()}
        finally:
            show.close()
        if self._best:
            self._set_weights(self._best)
        return self.history

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that it takes to go on as if there had been no break: trained weights, optimizer, step, reference, history."""
        reference = self._reference.packed() if self._reference is not None else {}
        state = {
            "made_of": self._made_of(),
            "weights": {name: weight.detach() for name, weight in self._training.weights.by_name.items()},
            "optimizer": self._training.optimizer.state_dict(),
            "state": asdict(self._training.state),
            "best": self._best,
            "reference": {name: torch.from_numpy(values) for name, values in reference.items()},
            "history": self.history,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another Trainer of the same model, examples and settings was. Raises RunError if it was of others."""
        state = copy.deepcopy(state)
        for what, value in self._made_of().items():
            if state["made_of"][what] != value:
                raise RunError(f"this state is of a Trainer with other {what}. Make this one as that one was made.")
        self._training.optimizer.load_state_dict(state["optimizer"])
        self._training.state = State(**state["state"])
        self._set_weights(state["weights"])
        self._begun, self._best, self.history = self.step > 0, state["best"], state["history"]
        self._diagnosis = Diagnosis(Setup(self._settings, self.objective))
        self._diagnosis.catch_up(self.history, [])
        if self._reference is not None:
            self._reference.unpack({name: values.numpy() for name, values in state["reference"].items()})

    def _log(self, row: dict[str, Any]) -> None:
        for each in (row, *(symptom.row() for symptom in self._diagnosis.after(row))):
            self.history.append(each)
            self._task.show.logged(each)

    def _admit(self, examples: Sequence[Example]) -> list[Example]:
        """`examples`, checked, as they are scored; the reference has seen them."""
        admitted = _refuse_unusable([_in_tuples(example) for example in examples], self.objective)
        if self.objective.point_is_kl:
            admitted = with_others(admitted)
        sequences = [*sequences_of(admitted), *mismatched(admitted)]
        for scorer in dict.fromkeys((self._task.policy, self._ref_scorer)):
            with dropout_off(scorer.model):
                _refuse_odd_model(scorer, sequences)
        if self._reference is not None:
            self._score_reference(self._reference, sequences)
        return admitted

    def _score_reference(self, reference: ReferenceValues, sequences: Sequence[PromptResponse]) -> None:
        scorer = self._ref_scorer
        if scorer is self._task.policy and self._begun and any(sequence not in reference for sequence in sequences):
            raise RunError(
                "the reference is the model as it was before training, and these examples were not scored then. Call `evaluate` with them before the "
                "first step, or make the Trainer with a reference that stays: Trainer(model, copy.deepcopy(model), examples)."
            )
        with dropout_off(scorer.model):
            fill(reference, scorer, sequences, tokens_per_batch=self._task.tokens_per_batch, on_progress=self._task.show.reference_scored)

    @torch.no_grad()
    def _set_weights(self, wanted: dict[str, Tensor]) -> None:
        for name, weight in self._training.weights.by_name.items():
            weight.copy_(wanted[name])
        self._training.weights.publish()

    def _made_of(self) -> dict[str, Any]:
        """What a state must have been made with to be loaded here."""
        digest = hashlib.sha256()
        for example in self._training.order.examples:
            digest.update(repr(example).encode())
        return {
            "weights": {name: list(weight.shape) for name, weight in self._training.weights.by_name.items()},
            "examples": digest.hexdigest(),
            "objective": self.objective.made_as,
            "settings": self._settings.model_dump(exclude=NOT_SHAPING["train"]),
        }


def _made(objective: str | Objective, beta: float | None) -> Objective:
    if isinstance(objective, str):
        return make_objective(objective) if beta is None else make_objective(objective, beta=beta)
    if beta is not None:
        raise RecipeError("beta: this objective has its settings already. Give it there: make_objective(name, beta=…).")
    return objective


def _checked(given: dict[str, Any]) -> TrainSettings:
    """Raises RecipeError for a setting that is unknown or out of range."""
    known = [name for name in TrainSettings.model_fields if name not in UNREAD]
    for name in given:
        if name not in known:
            raise RecipeError(f"`{name}` is not a setting of a Trainer.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    try:
        return TrainSettings(method="full", **given)
    except ValidationError as faults:
        raise RecipeError("\n".join(f"`{fault['loc'][0]}`: {fault['msg']} (given: {fault['input']!r})." for fault in faults.errors())) from None


def _refuse_untrainable(model: nn.Module, ref_model: nn.Module | None) -> None:
    """Raises ModelError for weights that cannot be trained, or that the reference would share."""
    trained = trainable(model)
    if not trained:
        raise ModelError("no weight of the model requires a gradient, so there is nothing to train. Call requires_grad_() on what shall change.")
    for name, weight in trained.items():
        if weight.dtype not in (torch.float32, torch.bfloat16):
            raise ModelError(f"the weight `{name}` is {weight.dtype}; float32 and bfloat16 can be trained. Call model.float() or model.bfloat16().")
    if ref_model is not None and {id(weight) for weight in trained.values()} & {id(weight) for weight in ref_model.parameters()}:
        raise ModelError(
            "ref_model has weights that training changes, because the model holds the same ones. Give None for the model as it is now, or "
            "copy.deepcopy(model)."
        )


def _refuse_unusable(examples: list[Example], objective: Objective) -> list[Example]:
    """Raises DataError for no examples at all, for an empty side, and for single replies where pairs are compared."""
    if not examples:
        raise DataError("there are no examples. Give a list of PreferenceExample or LabelledExample.")
    for number, example in enumerate(examples):
        where = f"example {number}" + (f" (`{example.id}`)" if example.id else "")
        if objective.paired and isinstance(example, LabelledExample):
            raise DataError("this objective compares pairs, and this is a single reply. Take objective='kto', or PreferenceExample.", where=where)
        if not all((example.prompt_ids, *example.replies)):
            raise DataError("its prompt or a reply has no tokens. Drop it, or begin the prompt with a start token.", where=where)
    return examples


def _in_tuples(example: Example) -> Example:
    """The example with its ids as tuples of int, which can be looked up, whatever sequences or tensors it was made of. Raises DataError."""
    match example:
        case PreferenceExample():
            return replace(example, prompt_ids=_ids(example.prompt_ids), chosen_ids=_ids(example.chosen_ids), rejected_ids=_ids(example.rejected_ids))
        case LabelledExample():
            return replace(example, prompt_ids=_ids(example.prompt_ids), completion_ids=_ids(example.completion_ids))
    raise DataError(f"a Trainer takes PreferenceExample and LabelledExample, which hold token ids, and not a {type(example).__name__}.")


def _ids(values: Iterable[int]) -> Ids:
    return tuple(map(int, values))


def _refuse_odd_model(policy: Scorer, sequences: Sequence[PromptResponse]) -> None:
    """Raises ModelError for a model that fails on the longest sequence or the largest id, returns no logits for each position, looks ahead, or draws
    at random."""
    longest = max(sequences, key=lambda s: len(s.prompt_ids) + len(s.response_ids))
    largest = max(sequences, key=lambda s: max(s.prompt_ids + s.response_ids))
    begun = PromptResponse(longest.prompt_ids, longest.response_ids[:1])
    length, largest_id = len(longest.prompt_ids) + len(longest.response_ids) - 1, max(largest.prompt_ids + largest.response_ids)
    try:
        with torch.no_grad():
            whole_L, again_L, begun_L, _ = policy.token_logps([longest, longest, begun, largest])
    except Exception as problem:  # the module is the caller's and may raise anything
        if isinstance(problem, LikelierError) or lacks_memory(problem):
            raise
        raise ModelError(
            f"{type(policy.model).__name__} fails on these examples ({type(problem).__name__}: {problem}). The longest puts {length} tokens into it, "
            f"the largest id is {largest_id} and pad_id is {policy.pad_id}. Drop or shorten what it cannot take, or make a model that takes it."
        ) from problem
    noise, ahead = float((whole_L - again_L).abs().max()), float((whole_L[0] - begun_L[0]).abs())
    if noise > DRIFT_TOLERANCE[policy.precision]:
        raise ModelError(
            f"{type(policy.model).__name__} says one thing and then another: the same tokens get log-probabilities {noise:.2g} nats apart. Something "
            "in it draws at random in evaluation mode, too; use nn.Dropout, or F.dropout(x, p, self.training)."
        )
    if ahead > DRIFT_TOLERANCE[policy.precision]:
        raise ModelError(
            f"{type(policy.model).__name__} looks ahead: the log-probability of a token changes by {ahead:.2g} nats with the tokens after it. "
            "A model that predicts the next token must read only those before, so mask its attention, or make its layers go one way."
        )


def _scorer(model: nn.Module, pad_id: int) -> Scorer:
    """The plain one, in the precision of the weights; the model keeps its training flags."""
    halves = any(weight.dtype == torch.bfloat16 for weight in model.parameters())
    with dropout_off(model):
        return Scorer(model, engine="plain", precision="bf16" if halves else "fp32", pad_id=pad_id)


def _same_weights(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (model, other))
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name].to(ours[name])) for name in ours
    )
