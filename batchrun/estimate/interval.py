"""From rows picked by chance to all the rest, with an interval. Pure, and the same at each call.

Costs of answers have long tails: a normal interval would be too low. The bootstrap-t takes the
shape of the tails from the sample itself: it draws samples from the sample, and sees how far the
mean of each is from the mean it was drawn from, in its own standard errors. What the rest itself
will vary by is counted in, since its sum is asked for and not the mean of an endless supply.
"""

import math
import random
from collections.abc import Sequence
from operator import mul

from msgspec import Struct

SHARE = 0.9  # of such intervals that are meant to hold the true sum
_ROUNDS = 1_000
_MOST_DRAWS = 1_500_000  # about half a second
_LEAST_ROUNDS = 200
_SEED = 20_261_122


class Sum(Struct, frozen=True):
    """A sum over rows that nobody has seen, and where it is likely to be."""

    expected: float
    low: float
    high: float


def sum_of_rest(sample: Sequence[float], rest_rows: int, foreseen: float = 0.0) -> Sum:
    """The sum over `rest_rows` rows of which `sample` is a fair picture; 0 is the least.

    `foreseen` is what is known of the sum beforehand; the sample then holds what came on top.
    """
    count = len(sample)
    mean = math.fsum(sample) / count
    expected = foreseen + rest_rows * mean
    error = _standard_error(sample, mean) if count > 1 and rest_rows else 0.0
    if error == 0.0:
        return Sum(*(max(0.0, expected),) * 3)
    # The mean of the rest varies too: by as much as a sample of its size would.
    spread = rest_rows * error * math.sqrt(1 + count / rest_rows)
    ratios = _ratios(sample, mean)
    edge = (1 - SHARE) / 2
    low = min(expected, expected - _quantile(ratios, 1 - edge) * spread)
    high = max(expected, expected - _quantile(ratios, edge) * spread)
    return Sum(max(0.0, expected), max(0.0, low), max(0.0, high))


def _standard_error(sample: Sequence[float], mean: float) -> float:
    squares = math.fsum((value - mean) ** 2 for value in sample)
    error = math.sqrt(squares / (len(sample) - 1) / len(sample))
    return error if error > 1e-12 * abs(mean) else 0.0  # what rounding leaves is no spread


def _ratios(sample: Sequence[float], mean: float) -> list[float]:
    """How far the means of samples from the sample are from its own, in standard errors, sorted."""
    count = len(sample)
    rounds = max(_LEAST_ROUNDS, min(_ROUNDS, _MOST_DRAWS // count))
    draw = random.Random(_SEED)  # noqa: S311 - chance, not secrecy
    centred = [value - mean for value in sample]
    ratios = []
    for _ in range(rounds):
        drawn = draw.choices(centred, k=count)
        shift = sum(drawn) / count
        variance = (sum(map(mul, drawn, drawn)) / count - shift * shift) / (count - 1)
        if variance > 0.0:
            ratios.append(shift / math.sqrt(variance))
    return sorted(ratios) or [0.0]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two values beside it, by how near they are."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
