"""Advice on method and settings before a run: each rule a pure function of the facts, with its reason and the setting to change."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from likelier.objectives.table import TABLE, Objective, parse_sum
from likelier.recipe import Recipe
from likelier.section import Recomputing


class Weight(IntEnum):
    """How much a piece of advice matters, in rising order."""

    REMARK = 1
    WARNING = 2
    PROBLEM = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Advice:
    """What a rule says: why, and which setting to change to what."""

    rule: str
    weight: Weight
    reason: str
    change: str


@dataclass(frozen=True)
class Facts:
    """All that the rules look at. What is not known is None, and no rule speaks of it."""

    objective: str  # as the recipe names it, a sum too
    terms: tuple[str, ...]  # the objectives that it is made of
    settings: Mapping[str, Any]  # hyperparameters of all terms, defaults included
    usual_beta: float | None  # the default of the first term that has one
    paired: bool
    needs_reference: bool
    method: str  # lora, qlora or full
    learning_rate: float
    epochs: float  # passes over the training records that the steps make
    steps: int
    tokens_per_batch: int
    pairs: int  # training pairs
    good: int = 0  # replies judged alone, to train on
    bad: int = 0
    margins: int = 0  # records with a margin
    margin_scale: float = 0.0
    longest: int = 0  # unique tokens of the largest example
    too_long: int = 0  # records dropped for their length
    max_length: int = 0
    chosen_length: float | None = None  # mean tokens
    rejected_length: float | None = None
    optimizer: str = "adamw"  # and the next two as in the recipe
    bf16_weights: str = "fp32-master"
    precision: str = "fp32"  # or bf16: what `auto` became
    findings: Mapping[str, str] = field(default_factory=dict)  # check of the audit → verdict
    parameters: int = 0  # of the model
    has_template: bool = True  # whether the tokenizer brings a chat template
    end_logp: float | None = None  # mean log-probability, under the untrained model, of the end token after a good reply
    memory_needed: int | None = None  # bytes, and those that are free
    memory_free: int | None = None
    memory_recomputing: Mapping[Recomputing, int] = field(default_factory=dict)  # bytes needed with a `gradient_checkpointing` that takes less
    fits: bool | None = None  # whether the worst batch, really tried, did
    reference_bytes: int = 0  # to be written to the reference store
    disk_bytes: int = 0  # to be written to the run directory
    cache_free: int | None = None  # bytes free where the store is
    disk_free: int | None = None  # and where the run goes

    @property
    def records(self) -> int:
        return self.pairs + self.good + self.bad


def facts_of(recipe: Recipe, objective: Objective, **known: Any) -> Facts:
    """What a recipe says by itself, and what else is `known`."""
    terms = tuple(name for _, name in parse_sum(recipe.objective.name))
    defaults = [TABLE[name].hyperparameters for name in terms]
    return Facts(
        objective=recipe.objective.name,
        terms=terms,
        settings={**{name: value for own in reversed(defaults) for name, value in own.items()}, **recipe.objective.given()},
        usual_beta=next((own["beta"] for own in defaults if "beta" in own), None),
        paired=objective.paired,
        needs_reference=objective.needs_reference,
        method=recipe.train.method,
        learning_rate=recipe.train.peak_learning_rate,
        tokens_per_batch=recipe.train.tokens_per_batch,
        optimizer=recipe.train.optimizer,
        bf16_weights=recipe.train.bf16_weights,
        margin_scale=objective.margin_scale,
        max_length=recipe.data.max_length,
        **known,
    )


def advise(facts: Facts) -> list[Advice]:
    """What RULES say, the weightiest first."""
    return sorted((advice for rule in RULES for advice in rule(facts)), key=lambda advice: -advice.weight)


FULL_RATES = (5e-7, 5e-6)
"""Peak rates of full fine-tuning on preferences: 5e-7 in Zephyr and Tülu 3, 1e-6 in the DPO paper, 3e-7 to 1e-6 for SimPO, 5e-6 at the upper end."""

WRITING_RATES = (5e-7, 2e-5)
"""Those of objectives with a supervised term, which take what supervised fine-tuning takes: up to 2e-5; 8e-6 in ORPO's paper."""

LORA_RATES = (5e-6, 5e-4)
"""LoRA takes about ten times the rate of full fine-tuning (Schulman et al. 2025, "LoRA Without Regret"); recipes lie between 5e-6 and 5e-4.
A base in 4 bits takes the same: 1e-4 to 2e-4 in QLoRA's paper (Dettmers et al. 2023, appendix B)."""

