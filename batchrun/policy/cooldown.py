"""Backing off together: a refusal with a hint stops its scope until the hint's time, once. Pure.

However many refusals of one wave report it, the stop is one. Afterwards starts ramp up from
below where they were; where the server finds the ramp too steep, it rises slowly.
"""

import math

from batchrun.errors import ErrorKind
from batchrun.policy.spacing import EARLY_S
from batchrun.policy.verdicts import GO, Standing, Verdict, Wait
from batchrun.records import Finish, Need, Slot

REFUSALS = frozenset((ErrorKind.RATE_LIMIT, ErrorKind.OVERLOADED))

_LONG_S = 2.0  # after stops at least so long the ramp begins at ...
_BELOW = 0.7  # ... this share of where it was, after shorter ones nearer to it
_DOUBLES_S = 0.5  # in which the ramp doubles
_MEASURED_S = 1.0  # over which starts are counted
_SLOW_DOWN_S = 60.0  # for how long the word `slow_down` holds
_SLOWLY = math.log(1.5) / 15  # at most +50 % in 15 s


class Cooldown:
    """Stops and ramps of one scope."""

    def __init__(self) -> None:
        self._until_s = -math.inf
        self._stopped_s = -math.inf  # when the last stop began
        self._slow_until_s = -math.inf
        self._rate = 0.0  # of starts, when the stop began
        self._ramp_from_s = math.inf  # no ramp
        self._ramp_rate = 0.0  # where it starts
        self._last_s = -math.inf  # the last start
        self._counted = 0  # starts in the present span
        self._span_s = -math.inf

    def verdict(self, need: Need, now_s: float) -> Verdict:
        if now_s < self._until_s:
            return Wait(self._until_s)
        if now_s < self._ramp_from_s:
            return GO
        allowed = self._allowed(now_s)
        if allowed == math.inf:
            return GO
        next_s = self._last_s + 1 / allowed
        return GO if next_s <= now_s + EARLY_S else Wait(min(next_s, now_s + 0.25))

    def started(self, need: Need, now_s: float) -> None:
        if self._ramp_from_s < math.inf:
            # Timers come late: the next start is counted from when this one was due.
            due_s = self._last_s + 1 / self._allowed(now_s)
            self._last_s = max(due_s, now_s - 0.02)
        else:
            self._last_s = now_s
        if now_s - self._span_s >= _MEASURED_S:
            self._measure(now_s)
        self._counted += 1

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        if finish.slow_down:
            self._slow_down(now_s)
        if finish.kind not in REFUSALS or finish.hint_s is None or finish.hint_s <= 0:
            return
        if slot.started_s <= self._stopped_s:  # one more word of the wave that began this stop
            until_s = slot.started_s + finish.hint_s
            if until_s > self._until_s > now_s:
                self._until_s = until_s
            return
        self._stop(now_s, finish.hint_s)

    def standing(self, now_s: float) -> Standing:
        return Standing("cooldown", until_s=self._until_s if now_s < self._until_s else None)

    def _stop(self, now_s: float, hint_s: float) -> None:
        rate = self._measure(now_s)
        self._stopped_s = now_s
        self._until_s = max(self._until_s, now_s + hint_s)
        if hint_s < 0.1 and now_s >= self._slow_until_s:
            return  # too short to have lost the step
        self._ramp_from_s = self._until_s
        self._ramp_rate = max(rate * (1 - (1 - _BELOW) * min(1.0, hint_s / _LONG_S)), 0.1)

    def _slow_down(self, now_s: float) -> None:
        if now_s >= self._slow_until_s:
            self._ramp_rate = max(self._measure(now_s), 0.1)
            self._ramp_from_s = max(now_s, self._until_s)
        self._slow_until_s = now_s + _SLOW_DOWN_S

    def _allowed(self, now_s: float) -> float:
        """Starts a second."""
        since_s = max(0.0, now_s - self._ramp_from_s)
        if now_s < self._slow_until_s:
            return self._ramp_rate * math.exp(since_s * _SLOWLY)
        doublings = since_s / _DOUBLES_S
        if doublings > 4:
            self._ramp_from_s = math.inf
            return math.inf
        return self._ramp_rate * math.exp2(doublings)

    def _measure(self, now_s: float) -> float:
        """The rate of starts in the span that ends here; a new one begins where it was long."""
        span_s = now_s - self._span_s
        if span_s >= _MEASURED_S:
            if span_s < math.inf:
                self._rate = self._counted / span_s
            self._counted, self._span_s = 0, now_s
        elif span_s > 0:
            self._rate = max(self._rate, self._counted / max(span_s, 0.25))
        return self._rate
