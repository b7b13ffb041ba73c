"""Pauses a scope that refuses or fails as a whole, and tries it again with care. No I/O.

All refusals of one wave make one stop. After it, starts ramp up from below the old rate; if the
server says that the ramp is too steep, it rises slowly. A refusal among many answers concerns only
its row, which waits as long as the server asks, unless a limit is known that it comes from.

Single failures concern only their rows, and so does a row that fails while others are answered. If
many rows in a row fail, more attempts would be wasted: then one probe at a time is sent, at
intervals that grow with the age of the outage, until the endpoint answers again. A rate limit is no
answer: what refuses may stand in front of an endpoint that is down.
"""

import math
from collections import Counter
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import ErrorKind, StopCause
from batchrun.limits import tuning
from batchrun.limits.rate_estimate import RefusedShare
from batchrun.limits.verdicts import GO, LimitStatus, Stop, Verdict, Wait
from batchrun.records import Finish, Need, Slot
from batchrun.retry.next_step import FACTS, REFUSALS, TIME_OUTS, Cure

_SLOWLY = math.log(tuning.SLOW_RAMP) / tuning.SLOW_RAMP_S


class Cooldown:
    """Stops and ramps of one scope."""

    def __init__(
        self, is_limit: Callable[[Slot, Finish, float], bool] = lambda _slot, _finish, _s: True
    ) -> None:
        """`is_limit`: whether a single refusal comes from a limit that is known, at that time."""
        self._is_limit = is_limit
        self._share = RefusedShare(begins_large=True)
        self._sent = 0
        self._until_s = -math.inf
        self._own_until_s = -math.inf  # the same, from what the server told this process
        self._stopped_s = -math.inf  # when the last stop began
        self._slow_until_s = -math.inf
        self._rate = 0.0  # starts a second, when the stop began
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
        self._sent += 1

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        if finish.slow_down:
            self._slow_down(now_s)
        if finish.kind not in REFUSALS:
            return
        is_wave = self._share.is_large(self._sent)
        if finish.hint_s is None or finish.hint_s <= 0:
            return
        if not is_wave and not self._is_limit(slot, finish, now_s):
            return
        if slot.started_s <= self._stopped_s:  # the same wave of refusals
            until_s = slot.started_s + finish.hint_s
            if until_s > self._until_s > now_s:
                self._until_s = self._own_until_s = until_s
            return
        self._stop(now_s, finish.hint_s)

    def status(self, now_s: float) -> LimitStatus:
        return LimitStatus("cooldown", until_s=self._until_s if now_s < self._until_s else None)

    def left_s(self, now_s: float) -> float:
        """How long nothing is sent, from what the server told this process."""
        return max(0.0, self._own_until_s - now_s)

    def follow(self, hint_s: float, now_s: float) -> None:
        """Another process was told to wait so long."""
        if now_s + hint_s > self._until_s + tuning.FOLLOWED_S:
            own_until_s = self._own_until_s
            self._stop(now_s, hint_s)
            self._own_until_s = own_until_s

    def _stop(self, now_s: float, hint_s: float) -> None:
        rate = self._measure(now_s)
        self._stopped_s = now_s
        self._until_s = max(self._until_s, now_s + hint_s)
        self._own_until_s = max(self._own_until_s, now_s + hint_s)
        if hint_s < 0.1 and now_s >= self._slow_until_s:
            return  # too short for a ramp
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
        """Starts a second in the span that ends now; a new span begins if it was long enough."""
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


class Patience(Struct, frozen=True):
    """How long an endpoint may be down, in seconds."""

    answered_s: float  # if it has answered in this command
    unanswered_s: float  # if it has not
    had_answers: bool = False  # in an earlier command of the run
    met_before: str | None = None  # the `endpoint_error` that ended the last command


