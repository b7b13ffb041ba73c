"""A scope that refuses or fails as a whole is paused, and tried again with care. No I/O.

However many refusals of one wave report it, the stop is one. Afterwards starts ramp up from
below where they were; where the server finds the ramp too steep, it rises slowly.

Single failures are the rows' own business. When answers fail one after the other, whatever the
row, the rows would only use up their attempts: then one probe at a time goes out, at intervals that
grow with the outage's age, until the endpoint answers again.
"""

import math
from collections.abc import Callable

from batchrun.errors import ErrorKind, StopCause
from batchrun.limits import tuning
from batchrun.limits.verdicts import GO, LimitStatus, Stop, Verdict, Wait
from batchrun.records import Finish, Need, Slot
from batchrun.retry.next_step import FACTS, REFUSALS

_SLOWLY = math.log(tuning.SLOW_RAMP) / tuning.SLOW_RAMP_S


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
        return GO if next_s <= now_s + tuning.EARLY_S else Wait(min(next_s, now_s + 0.25))

    def started(self, need: Need, now_s: float) -> None:
        if self._ramp_from_s < math.inf:
            # Timers come late: the next start is counted from when this one was due.
            due_s = self._last_s + 1 / self._allowed(now_s)
            self._last_s = max(due_s, now_s - 0.02)
        else:
            self._last_s = now_s
        if now_s - self._span_s >= tuning.MEASURED_S:
            self._measure(now_s)
        self._counted += 1

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        if finish.slow_down:
            self._slow_down(now_s)
        if finish.kind not in REFUSALS or finish.hint_s is None or finish.hint_s <= 0:
            return
        if slot.started_s <= self._stopped_s:  # one more of the wave that began this stop
            until_s = slot.started_s + finish.hint_s
            if until_s > self._until_s > now_s:
                self._until_s = until_s
            return
        self._stop(now_s, finish.hint_s)

    def status(self, now_s: float) -> LimitStatus:
        return LimitStatus("cooldown", until_s=self._until_s if now_s < self._until_s else None)

    def _stop(self, now_s: float, hint_s: float) -> None:
        rate = self._measure(now_s)
        self._stopped_s = now_s
        self._until_s = max(self._until_s, now_s + hint_s)
        if hint_s < 0.1 and now_s >= self._slow_until_s:
            return  # too short to have lost the step
        self._ramp_from_s = self._until_s
        self._ramp_rate = max(
            rate * (1 - (1 - tuning.BELOW) * min(1.0, hint_s / tuning.LONG_S)), 0.1
        )

    def _slow_down(self, now_s: float) -> None:
        if now_s >= self._slow_until_s:
            self._ramp_rate = max(self._measure(now_s), 0.1)
            self._ramp_from_s = max(now_s, self._until_s)
        self._slow_until_s = now_s + tuning.SLOW_DOWN_S

    def _allowed(self, now_s: float) -> float:
        """Starts a second."""
        since_s = max(0.0, now_s - self._ramp_from_s)
        if now_s < self._slow_until_s:
            return self._ramp_rate * math.exp(since_s * _SLOWLY)
        doublings = since_s / tuning.DOUBLES_S
        if doublings > 4:
            self._ramp_from_s = math.inf
            return math.inf
        return self._ramp_rate * math.exp2(doublings)

    def _measure(self, now_s: float) -> float:
        """The rate of starts in the span that ends here; a new one begins where it was long."""
        span_s = now_s - self._span_s
        if span_s >= tuning.MEASURED_S:
            if span_s < math.inf:
                self._rate = self._counted / span_s
            self._counted, self._span_s = 0, now_s
        elif span_s > 0:
            self._rate = max(self._rate, self._counted / max(span_s, 0.25))
        return self._rate


# Where nothing ever answered, these say more about the requests or the time-outs asked for.
_LATE = frozenset({ErrorKind.GATEWAY_TIMEOUT, ErrorKind.TIMEOUT, ErrorKind.CUT})


