"""How many attempts may be in flight. Pure: the time is an argument."""

import math

from batchrun.policy.verdicts import GO, Verdict, Wait
from batchrun.records import Need


class InFlight:
    """A plain limit on attempts in flight."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = 0

    def verdict(self, need: Need, now_s: float) -> Verdict:
        return GO if self.now < self.most else Wait()

    def started(self, need: Need, now_s: float) -> None:
        self.now += 1

    def finished(self, need: Need, now_s: float, *, answered: bool) -> None:
        self.now -= 1


class FirstAlone:
    """The first attempt of a run goes out alone, so that a wrong key or model costs one call.

    The others follow when the server has answered, or after `patience_s` without an answer.
    """

    def __init__(self, patience_s: float = 10.0) -> None:
        self._patience_s = patience_s
        self._first_s = math.inf
        self._in_flight = 0
        self._open = False

    def verdict(self, need: Need, now_s: float) -> Verdict:
        if self._open or self._in_flight == 0:
            return GO
        until_s = self._first_s + self._patience_s
        return GO if now_s >= until_s else Wait(until_s)

    def started(self, need: Need, now_s: float) -> None:
        self._first_s = min(self._first_s, now_s)
        self._in_flight += 1

    def finished(self, need: Need, now_s: float, *, answered: bool) -> None:
        self._in_flight -= 1
        self._open = self._open or answered
