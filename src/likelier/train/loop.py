"""Training, on one page.

for each step:  examples → batches of shared-prefix trees → log-probs of policy (computed) and reference (read) → losses → gradient
                clip, step, log;  now and then evaluate, look at replies, checkpoint
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from likelier.errors import TrainingStopped
from likelier.examples import Example
from likelier.logprobs.reference import ReferenceStore
from likelier.logprobs.scorer import Scorer
from likelier.objectives import Objective
from likelier.recipe import TrainSettings
from likelier.rundir import RunDir
from likelier.train import checkpoint
from likelier.train.checkpoint import State
from likelier.train.master import MasterWeights
from likelier.train.optimizer import make_optimizer
from likelier.train.order import ExampleOrder, learning_rate
from likelier.train.parallel import ALONE, Ranks
from likelier.train.progress import Progress
from likelier.train.sharding import whole
from likelier.train.step import Step, Task, add_gradients, evaluate_held_out, prepare_step
from likelier.train.stop import NEVER, Stop
from likelier.train.watch import Setup, Watch

DRIFT_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""How far, in nats a token on average, an untrained policy may be from its reference. Rounding gives about 1e-5 and 0.03."""


def fit(
    policy: Scorer,
    reference: ReferenceStore | None,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    objective: Objective,
    settings: TrainSettings,
    run: RunDir,
    show: Progress,
    weights: MasterWeights | None = None,
    stop: Stop = NEVER,
    watch: Watch | None = None,
    ranks: Ranks = ALONE,
) -> tuple[State, str]:
    """Train `policy` in place, from the newest checkpoint in `run` if there is one. Returns its final state and why it ended.

    The gradient of a step is that of the mean loss over all its examples, whatever batches they are cut into. Raises TrainingStopped if the
    first loss is not that of an untrained policy, or if too many steps had a value that is not finite; Interrupted, with a checkpoint written,
    if `stop` is requested. `watch` is told of every row, looks on at each evaluation and changes nothing. Of several `ranks` all call this; the
    leader alone writes.
    """
    weights = weights or MasterWeights(policy.model)
    watch = watch or Watch(run, show, Setup(settings, objective))
    task = Task(policy, reference, objective, settings.tokens_per_batch, show, stop, ranks)
    training = Training(task, weights, ExampleOrder(examples, settings), settings, watch.log, watch.look)
    newest = checkpoint.latest(run.checkpoints)
    state = training.state = checkpoint.restore(newest, weights, training.optimizer) if newest else State()
    watch.begin(state, training.order.steps)

    def evaluate() -> None:
        if training.evaluate(held_out):
            checkpoint.save_best(run.checkpoints, weights, state, ranks)

    if state.evaluation_due:
        evaluate()
        if ranks.stop_together(stop):
            stop.leave(f"at step {state.step} of {training.order.steps}")
    while not training.ended:
        training.step()
        state.evaluation_due = len(held_out) > 0 and training.due(settings.eval_every)
        if state.evaluation_due:
            evaluate()
        stops = ranks.stop_together(stop)
        if stops or (training.due(settings.checkpoint_every) and state.step < training.order.steps):
            checkpoint.save(run.checkpoints, weights, training.optimizer, state, ranks)
        if stops:
            stop.leave(f"at step {state.step} of {training.order.steps}")
    return state, training.ended