class Breaker:
    """The outages of one scope; `recovered` is called with the time when one is over.

    Rows count, not attempts. A row says nothing about the endpoint if it failed before and requests
    that were sent later were answered.
    """

    def __init__(
        self,
        patience: Patience,
        recovered: Callable[[float], None] = lambda _now_s: None,
        in_flight: Callable[[], int] = lambda: 0,
    ) -> None:
        """`in_flight`: attempts of the scope."""
        self._patience = patience
        self._recovered = recovered
        self._in_flight = in_flight
        self._has_answered = False
        self._have_others = False  # other processes of this command were answered
        self._answered_sent_s = -math.inf  # when the latest request that was answered was sent
        self._answered_s = -math.inf  # when the latest answer came
        self._failing: dict[int, str] = {}  # rows that failed one after the other, with the error
        self._same: Counter[str] = Counter()  # of these, by error
        self._own = 0  # rows refused for what they ask, since the last of these failures
        self._began_s = math.inf  # when the first of these failures came
        self._brake_s = -math.inf  # nothing starts before this
        self._over_s = -math.inf  # when the last outage was over
        # Failures since then belong to the outage: no request sent later had been answered.
        self._since_s = self._last_since_s = math.inf
        self._next_s = 0.0  # when the next probe may start
        self._probe_s: float | None = None  # when the probe in flight was sent
        self._refused_s = math.inf  # the first refusal since anything was let through
        self._refusal = ""  # the last refusal
        self._recent: dict[float, int] = {}  # since then: attempts in flight, by when they started
        self._last = Finish()  # the last failure
        self._failed_s = -math.inf  # when it came
        self.is_open = False

    @property
    def may_hold(self) -> bool:
        """Whether rows that would end as failed may wait, in case the endpoint is failing."""
        knows_answers = self._patience.had_answers or self._have_others
        return knows_answers or self._answered_sent_s > -math.inf

    @property
    def down(self) -> str | None:
        """The last words of the endpoint while it is down; null where rows are refused alone."""
        is_down = self.is_open and self._is_outage(self._last)
        return (self._last.error or str(self._last.kind)) if is_down else None

    def answered_s(self, now_s: float) -> float | None:
        """Since the last answer that was no error; null where there was none."""
        return now_s - self._answered_s if self._answered_s > -math.inf else None

    def others_answered(self, at_s: float) -> None:
        """The endpoint has answered other processes of this command, the last time then."""
        self._has_answered = self._have_others = True
        if self.is_open and at_s > self._failed_s:  # it is up again, or down for this one alone
            self._next_s = min(self._next_s, self._failed_s + tuning.PROBE_AS_OTHERS_S)

    def excuses(self, failed_s: float) -> bool:
        """Whether a failure at that time was due to the endpoint, and costs the row no attempt."""
        if self.is_open and failed_s > self._since_s:
            return True
        return self._last_since_s < failed_s <= self._over_s

    def is_rows_own(self, failing_since_s: float, error: str) -> bool:
        """Whether a row that has failed since then fails while the endpoint answers others.

        If neither this nor `excuses` is true, it is not known yet.
        """
        return failing_since_s < self._answered_sent_s or error == self._patience.met_before

    def verdict(self, need: Need, now_s: float) -> Verdict:
        is_refused = now_s - self._refused_s >= self._patience.answered_s
        if is_refused and not self._has_accepted(now_s):
            return Stop(
                f"the server has refused every request for {now_s - self._refused_s:.0f} s "
                f"(limits.give_up_after_s), the last with: {self._refusal}; run the same command "
                "again later",
                StopCause.ENDPOINT,
            )
        if not self.is_open:
            return GO if now_s >= self._brake_s else Wait(self._brake_s)
        end_s = self._began_s + self._patience_s()
        if now_s >= end_s:
            return self._stop(now_s - self._began_s)
        until_s = self._next_s
        if self._probe_s is not None:
            until_s = max(until_s, self._probe_s + tuning.PROBE_PATIENCE_S)
        return GO if now_s >= until_s else Wait(min(until_s, end_s))

    def ends_s(self, now_s: float) -> float:
        """When it answers `Stop`, if nothing happens until then; infinite: never."""
        ends = [self._refused_s + self._patience.answered_s]
        if self.is_open:
            ends.append(self._began_s + self._patience_s())
        return min((end_s for end_s in ends if end_s > now_s), default=math.inf)

    def started(self, need: Need, now_s: float) -> None:
        if self.is_open:
            self._probe_s = now_s
        if self._refused_s < math.inf:
            self._recent[now_s] = self._recent.get(now_s, 0) + 1

    def accepted(self, slot: Slot, now_s: float) -> None:
        """The server has begun to work on an attempt that is in flight (background).

        This says nothing about an endpoint that failed at work that it had begun.
        """
        self._has_answered = True
        self._let_through()
        if not self._last.is_begun:
            self._is_up(slot, now_s)

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        is_probe = self._probe_s is not None and slot.started_s >= self._probe_s
        if is_probe:
            self._probe_s = None
        if self._recent:
            self._ended(slot)
        if finish.endpoint_error is not None:
            # A server that has answered others meanwhile is busy, and not down.
            is_busy = finish.kind in TIME_OUTS and self._answered_s > slot.started_s
            if not is_busy and (self._has_answered or finish.kind not in _LATE):
                self._failed(finish, slot, now_s, is_probe=is_probe)
        elif finish.answered:
            self._has_answered = True
            if finish.kind is ErrorKind.RATE_LIMIT:
                self._refused(finish, now_s, is_probe=is_probe)
                return
            if self._refused_s < math.inf:
                self._let_through()
            if finish.kind is None:
                self._answered_s = now_s
                self._answered_sent_s = max(self._answered_sent_s, slot.started_s)
                if self._failing:
                    self._is_up(slot, now_s)
                return
            self._not_down(slot, now_s)

    def _refused(self, finish: Finish, now_s: float, *, is_probe: bool) -> None:
        self._refused_s = min(self._refused_s, now_s)
        self._refusal = finish.error or "rate limit"
        if is_probe and self.is_open:
            self._probe_later(now_s)

    def _let_through(self) -> None:
        self._refused_s = math.inf
        self._recent.clear()

    def _ended(self, slot: Slot) -> None:
        """An attempt has ended that may have started since the first refusal."""
        count = self._recent.get(slot.started_s, 0)
        if count > 1:
            self._recent[slot.started_s] = count - 1
        elif count:
            del self._recent[slot.started_s]

    def _has_accepted(self, now_s: float) -> bool:
        """Whether an attempt is in flight for longer than it takes to refuse one."""
        patience_s = min(tuning.ACCEPTED_S, tuning.ACCEPTED_SHARE * self._patience.answered_s)
        recent = sum(n for started_s, n in self._recent.items() if now_s - started_s < patience_s)
        return self._in_flight() > recent

    def _not_down(self, slot: Slot, now_s: float) -> None:
        """A row was refused: a gateway may say so alone, but some in a row show that it is up."""
        if not self.is_open or slot.started_s >= self._began_s:
            self._own += 1
            if self._own >= tuning.OWN_ROWS:
                self._is_up(slot, now_s)

    def _is_up(self, slot: Slot, now_s: float) -> None:
        """The endpoint works: the outage is over, unless the request was sent before it."""
        if self.is_open:
            if slot.started_s < self._began_s:
                return
            self.is_open, self._probe_s = False, None
            self._last_since_s, self._over_s = self._since_s, now_s
            self._forget_failing()
            self._recovered(now_s)
        else:
            self._forget_failing()

    def _forget_failing(self) -> None:
        self._failing.clear()
        self._same.clear()
        self._own = 0

    def _probe_later(self, now_s: float) -> None:
        age_s = now_s - self._began_s
        self._next_s = now_s + max(tuning.OUTAGE_LEAST_S, tuning.OUTAGE_SHARE * age_s)

    def status(self, now_s: float) -> LimitStatus:
        if not self.is_open:
            return LimitStatus("endpoint down", used=len(self._failing))
        return LimitStatus(
            "endpoint down",
            used=len(self._failing),
            until_s=self._next_s,
            says=self._last.error or str(self._last.kind),
            ends_s=self._began_s + self._patience_s(),
        )

    def _failed(self, finish: Finish, slot: Slot, now_s: float, *, is_probe: bool) -> None:
        error, is_outage = finish.endpoint_error or "", self._is_outage(finish)
        if self.is_open and not is_outage and self._is_outage(self._last):
            self._not_down(slot, now_s)
            if self.is_open:
                if is_probe:
                    self._probe_later(now_s)
                return
            # It answers again: failures are counted from here.
        # Nothing was sent: no row is to blame, so each attempt counts.
        is_unsent = finish.kind is ErrorKind.CONNECTION and finish.dollars == 0
        if not (self.is_open or is_unsent) and self.is_rows_own(finish.failing_since_s, error):
            return
        if not self._failing:
            self._began_s = now_s
        row = -len(self._failing) - 1 if is_unsent else finish.row
        if row in self._failing:
            self._same[self._failing[row]] -= 1
        self._failing[row] = error
        self._same[error] += 1
        self._failed_s, self._own = now_s, 0
        if not self.is_open or is_outage or not self._is_outage(self._last):
            self._last = finish
        age_s = now_s - self._began_s
        if self.is_open:
            if is_probe:
                self._probe_later(now_s)
        elif self._are_too_many(finish, error):
            # Failures of one moment, such as connections that a restart closed, are left to the
            # retries of the rows; but nothing more is sent until it is known whether it is more.
            self.is_open = age_s >= tuning.OUTAGE_LEAST_S or not is_outage
            self._since_s = self._answered_sent_s
            self._brake_s = self._next_s = self._began_s + tuning.OUTAGE_LEAST_S

    @staticmethod
    def _is_outage(finish: Finish) -> bool:
        return finish.kind is not None and FACTS[finish.kind].is_outage

    def _are_too_many(self, finish: Finish, error: str) -> bool:
        if self._is_outage(finish):
            return len(self._failing) >= tuning.OUTAGE_ROWS
        return self.may_hold and self._same[error] >= tuning.SAME_ROWS

    def _patience_s(self) -> float:
        if self._last.kind is ErrorKind.UNAUTHORIZED:
            return 0.0  # no key becomes valid by waiting
        return self._patience.answered_s if self._has_answered else self._patience.unanswered_s

    def _stop(self, age_s: float) -> Stop:
        last = self._last
        rows = self._same[last.endpoint_error or ""]
        kind, error = last.kind or ErrorKind.SERVER_ERROR, last.error or str(last.kind)
        stop = Stop("", StopCause.ENDPOINT)
        if kind is ErrorKind.SERVER_ERROR:
            stop = replace(stop, endpoint_error=last.endpoint_error, rows=len(self._failing))
        if not FACTS[kind].is_outage:
            cause = StopCause.KEY if FACTS[kind].cure is Cure.FIX else StopCause.ENDPOINT
            advice = FACTS[kind].advice or "fix the cause"
            reason = (
                f"{rows} consecutive rows failed in the same way, and so did every request for "
                f"{age_s:.0f} s: {error}; {advice}, then run the same command again"
            )
            if kind is not ErrorKind.UNAUTHORIZED:  # the next key may be valid
                reason += "; rows that meet this error again end as failed"
                return Stop(reason, cause, last.endpoint_error)
            return Stop(reason, cause)
        if self._has_answered:
            reason = (
                f"the endpoint has been down for {age_s:.0f} s (limits.give_up_after_s), the last "
                f"error was: {error}; run the same command again once it is back"
            )
        elif last.answered:
            reason = (
                f"every request has failed for {age_s:.0f} s (limits.give_up_after_s), the last "
                f"with: {error}; run the same command again once the server works"
            )
        else:
            reason = (
                f"nothing has answered within {age_s:.0f} s, the last error was: {error}; "
                "check --base-url and whether the server runs, then run the same command again"
            )
        return replace(stop, reason=reason)
