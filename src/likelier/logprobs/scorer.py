"""Models and sequences in, per-token log-probabilities out: the one way by which policy and reference are scored, so that they are scored alike.

Shape legend: L tokens of one response, E scored edges of a tree.

Engines, from fast to slow; the first that passes the parity probe serves the whole run:

    nodes   prefix tree, attention node by node      (logprobs/attention.py)
    flex    prefix tree, FlexAttention; on CUDA      (logprobs/flex.py)
    mask    prefix tree, one dense mask              (any model that takes a 4D mask)
    plain   padding, no sharing                      (any module; what the others are compared with)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from likelier.adapters import causal_lm_of
from likelier.errors import LikelierError, ModelError, lacks_memory
from likelier.logprobs.attention import NODE_ATTENTION, NodeAttention, dense_masks, standard_attention
from likelier.logprobs.batches import cut_into_batches
from likelier.logprobs.flex import FlexAttention
from likelier.logprobs.fused import fuse
from likelier.logprobs.head import Logits, collision_logps, in_one_type, token_logps
from likelier.logprobs.plain import plain_logits, plain_scores
from likelier.logprobs.tree import PromptResponse, Tree, build_tree

Engine = Literal["nodes", "flex", "mask", "plain"]
TREE_ATTENTION: dict[Engine, Callable[[Tree], NodeAttention | FlexAttention]] = {"nodes": NodeAttention, "flex": FlexAttention}
Precision = Literal["bf16", "fp32"]

Unit = TypeVar("Unit")
Scored = TypeVar("Scored")

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""The type in which a model's weights are held to be scored in a precision."""

SHORT = (torch.bfloat16, torch.float16)

TOLERANCE = 1e-4
"""Largest per-token difference between an engine and the plain twin, in nats, in fp32. Rounding stays near 1e-5; a lost prompt costs 0.05."""


@dataclass(frozen=True)
class Parity:
    """What the probe found: the engine in use, how far it is from the plain twin, and why faster ones were passed over."""

    engine: Engine
    difference: float  # largest, in nats a token
    passed_over: tuple[str, ...] = ()