@dataclass
class Training:
    """A run under way: what is trained, on what, and where it stands between two optimizer steps."""

    task: Task
    weights: MasterWeights
    order: ExampleOrder
    settings: TrainSettings
    log: Callable[[dict[str, Any]], None]  # is given each row of metrics
    look: Callable[[int], float | None] = lambda step: None  # at an evaluation; returns the KL to the reference, if it is measured
    begins_at_reference: bool = True  # so that the first loss is known, and checked
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.weights.parameters, self.settings)

    @property
    def ended(self) -> str:
        """Why there is no next step; empty where there is one."""
        if 0 < self.settings.patience <= self.state.stale:
            return "early stop: held-out accuracy no longer rose"
        return "" if self.state.step < self.order.steps else "all steps done"

    def due(self, every: int) -> bool:
        """Whether what happens `every` so many steps, and after the last one, happens now."""
        return self.state.step == self.order.steps or (every > 0 and self.state.step % every == 0)

    def step(self) -> None:
        """One optimizer step, or none where a value is not finite."""
        task, weights, state = self.task, self.weights, self.state
        started = time.perf_counter()
        taken = self.order.step(state.step)
        first = state.step == 0 and self.begins_at_reference
        step = add_gradients(task, weights, taken, point=task.point(taken, state.point), first=first)
        if first:
            _check_first_loss(step, task.policy, state)
        norm_on_device = whole(torch.nn.utils.clip_grad_norm_(weights.parameters, self.settings.max_grad_norm))
        if state.step + 1 < self.order.steps:  # while the device computes this step
            prepare_step(task, self.order.step(state.step + 1))
        norm = norm_on_device.item()
        rate = learning_rate(state.step, self.order.steps, self.settings)
        state.step += 1
        if math.isfinite(norm) and math.isfinite(step.row["loss"] or 0.0):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            weights.publish()
            state.point = task.objective.next_point(state.point, step.row)
            state.seconds += (seconds := time.perf_counter() - started)
            more = {"grad_norm": norm, "learning_rate": rate, "pairs": len(taken), "tokens": step.tokens, "seconds": seconds}
            self.log({"kind": "train", "step": state.step, "epoch": self.order.epochs_at(state.step), **step.row, **more})
        else:
            self._skip(taken, step, norm)
        weights.forget_gradients()

    def evaluate(self, held_out: Sequence[Example]) -> bool:
        """Log how the policy does on held-out examples. Returns whether it never did better: by accuracy, then by loss. If a stop is asked for
        before the end, nothing is logged and the evaluation stays due."""
        state = self.state
        means = evaluate_held_out(self.task, held_out, state.point)
        if means is None:
            return False
        state.evaluation_due = False
        row = {"kind": "eval", "step": state.step, **means, "pairs": len(held_out), "kl": self.look(state.step)}
        self.log(row)
        return _is_best(row, state)

    def _skip(self, taken: Sequence[Example], step: Step, norm: float) -> None:
        """Leave out a step whose loss or gradient is no finite number. Raises TrainingStopped where that has happened too often."""
        state = self.state
        state.skipped += 1
        culprits = list(chain.from_iterable(self.task.ranks.gather(step.not_finite())))
        names = culprits or [example.id for example in taken]
        self.log({"kind": "skipped", "step": state.step, "loss": str(step.row["loss"]), "grad_norm": str(norm), "ids": names})
        what = f"step {state.step}: the loss is {step.row['loss']} and the gradient's norm {norm}. The weights were not changed by it."
        whose = f"{'Not finite' if culprits else 'In the step'}: {', '.join(names)}."
        if state.skipped > self.settings.max_skipped_steps:
            raise TrainingStopped(f"{what} {whose} Lower train.learning_rate, drop these pairs, or take train.precision: fp32.")
        self.task.show.say(f"Skipped {what} {whose}")


def _is_best(row: dict[str, Any], state: State) -> bool:
    """Whether the evaluation is the best so far, by accuracy and then by loss; `state` remembers it, and how many were no better by accuracy."""
    gained = not state.best or row["accuracy"] > state.best["accuracy"]
    state.stale = 0 if gained else state.stale + 1
    best = gained or (row["accuracy"] == state.best["accuracy"] and row["loss"] < state.best["loss"])
    if best:
        state.best = row
    return best


def _check_first_loss(step: Step, policy: Scorer, state: State) -> None:
    """An untrained policy is its reference, so the first loss is known before it is computed: for DPO it is log 2."""
    state.first_loss = step.row["loss"]
    state.first_loss_expected, drift = step.row.pop("expected_loss", None), step.row.pop("drift", None)
    tolerance = DRIFT_TOLERANCE[policy.precision]
    if drift is not None and not drift <= tolerance:  # true for NaN too
        raise TrainingStopped(
            f"the first loss is {state.first_loss:.4f} and must be {state.first_loss_expected:.4f}: before any step the policy is "
            f"{drift:.3g} nats a token away from the reference (tolerance {tolerance:.3g}). Policy and reference are not scored alike. "
            "Look for dropout that stays on, for an adapter that does not start at zero, or for weights that changed behind the stored reference."
        )