class Breaker:
    """One scope's outages; `recovered` is called with the time when one is over."""

    def __init__(
        self, give_up_after_s: float, recovered: Callable[[float], None] = lambda _now_s: None
    ) -> None:
        self._give_up_after_s = give_up_after_s
        self._recovered = recovered
        self._has_answered = False
        self._failures = 0  # in a row
        self._began_s = math.inf  # the first of them
        self._over_s = -math.inf  # when the last outage was over
        self._last_began_s = math.inf  # the same outage's beginning
        self._next_s = 0.0  # for a probe
        self._probe_s: float | None = None  # when the one in flight was sent
        self._refused_s = math.inf  # the first refusal since anything else was answered
        self._error = ""
        self.is_open = False

    def excuses(self, failed_s: float) -> bool:
        """Whether a failure at that time was the endpoint's and costs the row no attempt."""
        if self.is_open and failed_s >= self._began_s:
            return True
        return self._last_began_s <= failed_s <= self._over_s

    def verdict(self, need: Need, now_s: float) -> Verdict:
        if now_s - self._refused_s >= self._give_up_after_s:
            return Stop(
                f"the server has refused every request for {now_s - self._refused_s:.0f} s "
                "(limits.give_up_after_s); run the same command again later",
                StopCause.ENDPOINT,
            )
        if not self.is_open:
            return GO
        end_s = self._began_s + self._patience_s()
        if now_s >= end_s:
            return Stop(self._reason(now_s - self._began_s), StopCause.ENDPOINT)
        until_s = self._next_s
        if self._probe_s is not None:
            until_s = max(until_s, self._probe_s + tuning.PROBE_PATIENCE_S)
        return GO if now_s >= until_s else Wait(min(until_s, end_s))

    def started(self, need: Need, now_s: float) -> None:
        if self.is_open:
            self._probe_s = now_s

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        if self._probe_s is not None and slot.started_s >= self._probe_s:
            self._probe_s = None
        if finish.kind is ErrorKind.RATE_LIMIT:
            self._refused_s = min(self._refused_s, now_s)
        elif finish.answered:
            self._refused_s = math.inf
        if finish.kind is not None and FACTS[finish.kind].is_outage:
            if self._has_answered or finish.kind not in _LATE:
                self._failed(finish, now_s)
        elif finish.answered:  # whatever it said: the endpoint is there
            self._has_answered = True
            self._failures = 0
            if self.is_open:
                self.is_open, self._probe_s = False, None
                self._last_began_s, self._over_s = self._began_s, now_s
                self._recovered(now_s)

    def status(self, now_s: float) -> LimitStatus:
        until_s = self._next_s if self.is_open else None
        return LimitStatus("endpoint down", used=self._failures, until_s=until_s)

    def _failed(self, finish: Finish, now_s: float) -> None:
        if self._failures == 0:
            self._began_s = now_s
        self._failures += 1
        self._error = finish.error or str(finish.kind)
        age_s = now_s - self._began_s
        if self.is_open or (
            self._failures >= tuning.OUTAGE_FAILURES and age_s >= tuning.OUTAGE_LEAST_S
        ):
            self.is_open = True
            self._next_s = now_s + max(tuning.OUTAGE_LEAST_S, tuning.OUTAGE_SHARE * age_s)

    def _patience_s(self) -> float:
        if self._has_answered:
            return self._give_up_after_s
        return min(self._give_up_after_s, tuning.NEVER_ANSWERED_S)

    def _reason(self, age_s: float) -> str:
        if not self._has_answered:
            return (
                f"nothing has answered within {age_s:.0f} s, the last error was: {self._error}; "
                "check --base-url and whether the server runs, then run the same command again"
            )
        return (
            f"the endpoint has been down for {age_s:.0f} s (limits.give_up_after_s), the last "
            f"error was: {self._error}; run the same command again once it is back"
        )
