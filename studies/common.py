"""What the studies share: the embedded model in a type, some pairs in tokens, and times taken in turn."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from likelier.data.chat import Encoder
from likelier.data.formats import read_all
from likelier.examples import PreferenceExample
from likelier.model_files import EMBEDDED
from likelier.models import LoadedModel, load_model
from likelier.recipe import ModelSettings


def embedded(dtype: torch.dtype) -> LoadedModel:
    return load_model(ModelSettings(name=EMBEDDED), dtype=dtype)


def some_pairs(data: str, count: int, tokenizer: object) -> list[PreferenceExample]:
    """The first `count` pairs of `data` that can be used."""
    return Encoder(tokenizer, max_length=1024).encode(read_all([data], on_bad=lambda problem: None)[: 2 * count]).examples[:count]


def in_turn(rivals: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median seconds of each, after one call each that is not counted. They take turns: what else the machine does falls on all."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, call in rivals.items():
            started = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}
