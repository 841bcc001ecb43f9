"""A recipe: everything that decides one run, as one YAML file.

Unknown keys are refused with a suggestion; every field has a default but `data.train`. The resolved recipe is written into the run directory,
and a checkpoint of one recipe does not resume under another.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from likelier.errors import RecipeError, did_you_mean
from likelier.section import (
    Alignment,
    BelowHalf,
    BetweenZeroAndOne,
    Count,
    CountOrZero,
    Divergence,
    Fraction,
    NotNegative,
    Positive,
    PositiveFraction,
    Recomputing,
    Section,
)
from likelier.thresholds import AuditSettings


class ModelSettings(Section):
    name: str = "embedded"
    """`embedded` (SmolLM2-135M-Instruct), a local folder, a GGUF file, or a hub name."""
    revision: str | None = None
    """Hub revision: a branch, tag or commit."""
    chat_template: str = "own"
    """`own` (the tokenizer's), `none` (plain text, prompt and response end to end), or the path of a Jinja file."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: such a model is refused."""


class DataSettings(Section):
    train: tuple[str, ...] = ()
    """Files or folders of preference pairs; `embedded:support` and `embedded:facts` name the sets that ship with Likelier."""
    eval: tuple[str, ...] = ()
    """Held-out files. Empty: `eval_fraction` of the prompts of `train` is held out."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts held out when `eval` is empty."""
    max_length: Count = 1024
    """Longest prompt + response in tokens. A longer pair is dropped, counted and named."""


OBJECTIVES = (
    *("dpo", "robust-dpo", "length-normalised-dpo", "r-dpo", "ld-dpo", "dpop", "rpo", "f-dpo", "wpo", "beta-dpo"),
    *("ipo", "hinge", "exo", "discopop", "nca", "sppo", "apo-zero", "apo-down", "aot", "aot-pair"),
    *("simpo", "orpo", "cpo", "sft"),
    *("kto", "bco", "apo-zero-unpaired"),
)
"""Names that `objective` may hold. What they stand for says `objectives.TABLE`."""


class ObjectiveSettings(Section):
    """Which loss, and its hyperparameters; None takes the objective's own default. A setting that the objective does not have is refused."""

    name: str = "dpo"
    """One of docs/objectives.md: dpo, robust-dpo, length-normalised-dpo, r-dpo, ld-dpo, dpop, rpo, f-dpo, wpo, beta-dpo, ipo, hinge, exo, discopop,
    nca, sppo, apo-zero, apo-down, aot, aot-pair, simpo, orpo, cpo, sft; of single replies kto, bco, apo-zero-unpaired. Or a weighted sum of them:
    `dpo + 0.2 sft`, which a recipe may also write as `objective: {dpo: 1.0, sft: 0.2}`."""
    beta: Positive | None = None
    """Strength of the tie to the reference, or scale of the reward (dpo: 0.1)."""
    label_smoothing: BelowHalf | None = None
    """Assumed share of flipped labels (dpo: 0, which is plain DPO; robust-dpo: 0.1; exo: 0.001)."""
    target_margin: NotNegative | None = None
    """SimPO's γ itself, in units of the reward (not the ratio γ/β)."""
    per_token: bool | None = None
    """IPO: divide each side's log-ratio by its token count before comparing."""
    length_penalty: NotNegative | None = None
    """R-DPO's α: what a token of a longer chosen response counts towards the margin."""
    tail_weight: Fraction | None = None
    """LD-DPO's α: what tokens beyond the shorter response's length count."""
    chosen_penalty: NotNegative | None = None
    """DPOP's λ: price of each nat that the chosen response falls below its reference."""
    sft_weight: NotNegative | None = None
    """rpo, cpo: weight of the supervised term."""
    divergence: Divergence | None = None
    """f-dpo: reverse-kl (DPO), forward-kl, js or alpha."""
    divergence_alpha: BetweenZeroAndOne | None = None
    """f-dpo with `divergence: alpha`: from reverse KL (0) to forward KL (1)."""
    alignment: Alignment | None = None
    """wpo: what weights are divided by: sampled (Σ_v π(v)² of each token) or none."""
    temperature: PositiveFraction | None = None
    """DiscoPOP's τ: how sharply it goes from the logistic to the exponential loss."""
    sensitivity: NotNegative | None = None
    """β-DPO's α: how far β follows the step's mean margin."""
    desirable_weight: Positive | None = None
    """KTO's λ_D: what a good reply counts."""
    undesirable_weight: Positive | None = None
    """KTO's λ_U: what a bad reply counts."""
    margin_scale: NotNegative | None = None
    """Nats by which the log-ratios of a pair shall differ for each unit of its record's `margin`. 0, the default: margins are not looked at."""

    @model_validator(mode="before")
    @classmethod
    def _sum_of_terms(cls, settings: Any) -> Any:
        """`{dpo: 1.0, sft: 0.2}` is the sum of these objectives; what else the section holds are settings."""
        terms = {name: weight for name, weight in settings.items() if name in OBJECTIVES} if isinstance(settings, dict) else {}
        if not terms:
            return settings
        if "name" in settings:
            raise ValueError(f"a sum has no name beside its weights. Leave `name` out, or {', '.join(f'`{name}`' for name in terms)}")
        try:
            weights = TypeAdapter(dict[str, Positive]).validate_python(terms)
        except ValidationError:
            raise ValueError(f"the weights of {', '.join(terms)} must be numbers above 0") from None
        rest = {name: value for name, value in settings.items() if name not in terms}
        return {**rest, "name": " + ".join(name if weight == 1 else f"{str(weight).removesuffix('.0')} {name}" for name, weight in weights.items())}

    def given(self) -> dict[str, Any]:
        """The hyperparameters that were set."""
        return {name: value for name, value in self.model_dump(exclude={"name"}).items() if value is not None}


class AdapterSettings(Section):
    """LoRA (Hu et al. 2021) on every linear layer but the head; docs/ways-to-train.md says which way when."""

    rank: Count = 16
    """Rank r of the update BA."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank."""
    targets: str = "all-linear"
    """Layers to adapt: `all-linear` (all but the head) or a comma-separated list of module names."""
    dora: bool = False
    """DoRA (Liu et al. 2024): the length of each row of a weight is trained apart from its direction."""
    rslora: bool = False
    """rsLoRA (Kalajdzievski 2023): the update is scaled by alpha / √rank."""
    start: str = ""
    """Folder of a LoRA adapter (PEFT, safetensors) to continue. It is part of the reference and brings its own rank, alpha, targets, dora, rslora."""


class TrainSettings(Section):
    method: Literal["lora", "qlora", "full"] = "lora"
    """Train an adapter (the reference is the same weights with the adapter off), an adapter on a base held in 4 bits, or all weights."""
    epochs: Positive = 1.0
    """Passes over the training pairs."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    pairs_per_step: Count = 16
    """Pairs whose gradient one optimizer step averages."""
    tokens_per_batch: Count = 1024
    """Unique tokens that go through the model at once; a step is cut into as many batches as that takes. Changes memory and speed, not the result."""
    learning_rate: Positive | None = None
    """Peak learning rate. None: 1e-4 for lora and qlora, 1e-6 for full."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up; cosine and linear end at 0."""
    warmup: Fraction = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """AdamW with its two moments in fp32, or in 8 bits (Dettmers et al. 2022; needs bitsandbytes)."""
    bf16_weights: Literal["fp32-master", "stochastic-rounding"] = "fp32-master"
    """Full fine-tuning in bf16: round fp32 masters into the model, or hold bf16 alone and round updates at random, right on average."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    max_skipped_steps: CountOrZero = 3
    """Steps whose loss or gradient is not finite are skipped; the run stops at the next one after so many."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward and backward pass. auto: bf16 where the processor is fast at it."""
    gradient_checkpointing: Recomputing = False
    """Recompute activations in the backward pass: `selective` what costs little (half the memory), true whole layers (a quarter to a half more
    arithmetic), `offload` those and keep their inputs in main memory."""
    fsdp: bool = False
    """Several processes (docs/distributed.md): each holds a part of the weights, their gradients and the optimizer's moments, not all of them."""
    seed: int = 0
    """Seed of the data order and of the adapter's initial weights."""
    eval_every: CountOrZero = 10
    """Optimizer steps between evaluations on the held-out pairs; 0: only at the end."""
    patience: CountOrZero = 0
    """Stop after this many evaluations without a better held-out accuracy; 0: never."""
    checkpoint_every: CountOrZero = 10
    """Optimizer steps between checkpoints; 0: only at the end."""

    @field_validator("patience")
    @classmethod
    def _has_something_to_wait_for(cls, patience: int, others: ValidationInfo) -> int:
        if patience and others.data.get("eval_every") == 0:
            raise ValueError("with eval_every: 0 the only evaluation is at the end, so that nothing stops early; set both, or leave it out")
        return patience

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or {"lora": 1e-4, "qlora": 1e-4, "full": 1e-6}[self.method]


PROBE_SETS = ("qa", "neutral", "look-alikes", "red-team", "injections", "short-answers")
"""Names that `eval.probes` may hold. What they ask says assets/probes.yaml."""


class EvalSettings(Section):
    probes: bool | tuple[str, ...] = True
    """What is asked before and after, beside the pairs: all shipped sets, none, or those named (docs/probes.md): qa, neutral, look-alikes, red-team,
    injections, short-answers."""
    probe_files: tuple[str, ...] = ()
    """YAML files of your own probes (docs/probes.md). A Python function that one names is run."""
    max_new_tokens: Count = 128
    """Longest reply sampled for the probes."""
    samples: Count = 16
    """Held-out prompts whose replies before and after are shown side by side."""
    watch: CountOrZero = 4
    """Held-out prompts that the model in training replies to now and then, and on which its KL to the untrained model is estimated; 0: none."""
    watch_every: Count = 1
    """Held-out evaluations from one such look to the next."""
    kl_budget: Positive | None = None
    """Nats a reply that the KL may reach during training before it is called a symptom. None: 30."""

    @field_validator("probes", mode="before")
    @classmethod
    def _shipped_sets(cls, probes: Any) -> Any:
        """One message where pydantic has one for each type that this may have."""
        if isinstance(probes, bool):
            return probes
        if not isinstance(probes, list | tuple):
            raise ValueError(f"true, false, or a list of {', '.join(PROBE_SETS)}")
        for name in probes:
            if name not in PROBE_SETS:
                raise ValueError(f"no set of probes is called {name!r}.{did_you_mean(str(name), PROBE_SETS)} Known: {', '.join(PROBE_SETS)}")
        return tuple(probes)


class LogSettings(Section):
    """Where the rows of metrics.jsonl go beside it: docs/trackers.md."""

    trackers: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ()
    """Run trackers that follow the run. Each is a package of its own: `pip install likelier[trackers]` has them all."""
    project: Annotated[str, Field(min_length=1)] = "likelier"
    """W&B's and Trackio's project, MLflow's experiment."""
    name: str = ""
    """What trackers call the run. Empty: the name of its folder."""


NOT_SHAPING: Any = {
    **dict.fromkeys(("out", "eval", "log", "audit"), True),
    "train": {"tokens_per_batch", "gradient_checkpointing", "fsdp", "max_skipped_steps"},
}
"""Settings under which a run may go on although they have changed."""


class Recipe(Section):
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    audit: AuditSettings = AuditSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    adapter: AdapterSettings = AdapterSettings()
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()
    log: LogSettings = LogSettings()
    out: str = "runs/latest"
    """The run directory."""

    @model_validator(mode="after")
    def _has_data(self) -> "Recipe":
        if not self.data.train:
            raise ValueError("data.train names no file")
        return self

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all settings that shape the result. Where it goes, who follows it, how it is evaluated and what fits in memory do not."""
        shaping = self.model_dump(mode="json", exclude=NOT_SHAPING)
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe. Raises RecipeError naming the file, the key and the mend."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe file. The recipes/ folder has ones to start from.") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise RecipeError(f"{path}: the recipe cannot be read ({problem}).") from None
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as problem:
        raise RecipeError(f"{path}: this is not valid YAML: {problem}") from None
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections ({', '.join(Recipe.model_fields)}), not a {type(settings).__name__}.")
    return parse_recipe(settings, where=str(path))


def parse_recipe(settings: dict[str, Any], *, where: str) -> Recipe:
    """Check settings. Raises RecipeError with one line for each fault, naming `where`, the key and the mend."""
    try:
        return Recipe.model_validate(settings)
    except ValidationError as faults:
        raise RecipeError("\n".join(f"{where}: {_explain(fault)}" for fault in faults.errors())) from None


def _explain(fault: Any) -> str:
    *parents, name = fault["loc"] or ("recipe",)
    key = ".".join(str(part) for part in (*parents, name))
    if fault["type"] == "extra_forbidden":
        section: Any = Recipe
        for parent in parents:
            section = section.model_fields[parent].annotation
        known = [*section.model_fields, *(OBJECTIVES if section is ObjectiveSettings else ())]
        return f"`{key}` is not a setting.{did_you_mean(str(name), known)} Known here: {', '.join(section.model_fields)}."
    if fault["type"] == "model_type":
        return f"`{key}`: a mapping of settings belongs here, like `{key}: {{name: {fault['input']}}}` (given: {fault['input']!r})."
    message = fault["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    return f"`{key}`: {message} (given: {fault['input']!r})." if fault["loc"] else f"{message}."
