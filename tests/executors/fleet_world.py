"""Workers and a driver on a network that loses, repeats and delays, and a witness of each start.

The fleet and the limits are the real ones; the clock is a number. Messages wait in a bag until
somebody takes one out, once, twice or never. A worker that is killed does nothing any more; one
that stands still hears and does nothing for a while, and then goes on with what it was told.
"""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from batchrun.executors.fleet import Fleet
from batchrun.executors.messages import (
    COMPLETE,
    FleetTick,
    Lease,
    StopOrder,
    WorkerReport,
    decode_report,
    decode_tick,
    encode,
)
from batchrun.job.sections import LimitsJob
from batchrun.limits import tuning
from batchrun.limits.budget import Budget
from batchrun.limits.concurrency import FirstAlone
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.limits.sharing.worker_share import WorkerShare
from batchrun.limits.verdicts import GO, Limit
from batchrun.records import Finish, Need, Scope, Slot, Totals

SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")
MINUTE_S = 60.0


@dataclass(frozen=True)
class Row:
    """What a row reserves, and what it will use."""

    tokens: int
    used: int
    dollars: float
    spent: float | None  # null: its answer does not say
    lasts_s: float


@dataclass(frozen=True)
class Caps:
    """What the user allows; null: nothing is said."""

    in_flight: int
    requests: int | None
    tokens: int | None
    dollars: float | None


class Rows:
    """Rows of one file, leased in order."""

    def __init__(self, count: int) -> None:
        self.left = count
        self._next = self._ids = 0

    def cut(self, requests: int) -> Lease | None:
        count = min(requests, self.left)
        if not count:
            return None
        first, self._next, self.left = self._next, self._next + count, self.left - count
        return self._lease(first, bytes(count))

    def rest(self, lease: Lease, done: Collection[int]) -> Lease | None:
        marks = bytearray(lease.marks)
        for place in done:
            marks[place] = COMPLETE
        if marks.count(COMPLETE) == len(marks):
            return None
        self._ids += 1
        return replace(lease, id=self._ids, marks=bytes(marks))

    def _lease(self, first: int, marks: bytes) -> Lease:
        self._ids += 1
        return Lease(self._ids, 0, first, first, len(marks), 0, 0, marks)


@dataclass
class Start:
    """One attempt, as the witness saw it."""

    at_s: float
    row: int
    tokens: int  # as reserved, then as used
    dollars: float  # the same


class Witness:
    """Counts for itself what is in flight, started and spent with all workers, at each start."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.starts: list[Start] = []
        self.in_flight: list[Start] = []
        self.stored: dict[int, int] = {}  # rows to the worker that completed them
        self.is_answered = False  # as the driver has heard
        self.may_send_s: dict[int, float] = {}  # since when its driver lets a worker, by its number
        self._has_waited = False  # for the first answer, for as long as one waits for it

    def waits(self, now_s: float) -> bool:
        """Whether all but one request wait for the first answer, of which the driver must hear."""
        longest_s = max((now_s - since_s for since_s in self.may_send_s.values()), default=0.0)
        self._has_waited = self._has_waited or longest_s >= tuning.FIRST_ALONE_S
        return not (self.is_answered or self._has_waited)

    def starting(self, row: int, need: Need, now_s: float) -> Start:
        caps = self.caps
        minute = [one for one in self.starts if now_s - one.at_s < MINUTE_S]
        assert len(self.in_flight) + 1 <= (1 if self.waits(now_s) else caps.in_flight)
        if caps.requests is not None:
            assert len(minute) + 1 <= caps.requests
        if caps.tokens is not None:
            before = sum(one.tokens for one in minute)
            assert (
                before == 0 if need.tokens > caps.tokens else (before + need.tokens <= caps.tokens)
            )
        if caps.dollars is not None:
            before_usd = sum(one.dollars for one in self.starts)
            assert before_usd + need.dollars <= caps.dollars + 1e-9
        assert row not in self.stored
        start = Start(now_s, row, need.tokens, need.dollars)
        self.starts.append(start)
        self.in_flight.append(start)
        return start

    def ended(self, start: Start, row: Row) -> None:
        self.in_flight.remove(start)
        start.tokens = row.used
        if row.spent is not None:
            start.dollars = row.spent


class FakeGate:
    """What a worker's gate tells the shares."""

    waiting = 0
    blocked_by: Limit | None = None

    def ask_again(self) -> None:
        return


