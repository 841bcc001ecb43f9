"""A reward model as a judge: any sequence classifier with one logit, which scores each reply by itself."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError

from likelier.data.chat import template_hash, tokenizer_hash
from likelier.errors import JudgeError
from likelier.examples import Ids
from likelier.judge.questions import Answer, Keep, Question, by_score
from likelier.models import fingerprint, pick_device, pick_precision
from likelier.records import Message, Messages

TOKENS_PER_BATCH = 8192
"""Positions of one batch, padding included."""


class RewardJudge:
    """`AutoModelForSequenceClassification` from a folder or the hub, on the conversation as its own chat template writes it.

    The reply with the higher logit is better; order plays no part. A conversation that does not fit into the model's positions, or that the
    template refuses, is a failed answer, never cut.

    Raises JudgeError for a model that cannot be loaded, lacks weights, has several logits or no chat template.
    """

    def __init__(self, where: str) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.name, self._where = f"reward:{where}", where
        with self._loading():
            config, self._tokenizer = AutoConfig.from_pretrained(where), AutoTokenizer.from_pretrained(where)
        if config.num_labels != 1:
            raise JudgeError(f"judge {self.name}: this classifier has {config.num_labels} logits; a reward model has one.")
        if not self._tokenizer.chat_template:
            raise JudgeError(f"judge {self.name}: its tokenizer has no chat template to write a conversation by. Put chat_template.jinja beside it.")

    @cached_property
    def _model(self) -> Any:
        """Loaded when it is first asked, after the models that wrote the replies are gone."""
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging

        logging.disable_progress_bar()
        device = pick_device()
        precision = pick_precision("auto", device) if device.type == "cuda" else "fp32"  # on a CPU, padding would move bf16 scores
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with self._loading():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                self._where, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
        if report["missing_keys"]:
            raise JudgeError(
                f"judge {self.name}: {len(report['missing_keys'])} of its weights are missing, among them {min(report['missing_keys'])}, so it was "
                "not trained to score. Give a reward model."
            )
        return model.to(device).eval()

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {
            "kind": "reward",
            "weights": fingerprint(self._model),
            "tokenizer": tokenizer_hash(self._tokenizer),
            "chat_template": template_hash(self._tokenizer),
            "dtype": str(self._model.dtype).removeprefix("torch."),
        }

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as problem:
            reason = " ".join(str(problem).split())[:400]
            raise JudgeError(f"judge {self.name}: this model cannot be loaded ({reason}). Give a folder or a hub name.") from problem

    def ask(self, questions: Sequence[Question], keep: Keep) -> None:
        """Each reply is scored once, however many questions it stands in; a question is answered when both its scores are known."""
        ids: dict[int, tuple[Ids, Ids]] = {}
        for place, question in enumerate(questions):
            try:
                ids[place] = (self._ids(question.prompt, question.first), self._ids(question.prompt, question.second))
            except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as problem:  # as data/rendering.py: templates raise anything
                keep(place, Answer(None, fault=f"the reward model's chat template cannot write this conversation ({problem})"))
        waiting: dict[Ids, list[int]] = {}
        for place, sides in ids.items():
            for side in set(sides):
                waiting.setdefault(side, []).append(place)
        scores: dict[Ids, float | str] = {}
        for some in self._scored(list(waiting)):
            scores.update(some)
            for place in sorted({place for side in some for place in waiting[side]}):
                if all(side in scores for side in ids[place]):
                    keep(place, _answer(*(scores[side] for side in ids[place])))

    def _ids(self, prompt: Messages, reply: str) -> Ids:
        conversation = [message.as_dict() for message in (*prompt, Message("assistant", reply))]
        return tuple(self._tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False))

    @torch.inference_mode()
    def _scored(self, sequences: list[Ids]) -> Iterator[dict[Ids, float | str]]:
        """Scores in batches of similar length, or why there is none."""
        limit = getattr(self._model.config, "max_position_embeddings", None) or max(map(len, sequences), default=0)
        too_long = {ids: f"a conversation of {len(ids)} tokens does not fit into the reward model's {limit}" for ids in sequences if len(ids) > limit}
        if too_long:
            yield dict(too_long)
        for batch in _batches([ids for ids in sequences if ids not in too_long], alone=self._model.config.pad_token_id is None):
            yield dict(zip(batch, self._logits(batch), strict=True))

    def _logits(self, batch: list[Ids]) -> list[float]:
        width, pad = max(map(len, batch)), self._model.config.pad_token_id or 0
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in batch], device=self._model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=self._model.device)
        logits: list[float] = self._model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return logits


def _batches(sequences: list[Ids], *, alone: bool) -> Iterator[list[Ids]]:
    """The longest first; `alone` where the model would not know padding from text."""
    batch: list[Ids] = []
    for ids in sorted(sequences, key=len, reverse=True):
        if batch and (alone or (len(batch) + 1) * len(batch[0]) > TOKENS_PER_BATCH):
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def _answer(first: float | str, second: float | str) -> Answer:
    for score in (first, second):
        if isinstance(score, str):
            return Answer(None, fault=score)
        if math.isnan(score):
            return Answer(None, fault="the reward model's score is not a number")
    return Answer(by_score(float(first) - float(second)), reason=f"{float(first):.4g} against {float(second):.4g}")
