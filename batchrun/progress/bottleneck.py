"""Why a run is not faster: what limits it at the moment, in words. No I/O."""

import math
from collections.abc import Sequence

from msgspec import Struct

from batchrun.formats.amounts import time_left, usd
from batchrun.limits.verdicts import LimitStatus

PAUSES = ("cooldown", "endpoint down")  # limits that stop all sending
_BUSY_CPU = 0.9  # of one core: this process is the limit
_BUSY_DISK = 0.5  # of the time: writing is the limit
_SOON_S = 0.1  # a shorter wait is not worth a number
_WINDOWS = {1: "a second", 60: "a minute", 3600: "an hour"}
_SAID = 200  # characters of a server's last words


class Activity(Struct, frozen=True):
    """What a run is doing at one moment."""

    is_stopping: bool = False
    in_flight: int = 0
    retrying: int = 0  # rows that wait for a retry
    retries: int = 0  # of rows without an outcome
    is_limited: bool = False  # requests wait at the gate, for the first of `limits`
    is_reading: bool = False  # slots are free, and no row is read yet
    limits: Sequence[LimitStatus] = ()
    oldest: Sequence[tuple[str, float]] = ()  # rows in flight: id, and seconds since the first send
    write_s: float = 0.0  # spent in writing outcomes, since the start
    now_s: float = 0.0  # on the clock of the limits


def bottleneck(activity: Activity, cpu_share: float, disk_share: float) -> str:
    """What the run waits for; shares are of the time since the last look."""
    if cpu_share >= _BUSY_CPU:
        return f"CPU ({cpu_share:.0%} of a core)"
    if disk_share >= _BUSY_DISK:
        return f"the disk ({disk_share:.0%} of the time is spent writing outcomes)"
    if paused_by(activity) == "endpoint down":  # also while nothing waits to be sent
        return limit_in_words(next(one for one in activity.limits if one.says), activity.now_s)
    if activity.is_limited and activity.limits:
        return limit_in_words(activity.limits[0], activity.now_s)
    if activity.is_reading:
        return "reading the input"
    if activity.in_flight:
        return "the answers to requests in flight"
    return "rows waiting for a retry" if activity.retrying else "nothing"


def paused_by(activity: Activity) -> str | None:
    """The limit that stops all sending, if one does.

    An endpoint that is down stays so while it is probed, and while nothing waits to be sent.
    """
    down = [one.says is not None for one in activity.limits if one.name == "endpoint down"]
    if down and all(down):
        return "endpoint down"
    first = activity.limits[0] if activity.is_limited and activity.limits else None
    if first is None or not (first.name == "cooldown" or first.says):
        return None
    return first.name


def lowest_limit(limits: Sequence[LimitStatus], of: str) -> float | None:
    """The lowest limit on requests in flight, or on the rate a second of requests or tokens.

    Several models have limits of one name each, which allow their sum.
    """
    by_name: dict[str, list[float | None]] = {}
    for one in limits:
        if one.of == of:
            by_name.setdefault(one.name, []).append(one.most if of == "in flight" else one.per_s)
    sums = (sum(value or 0.0 for value in each) for each in by_name.values() if None not in each)
    return min(sums, default=None)


def limits_in_words(activity: Activity) -> tuple[str, ...]:
    """Each limit that is set or that is waited for."""
    now_s = activity.now_s
    return tuple(
        limit_in_words(one, now_s)
        for one in activity.limits
        if one.most is not None or (one.until_s or 0.0) > now_s
    )


def limit_in_words(limit: LimitStatus, now_s: float) -> str:
    """`requests in flight (64 of 64)`; how much of the limit is used, and when it opens."""
    if limit.of == "in flight" and limit.per_s is not None:
        rate, most = _number(limit.per_s), _number(limit.most or 0)
        return f"{limit.name}: {rate} requests/s at {most} in flight; more only makes them wait"
    words = f"the server's {limit.name}" if "ratelimit" in limit.name else limit.name
    if limit.most is not None:
        is_cost = limit.of == "dollars"
        number = usd if is_cost else _number
        used = "" if limit.used is None else f"{number(limit.used)} of "
        unit = _unit(limit)
        words += f" ({used}{number(limit.most)}{', reservations included' if is_cost else unit})"
    if limit.until_s is not None and limit.until_s - now_s >= _SOON_S:
        words += f", next request in {limit.until_s - now_s:.1f} s"
    if limit.ends_s is not None and limit.ends_s > now_s:
        words += f", gives up in {time_left(limit.ends_s - now_s)}"
    return words if limit.says is None else f"{words}: {limit.says[:_SAID]}"


def _unit(limit: LimitStatus) -> str:
    """` requests a minute` without what the limit's name says itself; empty where it is no rate."""
    if limit.per_s is None or limit.most is None:
        return ""
    for seconds, window in _WINDOWS.items():
        if math.isclose(limit.most, seconds * limit.per_s) and window not in limit.name:
            return f"{'' if limit.of in limit.name else f' {limit.of}'} {window}"
    return ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"