WRITING = {"orpo", "cpo", "sft", "rpo"}
"""Objectives with a supervised term."""

BETAS = (0.01, 0.5)
"""β of DPO and what shares its scale."""

SMALL = 200
"""Records below which a set is called small."""

FEWEST_STEPS = 10
"""Optimizer steps below which a schedule has no shape."""

END_UNKNOWN = -7.0
"""Mean log-probability of the end token, below which a model does not end replies as its template does: one in a thousand."""

DROPPED_SHARE = 0.05
"""Share of records beyond max_length from which it is worth a word."""

KTO_BALANCE = (1.0, 1.5)
"""λ_D·n_good over λ_U·n_bad (Ethayarajh et al. 2024, eq. 9)."""


def less_memory(facts: Facts) -> str:
    """What takes less memory and is not done yet: first what changes nothing, then other ways to train, then other data."""
    full, recomputing = facts.method == "full", recomputing_enough(facts)
    ways = {
        f"train.gradient_checkpointing: {str(recomputing).lower()}": recomputing,
        "train.optimizer: adamw-8bit": full and facts.optimizer == "adamw",
        "train.bf16_weights: stochastic-rounding": full and facts.precision == "bf16" and facts.bf16_weights == "fp32-master",
        "train.method: lora": full,
        "train.method: qlora": facts.method == "lora",
    }
    return ", ".join(["train.tokens_per_batch smaller", *(way for way, helps in ways.items() if helps), "or data.max_length smaller"])


def recomputing_enough(facts: Facts) -> Recomputing:
    """The cheapest `gradient_checkpointing` that fits by arithmetic, and if none does the one that takes least; False where none takes less."""
    fits = [how for how, needed in facts.memory_recomputing.items() if facts.memory_free is None or needed <= facts.memory_free]
    return next(iter(fits or list(facts.memory_recomputing)[::-1]), False)


def memory(facts: Facts) -> Iterator[Advice]:
    """The worst batch did not fit, or arithmetic says that it will not."""
    if facts.fits is False:
        yield Advice("memory", Weight.PROBLEM, "The worst batch of the run was tried and did not fit into memory.", less_memory(facts))
    elif facts.fits is None and facts.memory_needed and facts.memory_free is not None and facts.memory_needed > facts.memory_free:
        reason = f"By arithmetic the run takes {gigabytes(facts.memory_needed)} more, and {gigabytes(facts.memory_free)} are free."
        yield Advice("memory", Weight.WARNING, reason, less_memory(facts))


def disk(facts: Facts) -> Iterator[Advice]:
    """No room for the reference's values, or for the run directory."""
    if facts.cache_free is not None and facts.reference_bytes > facts.cache_free:
        yield Advice(
            "reference-room",
            Weight.PROBLEM,
            f"The reference's values take {gigabytes(facts.reference_bytes)}, and {gigabytes(facts.cache_free)} are free in the cache.",
            "the environment's LIKELIER_CACHE: another disk; or objective.name: orpo or simpo, which need no reference",
        )
    if facts.disk_free is not None and facts.disk_bytes > facts.disk_free:
        reason = f"Checkpoints and model take up to {gigabytes(facts.disk_bytes)}, and {gigabytes(facts.disk_free)} are free where the run goes."
        yield Advice("disk", Weight.PROBLEM, reason, "out: a folder on another disk" + "; or train.method: lora" * (facts.method == "full"))


def labels_and_objective(facts: Facts) -> Iterator[Advice]:
    """Unpaired labels go with KTO, pairs with DPO."""
    alone = facts.good + facts.bad
    if facts.paired and alone:
        reason = f"{alone:,} records judge one reply alone, and {facts.objective} compares two."
        yield Advice("unpaired", Weight.PROBLEM, reason, "objective.name: kto")
    elif not facts.paired and facts.pairs and not alone:
        reason = f"All records are pairs, and {facts.objective} judges each reply alone: that its sides answer one prompt goes unused."
        yield Advice("paired", Weight.REMARK, reason, "objective.name: dpo")


def base_model(facts: Facts) -> Iterator[Advice]:
    """A model that was never tuned to answer."""
    strange = facts.end_logp is not None and facts.end_logp < END_UNKNOWN
    if facts.has_template and not strange:
        return
    seen = (
        "Its tokenizer brings no chat template" if not facts.has_template else "It gives the end of a good reply less than one chance in a thousand"
    )
    reason = f"{seen}: this seems to be a base model without supervised fine-tuning. Preferences alone teach such a model little about answering."
    if not (WRITING | {"simpo"}) & {*facts.terms}:
        reason += " Fine-tune on good replies first, or learn both at once."
        yield Advice("base-model", Weight.WARNING, reason, "objective.name: sft and then dpo; or orpo, or simpo, in one stage")


