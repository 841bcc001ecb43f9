"""What every section of a recipe is made of: strict pydantic models, and the types that they share with what they configure."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
BelowHalf = Annotated[float, Field(ge=0, lt=0.5)]
BetweenZeroAndHalf = Annotated[float, Field(gt=0, lt=0.5)]
BetweenZeroAndOne = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Alignment = Literal["sampled", "none"]
Divergence = Literal["reverse-kl", "forward-kl", "js", "alpha"]
Recomputing = Literal[False, "selective", True, "offload"]


class Section(BaseModel):
    """Settings that belong together: unknown keys are refused, values do not change, and the text under a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
