"""Means over questions, added up in the database, and their intervals."""

import duckdb
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.formats.printable import nearest
from batchrun.scoring.statistics import (
    METHODS,
    MOST_BOOTSTRAPPED,
    MeanError,
    bootstrap_interval,
    mean_error_of,
    t_interval,
    wilson_interval,
)

# `values` is a query of the columns line, cluster, x: a value of each question that has one.
_MEANS = """
WITH x AS MATERIALIZED ({values}),
means AS (SELECT line, avg(x) AS mean, count(*) AS questions FROM x GROUP BY line),
sums AS (SELECT line, cluster, fsum(x) AS total, count(*) AS n FROM x GROUP BY line, cluster)
SELECT line, any_value(mean), any_value(questions), count(*), fsum((total - n * mean) ** 2), {lists}
FROM sums JOIN means USING (line) GROUP BY line
"""
_MEANS_ALONE = """
SELECT line, avg(total), count(*), count(*), var_pop(total) * count(*), {lists}
FROM (SELECT line, cluster, x AS total, 1 AS n FROM ({values})) GROUP BY line
"""
_LISTS = "list(total ORDER BY cluster), list(n ORDER BY cluster)"
_NO_LISTS = "NULL, NULL"
_ROUNDING = 1e-12


class Interval(Struct, frozen=True):
    """How intervals are made."""

    level: float  # a share
    method: str  # one of `statistics.METHODS`
    is_clustered: bool

    def check(self) -> None:
        """Raises `JobError` for a level or a method that cannot be."""
        if self.method not in METHODS:
            raise JobError(f"there is no method {self.method}; {nearest(self.method, METHODS)}")
        if not 0 < self.level < 1:
            raise JobError(f"the level {self.level:g} is not between 0 and 1; 0.95 is usual")


class Measure(Struct, frozen=True):
    """A mean over questions, with its error and interval; null where there are too few."""

    value: float | None
    se: float | None = None
    low: float | None = None
    high: float | None = None
    method: str | None = None  # of the interval: t, wilson, bootstrap

    @property
    def has_no_width(self) -> bool:
        """Whether the interval is a point, but for errors of rounding."""
        if self.value is None or self.low is None or self.high is None:
            return False
        return self.high - self.low <= _ROUNDING * max(1.0, abs(self.value))


class QuestionMean(Struct, frozen=True):
    """With the sums of each cluster, where a bootstrap draws them."""

    error: MeanError
    totals: list[float] | None
    counts: list[int] | None


def read_means(
    database: duckdb.DuckDBPyConnection, values: str, interval: Interval
) -> dict[int, QuestionMean]:
    """The mean of each line. Raises `JobError` where a bootstrap would draw from too many."""
    form = _MEANS if interval.is_clustered else _MEANS_ALONE
    lists = _LISTS if interval.method == "bootstrap" else _NO_LISTS
    found = {}
    for line, mean, questions, clusters, squares, *sums in database.sql(
        form.format(values=values, lists=lists)
    ).fetchall():
        if interval.method == "bootstrap" and clusters > MOST_BOOTSTRAPPED:
            raise JobError(
                f"a bootstrap of {clusters:,} questions takes too long, and would give the same as "
                "the t interval; give --method t"
            )
        found[line] = QuestionMean(mean_error_of(mean, squares, questions, clusters), *sums)
    return found


def measured(
    mean: QuestionMean | None,
    interval: Interval,
    samples: int,
    *,
    is_binary: bool = True,
    is_share: bool = True,
) -> Measure | None:
    """With its interval; null where nothing is scored. `samples`: the answers behind it.

    `auto` is Wilson's interval for scores of 0 and 1 (`is_binary`), else t. It is Wilson's too
    where scores from 0 to 1 (`is_share`) do not vary, so that no interval has the width 0.
    """
    if mean is None:
        return None
    error, method = mean.error, interval.method
    if method == "auto":
        method = "wilson" if is_binary or (is_share and error.se == 0) else "t"
    if method == "bootstrap" and mean.totals is not None and mean.counts is not None:
        ends: tuple[float, float] | None = bootstrap_interval(
            mean.totals, mean.counts, interval.level
        )
    elif method == "wilson":
        ends = wilson_interval(error, samples, interval.level)
    else:
        ends = t_interval(error, interval.level)
    if error.se is None or ends is None:
        return Measure(error.mean)
    return Measure(error.mean, error.se, *ends, method)