@dataclass
class Flight:
    """An attempt in flight at a worker."""

    lease: int
    start: Start
    slot: Slot
    ends_s: float


class Machine:
    """A worker: its leases, and the limits of its gate, which it asks for one row after another."""

    def __init__(
        self, at: int, rows: Sequence[Row], witness: Witness, caps: Caps, way_s: float
    ) -> None:
        self.at, self._rows, self._witness = at, rows, witness
        self.share = WorkerShare(
            requests_per_minute=caps.requests,
            tokens_per_minute=caps.tokens,
            has_budget=caps.dollars is not None,
        )
        self._gate = FakeGate()
        self._scopes = Scopes(caps.in_flight, Patience(1800.0, 60.0), {}, ("requests", "tokens"))
        self.share.join(self._gate, self._scopes)
        self._clock_s = way_s  # its clock is another
        self._first: FirstAlone | None = None
        self._limits: list[Limit] = []
        self._had: set[int] = set()
        self._unread: list[tuple[int, int]] = []  # lease and row
        self._left: dict[int, int] = {}  # by lease: rows that are not stored
        self._done: list[int] = []
        self._flights: list[Flight] = []
        self._number = 0
        self._rows_stored = 0
        self._is_stopped = False
        self.is_alive = True
        self.still_until_s = -math.inf
        self.pending: list[bytes] = []  # ticks that came while it stood still

    def hear(self, message: bytes, now_s: float) -> bytes:
        tick: FleetTick = decode_tick(message)
        for lease in tick.leases:
            if lease.id in self._had:
                continue
            self._had.add(lease.id)
            rows = [at for at, mark in enumerate(lease.marks) if mark != COMPLETE]
            self._left[lease.id] = len(rows)
            self._unread += [(lease.id, lease.row + at) for at in rows]
        self.share.obey(tick.seq, tick.shares, tick.scopes, now_s + self._clock_s)
        self._is_stopped = self._is_stopped or tick.stop is not None
        self.work(now_s)
        self._number += 1
        return encode(
            WorkerReport(
                number=self._number,
                seq=self.share.seq,
                done=tuple(self._done),
                unread=len(self._unread),
                totals=Totals(rows=self._rows_stored),
                used=self.share.used(now_s + self._clock_s),
                is_drained=self._is_stopped and not self._flights,
            )
        )

    def work(self, now_s: float) -> None:
        """What ends by now ends, and what may start starts."""
        if now_s < self.still_until_s:
            return
        clock_s = now_s + self._clock_s
        for flight in [one for one in self._flights if one.ends_s <= now_s]:
            self._end(flight, clock_s)
        if not self._limits and self._unread:
            self._meet()
        self._gate.waiting, self._gate.blocked_by = len(self._unread), None
        while self._unread and not self._is_stopped:
            lease, at = self._unread[0]
            row = self._rows[at]
            need = Need(SCOPE, row.tokens, row.dollars)
            blocked = [one for one in self._limits if one.verdict(need, clock_s) is not GO]
            if blocked:
                self._gate.blocked_by = blocked[0]
                return
            start = self._witness.starting(at, need, now_s)
            for limit in self._limits:
                limit.started(need, clock_s)
            self._unread.pop(0)
            self._gate.waiting -= 1
            flight = Flight(lease, start, Slot(need, clock_s), now_s + row.lasts_s)
            self._flights.append(flight)

    def kill(self) -> None:
        self.is_alive = False
        for flight in self._flights:
            self._witness.in_flight.remove(flight.start)
        self._flights.clear()

    def _meet(self) -> None:
        first = FirstAlone()
        own = list(self._scopes.limits(SCOPE))
        alone = [] if self.share.met(SCOPE, first) else [first]
        self._limits = [*self.share.limits, *alone, *own]

    def _end(self, flight: Flight, clock_s: float) -> None:
        row = self._rows[flight.start.row]
        self._flights.remove(flight)
        self._witness.ended(flight.start, row)
        finish = Finish(tokens=row.used, dollars=row.spent)
        for limit in self._limits:
            limit.finished(flight.slot, finish, clock_s)
        assert flight.start.row not in self._witness.stored
        self._witness.stored[flight.start.row] = self.at
        self._rows_stored += 1
        self._left[flight.lease] -= 1
        if not self._left[flight.lease]:
            self._done.append(flight.lease)


