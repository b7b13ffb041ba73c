"""What a limit is, and what it may answer when an attempt asks to start."""

import math
from typing import Protocol, runtime_checkable

from msgspec import Struct

from batchrun.errors import StopCause
from batchrun.records import Finish, Need, Slot


class Go(Struct, frozen=True):
    """The attempt may start now."""


class Wait(Struct, frozen=True):
    """Ask again at `until_s`, or sooner when an attempt has ended."""

    until_s: float = math.inf  # on the clock of `now_s`


class Stop(Struct, frozen=True):
    """No attempt may start any more."""

    reason: str
    cause: StopCause
    endpoint_error: str | None = None  # an error that all rows had, and that may be their own, ...
    rows: int | None = None  # ... if no more rows than these remain


Verdict = Go | Wait | Stop
GO = Go()


class LimitStatus(Struct, frozen=True):
    """The status of a limit, for the display."""

    name: str  # what it is: `requests in flight`, `x-ratelimit-limit-tokens`, `cooldown`
    used: float | None = None  # in the unit of the name
    most: float | None = None
    until_s: float | None = None  # when it opens, on the gate's clock
    of: str = ""  # what it limits: `in flight`, `dollars`, `requests` or `tokens` (a second)
    per_s: float | None = None  # so many of these a second
    says: str | None = None  # the last error of an endpoint that is down
    ends_s: float | None = None  # when it ends the run, unless it opens before


class Limit(Protocol):
    """One bound on starting attempts; it is called at each start and finish."""

    def verdict(self, need: Need, now_s: float) -> Verdict: ...
    def started(self, need: Need, now_s: float) -> None: ...
    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None: ...
    def status(self, now_s: float) -> LimitStatus: ...


@runtime_checkable
class Ends(Protocol):
    """A limit that may end the run though nothing happens."""

    def ends_s(self, now_s: float) -> float:
        """When it answers `Stop`, if nothing happens until then; infinite: never."""
