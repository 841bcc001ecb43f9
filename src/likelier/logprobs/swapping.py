"""Another forward pass for modules of a model, as another class of theirs."""

from collections.abc import Callable
from typing import Any, cast

from torch import nn


class Swapped:
    """What the class of such a module has beside its own."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A module is pickled and copied as what it was, so that nobody needs Likelier to read it."""
        _, (own, *_), *rest = cast(Any, super().__reduce_ex__(protocol))
        return object.__new__, (own.__mro__[2],), *rest


def with_forward(own: Any, forward: Callable[..., Any]) -> Any:
    """The class `own` under its own name, with another `forward`."""
    return type(own.__name__, (Swapped, own), {"forward": forward, "__module__": own.__module__})


def swap(model: nn.Module, *, kind: Callable[[Any], Any], is_plain: Callable[[Any], bool], other: Callable[[Any], Any]) -> int:
    """Give modules of `model` the class that `other` makes for their `kind` (None: for none), where one of that kind `is_plain`. Returns how many."""
    same: dict[Any, bool] = {}
    swapped = 0
    for module in [*model.modules()]:
        its = None if isinstance(module, Swapped) else kind(module)
        if its is None:
            continue
        if its not in same:
            same[its] = is_plain(module)
        if same[its]:
            module.__class__ = other(its)
            swapped += 1
    return swapped
