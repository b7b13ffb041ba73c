"""How much of the common limits each worker may use. No I/O.

Requests in flight and parts of the server's rate are stocks; requests and tokens a minute are total
allowances with a pace; dollars are a purse. Whatever message is lost, late or repeated between
driver and workers, the parts together never exceed a limit.
"""

import math

from msgspec import Struct

from batchrun.executors.grants import Grants, Stock, divide
from batchrun.limits import tuning
from batchrun.limits.sharing.shares import WHOLE, Allowance, Flow, Shares, SharesUsed
from batchrun.records import Scope

_STEP = 0.04  # a share of a rate changes by at least this part of it, or not at all
_LEAST_RATE = 0.02  # of an even share, for a worker that sends nothing
_MORE_RATE = 1.2  # times the rate that a worker uses, so that it can grow
_MORE_SLOTS = 1.25  # the same for slots
_SMOOTH = 0.2  # weight of the latest report in a worker's averages
_PRESSED = 0.5  # a worker is limited if this share of its latest reports says so
_GAPS = 2.0  # an allowance lasts for so many times the gap between two reports
_LATE_S = 0.05  # the time that a tick travels
_GAP_S = 0.25  # assumed gap between two reports, before there are two
_SILENT_S = 1.0  # a worker without a report for so long stands still, ...
_SILENT_GAPS = 4.0  # ... if that is also so many times the gap between two
_LISTENS_S = 0.25  # longest gap between messages; in a longer one the driver stood still
_PURSE_GROWS = 2  # a purse that is too small grows by this factor, ...
_PURSE_MOST = 256  # ... up to so many times the possible cost of one request
_PURSE_LASTS_S = 1.5  # at the present rate of spending


class SharedLimits(Struct, frozen=True):
    """Of all workers together; None: no limit."""

    in_flight: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budget: int | None = None  # picodollars that this command may spend


class _Seen(Struct):
    """What one worker uses, as moving averages."""

    at_s: float
    used: SharesUsed = SharesUsed()
    gap_s: float = _GAP_S  # between two reports
    starts_per_s: float = 0.0
    tokens_per_s: float = 0.0
    spends_per_s: float = 0.0  # picodollars
    pressed: float = 1.0  # share of the latest reports that name a server's limit
    purse: int = 0  # picodollars beyond what is used
    has_started: bool = False
    since_s: float = math.inf  # since when its first request has waited for a grant
    heard_s: float = 0.0  # its latest report, on the clock of `ShareBook`
    is_silent: bool = False  # it seems to stand still
    absences: int = 0  # how often it stood still

    def look(self, used: SharesUsed, now_s: float) -> None:
        self.is_silent = False
        gap_s = max(now_s - self.at_s, 1e-3)
        weight = min(1.0, _SMOOTH * gap_s / _GAP_S) if self.has_started else 1.0
        before, self.used, self.at_s = self.used, used, now_s
        self.gap_s += _SMOOTH * (min(gap_s, 1.0) - self.gap_s)
        self.starts_per_s += weight * ((used.started - before.started) / gap_s - self.starts_per_s)
        tokens = used.tokens.started - before.tokens.started
        self.tokens_per_s += weight * (tokens / gap_s - self.tokens_per_s)
        spends = max(0, _in_all(used) - _in_all(before)) / gap_s
        self.spends_per_s += weight * (spends - self.spends_per_s)
        if used.started > 1:
            self.pressed += _SMOOTH * (used.for_rate - self.pressed)
        self.has_started = self.has_started or used.started > 0
        if used.started != before.started or not used.waiting:
            self.since_s = math.inf
        if used.requests.wanted or used.tokens.wanted or used.spending.wanted:
            self.since_s = min(self.since_s, now_s)
        wanted = used.spending.wanted
        if wanted:
            self.purse = max(2 * wanted, min(_PURSE_GROWS * self.purse, _PURSE_MOST * wanted))
        else:
            self.purse = int(max(0.9 * self.purse, _PURSE_LASTS_S * self.spends_per_s))