@dataclass
class World:
    """All of it, moved on by whoever tests."""

    rows: Sequence[Row]
    caps: Caps
    workers: int
    seed: int = 0
    now_s: float = 1000.0
    ticks: list[tuple[int, bytes]] = field(default_factory=list)
    reports: list[tuple[int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        caps, self.draw = self.caps, random.Random(self.seed)
        limits = LimitsJob(requests_per_minute=caps.requests, tokens_per_minute=caps.tokens)
        self.budgets = [] if caps.dollars is None else [Budget(caps.dollars, 0.0)]
        self.fleet = Fleet(Rows(len(self.rows)), limits, caps.in_flight, self.budgets)
        self.witness = Witness(caps)
        self.machines: dict[int, Machine] = {}
        self.lost: list[Machine] = []
        self._numbers = self.kills = 0
        for _ in range(self.workers):
            self.add()

    def add(self) -> None:
        self._numbers += 1
        at = self._numbers
        self.machines[at] = Machine(
            at, self.rows, self.witness, self.caps, self.draw.uniform(-500.0, 500.0)
        )
        self.fleet.add(at, self.now_s)

    def tick(self, at: int) -> None:
        """A tick is on its way to a worker, dead or alive."""
        tick = self.fleet.tick(at, self.now_s)
        if tick.shares.in_flight:
            self.witness.may_send_s.setdefault(at, self.now_s)
        self.ticks.append((at, encode(tick)))

    def deliver_tick(self, place: int, *, keep: bool = False) -> None:
        at, message = self.ticks[place] if keep else self.ticks.pop(place)
        machine = self.machines.get(at)
        if machine is None or not machine.is_alive:
            return
        if self.now_s < machine.still_until_s:
            machine.pending.append(message)
        else:
            self.reports.append((at, machine.hear(message, self.now_s)))

    def deliver_report(self, place: int, *, keep: bool = False) -> None:
        at, message = self.reports[place] if keep else self.reports.pop(place)
        report = decode_report(message)
        self.fleet.hear(at, report, self.now_s)
        if at in self.machines and any(one.is_answered for one in report.used.scopes):
            self.witness.is_answered = True

    def kill(self, at: int) -> None:
        self.kills += 1
        self.machines[at].kill()

    def stand_still(self, at: int, seconds: float) -> None:
        self.machines[at].still_until_s = self.now_s + seconds

    def adopt(self, at: int) -> None:
        """Its lock can be taken: what it has stored counts, and another takes its place."""
        machine = self.machines.pop(at)
        assert not machine.is_alive
        self.witness.waits(self.now_s)
        self.witness.may_send_s.pop(at, None)
        stored = self.witness.stored

        def places(lease: Lease) -> set[int]:
            rows = range(lease.row, lease.row + lease.rows)
            return {place for place, row in enumerate(rows) if stored.get(row) == at}

        self.fleet.adopted(at, places, self.now_s)
        self.add()

    def move(self, seconds: float) -> None:
        self.now_s += seconds
        for at, machine in list(self.machines.items()):
            if machine.is_alive and self.now_s >= machine.still_until_s:
                machine.work(self.now_s)
                while machine.pending:
                    self.reports.append((at, machine.hear(machine.pending.pop(0), self.now_s)))

    def check_dollars(self) -> None:
        """What counts if the driver is killed now is no less than what is spent, nor too much."""
        for budget in self.budgets:
            open_usd = sum(self.fleet.open_usd(at, self.now_s)[1] for at in self.machines)
            counts = budget.spent_usd + budget.unknown_usd + open_usd
            spent = sum(one.dollars for one in self.witness.starts)
            assert spent - 1e-9 <= counts <= budget.cap_usd + 1e-9

    def settle(self, most_s: float) -> bool:
        """From now on nothing is lost; false where rows remain after so long."""
        until_s, step_s, started = self.now_s + most_s, 0.25, 0
        for machine in self.machines.values():
            machine.still_until_s = -math.inf
        for at in [at for at, one in self.machines.items() if not one.is_alive]:
            self.adopt(at)
        while self.now_s < until_s:
            for at in list(self.machines):
                self.tick(at)
            while self.ticks:
                self.deliver_tick(0)
            while self.reports:
                self.deliver_report(0)
            if self.fleet.is_done:
                return True
            if self.fleet.stop_reason(self.now_s) is not None:
                self.fleet.stop(StopOrder("budget"))
                return False
            if started == len(self.witness.starts):
                step_s = min(1.25 * step_s, 5.0)
            else:
                step_s, started = 0.25, len(self.witness.starts)
            self.move(step_s)
        return False
