"""Estimates the throughput of a server from the latencies of its answers. No I/O.

With n in flight and a latency L, n / L answers a second come back (Little's law). Lengths of
answers are lognormal, so a mean needs many answers. But latency is a wait plus a time for each
token. A regression on the tokens separates the two, and so gives, from few answers, the latency of
an answer of mean length.
"""

import math
from collections.abc import Mapping

from msgspec import Struct

from batchrun.limits import tuning

_LEAST = 1e-9
_LEAST_S = 0.001  # a latency; loops with a clock of milliseconds may say 0 of a server nearby


class Sizes:
    """The lengths of a scope's answers, in tokens; 1 each if the server does not say."""

    def __init__(self) -> None:
        self.mean = 1.0
        self._square = 1.0  # the mean square
        self._answers = 0

    def add(self, size: float) -> None:
        self._answers = min(self._answers + 1, tuning.QUEUE_SIZES)
        self.mean += (size - self.mean) / self._answers
        self._square += (size * size - self._square) / self._answers

    @property
    def spread(self) -> float:
        """Their standard deviation, relative to the mean."""
        square = max(0.0, self._square / self.mean**2 - 1)
        return max(math.sqrt(square), tuning.QUEUE_SPREAD)


class LevelEstimate(Struct, frozen=True):
    """What the server did with a certain number in flight."""

    per_s: float  # answers
    latency_s: float  # of an answer of the mean size
    variance: float  # of the relative error of both


class Sums(Struct):
    """Sums over the answers to requests that were sent with a certain number in flight."""

    answers: float = 0.0
    in_flight: float = 0.0
    latency_s: float = 0.0
    size: float = 0.0
    latency_2: float = 0.0  # products
    size_2: float = 0.0
    latency_size: float = 0.0

    def add(self, latency_s: float, size: float, in_flight: int) -> None:
        latency_s = max(latency_s, _LEAST_S)
        self.answers += 1.0
        self.in_flight += in_flight
        self.latency_s += latency_s
        self.size += size
        self.latency_2 += latency_s * latency_s
        self.size_2 += size * size
        self.latency_size += latency_s * size

    def fade(self, share: float) -> None:
        """Lowers their weight to this share."""
        for field in self.__struct_fields__:
            setattr(self, field, share * getattr(self, field))

    def merge(self, newer: "Sums") -> None:
        for field in self.__struct_fields__:
            setattr(self, field, getattr(self, field) + getattr(newer, field))

    def measured(self, sizes: Sizes) -> LevelEstimate:
        """`sizes`: those of all answers of the scope."""
        count = self.answers
        latency_s, size, in_flight = (
            self.latency_s / count,
            self.size / count,
            self.in_flight / count,
        )
        if count < 2:  # assumed to be in proportion to its size
            mean_s = latency_s * sizes.mean / size
            return LevelEstimate(in_flight / mean_s, mean_s, sizes.spread**2)
        token_s = 0.0
        size_2 = self.size_2 / count - size * size
        latency_size = self.latency_size / count - latency_s * size
        if size_2 > _LEAST:
            token_s = min(max(latency_size / size_2, 0.0), latency_s / size)
        mean_s = latency_s + token_s * (sizes.mean - size)
        rest = self.latency_2 / count - latency_s * latency_s - token_s * latency_size
        # An answer waits for others, whose sizes vary as much.
        waits = 1 - token_s * sizes.mean / mean_s
        square = max(rest / mean_s**2, (waits * sizes.spread) ** 2)
        return LevelEstimate(in_flight / mean_s, mean_s, square / count + tuning.QUEUE_ERROR**2)


def enough(levels: Mapping[int, LevelEstimate]) -> int:
    """The fewest in flight at which throughput is about as high as it gets."""
    # More in flight cannot lower throughput: levels that say so are merged.
    blocks: list[tuple[float, float, int]] = []  # answers a second, weight, its first level
    for n, level in sorted(levels.items()):
        per_s, weight, first = level.per_s, 1 / level.variance, n
        while blocks and blocks[-1][0] >= per_s:
            below, its_weight, first = blocks.pop()
            per_s = (per_s * weight + below * its_weight) / (weight + its_weight)
            weight += its_weight
        blocks.append((per_s, weight, first))
    best, most, _ = blocks[-1]
    return next(
        first
        for per_s, weight, first in blocks
        if per_s * (1 + math.sqrt(1 / weight + 1 / most)) >= tuning.QUEUE_ENOUGH * best
    )


def out_of_date(levels: Mapping[int, LevelEstimate], n: int) -> list[int]:
    """Levels that the latest measurement, with `n` in flight, contradicts.

    More in flight never lower throughput, and never raise it by more than in proportion.
    """
    here = levels[n]
    sure = here.per_s * (1 - math.sqrt(here.variance))
    return [
        m
        for m, level in levels.items()
        if level.per_s < sure / (1.0 if m > n else (1 + tuning.QUEUE_CHANGE) * n / m) and m != n
    ]


def has_changed(before: LevelEstimate, now: LevelEstimate) -> int:
    """1 if the server clearly does more than before with the same in flight; -1 if less; else 0."""
    change = math.log(now.per_s / before.per_s)
    if abs(change) <= tuning.QUEUE_CHANGE + 2 * math.sqrt(now.variance + before.variance):
        return 0
    return 1 if change > 0 else -1
