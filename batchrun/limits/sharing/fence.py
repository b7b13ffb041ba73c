"""Stops a worker from sending when it has had no message from its driver for too long.

The driver may have given the worker's rows to another by then. The clock also counts while the
process or the machine is stopped.
"""

import time
from collections.abc import Callable

from batchrun.limits.verdicts import GO, LimitStatus, Verdict, Wait
from batchrun.records import Finish, Need, Slot


def _clock_s() -> float:
    return time.clock_gettime(_CLOCK)


_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Fence:
    """A limit on all attempts of a worker; once closed, it stays closed."""

    def __init__(self, silence_s: float, clock: Callable[[], float] = _clock_s) -> None:
        self._silence_s, self._clock = silence_s, clock
        self._heard_s = clock()
        self._is_silent = False

    @property
    def is_silent(self) -> bool:
        """Whether the driver was silent for too long."""
        self._is_silent = self._is_silent or self.silent_s > self._silence_s
        return self._is_silent

    @property
    def silent_s(self) -> float:
        """Seconds since the last message that came in time."""
        return self._clock() - self._heard_s

    def hear(self) -> bool:
        """Notes a message of the driver; returns whether it came in time."""
        if self.is_silent:
            return False
        self._heard_s = self._clock()
        return True

    def verdict(self, need: Need, now_s: float) -> Verdict:
        return Wait() if self.is_silent else GO

    def started(self, need: Need, now_s: float) -> None:
        return

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        return

    def status(self, now_s: float) -> LimitStatus:
        return LimitStatus("the driver")