class ShareBook:
    """The shares of one command's workers.

    A worker that stands still keeps what it may be using: slots, dollars, and starts, for a minute.
    Its part of rates is given to the others, until it is heard of again.
    """

    def __init__(self, limits: SharedLimits) -> None:
        self.limits = limits
        self._slots = Stock(limits.in_flight)
        self._rate = Stock(WHOLE, _STEP)
        rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
        self._requests = (
            None if rpm is None else _Minute(rpm, tuning.REQUESTS_MINUTE_S, of_tokens=False)
        )
        self._tokens = None if tpm is None else _Minute(tpm, tuning.MINUTE_S, of_tokens=True)
        self._purse = None if limits.budget is None else Grants(limits.budget, expires=False)
        self._seen: dict[int, _Seen] = {}
        self._leader: int | None = None
        self._now_s = math.inf
        self._listened_s = 0.0  # so far; while the driver stands still nobody is silent

    def join(self, worker: int, now_s: float) -> None:
        """Adds a worker that uses nothing yet."""
        self._listen(now_s)
        self._seen[worker] = _Seen(now_s, heard_s=self._listened_s)
        for stock in (self._slots, self._rate):
            stock.join(worker)
        for grants in self._grants():
            grants.join(worker)

    def leave(self, worker: int, now_s: float, *, is_clean: bool) -> int:
        """Removes a dead worker, whose lock is taken; returns the picodollars it may have spent.

        `is_clean`: its last report said that nothing was in flight any more.
        """
        if worker not in self._seen:
            return 0
        seen = self._seen.pop(worker)
        self._slots.leave(worker)
        self._rate.leave(worker)
        if self._leader == worker:
            self._leader = None
        for minute in (self._requests, self._tokens):
            if minute is not None:
                minute.grants.leave(worker, now_s, minute.minute_s)
        if self._purse is None:
            return 0
        spent = _in_all(seen.used) if is_clean else self._purse.held(worker, now_s)
        self._purse.leave(worker, now_s, amount=spent)
        return spent

    def heard(self, worker: int, seq: int, used: SharesUsed, now_s: float) -> None:
        """Takes what a worker reports that obeys the tick of that number."""
        self._listen(now_s)
        seen = self._seen[worker]
        seen.look(used, now_s)
        seen.heard_s = self._listened_s
        in_flight = used.in_flight
        is_short = used.for_slots or (used.waiting and in_flight >= self._slots.latest(worker))
        slots = math.inf if is_short else in_flight * _MORE_SLOTS + 2
        self._slots.heard(worker, seq, in_flight, slots)
        self._rate.heard(worker, seq, self._rate_used(worker), self._rate_wanted(worker))
        for minute, flow in ((self._requests, used.requests), (self._tokens, used.tokens)):
            if minute is not None:
                minute.grants.heard(worker, seq, seen.since_s, flow, now_s)
        if self._purse is not None:
            spent = _in_all(used)
            flow = Flow(spent, spent, wanted=used.spending.wanted)
            self._purse.heard(worker, seq, seen.since_s, flow, now_s)

    def shares(
        self,
        worker: int,
        seq: int,
        now_s: float,
        *,
        only: int | None = None,
        most: float = math.inf,
    ) -> Shares:
        """The worker's part from the tick of that number on.

        `only`: the one worker that may send, if given. `most`: its most requests in flight.
        """
        self._note_silent(now_s)
        seen = self._seen[worker]
        if only in self._seen:
            self._leader = only
        elif self._leader is None or self._seen[self._leader].is_silent:
            self._leader = worker
        rate = self._rate.give(worker, seq, only=only)
        slots = self._slots.give(worker, seq, most if rate else 0, only=only)
        requests, tokens = (
            None if one is None else one.allowance(worker, seq, self._seen, now_s)
            for one in (self._requests, self._tokens)
        )
        purse = None
        if self._purse is not None:
            purse = self._purse.give(worker, seq, seen.purse, now_s)
        leads = self._leader == worker
        before = self._rate.before(worker)
        return Shares(slots, purse, requests, tokens, rate, before, seen.absences, leads)

    def is_silent(self, worker: int) -> bool:
        """Whether the worker stands still, as far as is known."""
        return self._seen[worker].is_silent

    def has_found(self, worker: int) -> bool:
        """Whether the worker has measured the server's limits."""
        return any(one.is_settled for one in self._seen[worker].used.scopes)

    def has_guess(self, worker: int) -> bool:
        """Whether the worker has inferred anything of what the server takes."""
        scopes = self._seen[worker].used.scopes
        return any(one.rate is not None or one.takes is not None for one in scopes)

    def is_pressed(self, worker: int) -> bool:
        """Whether a server's limit, as far as the worker knows it, limits the worker."""
        return self._seen[worker].pressed >= _PRESSED

    def slots(self, worker: int) -> int:
        """The most requests in flight that it was last promised."""
        return self._slots.latest(worker)

    def purse(self, worker: int, now_s: float) -> int:
        """The picodollars in all that it may spend, or has spent, since it began."""
        if self._purse is None or worker not in self._seen:
            return 0
        return self._purse.held(worker, now_s)

    def in_all(self, scope: Scope) -> int | None:
        """In flight at a server that queues, as the leading worker measured; None: unknown."""
        leader = self._leader
        if leader is None:
            return None
        news = self._seen[leader].used.scopes
        return next((one.in_flight for one in news if one.scope == scope), None)

    def found_in_all(self, scope: Scope) -> tuple[float | None, float | None]:
        """Requests a second and in flight that the server accepts, from all workers that know."""
        rates, takes = _Mean(), _Mean()
        for worker, seen in self._seen.items():
            part = max(1, self._rate.latest(worker))
            for one in seen.used.scopes:
                if one.scope == scope:
                    rates.add(one.rate, part)
                    takes.add(one.takes, part)
        return rates.mean, takes.mean

    def share_of_rate(self, worker: int) -> float:
        """From 0 to 1, for the display."""
        return self._rate.latest(worker) / WHOLE if worker in self._rate else 0.0

    def short_of_dollars(self, now_s: float) -> int | None:
        """Picodollars that a request needs and that are not left anywhere; None if they are.

        Known only when nothing is in flight: requests in flight may cost less than they reserve.
        """
        if self._purse is None or any(one.used.spending.reserved for one in self._seen.values()):
            return None
        return self._purse.lacking(now_s)

    def _listen(self, now_s: float) -> None:
        self._listened_s += max(0.0, min(now_s - self._now_s, _LISTENS_S))
        self._now_s = now_s

    def _note_silent(self, now_s: float) -> None:
        self._listen(now_s)
        for worker, seen in self._seen.items():
            silent_s = self._listened_s - seen.heard_s
            if not seen.is_silent and silent_s > max(_SILENT_S, _SILENT_GAPS * seen.gap_s):
                seen.is_silent, seen.absences = True, seen.absences + 1
                self._rate.suspend(worker)
                for grants in self._grants():
                    grants.suspend(worker)

    def _grants(self) -> list[Grants]:
        minutes = [one.grants for one in (self._requests, self._tokens) if one is not None]
        return minutes if self._purse is None else [*minutes, self._purse]

    def _rate_used(self, worker: int) -> int:
        """The parts of the rate that its requests in flight use beyond its own part."""
        news = self._seen[worker].used.scopes
        beyond = max((one.excess / one.takes for one in news if one.takes), default=0.0)
        return self._rate.latest(worker) + int(min(1.0, beyond) * WHOLE) if beyond else 0

    def _rate_wanted(self, worker: int) -> float:
        """The parts of the rate that it wants; infinite if it would use more than it has."""
        seen = self._seen[worker]
        has_any = seen.has_started and self._rate.latest(worker) > 0
        if seen.pressed >= _PRESSED or not has_any:
            return math.inf
        # The whole rate, estimated from the workers that use all of their parts.
        seen_now = [(name, one) for name, one in self._seen.items() if not one.is_silent]
        pressed = [name for name, one in seen_now if one.pressed >= _PRESSED]
        parts = sum(self._rate.latest(one) for one in pressed)
        per_s = sum(self._seen[one].starts_per_s for one in pressed)
        even = WHOLE / max(1, len(seen_now))
        if not parts or not per_s:
            return even
        return _LEAST_RATE * even + _MORE_RATE * seen.starts_per_s * parts / per_s


