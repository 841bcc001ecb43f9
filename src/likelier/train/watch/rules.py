"""The symptoms: each rule looks at a History and yields what it sees, with the numbers that show it and the settings that mend it.

Rules are pure. Where an objective, a missing reference or too few pairs leave nothing to judge by, they are silent. Thresholds are in limits.py.
"""

from collections.abc import Callable, Iterator
from statistics import fmean, median

from likelier.metrics import wilson
from likelier.rundir import REFERENCE_CHANGED
from likelier.train.advice import Weight, beta, epochs, learning_rate
from likelier.train.watch import limits
from likelier.train.watch.history import WINDOW, History, Row, Symptom
from likelier.wording import count, number, quantity

LOWER_RATE = "train.learning_rate lower (a third), or objective.beta higher"


def settings(history: History) -> Iterator[Symptom]:
    """Learning rate, β or epochs far outside what is usual for this way of training."""
    facts = history.setup.facts(history.train[0]) if history.train else None
    titles = {"learning-rate": "Unusual learning rate", "beta": "Unusual β", "epochs": "Many passes over the same records"}
    for rule in (learning_rate, beta, epochs) if facts else ():
        assert facts
        for advice in rule(facts):
            if advice.weight >= Weight.WARNING:
                yield Symptom(advice.rule, titles[advice.rule], "note", advice.reason, advice.change)


def not_finite(history: History) -> Iterator[Symptom]:
    """A loss or gradient that is no number."""
    if history.skipped:
        row = history.skipped[0]
        evidence = f"Step {row['step']} was left out: its loss is {row['loss']}, the norm of its gradient {row['grad_norm']}."
        yield Symptom("not-finite", "Values that are not finite", "warn", evidence, "train.learning_rate lower, or train.precision: fp32")


def not_moving(history: History) -> Iterator[Symptom]:
    """Half of the run is over and the policy still is its reference."""
    if not history.settled or not _still(history):
        return
    if all(row["grad_norm"] == 0 for row in history.train):
        evidence = f"The gradient was 0 in all of {count(len(history.train), 'step')}: nothing tells the two sides of a pair apart."
        mend = "the data: chosen and rejected replies that differ (likelier audit)"
    else:
        evidence = f"After {count(len(history.train), 'step')} chosen and rejected replies are within {limits.STILL} nats of where they began."
        mend = f"train.learning_rate higher (now at most {history.setup.train.peak_learning_rate:g}), or more steps"
    yield Symptom("not-moving", "The policy does not move", "warn", evidence, mend)


def _still(history: History) -> bool:
    now = [history.now("chosen_log_ratio"), history.now("rejected_log_ratio")]
    if None in now and len(history.evals) > 1:  # without a reference: on the same held-out pairs, since the first evaluation
        now = [_difference(history.evals, name) for name in ("chosen_logp", "rejected_logp")]
    return all(value is not None and abs(value) < limits.STILL for value in now)


def _difference(rows: list[Row], name: str) -> float | None:
    first, last = rows[0].get(name), rows[-1].get(name)
    return None if first is None or last is None else last - first


def flat_loss(history: History) -> Iterator[Symptom]:
    """The policy moves, and the loss stays where it began. Only where the loss of an untrained policy is the same on all pairs."""
    loss = history.now("loss")
    if loss is None or not history.settled or not history.setup.loss_begins_level or _still(history):
        return
    first = history.train[0]["loss"]
    if abs(loss - first) >= limits.FLAT_LOSS * abs(first):
        return
    accuracy = history.now("accuracy")
    evidence = f"The loss began at {first:.3f} and is {loss:.3f} over the last {WINDOW} of {count(len(history.train), 'step')}"
    if accuracy is not None and accuracy > limits.AT_CHANCE:
        evidence += f", although {quantity(accuracy, 'share')} of the training pairs are ranked right: β scales the differences down to nothing."
        mend = "objective.beta higher"
    else:
        evidence += f", with {quantity(accuracy, 'share')} of the training pairs ranked right."
        mend = "train.learning_rate higher or more steps; if that does not help, the labels or pairs that are nearly the same (likelier audit)"
    yield Symptom("flat-loss", "The loss is flat", "warn", evidence, mend)


def at_chance(history: History) -> Iterator[Symptom]:
    """Half of the run is over, the policy moves, and pairs are ranked as by a coin. Without a reference accuracy does not begin at ½: not judged."""
    if not history.settled or not history.setup.objective.needs_reference or _still(history):
        return
    if history.evals:
        if not history.just_evaluated or (len(history.evals) == 1 and history.done < 1):
            return
        rows, what = history.evals[-2:], "held-out pairs"
        pairs, accuracy = rows[-1]["pairs"], max(row["accuracy"] for row in rows)
        independent = prompts_of(rows[-1])
        over = " and ".join(quantity(row["accuracy"], "share") for row in rows)
    else:
        rows, what = history.train[-2 * WINDOW :], "training pairs"
        pairs, accuracy = sum(row["pairs"] for row in rows), fmean(row["accuracy"] for row in rows)
        independent = pairs
        over = quantity(accuracy, "share")
    if accuracy <= limits.AT_CHANCE and wilson(accuracy * independent, independent).high < limits.NOT_AT_CHANCE:
        evidence = f"{over} of {pairs:,} {what} are ranked right, after {history.done:.0%} of the run."
        mend = "the labels (likelier audit; objective.label_smoothing: 0.1 or objective.name: robust-dpo where some are wrong); more pairs"
        yield Symptom("at-chance", "Accuracy stays near chance", "warn", evidence, mend)


