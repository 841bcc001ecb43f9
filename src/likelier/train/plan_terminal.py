"""A plan in the terminal: lengths, steps, memory, time, disk, and what to change."""

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from likelier.recipe import Recipe
from likelier.train.advice import Weight, gigabytes
from likelier.train.outlook import Outlook, count, in_store
from likelier.train.plan import Plan
from likelier.train.trial import Spread

COLOURS = {Weight.PROBLEM: "bold red", Weight.WARNING: "yellow", Weight.REMARK: "cyan"}
NAMED = 3
"""Dropped records that are named."""


def show_plan(plan: Plan, recipe: Recipe, console: Console | None = None) -> None:
    """Print it; 80 columns are enough."""
    console = console or Console()
    seen = plan.outlook
    title = f"{recipe.model.name}: {recipe.train.method}, {recipe.objective.name}, {count(seen.records, 'record')}"
    blocks = [
        Text(f"{title}; {plan.device}, {plan.precision}, engine {plan.engine}"),
        _lengths(seen),
        _steps(seen, recipe),
        _memory(plan, recipe),
        _time(plan),
        _disk(seen),
        _advice(plan),
    ]
    for block in blocks:
        console.print(block, highlight=False)
        console.print()


def _lengths(seen: Outlook) -> Table:
    table = Table("Tokens", *(("mean", "5%", "50%", "95%", "max")), box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, length in seen.lengths.items():
        table.add_row(name, *(f"{length[key]:,.0f}" for key in ("mean", "p5", "p50", "p95", "max")))
    return table


def _steps(seen: Outlook, recipe: Recipe) -> Table:
    schedule = seen.schedule
    table = _titled("Steps")
    fewest, most = schedule.fewest_batches, schedule.most_batches
    batches = count(most, "batch") if fewest == most else f"{fewest} to {most} batches"
    evaluations = count(schedule.evaluations, "evaluation")
    table.add_row("steps", f"{schedule.steps:,} of {count(schedule.pairs_per_step, 'record')}, {batches} a step; {evaluations}")
    shared = 1 - schedule.tokens / schedule.tokens_unshared
    passes = f"{schedule.epochs:.3g} {'epoch' if schedule.epochs == 1 else 'epochs'}"
    table.add_row("unique tokens", f"{schedule.tokens / schedule.epochs:,.0f} an epoch, {passes}; sharing what begins alike saves {shared:.0%}")
    table.add_row("largest batch", f"{schedule.largest_batch:,} tokens (train.tokens_per_batch: {recipe.train.tokens_per_batch:,})")
    if seen.dropped:
        named = [f"{name}: {reason}" for name, reason in list(seen.dropped.items())[:NAMED]]
        table.add_row("dropped", "\n".join([count(len(seen.dropped), "record"), *named, *(["…"] if len(seen.dropped) > NAMED else [])]))
    return table


def _memory(plan: Plan, recipe: Recipe) -> Table:
    seen, trial = plan.outlook, plan.trial
    table = _titled("Memory", numbers=True)
    for part in seen.memory:
        table.add_row(part.name, part.arithmetic, gigabytes(part.bytes))
    table.add_row("in all", "by arithmetic", Text(gigabytes(seen.memory_total), "bold"))
    for how, needed in seen.facts.memory_recomputing.items():
        less = gigabytes(seen.memory_total - (seen.facts.memory_needed or 0) + needed)
        table.add_row("or", f"with train.gradient_checkpointing: {str(how).lower()}", less)
    if recipe.train.fsdp:
        table.add_row("each of N", "train.fsdp: this is one process; of N each holds 1/N of weights, masters, gradients and optimizer", "")
    table.add_row("before", "held before the trial, freed memory too", gigabytes(trial.memory_before))
    if trial.fits:
        table.add_row("measured", f"the worst batch, {trial.worst_tokens:,} tokens, really tried", Text(gigabytes(trial.memory_peak), "bold"))
    elif trial.tokens_per_batch < trial.worst_tokens:
        tried = f"the worst batch, {trial.worst_tokens:,} tokens, did not fit; batches of {trial.tokens_per_batch:,} did"
        table.add_row("measured", Text(tried, "bold red"), gigabytes(trial.memory_peak))
    else:
        table.add_row("measured", Text("no memory for a training step: see advice", "bold red"), gigabytes(trial.memory_peak))
    table.add_row("free", "when the plan began", gigabytes(seen.memory_free))
    return table


def _time(plan: Plan) -> Table | Text:
    seen, seconds, trial = plan.outlook, plan.seconds, plan.trial
    if not seconds or trial.training is None or trial.scoring is None:
        return Text("Time: nothing could be measured.")
    table = _titled("Time", numbers=True)
    table.add_row("training", f"{seen.schedule.tokens:,} tokens at {1 / trial.training.middle:,.0f} a second", duration(seconds["training"]))
    if seen.schedule.tokens_scored:
        table.add_row(
            "evaluations", f"{seen.schedule.tokens_scored:,} tokens at {1 / trial.scoring.middle:,.0f} a second", duration(seconds["evaluations"])
        )
    if seen.reference:
        left = f"\n{seen.reference.tokens:,} tokens to score" if seen.reference.tokens else ""
        table.add_row("reference", in_store(seen.reference) + left, duration(seconds["reference"]) if left else "nothing")
    timed = f"by {count(trial.batches, 'batch')} timed now{': median, range' if trial.batches > 1 else ''}"
    table.add_row("in all", timed, Text(duration(seconds["in all"]), "bold"))
    return table


def _disk(seen: Outlook) -> Table:
    table = _titled("Disk", numbers=True)
    disk = seen.disk
    table.add_row("checkpoint", "weights and optimizer state", gigabytes(disk["checkpoint"]))
    table.add_row("best", "weights of the best evaluation", gigabytes(disk["best"]))
    table.add_row("model", "what stays", gigabytes(disk["model"]))
    table.add_row("in all", "at most, while a checkpoint replaces another", Text(gigabytes(disk["most"]), "bold"))
    if seen.reference and seen.reference.bytes:
        table.add_row("reference", "added to the store in the cache", gigabytes(seen.reference.bytes))
    return table


def _advice(plan: Plan) -> Table | Text:
    if not plan.advice:
        return Text("Advice: none.")
    table = _titled("Advice")
    for advice in plan.advice:
        table.add_row(Text(str(advice.weight), COLOURS[advice.weight]), Group(Text(advice.reason), Text(f"→ {advice.change}", "italic")))
    return table


def _titled(title: str, *, numbers: bool = False) -> Table:
    """Two columns under a title, or three with numbers at the right."""
    table = Table(title, "", *([""] if numbers else []), box=None, pad_edge=False, header_style="bold", expand=True)
    table.columns[0].min_width = 13
    table.columns[0].no_wrap = True
    table.columns[1].ratio = 1
    if numbers:
        table.columns[2].justify = "right"
        table.columns[2].no_wrap = True
    return table


def duration(seconds: Spread) -> str:
    """ "6 min (5 to 9)", all three in the unit of the greatest."""
    unit, size = next((unit, size) for unit, size in (("h", 3600), ("min", 60), ("s", 1)) if seconds.high >= 2 * size or size == 1)
    values = [value / size for value in (seconds.low, seconds.middle, seconds.high)]
    low, middle, high = (f"{value:.2g}" if value < 10 else f"{value:,.0f}" for value in values)
    return f"{middle} {unit}" if low == high else f"{middle} {unit} ({low} to {high})"
