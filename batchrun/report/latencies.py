"""How long answers take: quantiles in flat memory, right to two per cent."""

import math
from bisect import bisect_left
from collections.abc import Sequence
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

    def add(self, latencies: Sequence[float]) -> None:
        """So many more, in seconds."""
        counts, log = self._counts, math.log
        for seconds in latencies:
            within = _LEAST_S if seconds < _LEAST_S else min(seconds, _MOST_S)
            counts[int(log(within / _LEAST_S) * _A_FACTOR)] += 1
        self._count += len(latencies)

    def quantile(self, share: float) -> float | None:
        """Seconds that so large a share of all stayed within; null where there are none."""
        if not self._count:
            return None
        bucket = bisect_left(list(accumulate(self._counts)), share * self._count)
        return _LEAST_S * math.exp((bucket + 0.5) / _A_FACTOR)
