"""One worker's part of the limits that several workers have together. No I/O."""

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec.structs import replace

from batchrun.limits import tuning
from batchrun.limits.budget import Budget, picodollars
from batchrun.limits.concurrency import FirstAlone, InFlight
from batchrun.limits.rate import MinuteLimit
from batchrun.limits.scopes import Part, Scopes
from batchrun.limits.sharing.shares import (
    DOLLAR,
    WHOLE,
    Allowance,
    Flow,
    ScopeNews,
    Shares,
    SharesUsed,
    Spending,
)
from batchrun.limits.verdicts import GO, Limit, LimitStatus, Verdict, Wait
from batchrun.records import Finish, Need, Scope, Slot


class AskedGate(Protocol):
    """The gate that asks these limits."""

    waiting: int
    blocked_by: Limit | None  # the limit that the first waiting request waits for

    def ask_again(self) -> None:
        """Asks the limits again, for all waiting requests."""


class SlotShare:
    """Limits the attempts in flight in this process."""

    def __init__(self) -> None:
        self._slots = InFlight(0)
        self.started_ever = 0
        self.verdict, self.finished = self._slots.verdict, self._slots.finished
        self.status = self._slots.status

    @property
    def now(self) -> int:
        return self._slots.now

    def set(self, most: int) -> None:
        self._slots.most = most

    def started(self, need: Need, now_s: float) -> None:
        self.started_ever += 1
        self._slots.started(need, now_s)


class StartAllowance:
    """Limits the total of requests or tokens started in this process; evenly spaced.

    It counts the starts of the last minute as `MinuteLimit` does.
    """

    def __init__(self, of: str, most: float) -> None:
        """`most`: a minute, for all workers together."""
        self._of_tokens = of == "tokens"
        self._minute = MinuteLimit(of, most)
        self._started = 0
        self._allowance = Allowance(0, 0.0)
        self._wanted = 0  # by what was refused last

    def set(self, allowance: Allowance, now_s: float) -> None:
        self._allowance = allowance
        if allowance.pace > 0:  # makes up for late messages
            self._minute.set_pace(tuning.ALLOWANCE_FAST * allowance.pace, now_s)

    def used(self, now_s: float, *, is_waiting: bool) -> Flow:
        short = self._wanted > self._allowance.most - self._started
        return Flow(
            started=self._started,
            counted=round(self._minute.counted(now_s)),
            lapses=self._minute.lapses(now_s),
            wanted=self._wanted if is_waiting and short else 0,
        )

    def verdict(self, need: Need, now_s: float) -> Verdict:
        amount = need.tokens if self._of_tokens else 1
        if self._started + amount > self._allowance.most:
            self._wanted = amount
            return Wait()
        return self._minute.verdict(need, now_s)

    def started(self, need: Need, now_s: float) -> None:
        self._wanted = 0
        self._started += need.tokens if self._of_tokens else 1
        self._minute.started(need, now_s)

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        self._minute.finished(slot, finish, now_s)

    def status(self, now_s: float) -> LimitStatus:
        """With this worker's part of the limit; the parts of all workers add up to the limit."""
        status, per_s = self._minute.status(now_s), self._allowance.pace
        return replace(status, most=per_s * self._minute.minute_s, per_s=per_s)


class Purse:
    """Limits the dollars spent in this process; asks for more if they are too few."""

    def __init__(self) -> None:
        self._sums = Budget(0.0, None)
        self._most = 0
        self._wanted = 0  # by what was refused last

    def set(self, most: int) -> None:
        """Picodollars."""
        self._most = most

    def used(self, *, is_waiting: bool) -> Spending:
        spent, unknown, reserved = self._sums.parts
        short = spent + unknown + reserved + self._wanted > self._most
        return Spending(spent, unknown, reserved, self._wanted if is_waiting and short else 0)

    def verdict(self, need: Need, now_s: float) -> Verdict:
        amount = picodollars(need.dollars)
        if sum(self._sums.parts) + amount <= self._most:
            return GO
        self._wanted = amount
        return Wait()

    def started(self, need: Need, now_s: float) -> None:
        self._wanted = 0
        self._sums.started(need, now_s)

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        self._sums.finished(slot, finish, now_s)

    def status(self, now_s: float) -> LimitStatus:
        used, most = sum(self._sums.parts) / DOLLAR, self._most / DOLLAR
        return LimitStatus("dollars of the budget", used, most, of="dollars")