class Scorer:
    """Scores sequences under one model with one engine and one precision.

    `model`: a transformers causal LM (with or without PEFT adapter), or with engine "plain" any module that maps ids to logits. Dropout is
    off from here on (pitfall: a policy scored with dropout never matches its reference).
    """

    def __init__(self, model: nn.Module, *, engine: Engine, precision: Precision, pad_id: int = 0) -> None:
        self.model = without_dropout(model)
        self.engine = engine
        self.precision = precision
        self.pad_id = pad_id
        self.last_tokens = 0  # tokens that the last batch put through the model
        self._prepared: dict[tuple[PromptResponse, ...], Tree] = {}
        self.is_divided = False  # each rank holds a part of the model (see `divided`)
        self._call: Callable[[Callable[[], Any]], Any] = lambda function: function()
        self.before_batch: Callable[[], object] = lambda: None  # is called before each batch; ranks meet there
        if engine != "plain":
            self._decoder, self._head = _body_and_head(model)
            fuse(model, on_gpu=self.device.type == "cuda")
        if engine in TREE_ATTENTION:
            config: Any = model.config
            config._attn_implementation = NODE_ATTENTION

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def divided(self, call: Callable[[Callable[[], Any]], Any]) -> None:
        """From here on each rank holds a part of the model (train/sharding.py), and a function that reads the weights is called by `call`."""
        self._call, self.is_divided = call, True

    def unchanged_weights(self) -> AbstractContextManager[Any]:
        """Entered around several batches between two optimizer steps: autocast then casts each weight once, not once a batch."""
        return self._autocast(False)  # what was cast is kept until the outermost context ends, whether that one casts or not

    def _autocast(self, enabled: bool) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def prepare(self, sequences: Sequence[PromptResponse]) -> None:
        """Build the tree of a batch that will be scored soon, and send it to the device while that is at something else. Of one batch at a time."""
        if self.engine != "plain":
            self._prepared = {tuple(sequences): build_tree(sequences).to(self.device)}

    def _tree(self, sequences: Sequence[PromptResponse]) -> Tree:
        return self._prepared.pop(tuple(sequences), None) or build_tree(sequences).to(self.device)

    def token_logps(self, sequences: Sequence[PromptResponse]) -> list[Tensor]:
        """For each sequence the (L,) fp32 log-probabilities of its response tokens, as one batch. Gradients flow."""
        return self.score(sequences)[0]

    def score(self, sequences: Sequence[PromptResponse], *, collisions: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """`token_logps`, and where `collisions` are asked for log Σ_v π(v)² at the same tokens, without gradient (`head.collision_logps`)."""
        self.before_batch()
        with self._autocast(self.precision == "bf16"):
            if self.engine == "plain":
                self.last_tokens = sum(len(s.prompt_ids) + len(s.response_ids) - 1 for s in sequences)
                with standard_attention(self.model):
                    return plain_scores(self.model, sequences, pad_id=self.pad_id, collisions=collisions)
            tree = self._tree(sequences)
            self.last_tokens = len(tree)

            def edges() -> tuple[Tensor, Tensor | None]:
                hidden_ED, weight_VD, bias_V = self._head_factors(tree)
                logps_E = token_logps(hidden_ED, weight_VD, tree.targets_E, bias_V=bias_V)
                return logps_E, collision_logps(hidden_ED, weight_VD, bias_V=bias_V) if collisions else None

            logps_E, collisions_E = self._call(edges)
        return tree.by_sequence(logps_E), [] if collisions_E is None else tree.by_sequence(collisions_E)

    @torch.no_grad()
    def logits(self, sequences: Sequence[PromptResponse]) -> list[Logits]:
        """For each sequence the logits of its response tokens (L of them), as one batch, in the type in which the head multiplies. No gradient.

        They are held as hidden states and the head's own weight; by engine "plain", which knows no head, as the logits themselves.
        """
        with self._autocast(self.precision == "bf16"):
            if self.engine == "plain":
                with standard_attention(self.model):
                    return [Logits(rows_LV, None) for rows_LV in plain_logits(self.model, sequences, pad_id=self.pad_id)]
            tree = build_tree(sequences).to(self.device)
            hidden_ED, weight_VD, bias_V = in_one_type(*self._head_factors(tree))
        return [Logits(hidden_LD, weight_VD, bias_V) for hidden_LD in tree.by_sequence(hidden_ED)]

    def _head_factors(self, tree: Tree) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the logits of the scored edges are the product of: hidden states, weight and bias."""
        options: dict[str, Any] = {"input_ids": tree.tokens_T[None], "position_ids": tree.positions_T[None], "use_cache": False}
        if self.engine in TREE_ATTENTION:
            hidden = self._decoder(**options, tree_attention=TREE_ATTENTION[self.engine](tree))
        else:
            with standard_attention(self.model):
                hidden = self._decoder(**options, attention_mask=dense_masks(tree, self._decoder.config))
        return through_adapter(self._head, hidden.last_hidden_state[0].index_select(0, tree.sources_E))

    @torch.no_grad()
    def score_all(self, sequences: Sequence[PromptResponse], *, tokens_per_batch: int) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Score any number of sequences without gradient: batches of (indices, (L,) fp32 CPU values), in an order that shares the most.

        A batch that does not fit into memory is split; one sequence that does not fit alone raises ModelError.
        """

        def score(batch: list[int]) -> list[Tensor]:
            found = self.token_logps([sequences[i] for i in batch])
            return list(torch.cat(found).cpu().split([len(values) for values in found]))

        for batch in cut_into_batches([[sequence] for sequence in sequences], tokens_per_batch):
            tokens = lambda i: len(sequences[i].prompt_ids) + len(sequences[i].response_ids)  # noqa: E731
            yield from or_halves(batch, score, tokens=tokens, may_halve=not self.is_divided)


def or_halves(
    batch: list[Unit], score: Callable[[list[Unit]], Scored], *, tokens: Callable[[Unit], int], may_halve: bool = True
) -> Iterator[tuple[list[Unit], Scored]]:
    """`batch` and what `score` makes of it; where it does not fit into memory its two halves, and so on. Raises ModelError where one unit does not
    fit alone, whose longest sequence has `tokens`, and what the allocator raised where the batch must not be halved."""
    try:
        scored = [score(batch)]
    except (RuntimeError, MemoryError) as problem:
        if not (lacks_memory(problem) and may_halve):
            raise
        scored = []
    if scored:
        yield batch, scored[0]
    elif len(batch) > 1:
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            yield from or_halves(part, score, tokens=tokens)
    else:
        length = tokens(batch[0])
        raise ModelError(f"not enough memory to score one sequence of {length} tokens. Lower data.max_length or take a smaller model.")


def choose_engine(model: nn.Module, sequences: Sequence[PromptResponse], *, pad_id: int = 0) -> Parity:
    """The parity probe: the fastest engine that agrees with the plain twin on `sequences`, a small real batch.

    Compared in fp32, whatever precision the run then uses: in bf16 rounding alone is as large as the faults that it looks for.
    """
    passed_over = []
    candidates: tuple[Engine, ...] = ("nodes", "flex", "mask") if next(model.parameters()).device.type == "cuda" else ("nodes", "mask")
    with torch.no_grad(), kept_attention(model), in_fp32(model):
        truth = torch.cat(Scorer(model, engine="plain", precision="fp32", pad_id=pad_id).token_logps(sequences))
        for engine in candidates:
            try:
                values = torch.cat(Scorer(model, engine=engine, precision="fp32").token_logps(sequences))
            except (LikelierError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as problem:
                passed_over.append(f"{engine}: {problem}")
                continue
            difference = float((values - truth).abs().max())
            if difference <= TOLERANCE:  # false for NaN too
                return Parity(engine, difference, tuple(passed_over))
            passed_over.append(f"{engine}: {difference:.2g} nats a token from the plain twin, tolerance {TOLERANCE:.2g}")
    return Parity("plain", 0.0, tuple(passed_over))


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[None]:
    """Within it the model computes in fp32, with the same numbers (widening loses nothing): its weights are widened, those of a layer only while that
    computes, so that a large model needs little more room than it has. Of weights in 4 bits what they are unpacked to is widened."""
    layers: list[Any] = decoder_layers(model)
    in_layers = {parameter for layer in layers for parameter in layer.parameters()}
    packed: list[Any] = [(module, module.compute_dtype) for module in model.modules() if getattr(module, "compute_dtype", None) in SHORT]
    kept: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def widen(layer: nn.Module, *_: Any) -> None:
        kept[layer] = _widened_in_place(layer.parameters())

    def narrow(layer: nn.Module, *_: Any) -> None:
        _put_back(kept.pop(layer, []))

    hooks = [hook for layer in layers for hook in (layer.register_forward_pre_hook(widen), layer.register_forward_hook(narrow, always_call=True))]
    others = _widened_in_place(parameter for parameter in model.parameters() if parameter not in in_layers)
    try:
        for module, _ in packed:
            module.compute_dtype = torch.float32
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _put_back(others)
        for module, dtype in packed:
            module.compute_dtype = dtype


def _widened_in_place(parameters: Iterable[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
    """Those that are short, now in fp32, and what they were."""
    short = [(parameter, parameter.data) for parameter in parameters if parameter.dtype in SHORT]
    for parameter, values in short:
        parameter.data = values.float()
    return short


def _put_back(short: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, values in short:
        parameter.data = values


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The modules that a transformers model calls its layers, in order; none of a module that does not say."""
    causal_lm = causal_lm_of(model)
    names = set(getattr(causal_lm, "_no_split_modules", None) or ())
    return [module for module in causal_lm.modules() if type(module).__name__ in names]


@contextmanager
def kept_attention(model: nn.Module) -> Iterator[None]:
    """Leaves the model's attention as it was, whichever engines were tried inside."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    try:
        yield
    finally:
        if config is not None:
            config._attn_implementation = before


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, but for layers whose training flag does more: it turns on recomputing activations, and cuDNN has no gradient
    of a recurrent layer without it. Some of these (OPT's, LSTMs) drop by that same flag, so the rates that they hold are set to 0.
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) or isinstance(module, nn.RNNBase):
            module.training = True
            vars(module).update(dict.fromkeys(_dropout_rates(module), 0.0))
    return model


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """`without_dropout` within it; afterwards each layer has the training flag and the rates that it had."""
    before = [(module, module.training, _dropout_rates(module)) for module in model.modules()]
    without_dropout(model)
    try:
        yield
    finally:
        for module, training, rates in before:
            module.training = training
            vars(module).update(rates)


def _dropout_rates(module: nn.Module) -> dict[str, float]:
    return {name: value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)}


def through_adapter(head: Any, hidden_ED: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states, weight and bias whose product are the head's logits. With LoRA of rank r on it, scaled by s, they are as wide as D + r:

        hidden @ W.T + s · (hidden @ A.T) @ B.T  =  cat(hidden, s · hidden @ A.T) @ cat(W, B).T

    W + s · BA would be one more matrix of the vocabulary's size in fp32, and rounding it to bf16 would round off what is small beside W.
    """
    if type(head) is nn.Linear:
        return hidden_ED, head.weight, head.bias
    base = head.base_layer
    weight_VD = base.weight
    for name in () if head.disable_adapters else head.active_adapters:
        low_Er = head.lora_A[name](hidden_ED.to(head.lora_A[name].weight.dtype)) * head.scaling[name]
        hidden_ED = torch.cat([hidden_ED, low_Er.to(hidden_ED.dtype)], dim=1)
        weight_VD = torch.cat([weight_VD, head.lora_B[name].weight.to(weight_VD.dtype)], dim=1)
    return hidden_ED, weight_VD, base.bias


def _is_plain(head: Any) -> bool:
    """Whether it is a linear layer, or one with LoRA on it, without DoRA or biases."""
    if type(head) is nn.Linear:
        return True
    plain_lora = type(getattr(head, "base_layer", None)) is nn.Linear and hasattr(head, "lora_B") and not head.merged
    return plain_lora and not (any(head.lora_variant) or any(head.lora_bias.values()) or any(head.lora_embedding_A))


def _body_and_head(model: nn.Module) -> tuple[Any, Any]:
    """The module that makes hidden states and the linear layer that makes logits of them. Raises ModelError where the two are not apart."""
    causal_lm = causal_lm_of(model)
    head = causal_lm.get_output_embeddings() if hasattr(causal_lm, "get_output_embeddings") else None
    body = getattr(causal_lm, "base_model", causal_lm)
    if not _is_plain(head) or body is causal_lm:
        raise ModelError(f"{type(causal_lm).__name__} has no plain linear head over its hidden states.")
    if getattr(causal_lm.config, "_attn_implementation", None) not in ("sdpa", NODE_ATTENTION):
        raise ModelError(f"{type(causal_lm).__name__} does not run transformers' sdpa attention.")
    return body, head
