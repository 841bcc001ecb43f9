"""Numbers as people read them."""

import math

import pytest

from likelier.metrics import Interval
from likelier.wording import estimate


@pytest.mark.parametrize(
    "low, high, text",
    [
        (0.41, 2.5, "1.84 (0.41 to 2.50)"),
        (0.41, math.inf, "1.84 (0.41 and more)"),
        (-math.inf, 2.5, "1.84 (up to 2.50)"),
        (-math.inf, math.inf, "1.84 (no interval: too few prompts)"),
    ],
)
def test_an_interval_says_what_limits_it_has(low, high, text):
    assert estimate(Interval(1.84, low, high), "") == text
