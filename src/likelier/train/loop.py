"""Training, on one page.

for each step:  examples → batches of shared-prefix trees → log-probs of policy (computed) and reference (read) → losses → gradient
                clip, step, log;  now and then evaluate, checkpoint
"""

import math
import time
from collections.abc import Sequence
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
from likelier.train.order import ExampleOrder, learning_rate
from likelier.train.progress import Progress
from likelier.train.step import Step, Task, add_gradients, evaluate_held_out
from likelier.train.stop import NEVER, Stop

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
) -> tuple[State, str]:
    """Train `policy` in place, from the newest checkpoint in `run` if there is one. Returns its final state and why it ended.

    The gradient of a step is that of the mean loss over all its examples, whatever batches they are cut into. Raises TrainingStopped if the
    first loss is not that of an untrained policy, or if too many steps had a value that is not finite; Interrupted, with a checkpoint written,
    if `stop` is requested.
    """
    weights = weights or MasterWeights(policy.model)
    optimizer = torch.optim.AdamW(weights.parameters, lr=settings.peak_learning_rate, weight_decay=settings.weight_decay, fused=True)
    order = ExampleOrder(examples, settings)
    task = Task(policy, reference, objective, settings.tokens_per_batch, show, stop)
    newest = checkpoint.latest(run.checkpoints)
    state = checkpoint.restore(newest, weights, optimizer) if newest else State()
    run.cut_metrics(state.step, evaluated=not state.evaluation_due)
    show.begin_training(state.step, order.steps)
    if state.evaluation_due:
        _evaluate(task, weights, held_out, run, state)
        stop.leave(f"at step {state.step} of {order.steps}")

    while state.step < order.steps and not _stale(state, settings):
        started = time.perf_counter()
        taken = order.step(state.step)
        step = add_gradients(task, weights, taken, point=task.point(taken, state.point), first=state.step == 0)
        if state.step == 0:
            _check_first_loss(step, policy, state)
        norm = torch.nn.utils.clip_grad_norm_(weights.parameters, settings.max_grad_norm).item()
        rate = learning_rate(state.step, order.steps, settings)
        state.step += 1
        if math.isfinite(norm) and math.isfinite(step.row["loss"] or 0.0):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            weights.publish()
            state.point = objective.next_point(state.point, step.row)
            state.seconds += (seconds := time.perf_counter() - started)
            more = {"grad_norm": norm, "learning_rate": rate, "pairs": len(taken), "tokens": step.tokens, "seconds": seconds}
            _log(run, show, "train", state.step, {"epoch": order.epochs_at(state.step), **step.row, **more})
        else:
            _skip(run, show, state, settings, taken, step, norm)
        weights.forget_gradients()

        last = state.step == order.steps
        state.evaluation_due = len(held_out) > 0 and _due(state.step, settings.eval_every, last)
        if state.evaluation_due:
            _evaluate(task, weights, held_out, run, state)
        if stop.requested or (_due(state.step, settings.checkpoint_every, last) and not last):
            checkpoint.save(run.checkpoints, weights, optimizer, state)
            stop.leave(f"at step {state.step} of {order.steps}")
    return state, "early stop: held-out accuracy no longer rose" if _stale(state, settings) else "all steps done"


def _evaluate(task: Task, weights: MasterWeights, held_out: Sequence[Example], run: RunDir, state: State) -> None:
    """Score the held-out examples; keep the weights if they are the best so far: highest accuracy, then lowest loss. Stays due if a stop is asked
    for meanwhile."""
    means = evaluate_held_out(task, held_out, state.point)
    if means is None:
        return
    state.evaluation_due = False
    row = _log(run, task.show, "eval", state.step, {**means, "pairs": len(held_out)})
    gained = not state.best or row["accuracy"] > state.best["accuracy"]
    state.stale = 0 if gained else state.stale + 1
    if gained or (row["accuracy"] == state.best["accuracy"] and row["loss"] < state.best["loss"]):
        state.best = row
        checkpoint.save_best(run.checkpoints, weights, state)


def _log(run: RunDir, show: Progress, kind: str, step: int, values: dict[str, Any]) -> dict[str, Any]:
    row = {"kind": kind, "step": step, **values}
    run.append_metrics(row)
    show.logged(row)
    return row


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step % every == 0)


def _stale(state: State, settings: TrainSettings) -> bool:
    return 0 < settings.patience <= state.stale


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


def _skip(run: RunDir, show: Progress, state: State, settings: TrainSettings, taken: Sequence[Example], step: Step, norm: float) -> None:
    """Leave out a step whose loss or gradient is no finite number. Raises TrainingStopped where that has happened too often."""
    state.skipped += 1
    culprits = step.not_finite()
    names = culprits or [example.id for example in taken]
    _log(run, show, "skipped", state.step, {"loss": str(step.row["loss"]), "grad_norm": str(norm), "ids": names})
    what = f"step {state.step}: the loss is {step.row['loss']} and the gradient's norm {norm}. The weights were not changed by it."
    whose = f"{'Not finite' if culprits else 'In the step'}: {', '.join(names)}."
    if state.skipped > settings.max_skipped_steps:
        raise TrainingStopped(f"{what} {whose} Lower train.learning_rate, drop these pairs, or take train.precision: fp32.")
    show.say(f"Skipped {what} {whose}")