def prompts_of(evaluation: Row) -> int:
    """Over how many held-out rows an accuracy is: pairs of one prompt are not independent, so it is the number of prompts where a row has that."""
    return int(min(evaluation["pairs"], evaluation.get("prompts") or evaluation["pairs"]))


def both_falling(history: History) -> Iterator[Symptom]:
    """Chosen and rejected replies both lose much of their likelihood, and go on losing it."""
    now, before = _lost(history), _lost(history, ago=WINDOW)
    rejected, rejected_before = history.now("rejected_log_ratio"), history.now("rejected_log_ratio", ago=WINDOW)
    if now is None or rejected is None or rejected >= 0 or (rejected_before is not None and rejected >= rejected_before):
        return
    share, nats = now
    if share >= limits.FALL and nats >= limits.FALL_NATS and (before is None or share > before[0]):
        evidence = (
            f"Chosen replies are {number(nats)} nats less likely than under the reference ({quantity(share, 'share')} of their log-probability) and "
            f"rejected ones {number(-rejected)} nats: the margin grows while both fall."
        )
        mend = f"{LOWER_RATE}; objective.name: dpop or rpo, which hold the chosen side up"
        yield Symptom("both-falling", "Both rewards fall fast", "warn", evidence, mend)


def chosen_collapse(history: History) -> Iterator[Symptom]:
    """Chosen replies are being unlearnt. Without a reference they are compared with the first evaluation."""
    lost = _lost(history)
    if lost is None and len(history.evals) > 1 and (fall := _difference(history.evals, "chosen_logp")) is not None:
        lost = fall / history.evals[0]["chosen_logp"], -fall
    if lost is not None and lost[0] >= limits.COLLAPSE and lost[1] >= limits.FALL_NATS:
        share, nats = lost
        evidence = f"Chosen replies lost {number(nats)} nats, which is {quantity(share, 'share')} of the log-probability that they began with."
        mend = f"{LOWER_RATE}; objective.name: rpo or dpop"
        yield Symptom("chosen-collapse", "Chosen replies become unlikely", "warn", evidence, mend)


def _lost(history: History, *, ago: int = 0) -> tuple[float, float] | None:
    """What chosen replies lost: as a share of their log-probability under the reference, and in nats a reply. Negative where they gained."""
    ratio, logp = history.now("chosen_log_ratio", ago=ago), history.now("chosen_logp", ago=ago)
    if ratio is None or logp is None or logp - ratio >= 0:
        return None
    return ratio / (logp - ratio), -ratio


def overfitting(history: History) -> Iterator[Symptom]:
    """Training pairs are learnt, held-out ones are not, or are being forgotten. Not in the first pass, where no pair was seen before."""
    train, loss = history.now("accuracy"), history.now("loss")
    if train is None or loss is None or not history.just_evaluated or history.train[-1]["epoch"] <= 1:
        return
    passes = f"after {number(round(history.train[-1]['epoch'], 1))} passes"
    mend = "train.epochs lower (1 to 3), train.learning_rate lower, or more pairs; eval data of the same kind as the training data"
    prompts, held_out = prompts_of(history.evals[-1]), history.evals[-1]["accuracy"]
    seen = sum(row["pairs"] for row in history.train[-WINDOW:])
    if train - held_out >= limits.GAP and wilson(held_out * prompts, prompts).high < wilson(train * seen, seen).low:
        evidence = f"{quantity(train, 'share')} of the training pairs are ranked right, {quantity(held_out, 'share')} of the held-out ones, {passes}."
        yield Symptom("overfitting", "Learnt by heart", "warn", evidence, mend)
        return
    losses = [evaluation["loss"] for evaluation in history.evals]
    lowest = min(losses)
    if len(losses) > 2 and min(losses[-2:]) >= lowest + (limits.LOSS_RISE - 1) * abs(lowest) and loss < lowest:
        evidence = f"The held-out loss rose from {number(lowest)} to {number(losses[-1])} while that of training fell to {number(loss)}, {passes}."
        yield Symptom("overfitting", "Learnt by heart", "warn", evidence, mend)


