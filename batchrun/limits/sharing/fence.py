"""Stops a process from sending when others may have its rows.

A worker that has had no message from its driver for too long: the driver may have given its rows to
another. The clock also counts while the process or the machine is stopped. The command of a run in
a store: its claim on the run may have expired, after which another machine may take it.
"""

import time
from collections.abc import Callable

from batchrun.limits.verdicts import GO, LimitStatus, Verdict, Wait
from batchrun.records import Finish, Need, Slot


def _clock_s() -> float:
    return time.clock_gettime(_CLOCK)


_LOOK_S = 0.1
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


class ClaimFence:
    """A limit on all attempts of a command; opens again when its claim is known to be valid."""

    def __init__(self, may_be_taken: Callable[[], bool]) -> None:
        self._may_be_taken = may_be_taken

    def verdict(self, need: Need, now_s: float) -> Verdict:
        return Wait(now_s + _LOOK_S) if self._may_be_taken() else GO

    def started(self, need: Need, now_s: float) -> None:
        return

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        return

    def status(self, now_s: float) -> LimitStatus:
        return LimitStatus("the claim on the run")