def label_noise(facts: Facts) -> Iterator[Advice]:
    """Labels that are wrong now and then."""
    heeds = {"ipo", "robust-dpo"} & {*facts.terms} or facts.settings.get("label_smoothing", 0) >= 0.01
    noisy = [check for check in ("label-noise", "contradictions") if facts.findings.get(check) in ("warn", "fatal")]
    if noisy and not heeds:
        reason = f"The audit found {' and '.join(noisy)}, and {facts.objective} takes every label at its word."
        yield Advice("label-noise", Weight.WARNING, reason, "objective.label_smoothing: 0.1 (dpo), or objective.name: robust-dpo or ipo")


def length_bias(facts: Facts) -> Iterator[Advice]:
    """The longer reply is the better one too often: the model learns length."""
    if facts.findings.get("length-bias") not in ("warn", "fatal") or facts.chosen_length is None or facts.rejected_length is None:
        return
    if "r-dpo" in facts.terms:
        return
    lengths = f"chosen replies have {facts.chosen_length:.0f} tokens and rejected ones {facts.rejected_length:.0f}"
    balance = "`likelier fix --do balance-length`"
    if facts.chosen_length > facts.rejected_length:
        reason = f"The audit found a length bias, and {lengths}: the model will learn to write more, whatever it says."
        yield Advice("length-bias", Weight.WARNING, reason, f"{balance}; or objective.name: r-dpo" if facts.paired else balance)
    else:
        reason = f"The audit found that the shorter reply wins ({lengths}). If brevity is not part of the lesson, it will be learnt all the same."
        yield Advice("length-bias", Weight.REMARK, reason, balance)


def one_kind(facts: Facts) -> Iterator[Advice]:
    """Nothing to tell apart: all replies are good, or all bad."""
    if facts.paired or facts.pairs or bool(facts.good) == bool(facts.bad):
        return
    kind, other = ("good", "bad") if facts.good else ("bad", "good")
    reason = f"All {facts.records:,} replies are {kind}: {facts.objective} learns from good and bad ones, and has nothing to tell apart."
    yield Advice("one-kind", Weight.WARNING, reason, f"data.train: {other} replies as well")


def kto_balance(facts: Facts) -> Iterator[Advice]:
    """KTO's weights have to make good for unequal counts."""
    good, bad = facts.good + facts.pairs, facts.bad + facts.pairs
    if "desirable_weight" not in facts.settings or not good or not bad:
        return
    for_good, for_bad = facts.settings["desirable_weight"], facts.settings["undesirable_weight"]
    balance = for_good * good / (for_bad * bad)
    low, high = KTO_BALANCE
    if low <= balance <= high:
        return
    middle = (low + high) / 2
    for_few, for_many = middle * for_bad * bad / good, for_good * good / bad / middle
    change = f"desirable_weight: {for_few:.3g}" if balance < low else f"undesirable_weight: {for_many:.3g}"
    reason = f"{good:,} good and {bad:,} bad replies weigh {balance:.2g} to 1, and KTO's paper wants {low:g} to {high:g}."
    yield Advice("kto-balance", Weight.WARNING, reason, f"objective.{change}")


def learning_rate(facts: Facts) -> Iterator[Advice]:
    """Outside the usual range; far outside it is a warning."""
    usual = LORA_RATES if facts.method != "full" else WRITING_RATES if WRITING & {*facts.terms} else FULL_RATES
    if within(facts.learning_rate, usual):
        return
    low, high = usual
    near = within(facts.learning_rate, (low / 10, high * 10))
    reason = f"{facts.learning_rate:g} is outside the {low:g} to {high:g} that are usual for {facts.method} {facts.objective}."
    if facts.learning_rate > high and near and facts.parameters and facts.parameters < 1e9:
        reason += f" A model of {facts.parameters / 1e6:.0f} million parameters often takes more."
    weight = Weight.REMARK if near else Weight.WARNING
    yield Advice("learning-rate", weight, reason, f"train.learning_rate: {high if facts.learning_rate > high else low:g}")


