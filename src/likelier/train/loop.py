"""Training, on one page.

for each step:  pairs → batches of shared-prefix trees → log-probs of policy (computed) and reference (read) → losses → gradient
                clip, step, log;  now and then evaluate, checkpoint
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from likelier.errors import TrainingStopped
from likelier.examples import PreferenceExample
from likelier.logprobs.pairs import score_pairs, score_pairs_all
from likelier.logprobs.reference import ReferenceStore
from likelier.logprobs.scorer import Scorer
from likelier.objectives import Logps, Objective
from likelier.recipe import TrainSettings
from likelier.rundir import RunDir
from likelier.train import checkpoint
from likelier.train.checkpoint import State
from likelier.train.cuts import cut_step
from likelier.train.master import MasterWeights
from likelier.train.optimizer import make_optimizer
from likelier.train.order import PairOrder, learning_rate
from likelier.train.progress import Progress
from likelier.train.tally import Tally

DRIFT_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""How far, in nats a token on average, an untrained policy may be from its reference. Rounding gives about 1e-5 and 0.03."""


def fit(
    policy: Scorer,
    reference: ReferenceStore | None,
    examples: Sequence[PreferenceExample],
    held_out: Sequence[PreferenceExample],
    objective: Objective,
    settings: TrainSettings,
    run: RunDir,
    show: Progress,
    weights: MasterWeights | None = None,
) -> tuple[State, str]:
    """Train `policy` in place, from the newest checkpoint in `run` if there is one. Returns its final state and why it ended.

    The gradient of a step is that of the mean loss over all its pairs, whatever batches they are cut into. Raises TrainingStopped if the
    first loss is not that of an untrained policy, or if a value is not finite.
    """
    weights = weights or MasterWeights(policy.model)
    optimizer = make_optimizer(weights, settings)
    order = PairOrder(examples, settings)
    newest = checkpoint.latest(run.checkpoints)
    state = checkpoint.restore(newest, weights, optimizer) if newest else State()
    run.cut_metrics(state.step)
    show.begin_training(state.step, order.steps)

    while state.step < order.steps and not _stale(state, settings):
        started = time.perf_counter()
        pairs = order.step(state.step)
        tally, tokens = add_gradients(policy, weights, reference, pairs, objective, tokens_per_batch=settings.tokens_per_batch)
        row = tally.row()
        if state.step == 0:
            _check_first_loss(row, objective, policy, state)
        rate = learning_rate(state.step, order.steps, settings)
        row |= {"grad_norm": torch.nn.utils.clip_grad_norm_(weights.parameters, settings.max_grad_norm).item(), "learning_rate": rate}
        _check_finite(row, pairs, state.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights.publish()

        state.step += 1
        seconds = time.perf_counter() - started
        state.seconds += seconds
        row |= {"pairs": len(pairs), "tokens": tokens, "seconds": seconds}
        _log(run, show, "train", state.step, row, epoch=state.step * settings.pairs_per_step / len(examples))
        last = state.step == order.steps
        if held_out and _due(state.step, settings.eval_every, last):
            _evaluate(policy, weights, reference, held_out, objective, settings, run, show, state)
        if _due(state.step, settings.checkpoint_every, last) and not last:
            checkpoint.save(run.checkpoints, weights, optimizer, state)
    return state, "early stop: held-out accuracy no longer rose" if _stale(state, settings) else "all steps done"


def add_gradients(
    policy: Scorer,
    weights: MasterWeights,
    reference: ReferenceStore | None,
    pairs: Sequence[PreferenceExample],
    objective: Objective,
    *,
    tokens_per_batch: int,
) -> tuple[Tally, int]:
    """Add the gradient of the mean loss over `pairs` to `weights`, batch by batch. Returns what was measured on the way, and the tokens that went
    through the model."""
    tally, tokens = Tally(objective), 0
    with policy.unchanged_weights():
        for batch in cut_step(pairs, objective, tokens_per_batch):
            logps = score_pairs(policy, reference, batch)
            losses_B = objective.losses(logps)
            (losses_B.sum() / len(pairs)).backward()
            weights.collect_gradients()
            tally.add(losses_B, logps)
            tokens += policy.last_tokens
    return tally, tokens


def _evaluate(
    policy: Scorer,
    weights: MasterWeights,
    reference: ReferenceStore | None,
    held_out: Sequence[PreferenceExample],
    objective: Objective,
    settings: TrainSettings,
    run: RunDir,
    show: Progress,
    state: State,
) -> None:
    """Score the held-out pairs; keep the weights if they are the best so far: highest accuracy, then lowest loss."""
    tally = Tally(objective)
    batches = (logps for _, logps in score_pairs_all(policy, reference, held_out, tokens_per_batch=settings.tokens_per_batch))
    for logps in [Logps.joined(list(batches))] if objective.couples_pairs else batches:
        tally.add(objective.losses(logps), logps)
    row = _log(run, show, "eval", state.step, tally.row() | {"pairs": len(held_out)})
    gained = not state.best or row["accuracy"] > state.best["accuracy"]
    if gained or (row["accuracy"] == state.best["accuracy"] and row["loss"] < state.best["loss"]):
        state.best = row
        checkpoint.save_best(run.checkpoints, weights, state)
    state.stale = 0 if gained else state.stale + 1


def _log(run: RunDir, show: Progress, kind: str, step: int, values: dict[str, float], **more: float) -> dict[str, Any]:
    unlogged = ("expected_loss", "drift") if step > 1 or kind == "eval" else ()
    row = {"kind": kind, "step": step, **more, **{name: value for name, value in values.items() if name not in unlogged}}
    run.append_metrics(row)
    show.logged(row)
    return row


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step % every == 0)


def _stale(state: State, settings: TrainSettings) -> bool:
    return 0 < settings.patience <= state.stale


def _check_first_loss(row: dict[str, float], objective: Objective, policy: Scorer, state: State) -> None:
    """An untrained policy is its reference, so the first loss is known before it is computed: for DPO it is log 2."""
    state.first_loss = row["loss"]
    if not objective.needs_reference:
        return
    state.first_loss_expected = row["expected_loss"]
    tolerance = DRIFT_TOLERANCE[policy.precision]
    if not row["drift"] <= tolerance:  # true for NaN too
        raise TrainingStopped(
            f"the first loss is {row['loss']:.4f} and must be {row['expected_loss']:.4f}: before any step the policy is "
            f"{row['drift']:.3g} nats a token away from the reference (tolerance {tolerance:.3g}). Policy and reference are not scored alike. "
            "Look for dropout that stays on, for an adapter that does not start at zero, or for weights that changed behind the stored reference."
        )


def _check_finite(row: dict[str, float], pairs: Sequence[PreferenceExample], step: int) -> None:
    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
        raise TrainingStopped(
            f"step {step + 1}: the loss is {row['loss']} and the gradient's norm {row['grad_norm']}. The weights were not changed by it. "
            f"The step's pairs: {', '.join(pair.id for pair in pairs)}. Lower train.learning_rate, or take train.precision: fp32."
        )