def gradient_spike(history: History) -> Iterator[Symptom]:
    """A gradient far beyond those before it."""
    norms = [row["grad_norm"] for row in history.train[-101:]]
    *before, last = norms or [0.0]
    if len(before) < WINDOW:
        return
    usual, peak, limit = median(before[-20:]), max(before), history.setup.train.max_grad_norm
    if last >= limits.SPIKE * usual and last >= limits.SPIKE_PEAK * peak and last > limit:
        times = f"{number(last / usual)} times the median of the steps before it" if usual else "after norms of 0"
        evidence = f"The gradient of step {history.train[-1]['step']} has norm {number(last)}, {times}; it was cut to {limit:g}."
        mend = "train.learning_rate lower, train.warmup longer, train.pairs_per_step larger; look at that step's pairs if it is one step alone"
        yield Symptom("gradient-spike", "A gradient spike", "note", evidence, mend)


def kl_past_budget(history: History) -> Iterator[Symptom]:
    """The policy went further from its reference than it was allowed to."""
    kl, budget = history.evals[-1].get("kl") if history.evals else None, history.setup.kl_budget or limits.KL_BUDGET
    if kl is not None and kl > budget:
        evidence = (
            f"Replies of the untrained model are {number(kl)} nats less likely now, an estimate of KL(π_ref ‖ π); {number(budget)} are allowed."
        )
        mend = f"{LOWER_RATE}; fewer steps; or eval.kl_budget, if so much is meant"
        yield Symptom("kl-budget", "Far from the reference", "warn", evidence, mend)


def length_drift(history: History) -> Iterator[Symptom]:
    """Watched replies become longer, no longer end, or all but vanish."""
    before, after = history.filmed
    if not after:
        return
    old, new = (fmean(row["length"] for row in rows) for rows in (before, after))
    unended = [sum(not row["ended"] for row in rows) for rows in (before, after)]
    evidence = f"Watched replies have {number(round(new, 1))} tokens on average and had {number(round(old, 1))} before training"
    evidence += f"; {unended[1]} of {len(after)} reach the limit, {unended[0]} did." if any(unended) else "."
    endless = unended[1] - unended[0] >= max(2, limits.MORE_OFTEN * len(after))
    if endless or new >= max(limits.LENGTH_RISE * old, old + limits.LENGTH_TOKENS):
        mend = "does the longer reply win (likelier audit)? likelier fix --do balance-length; objective.name: r-dpo"
        yield Symptom("length-drift", "Replies become longer", "warn", evidence, mend)
    elif new < old and new <= limits.LENGTH_FALL * old:
        mend = f"{LOWER_RATE}; does the shorter reply always win (likelier audit)?"
        yield Symptom("length-drift", "Hardly a reply is left", "warn", evidence, mend)


def apologies(history: History) -> Iterator[Symptom]:
    """Watched replies apologise that did not."""
    mend = "the data: do chosen replies apologise more than rejected ones (likelier audit)?"
    yield from _more_often(history, "apology", "apology-drift", "Replies begin to apologise", "apologise", mend)


def refusals(history: History) -> Iterator[Symptom]:
    """Watched replies refuse that did not."""
    mend = "the data: are refusals over-represented among the chosen replies (likelier audit)? Add pairs whose chosen side helps"
    yield from _more_often(history, "refusal", "refusal-drift", "Replies begin to refuse", "refuse", mend)


def _more_often(history: History, field: str, name: str, title: str, verb: str, mend: str) -> Iterator[Symptom]:
    before, after = history.filmed
    old, new = (sum(bool(row[field]) for row in rows) for rows in (before, after))
    if after and new - old >= max(2, limits.MORE_OFTEN * len(after)):
        yield Symptom(name, title, "warn", f"{new} of {len(after)} watched replies {verb}; before training {old} did.", mend)


def repeating(history: History) -> Iterator[Symptom]:
    """Watched replies go round in circles, whatever the accuracy says."""
    before, after = history.filmed
    if not after:
        return
    old, new = (fmean(row["repetition"] for row in rows) for rows in (before, after))
    if new >= limits.REPETITION and new - old >= limits.REPETITION_RISE:
        evidence = f"{quantity(new, 'share')} of the 4-grams in watched replies stood there before, {quantity(old, 'share')} before training"
        if (accuracy := history.evals[-1]["accuracy"]) > limits.AT_CHANCE:
            evidence += f", although held-out accuracy is {quantity(accuracy, 'share')}"
        mend = f"{LOWER_RATE}; fewer steps; objective.name: rpo, or dpo + 0.2 sft"
        yield Symptom("repetition", "Replies repeat themselves", "warn", f"{evidence}.", mend)


def reference_changed(step: int) -> Symptom:
    """What a run that finds its reference changed leaves behind; no curve shows it."""
    evidence = "At the end the reference's weights or stored values were not those that the run began with: all of its log-ratios are in doubt."
    mend = "look for code that writes to the base weights (a hook, tied weights, a merged adapter), or for a damaged reference store; train again"
    return Symptom(REFERENCE_CHANGED, "The reference changed", "warn", evidence, mend, step)


RULES: tuple[Callable[[History], Iterator[Symptom]], ...] = (
    *(settings, not_finite, not_moving, flat_loss, at_chance, both_falling, chosen_collapse, overfitting, gradient_spike),
    *(kl_past_budget, length_drift, apologies, refusals, repeating),
)
"""All rules, in the order in which symptoms of one moment are told."""
