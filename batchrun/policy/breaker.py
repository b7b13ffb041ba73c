"""A scope that fails as a whole is paused and probed, one request at a time. Pure.

Single failures are the rows' own business. When answers fail one after the other, whatever the
row, the rows would only use up their tries: then one probe at a time goes out, at intervals that
grow with the outage's age, until the endpoint answers again.
"""

import math
from collections.abc import Callable

from batchrun.errors import ErrorKind, StopCause
from batchrun.policy.verdicts import GO, Standing, Stop, Verdict, Wait
from batchrun.records import Finish, Need, Slot

STORM = frozenset(
    {
        ErrorKind.OVERLOADED,
        ErrorKind.SERVER_ERROR,
        ErrorKind.GATEWAY_TIMEOUT,
        ErrorKind.TIMEOUT,
        ErrorKind.CONNECTION,
        ErrorKind.CUT,
    }
)
# Where nothing ever answered, these say more about the requests or the time-outs asked for.
_LATE = frozenset({ErrorKind.GATEWAY_TIMEOUT, ErrorKind.TIMEOUT, ErrorKind.CUT})
FAILURES = 10  # in a row, without any answer between them
LEAST_S = 0.5  # that the failures go on, and between two probes
SHARE = 0.05  # of the outage's age: the interval between two probes
PATIENCE_S = 30.0  # for a probe that says nothing, before another one goes
NEVER_ANSWERED_S = 60.0  # an endpoint that never answered is given up sooner: a wrong URL


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
        """Whether a failure at that time was the endpoint's and costs the row no try."""
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
            until_s = max(until_s, self._probe_s + PATIENCE_S)
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
        if finish.kind in STORM:
            if self._has_answered or finish.kind not in _LATE:
                self._failed(finish, now_s)
        elif finish.answered:  # whatever it said: the endpoint is there
            self._has_answered = True
            self._failures = 0
            if self.is_open:
                self.is_open, self._probe_s = False, None
                self._last_began_s, self._over_s = self._began_s, now_s
                self._recovered(now_s)

    def standing(self, now_s: float) -> Standing:
        until_s = self._next_s if self.is_open else None
        return Standing("endpoint down", used=self._failures, until_s=until_s)

    def _failed(self, finish: Finish, now_s: float) -> None:
        if self._failures == 0:
            self._began_s = now_s
        self._failures += 1
        self._error = finish.error or str(finish.kind)
        age_s = now_s - self._began_s
        if self.is_open or (self._failures >= FAILURES and age_s >= LEAST_S):
            self.is_open = True
            self._next_s = now_s + max(LEAST_S, SHARE * age_s)

    def _patience_s(self) -> float:
        if self._has_answered:
            return self._give_up_after_s
        return min(self._give_up_after_s, NEVER_ANSWERED_S)

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
