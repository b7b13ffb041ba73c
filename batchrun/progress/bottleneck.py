"""Why a run is not faster: what limits it at the moment, in words. No I/O."""

import math
from collections.abc import Sequence

from msgspec import Struct

from batchrun.formats.amounts import usd
from batchrun.limits.verdicts import LimitStatus

_BUSY = 0.9  # of one core: this process itself is the limit
PAUSES = ("cooldown", "endpoint down")
_SOON_S = 0.1  # what comes sooner is not worth a number
_DISK = 0.5  # of the time: writing is


class Pulse(Struct, frozen=True):
    """How a run stands at one moment, as its parts say."""

    is_stopping: bool = False
    in_flight: int = 0
    retrying: int = 0  # rows between two tries
    retries: int = 0  # of rows that are not settled yet
    is_held: bool = False  # somebody waits at the gate; the first of `statuses` is what for
    is_reading: bool = False  # places are free, and no row is there yet
    statuses: Sequence[LimitStatus] = ()
    oldest: Sequence[tuple[str, float]] = ()  # rows in flight: id, and seconds since the first send
    write_s: float = 0.0  # spent in writing outcomes, since the start
    now_s: float = 0.0  # on the clock of the statuses


def paused_by(pulse: Pulse) -> str | None:
    """The limit that stops all sending; null where none does.

    An endpoint that is down stays so while it is probed, and while nobody waits to send.
    """
    down = [one.until_s is not None for one in pulse.statuses if one.name == "endpoint down"]
    if down and all(down):
        return "endpoint down"
    first = pulse.statuses[0] if pulse.is_held and pulse.statuses else None
    return first.name if first is not None and first.name in PAUSES else None


def binding(pulse: Pulse, cpu_share: float, disk_share: float) -> str:
    """What the run waits for; shares are of the time since the last look."""
    if cpu_share >= _BUSY:
        return f"CPU: {cpu_share:.0%} of a core"
    if disk_share >= _DISK:
        return f"the disk: {disk_share:.0%} of the time is spent writing outcomes"
    if pulse.is_held and pulse.statuses:
        return told(pulse.statuses[0], pulse.now_s)
    if pulse.is_reading:
        return "reading the input"
    if pulse.in_flight:
        return "the answers to what is in flight"
    return "rows between two tries" if pulse.retrying else "nothing"


def most_in_flight(pulse: Pulse) -> int | None:
    """The lowest of the limits on requests in flight."""
    limits = [one.most for one in pulse.statuses if one.of == "in flight" and one.most is not None]
    return int(min(limits)) if limits else None


def most_per_s(pulse: Pulse, of: str) -> float | None:
    """The lowest of the rates that requests or tokens are limited to; null where none is."""
    rates = [one.per_s for one in pulse.statuses if one.of == of and one.per_s is not None]
    return min(rates, default=None)


def headroom(pulse: Pulse) -> list[str]:
    """Each limit that has anything to say."""
    return [
        told(one, pulse.now_s)
        for one in pulse.statuses
        if one.most is not None or (one.until_s or 0.0) > pulse.now_s
    ]


def told(standing: LimitStatus, now_s: float) -> str:
    """One limit in words, with its headroom."""
    words = standing.name
    if "ratelimit" in words:
        words = f"the server's {words}"
    if standing.most is not None:
        in_words = usd if standing.of == "dollars" else _number
        used = "" if standing.used is None else f"{in_words(standing.used)} of "
        words += f": {used}{in_words(standing.most)}"
        if standing.of == "dollars":
            words += ", with what is reserved"
        a_minute = standing.per_s is not None and math.isclose(standing.most, 60 * standing.per_s)
        if a_minute and standing.of not in standing.name:
            words += f" {standing.of} a minute"
    if standing.until_s is not None and standing.until_s - now_s >= _SOON_S:
        words += f", next in {standing.until_s - now_s:.1f} s"
    return words


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"
