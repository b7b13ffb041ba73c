"""How long answers take: quantiles in flat memory, right to two per cent."""

import math
from bisect import bisect_left
from itertools import accumulate

_A_FACTOR = 50.0  # buckets for each factor of e: each is two per cent wide
_LEAST_S = 1e-4
_MOST_S = 1e6
_BUCKETS = int(math.log(_MOST_S / _LEAST_S) * _A_FACTOR) + 1


class Latencies:
    """Counts of latencies by their logarithm."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._count = 0

    def add(self, seconds: float) -> None:
        within = min(max(seconds, _LEAST_S), _MOST_S)
        self._counts[int(math.log(within / _LEAST_S) * _A_FACTOR)] += 1
        self._count += 1

    def quantile(self, share: float) -> float | None:
        """Seconds that so large a share of all stayed within; null where there are none."""
        if not self._count:
            return None
        bucket = bisect_left(list(accumulate(self._counts)), share * self._count)
        return _LEAST_S * math.exp((bucket + 0.5) / _A_FACTOR)
