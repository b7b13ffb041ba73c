"""The mean of plain numbers with its error, as SQL adds it up for `mean_error_of`."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

from batchrun.scoring.statistics import MeanError, mean_error_of


def mean_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> MeanError:
    """Of scores that belong to clusters; without these each is its own."""
    mean = math.fsum(values) / len(values)
    residuals: dict[Hashable, list[float]] = defaultdict(list)
    names = range(len(values)) if clusters is None else clusters
    for value, name in zip(values, names, strict=True):
        residuals[name].append(value - mean)
    square_sum = math.fsum(math.fsum(some) ** 2 for some in residuals.values())
    return mean_error_of(mean, square_sum, len(values), len(residuals))