class WorkerShare:
    """Obeys shares, and reports their use. Nothing may be sent before the first shares."""

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        has_budget: bool = False,
        settle_s: float = 0.0,
    ) -> None:
        """The limits a minute are those of all workers.

        `settle_s`: the time until others know what this one measures.
        """
        self._slots = SlotShare()
        rpm, tpm = requests_per_minute, tokens_per_minute
        self._requests = None if rpm is None else StartAllowance("requests", rpm)
        self._tokens = None if tpm is None else StartAllowance("tokens", tpm)
        self._purse = Purse() if has_budget else None
        self.has_budget = has_budget
        self.resized: Callable[[int], None] = lambda _in_flight: None  # called with the slots
        self._settle_s = settle_s
        self._gate: AskedGate | None = None
        self._scopes: Scopes | None = None
        self._first: dict[Scope, FirstAlone] = {}
        self._news: dict[Scope, ScopeNews] = {}  # from all workers
        self._news_s = 0.0  # when they came
        self._in_flight = -1
        self._absences = 0  # that are known here
        self.seq = 0  # number of the tick that is obeyed

    @property
    def limits(self) -> list[Limit]:
        """The limits of the whole run, for the gate of this worker."""
        every = (self._slots, self._requests, self._tokens, self._purse)
        return [one for one in every if one is not None]

    def join(self, gate: AskedGate, scopes: Scopes) -> None:
        """Must be called before `obey`."""
        self._gate, self._scopes = gate, scopes

    def met(self, scope: Scope, first: FirstAlone) -> bool:
        """Notes that the gate has a new scope; returns whether its first request was answered."""
        self._first[scope] = first
        one = self._news.get(scope)
        if one is not None and one.is_answered:
            first.open()
        if one is not None and one.answered_s is not None and self._scopes is not None:
            self._scopes.of(scope).others_answered(self._news_s - one.answered_s)
        return first.is_open

    def obey(self, seq: int, shares: Shares, news: Sequence[ScopeNews], now_s: float) -> bool:
        """Obeys these shares; does nothing and returns False if it obeys a later tick."""
        gate, scopes = self._gate, self._scopes
        if seq <= self.seq or gate is None or scopes is None:
            return False
        self.seq = seq
        self._slots.set(shares.in_flight)
        for flow, allowance in ((self._requests, shares.requests), (self._tokens, shares.tokens)):
            if flow is not None and allowance is not None:
                flow.set(allowance, now_s)
        if self._purse is not None and shares.purse is not None:
            self._purse.set(shares.purse)
        if shares.absences > self._absences:
            self._absences = shares.absences
            scopes.rejoin()
        if shares.rate:
            part, before = shares.rate / WHOLE, shares.before / WHOLE
            scopes.set_part(Part(part, before, shares.leads, self._settle_s), now_s)
        self._news, self._news_s = {one.scope: one for one in news}, now_s
        for scope, state in scopes.items():
            one = self._news.get(scope)
            if one is None:
                continue
            state.follow(one.cooldown_s, one.in_flight, one.rate, one.takes, now_s)
            if one.is_answered and scope in self._first:
                self._first[scope].open()
            if one.answered_s is not None:
                state.others_answered(now_s - one.answered_s)
        if shares.in_flight != self._in_flight:
            self._in_flight = shares.in_flight
            self.resized(shares.in_flight)
        gate.ask_again()
        return True

    def used(self, now_s: float) -> SharesUsed:
        """What is used at this moment."""
        gate, slots = self._gate, self._slots
        waiting = 0 if gate is None else gate.waiting
        blocked_by = None if gate is None or not waiting else gate.blocked_by
        requests, tokens, purse = self._requests, self._tokens, self._purse
        return SharesUsed(
            in_flight=slots.now,
            waiting=waiting,
            started=slots.started_ever,
            for_slots=blocked_by is slots,
            for_rate=blocked_by is not None and blocked_by not in self.limits,
            requests=Flow() if requests is None else requests.used(now_s, is_waiting=waiting > 0),
            tokens=Flow() if tokens is None else tokens.used(now_s, is_waiting=waiting > 0),
            spending=Spending() if purse is None else purse.used(is_waiting=waiting > 0),
            scopes=() if self._scopes is None else self._scope_news(self._scopes, now_s),
        )

    def _scope_news(self, scopes: Scopes, now_s: float) -> tuple[ScopeNews, ...]:
        news = []
        for scope, state in scopes.items():
            first = self._first.get(scope)
            is_answered = first is not None and first.is_open
            cooldown_s = state.cooldown_s(now_s)
            found = state.found(now_s)
            news.append(
                ScopeNews(
                    scope,
                    is_answered=is_answered,
                    cooldown_s=cooldown_s,
                    in_flight=state.in_all(),
                    rate=found.rate,
                    takes=found.takes,
                    excess=found.excess,
                    is_settled=found.is_settled,
                    down=state.breaker.down,
                    answered_s=state.breaker.answered_s(now_s),
                )
            )
        return tuple(news)