class _Minute:
    """Requests or tokens that may start in any minute."""

    def __init__(self, most: float, minute_s: float, *, of_tokens: bool) -> None:
        self.minute_s = minute_s
        self.grants = Grants(int(most), expires=True)
        self._per_s = most / minute_s
        self._of_tokens = of_tokens

    def allowance(self, worker: int, seq: int, seen: dict[int, _Seen], now_s: float) -> Allowance:
        """The worker's allowance from the tick of that number on."""
        rates = {
            name: one.tokens_per_s if self._of_tokens else one.starts_per_s
            for name, one in seen.items()
        }
        wants = [self._wanted(one, rates[name]) for name, one in seen.items()]
        parts = dict(zip(rates, divide(_FINE, wants), strict=True))
        pace, mine = self._per_s * parts[worker] / _FINE, seen[worker]
        headroom = 0
        if mine.used.waiting or rates[worker] > _IDLE * self._per_s:
            headroom = math.ceil(pace * (_GAPS * mine.gap_s + _LATE_S))
        return Allowance(self.grants.give(worker, seq, headroom, now_s), max(pace, 1e-6))

    def _wanted(self, one: _Seen, per_s: float) -> float:
        """The part of the pace that a worker wants."""
        if one.is_silent:
            return 0.0
        if one.used.waiting:
            return _FINE
        return (_MORE_RATE * per_s / self._per_s + _LEAST_RATE) * _FINE


class _Mean(Struct):
    """A weighted mean of what workers have found."""

    sum: float = 0.0
    weight: int = 0

    def add(self, found: float | None, weight: int) -> None:
        if found is not None:
            self.sum, self.weight = self.sum + found * weight, self.weight + weight

    @property
    def mean(self) -> float | None:
        """The mean; None if nobody has found anything."""
        return self.sum / self.weight if self.weight else None


_FINE = 1_000_000
_IDLE = 1e-3  # of the whole rate: a worker below it needs no allowance ahead


def _in_all(used: SharesUsed) -> int:
    """Picodollars that are spent, may have been spent, or are reserved."""
    spending = used.spending
    return spending.spent + spending.unknown + spending.reserved
