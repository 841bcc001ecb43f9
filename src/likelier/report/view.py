"""Manifest, summary and samples as what the page shows: rows and sentences, ready to print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likelier.changes import Finding, has_reference, held_out_amount
from likelier.metrics import Interval, has_apology, has_refusal, in_a_loop
from likelier.recipe import Recipe
from likelier.report import plots
from likelier.report.curves import Drawing, Key
from likelier.wording import UNKNOWN, change, count, duration, ends, number, quantity

Manifest = Mapping[str, Any]
MOST_SAMPLES = 48
MOST_DROPPED = 20
LENGTHS = ("mean", "p5", "p50", "p95", "max")


@dataclass(frozen=True)
class Tile:
    """One of the few numbers at the top."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Fact:
    """A named value of the provenance; `code` ones (hashes, commands) are set in a fixed-width face."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class DataView:
    """One side of the data, training or held-out."""

    title: str
    facts: tuple[tuple[str, str], ...]
    length_names: tuple[str, ...]
    lengths: tuple[tuple[str, tuple[str, ...]], ...]
    remark: str
    drawings: tuple[Drawing, ...]
    reasons: tuple[tuple[str, str], ...]
    dropped: tuple[tuple[str, str], ...]
    dropped_more: int


@dataclass(frozen=True)
class Reply:
    title: str
    text: str
    tags: str


@dataclass(frozen=True)
class Sample:
    """One prompt with its replies. `earlier` are the turns before the last one."""

    id: str
    earlier: tuple[tuple[str, str], ...]
    prompt: tuple[str, str]
    replies: tuple[Reply, ...]
    chosen: str | None
    same: bool


def subtitle(recipe: Recipe, manifest: Manifest) -> str:
    """What was trained on what: dpo on embedded:support, SmolLM2 (135M parameters), LoRA of rank 16."""
    model = manifest.get("model") or {}
    adapter = (manifest.get("training") or {}).get("adapter") or recipe.adapter.model_dump()
    kind = f"{'DoRA' if adapter['dora'] else 'LoRA'} of rank {adapter['rank']}"
    method = {"lora": kind, "qlora": f"{kind} on 4 bits", "full": "all weights"}[recipe.train.method]
    size = f" ({_millions(model['parameters'])} parameters)" if model.get("parameters") else ""
    return f"{recipe.objective.name} on {', '.join(recipe.data.train)} · {model.get('name', recipe.model.name)}{size}, {method}"


def headline(
    manifest: Manifest, evaluation: Mapping[str, Any] | None, held_out: Sequence[Mapping[str, Any]], changed: int, unchanged: int
) -> list[str]:
    """The run in a few sentences."""
    outcome = manifest.get("outcome")
    sentences = ["Training has not ended; the page shows what there is so far."]
    if outcome:
        length = f"Trained for {count(outcome['steps'], 'step')} in {duration(outcome.get('seconds'))}"
        sentences = [f"{length} ({outcome['stopped'].rstrip('.')})."]
    if evaluation:
        accuracy = Interval.from_dict(evaluation["held_out"]["accuracy"])
        share = f"{quantity(accuracy.value, 'share')} (95% interval {ends(accuracy, 'share')})"
        if evaluation.get("replies"):
            sentences.append(f"Of {held_out_amount(evaluation)}, good ones became likelier and bad ones less likely in {share}.")
        else:
            sentences.append(f"On {held_out_amount(evaluation)} the tuned model ranks the chosen reply first in {share}.")
        sentences.append(f"Of {count(changed + unchanged, 'measure')} compared with the model before, {changed} changed and {unchanged} did not.")
    elif held_out:
        last = held_out[-1]
        sentences.append(
            f"At the last evaluation, step {last['step']}, held-out accuracy was {quantity(last['accuracy'], 'share')}, as yet without interval."
        )
    return sentences


def tiles(manifest: Manifest, evaluation: Mapping[str, Any] | None) -> list[Tile]:
    """The numbers to remember."""
    held_out = evaluation["held_out"] if evaluation else {}
    wanted = (
        ("accuracy", "Held-out accuracy", "share", quantity),
        ("margin", "Margin", "", quantity),
        ("chosen_logp_change", "Log-probability of chosen", "nats", change),
        ("kl", "KL from the reference", "nats", quantity),
    )
    shown = []
    for name, label, unit, say in wanted:
        if held_out.get(name):
            interval = Interval.from_dict(held_out[name])
            shown.append(Tile(label, say(interval.value, unit, interval), ends(interval, unit)))
    train = manifest["data"]["train"]
    alone = sum((train.get("unpaired") or {}).values())
    if train["pairs"] or not alone:
        shown.append(Tile("Training pairs", f"{train['pairs']:,}", f"on {count(train['prompts'], 'prompt')}"))
    if alone:
        shown.append(Tile("Replies judged alone", f"{alone:,}", f"{train['unpaired']['good']:,} of them good"))
    if outcome := manifest.get("outcome"):
        shown.append(Tile("Training time", duration(outcome.get("seconds")), _reference_time(manifest.get("reference"), outcome)))
    return shown


def _reference_time(reference: Manifest | None, outcome: Manifest) -> str:
    if not reference:
        return ""
    if not reference["computed"]:
        return "the reference had been scored before"
    return f"{duration(outcome.get('reference_seconds'))} more for the reference"


def cautions(manifest: Manifest) -> list[str]:
    """What a reader must know before believing the rest."""
    found = []
    if (manifest.get("reference") or {}).get("unchanged") is False:
        found.append("The reference scores changed during the run: rewards and margins are not to be trusted.")
    if (manifest.get("numerics") or {}).get("engine") == "plain":
        found.append("Prompts were not shared (plain engine): the result is the same, the run was slower than it need be.")
    if accepted := (manifest.get("audit") or {}).get("accepted"):
        found.append(f"Trained in spite of what the audit calls fatal: {', '.join(accepted)}.")
    for side, name in (("train", "training"), ("eval", "held-out")):
        data = manifest["data"].get(side) or {}
        alone = sum((data.get("unpaired") or {}).values())
        what = f"{name} {'record' if alone else 'pair'}"
        if dropped := data.get("dropped"):
            whole = data["pairs"] + alone + len(dropped)
            found.append(f"{count(len(dropped), what)} of {whole:,} could not be used; the data section names them.")
        if moved := data.get("boundary_mismatches"):
            found.append(f"In {count(moved, what)} prompt and reply are tokenised otherwise together than apart.")
    return found


def judged_alone(manifest: Manifest) -> bool:
    """Whether any reply, trained on or held out, was judged without another beside it."""
    return any((side or {}).get("unpaired") for side in manifest["data"].values())


def audit_findings(manifest: Manifest) -> list[Finding]:
    """What the audit of the training pairs noted, the gravest first."""
    grave = {"fatal": 0, "warn": 1, "note": 2}
    noted = (manifest.get("audit") or {}).get("findings") or []
    return [Finding(row["title"], row["summary"], row["verdict"]) for row in sorted(noted, key=lambda row: grave[row["verdict"]])]


def data_view(side: str, data: Mapping[str, Any]) -> DataView:
    """Counts, lengths and their distribution for one side of the data."""
    tokens = data.get("tokens") or {}
    dropped = data.get("dropped") or []
    sides = ("good", "bad") if data.get("unpaired") else ("chosen", "rejected")
    reasons = sorted((data.get("reasons") or {}).items(), key=lambda item: -item[1])
    return DataView(
        title={"train": "Training", "eval": "Held-out"}[side],
        facts=(
            *([("Pairs", f"{data['pairs']:,}")] if data["pairs"] or not data.get("unpaired") else []),
            *([("Good and bad replies", f"{data['unpaired']['good']:,} and {data['unpaired']['bad']:,}")] if data.get("unpaired") else []),
            ("Prompts", f"{data['prompts']:,}"),
            ("Dropped", f"{len(dropped):,}"),
            ("Sources", ", ".join(data.get("sources") or []) or UNKNOWN),
        ),
        length_names=("mean", "5%", "median", "95%", "max"),
        lengths=tuple(
            (shown, tuple(_whole(tokens[name].get(cut)) for cut in LENGTHS))
            for name, shown in zip(("prompt", "chosen", "rejected"), ("prompt", *sides), strict=True)
            if tokens.get(name)
        ),
        remark=_length_remark(tokens, sides),
        drawings=_histograms(side, data.get("histogram"), sides),
        reasons=tuple((name, f"{times:,}") for name, times in reasons),
        dropped=tuple((row["id"], row["reason"]) for row in dropped[:MOST_DROPPED]),
        dropped_more=max(0, len(dropped) - MOST_DROPPED),
    )


def _length_remark(tokens: Mapping[str, Any], sides: tuple[str, str]) -> str:
    """A model learns length when length tells the sides apart, so the difference is said in words."""
    if not tokens:
        return "Token lengths were not recorded."
    if not (tokens.get("chosen") and tokens.get("rejected")):
        return ""
    chosen, rejected = tokens["chosen"]["mean"], tokens["rejected"]["mean"]
    if not rejected:
        return ""
    percent = round(100 * (chosen / rejected - 1))
    if percent == 0:
        return f"{sides[0].capitalize()} and {sides[1]} replies are equally long on average."
    return f"{sides[0].capitalize()} replies are {abs(percent)}% {'longer' if percent > 0 else 'shorter'} than {sides[1]} ones on average."


def _histograms(side: str, histogram: Mapping[str, Any] | None, sides: tuple[str, str]) -> tuple[Drawing, ...]:
    if not histogram:
        return ()
    edges, title = histogram["edges"], {"train": "Training", "eval": "Held-out"}[side].lower()
    prompts = plots.histogram(f"{side}-prompts", f"Distribution of {title} prompt lengths", edges, [(histogram["prompt"], plots.ACCENT)])
    rows = "Pairs" if sides[0] == "chosen" else "Records"
    both = [(histogram["chosen"], plots.CHOSEN), (histogram["rejected"], plots.REJECTED)]
    replies = plots.histogram(f"{side}-replies", f"Distribution of {title} reply lengths", edges, both)
    return (
        Drawing("Length of prompts", f"{rows} by number of tokens.", (Key("accent", "prompt"),), prompts),
        Drawing("Length of replies", f"{rows} by number of tokens.", (Key("chosen", sides[0]), Key("rejected", sides[1])), replies),
    )


def sample_view(row: Mapping[str, Any]) -> Sample:
    """One row of samples.jsonl. The last message of the prompt is the one that is answered."""
    turns = [(message["role"], message["content"]) for message in row["prompt"]] or [("prompt", "")]
    before, after = row["before"], row["after"]
    return Sample(
        id=str(row.get("id", "")),
        earlier=tuple(turns[:-1]),
        prompt=turns[-1],
        replies=(Reply("Before", before, _tags(before)), Reply("After", after, _tags(after))),
        chosen=row.get("chosen"),
        same=before == after,
    )


def _tags(text: str) -> str:
    words = count(len(text.split()), "word")
    seen = (("apology", has_apology(text)), ("refusal", has_refusal(text)), ("loop", in_a_loop(text)))
    return " · ".join([words, *(name for name, found in seen if found)])


def provenance(manifest: Manifest) -> list[tuple[str, list[Fact]]]:
    """Where the run comes from, in named groups: enough to make it again and to check it."""
    data, model, numerics, outcome = (manifest.get(part) or {} for part in ("data", "model", "numerics", "outcome"))
    versions = (manifest.get("versions") or {}).items()
    return [
        ("Data", [Fact(f"{name} id", data[side]["id"], code=True) for side, name in (("train", "training"), ("eval", "held-out")) if data.get(side)]),
        (
            "Model",
            [
                Fact("name", _text(model.get("name"))),
                Fact("parameters", number(model.get("parameters"))),
                Fact("trained", number(model.get("trainable_parameters"))),
                *(Fact(name.replace("_", " "), _text(model.get(name)), code=True) for name in ("weights", "tokenizer", "chat_template")),
            ],
        ),
        (
            "Numerics",
            [
                *(Fact(name, _text(numerics.get(name))) for name in ("precision", "device", "engine")),
                Fact("parity", _parity(numerics.get("parity"))),
                Fact("first loss", _first_loss(outcome)),
                Fact("reference", _reference(manifest.get("reference"))),
            ],
        ),
        (
            "Run",
            [
                *(Fact(name, _text(manifest.get(name)), code=True) for name in ("command", "recipe")),
                Fact("created", _text(manifest.get("created"))),
                Fact("Likelier", _text(manifest.get("likelier"))),
                *(Fact(name, _text(version)) for name, version in versions),
            ],
        ),
    ]


def _parity(parity: Mapping[str, float] | None) -> str:
    if not parity:
        return "not measured"
    return f"tree and plain differ by {parity['largest_difference']:.1e} at most (tolerance {parity['tolerance']:.0e})"


def _first_loss(outcome: Mapping[str, Any]) -> str:
    if outcome.get("first_loss") is None:
        return UNKNOWN
    expected = outcome.get("first_loss_expected")
    return f"{outcome['first_loss']:.4f}" + (f" (expected {expected:.4f})" if expected is not None else "")


def _reference(reference: Mapping[str, Any] | None) -> str:
    if reference is None or not has_reference(reference):
        return "none"
    state = {True: "unchanged at the end", False: "changed by the end", None: "not checked again"}[reference.get("unchanged")]
    return f"{count(reference['computed'], 'response')} scored, {reference['reused']:,} reused, {state}"


def no_findings(findings: Sequence[Finding], evaluation: Mapping[str, Any] | None, name: str) -> str:
    """What an empty list says instead of findings."""
    if findings:
        return ""
    return f"Nothing {name}." if evaluation else "Not known yet: the run has not been evaluated."


def _text(value: Any) -> str:
    return UNKNOWN if value in (None, "") else str(value)


def _whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
