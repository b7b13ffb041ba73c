"""Numbers that fit the number keywords of a schema."""

import math
from random import Random
from typing import Any

Schema = dict[str, Any]


def integer(schema: Schema, rng: Random) -> int:
    """A whole number within the bounds, of the step asked for."""
    low, high, without_low, without_high = _bounds(schema)
    least, most = math.ceil(low), math.floor(high)
    least += without_low and least == low
    most -= without_high and most == high
    step = schema.get("multipleOf", 1)
    if isinstance(step, int) and step > 1:
        first, last = -(-least // step), most // step
        return step * rng.randint(first, max(first, last))
    return rng.randint(least, max(least, most))


def number(schema: Schema, rng: Random) -> float:
    """A number within the bounds, of the step asked for."""
    low, high, without_low, without_high = _bounds(schema)
    step = schema.get("multipleOf")
    if step:
        return _multiple(step, low, high, rng)
    value = round(rng.uniform(low, high), 2)
    if low <= value <= high and not (
        (without_low and value == low) or (without_high and value == high)
    ):
        return value
    return (low + high) / 2


def _bounds(schema: Schema) -> tuple[float, float, bool, bool]:
    """Least and most, and whether each is itself left out."""
    low: float | None = schema.get("minimum")
    high: float | None = schema.get("maximum")
    open_low, open_high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    without_low = open_low is True  # a flag in draft 4, a number since
    without_high = open_high is True
    if not isinstance(open_low, bool) and open_low is not None and (low is None or open_low >= low):
        low, without_low = open_low, True
    if (
        not isinstance(open_high, bool)
        and open_high is not None
        and (high is None or open_high <= high)
    ):
        high, without_high = open_high, True
    if low is None:
        if high is None:
            return 0, 100, False, False
        return high - 100, high, False, without_high
    if high is None:
        return low, low + 100, without_low, False
    return low, high, without_low, without_high


def _multiple(step: float, low: float, high: float, rng: Random) -> float:
    """Only what divides without a rest in floating point, as validators divide."""
    first, last = math.ceil(low / step), math.floor(high / step)
    for _ in range(100):
        value = round(step * rng.randint(first, max(first, last)), 12)
        if low <= value <= high and (value / step).is_integer():
            return value
    return step * first
