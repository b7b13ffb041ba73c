"""Joins what the workers of a run report into one activity. No I/O."""

from collections.abc import Iterable, Sequence
from functools import reduce

from msgspec.structs import replace

from batchrun.limits.verdicts import LimitStatus
from batchrun.progress.bottleneck import Activity
from batchrun.records import Totals

_OLDEST = 3  # rows named at the end of a run


def added(parts: Iterable[Totals]) -> Totals:
    """The sum of totals of different rows."""
    return reduce(Totals.plus, parts, Totals())


def joined(activities: Sequence[Activity], now_s: float, *, is_stopping: bool) -> Activity:
    """One activity from those of all workers, on the clock of this process."""
    oldest = [named for one in activities for named in one.oldest]
    limited = [one for one in activities if one.is_limited]
    return Activity(
        is_stopping=is_stopping,
        in_flight=sum(one.in_flight for one in activities),
        retrying=sum(one.retrying for one in activities),
        retries=sum(one.retries for one in activities),
        is_limited=bool(limited) and len(limited) * 2 >= len(activities),
        is_reading=bool(activities) and all(one.is_reading for one in activities),
        limits=_joined_limits(
            [*limited, *(one for one in activities if one not in limited)], now_s
        ),
        oldest=tuple(sorted(oldest, key=lambda named: -named[1])[:_OLDEST]),
        now_s=now_s,
    )


def _joined_limits(activities: Sequence[Activity], now_s: float) -> tuple[LimitStatus, ...]:
    """Each limit once, in the order of first appearance; shares of one limit are added."""
    joined: dict[tuple[str, str], LimitStatus] = {}
    for activity in activities:
        for limit in activity.limits:
            later_s = now_s - activity.now_s
            if limit.until_s is not None:
                limit = replace(limit, until_s=limit.until_s + later_s)  # noqa: PLW2901
            if limit.ends_s is not None:
                limit = replace(limit, ends_s=limit.ends_s + later_s)  # noqa: PLW2901
            key = limit.name, limit.of
            joined[key] = _sum(joined[key], limit) if key in joined else limit
    return tuple(joined.values())


def _sum(one: LimitStatus, other: LimitStatus) -> LimitStatus:
    def total(name: str) -> float | None:
        values = [value for each in (one, other) if (value := getattr(each, name)) is not None]
        return sum(values) if values else None

    until_s = max((each.until_s for each in (one, other) if each.until_s is not None), default=None)
    return replace(
        one,
        used=total("used"),
        most=total("most"),
        per_s=total("per_s"),
        until_s=until_s,
        says=one.says if other.says else None,  # the endpoint is down only if it is down for all
    )