def beta(facts: Facts) -> Iterator[Advice]:
    """Outside 0.01 to 0.5, or for an objective on another scale further than five times from its default; five times further is a warning."""
    given, usual = facts.settings.get("beta"), facts.usual_beta
    if given is None or usual is None:
        return
    low, high = BETAS if within(usual, BETAS) else (usual / 5, usual * 5)
    if within(given, (low, high)):
        return
    effect = "hardly holds the model to its reference" if given < low else "hardly lets the model move"
    if not facts.needs_reference:
        effect = "is far from what the method was tried with"
    weight = Weight.REMARK if within(given, (low / 5, high * 5)) else Weight.WARNING
    yield Advice("beta", weight, f"β = {given:g} {effect}: usual are {low:g} to {high:g}.", f"objective.beta: {usual:g}")


def epochs(facts: Facts) -> Iterator[Advice]:
    """Preferences are learnt in 1 to 3 passes, and by heart in more."""
    if facts.epochs > 3:
        weight = Weight.WARNING if facts.records < SMALL or facts.epochs > 6 else Weight.REMARK
        reason = f"{facts.epochs:.3g} passes over the same records: from the third on they are learnt by heart."
        yield Advice("epochs", weight, reason, "train.epochs: 1 to 3")
    elif facts.epochs < 0.9 and facts.records < 10_000:
        reason = f"The run ends after {facts.epochs:.2g} of a pass: some records are never seen."
        yield Advice("epochs", Weight.REMARK, reason, "train.epochs: 1, or train.max_steps larger")


def small_set(facts: Facts) -> Iterator[Advice]:
    """Few records: an adapter, a low rate, one to three passes."""
    if facts.records >= SMALL:
        return
    _, high = FULL_RATES if facts.method == "full" else LORA_RATES
    changes = [
        *(["train.method: lora"] if facts.method == "full" else []),
        *([f"train.learning_rate below {high / 5:g}"] if facts.learning_rate > high / 5 else []),
        *(["train.epochs: 1 to 3"] if facts.epochs > 3 else []),
    ]
    if changes:
        reason = f"{facts.records:,} records are a small set, easily learnt by heart; accuracies on its held-out part are rough."
        yield Advice("small-set", Weight.REMARK, reason, "; ".join(changes))


def few_steps(facts: Facts) -> Iterator[Advice]:
    """Too few steps for a warm-up and a schedule."""
    if facts.steps < FEWEST_STEPS:
        reason = f"{facts.steps} optimizer {'step leaves' if facts.steps == 1 else 'steps leave'} no room for a warm-up and a schedule."
        yield Advice("few-steps", Weight.REMARK, reason, "train.pairs_per_step smaller, or train.epochs up to 3")


def unread_margins(facts: Facts) -> Iterator[Advice]:
    """Margins that nothing looks at."""
    if facts.margins and not facts.margin_scale:
        reason = f"{facts.margins:,} records say by how much the chosen reply is better, and nothing looks at it."
        yield Advice("margins", Weight.REMARK, reason, "objective.margin_scale above 0 (docs/objectives.md)")


def batch_below_longest(facts: Facts) -> Iterator[Advice]:
    """A batch cannot be smaller than one example."""
    if facts.longest > facts.tokens_per_batch:
        reason = f"The largest example has {facts.longest:,} tokens, a batch {facts.tokens_per_batch:,}: it goes through alone and sets the memory."
        rounded = 2 ** math.ceil(math.log2(facts.longest))
        yield Advice("batch", Weight.REMARK, reason, f"train.tokens_per_batch: {rounded}, or data.max_length smaller")


def dropped_for_length(facts: Facts) -> Iterator[Advice]:
    """Many records do not fit into max_length."""
    share = facts.too_long / max(1, facts.too_long + facts.records)
    if share > DROPPED_SHARE:
        reason = f"{share:.0%} of the records are longer than {facts.max_length:,} tokens and are dropped: what is long is not learnt."
        yield Advice("max-length", Weight.WARNING, reason, f"data.max_length above {facts.max_length}")


RULES = (
    *(memory, disk, labels_and_objective, base_model, label_noise, length_bias, one_kind, kto_balance),
    *(learning_rate, beta, epochs, small_set, few_steps, unread_margins, batch_below_longest, dropped_for_length),
)
"""All rules, in the order in which equally weighty advice is given."""


def within(value: float, limits: tuple[float, float]) -> bool:
    """Whether `value` lies between the limits, which belong to it; rounding is forgiven."""
    low, high = limits
    return low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


def gigabytes(size: float) -> str:
    """ "2.1 GB", "310 MB"; of 10⁹ and 10⁶ bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
