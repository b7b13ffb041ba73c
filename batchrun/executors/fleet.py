"""What a driver decides about its workers: leases, shares of limits, what goes out first. No I/O.

A worker has about two leases that it has not begun to read; each holds what it completes in some
seconds. One worker sends the first request of a command, alone. A worker's rows and shares go to
others only when it is proven that the worker can neither send nor store any more.
"""

import math
from collections.abc import Callable, Collection, Sequence

from msgspec import Struct, field

from batchrun.errors import BatchrunError, InputError, RunStopped
from batchrun.executors.lease_book import LeaseBook, UnleasedRows, remaining_of, rows_of
from batchrun.executors.messages import FleetTick, Lease, StopOrder, WorkerReport
from batchrun.executors.share_book import ShareBook, SharedLimits
from batchrun.job.sections import LimitsJob
from batchrun.limits import tuning
from batchrun.limits.budget import Budget
from batchrun.limits.sharing.shares import DOLLAR, ScopeNews, Shares, Spending
from batchrun.limits.verdicts import Stop
from batchrun.records import Need, Scope

_LEASE_S = 5.0  # a lease holds what its worker completes in this time
_LEASE_LEAST = 64  # requests in a lease, unless each worker's part of the rest is smaller
_LEASES = 2  # leases that a worker has and has not begun to read
_SPEED = 0.1  # weight of the latest report in a worker's speed
_SEARCH_S = 15.0  # one worker alone finds the server's limits, for at most this time, ...
_SEARCH_REFUSED_S = 30.0  # ... or this, if it was refused and what it has found is a guess
_NOBODY = -1  # no worker's number
_COOLDOWN_S = 0.1  # shorter ones end before other workers hear of them


class _Worker(Struct):
    """What is known of one worker."""

    seq: int = 0  # number of its last tick
    heard_s: float = -math.inf
    report: WorkerReport | None = None  # the latest
    # Leases that it may not have got yet, by id, with the tick that first had them.
    sent: dict[int, tuple[int, Lease]] = field(default_factory=dict)
    per_s: float = 0.0  # requests that it completes
    order: StopOrder | None = None  # to it alone
    down_s: dict[Scope, float] = field(default_factory=dict)  # since when these are down for it ...
    alone_s: dict[Scope, float] = field(default_factory=dict)  # ... and since when for it alone

    @property
    def unread(self) -> int:
        """Requests leased to it that it has not read, as far as is known."""
        told = 0 if self.report is None else self.report.unread
        return told + sum(remaining_of(lease) for _, lease in self.sent.values())

    @property
    def unsent(self) -> int:
        """The same, with those that it has read and that wait for a limit of all it sends.

        With several scopes those of one may wait, and those of another be in demand.
        """
        used = None if self.report is None else self.report.used
        return self.unread + (used.waiting if used and len(used.scopes) < 2 else 0)


class Fleet:
    """The workers of one command, by their numbers as writers."""

    def __init__(
        self,
        rows: UnleasedRows,
        limits: LimitsJob,
        in_flight: int,
        budgets: Sequence[Budget] = (),
    ) -> None:
        """`in_flight`: the most of all workers together. `budgets` follow what workers spend."""
        left = [one.left_parts for one in budgets]
        self._budgets = budgets
        self._book = LeaseBook(rows)
        self._shares = ShareBook(
            SharedLimits(
                in_flight,
                limits.requests_per_minute,
                limits.tokens_per_minute,
                min(left) if left else None,
            )
        )
        self._in_flight = in_flight
        self._workers: dict[int, _Worker] = {}
        self._order: StopOrder | None = None
        self._first: int | None = None  # the worker that sends the first request, ...
        self._first_s = math.inf  # ... since when it may
        self._answered_s = math.inf  # when the first answer was reported
        self._is_open = False  # all workers may send
        self._lost = (0, 0)  # picodollars of dead workers: known to be spent, perhaps spent
        self._scopes_s: dict[Scope, dict[int, tuple[float, ScopeNews]]] = {}
        self._answers_s: dict[Scope, float] = {}  # the last of each, to any worker, dead or alive
        self._problem: BatchrunError | None = None

    @property
    def is_done(self) -> bool:
        """Whether each row is complete."""
        return self._book.is_done

    @property
    def _is_answered(self) -> bool:
        return self._answered_s < math.inf

    def add(self, writer: int, now_s: float) -> None:
        """Adds a worker that is ready for leases; no other worker ever had its number."""
        self._workers[writer] = _Worker()
        self._shares.join(writer, now_s)

    def stop(self, order: StopOrder, writer: int | None = None) -> None:
        """A worker sends nothing more, or all of them, from the next tick of each on."""
        if writer is None:
            self._order = order
        else:
            self._workers[writer].order = order

    def cut_off(self, now_s: float, patience_s: float) -> dict[int, str]:
        """Workers for which an endpoint is down that answers others, and its last words to them.

        `patience_s`: that it was so at least.
        """
        return {
            writer: self._scopes_s[scope][writer][1].down or ""
            for writer, worker in self._workers.items()
            for scope, since_s in worker.alone_s.items()
            if now_s - since_s >= patience_s
        }

    def tick(self, writer: int, now_s: float) -> FleetTick:
        """The next message to the worker."""
        worker = self._workers[writer]
        worker.seq += 1
        order = self._order or worker.order
        if order is None:
            self._lease_more(writer, worker)
        return FleetTick(
            seq=worker.seq,
            heard=0 if worker.report is None else worker.report.number,
            leases=tuple(lease for _, lease in worker.sent.values()),
            shares=self._shares_of(writer, worker, now_s),
            scopes=self._news_for(writer, now_s),
            last=self._book.left == 0,
            stop=order,
        )

    def hear(self, writer: int, report: WorkerReport, now_s: float) -> None:
        """Takes a report; one that is older than the latest, or of a dead worker, is ignored."""
        worker = self._workers.get(writer)
        if worker is None or (worker.report and report.number <= worker.report.number):
            return
        self._measure(worker, report, now_s)
        worker.report, worker.heard_s = report, now_s
        for one in [one for one, (seq, _) in worker.sent.items() if seq <= report.seq]:
            del worker.sent[one]
        self._book.done(writer, report.done)
        self._shares.heard(writer, report.seq, report.used, now_s)
        for news in report.used.scopes:
            self._scopes_s.setdefault(news.scope, {})[writer] = now_s, news
            if news.is_answered:
                self._answered_s = min(self._answered_s, now_s)
            if news.answered_s is not None:
                last_s = now_s - news.answered_s
                self._answers_s[news.scope] = max(last_s, self._answers_s.get(news.scope, last_s))
            self._note_down(writer, worker, news, now_s)
        self._follow_budgets()

    def stop_reason(self, now_s: float) -> BatchrunError | None:
        """Why the run should end, as far as this module can say; None if it should not."""
        wanted = self._shares.short_of_dollars(now_s)
        for budget in self._budgets if wanted is not None else ():
            need = Need(Scope("", "", ""), dollars=(wanted or 0) / DOLLAR)
            verdict = budget.verdict(need, now_s)
            if isinstance(verdict, Stop):
                return RunStopped(verdict.reason, verdict.cause)
        return self._problem

    def share_of(self, writer: int) -> float:
        """The worker's share of what servers accept, from 0 to 1, for the display."""
        return self._shares.share_of_rate(writer)

    def open_usd(self, writer: int, now_s: float) -> tuple[float, float]:
        """Dollars that the worker may have spent, until it is adopted.

        Those reserved for attempts that reported no usage, and all others that it may still spend.
        """
        worker = self._workers.get(writer)
        if worker is None:
            return 0.0, 0.0
        spending = Spending() if worker.report is None else worker.report.used.spending
        is_over = worker.report is not None and worker.report.is_drained
        purse = 0 if is_over else self._shares.purse(writer, now_s)
        reserved = max(0, purse - spending.spent - spending.unknown)
        return spending.unknown / DOLLAR, reserved / DOLLAR

    def rows_of(self, writer: int) -> list[int]:
        """The rows of its leases that are not complete, by their numbers in the tables."""
        return rows_of(self._book.held_by(writer))

    def adopted(self, writer: int, places: Callable[[Lease], Collection[int]], now_s: float) -> int:
        """Removes a worker that can neither send nor store any more; its reports no longer count.

        The caller holds its lock. On file systems without locks, the worker was silent for longer
        than it may store. `places`: gives the places in a lease of requests with an outcome.
        Returns how many of the requests that were sent again got a new outcome from this worker.
        """
        worker = self._workers.pop(writer, None)
        if worker is None:
            return 0
        spending = None if worker.report is None else worker.report.used.spending
        is_clean = worker.report is not None and worker.report.is_drained
        perhaps = self._shares.leave(writer, now_s, is_clean=is_clean)
        if spending is not None:
            spent, unknown = self._lost
            self._lost = spent + spending.spent, unknown + perhaps - spending.spent
        else:
            self._lost = self._lost[0], self._lost[1] + perhaps
        for by_worker in self._scopes_s.values():
            by_worker.pop(writer, None)
        if self._first == writer:
            self._first = None
        self._follow_budgets()
        try:
            has_died = worker.order is None or not is_clean
            return self._book.take_back(writer, places, has_died=has_died)
        except InputError as problem:
            self._problem = problem
            return 0

    def _lease_more(self, writer: int, worker: _Worker) -> None:
        """Leases rows until it has enough for some seconds, and more to read ahead."""
        if worker.report is None or worker.report.stops or worker.report.is_drained:
            return
        if self._is_open and not self._shares.slots(writer):
            return  # there are fewer slots than workers: its rows would wait forever
        # In flight are soon twice as many, if nothing holds them back.
        in_flight = min(self._shares.slots(writer), 2 * worker.report.used.in_flight)
        size = max(_LEASE_LEAST, int(_LEASE_S * worker.per_s), in_flight)
        even = math.ceil(self._book.left / (_LEASES * max(1, len(self._workers))))
        size = max(1, min(size, even))
        for _ in range(_LEASES):
            if worker.unsent > (_LEASES - 1) * size:
                return
            lease = self._book.lease(writer, size)
            if lease is None:
                return
            worker.sent[lease.id] = worker.seq, lease

    def _note_down(self, writer: int, worker: _Worker, news: ScopeNews, now_s: float) -> None:
        """Since when an endpoint is down for a worker, and has answered others meanwhile."""
        scope = news.scope
        if news.down is None:
            worker.down_s.pop(scope, None)
            worker.alone_s.pop(scope, None)
            return
        down_s = worker.down_s.setdefault(scope, now_s)
        others = [one for other, one in self._scopes_s[scope].items() if other != writer]
        if any(
            one.down is None and one.answered_s is not None and at_s - one.answered_s > down_s
            for at_s, one in others
        ):
            worker.alone_s.setdefault(scope, now_s)
        else:
            worker.alone_s.pop(scope, None)

    def _measure(self, worker: _Worker, report: WorkerReport, now_s: float) -> None:
        before = worker.report
        if before is not None and now_s > worker.heard_s:
            per_s = (report.totals.rows - before.totals.rows) / (now_s - worker.heard_s)
            worker.per_s += _SPEED * (per_s - worker.per_s)

    def _shares_of(self, writer: int, worker: _Worker, now_s: float) -> Shares:
        if self._order is not None or worker.order is not None:
            return self._shares.shares(writer, worker.seq, now_s, most=0)
        if self._is_open:
            return self._shares.shares(writer, worker.seq, now_s)
        if self._first is None and worker.report and worker.report.used.waiting:
            self._first, self._first_s = writer, now_s
        if self._first is None:
            return self._shares.shares(writer, worker.seq, now_s, only=_NOBODY)
        if self._is_answered:
            is_refused = self._shares.has_guess(self._first)
            longest_s = _SEARCH_REFUSED_S if is_refused else _SEARCH_S
            self._is_open = (
                now_s - self._answered_s >= longest_s
                or self._shares.has_found(self._first)
                or not self._shares.is_pressed(self._first)
                or self._shares.is_silent(self._first)
                or self._has_stopped(self._first)
            )
        else:
            self._is_open = now_s - self._first_s >= tuning.FIRST_ALONE_S
        only = None if self._is_open else self._first
        most = math.inf if self._is_answered else 1
        return self._shares.shares(writer, worker.seq, now_s, only=only, most=most)

    def _has_stopped(self, writer: int) -> bool:
        """Whether it sends nothing more, by its own decision or the driver's."""
        worker = self._workers[writer]
        return worker.order is not None or bool(worker.report and worker.report.stops)

    def _news_for(self, writer: int, now_s: float) -> tuple[ScopeNews, ...]:
        """What the other workers know about each scope."""
        news = []
        for scope, by_worker in self._scopes_s.items():
            others = [one for worker, one in by_worker.items() if worker != writer]
            answered_s = self._answers_s.get(scope)
            left_s = max((one.cooldown_s - (now_s - at_s) for at_s, one in others), default=0.0)
            rate, takes = self._shares.found_in_all(scope)
            news.append(
                ScopeNews(
                    scope,
                    is_answered=any(one.is_answered for _, one in others),
                    cooldown_s=left_s if left_s > _COOLDOWN_S else 0.0,
                    in_flight=self._shares.in_all(scope),
                    rate=rate,
                    takes=takes,
                    answered_s=None if answered_s is None else now_s - answered_s,
                )
            )
        return tuple(news)

    def _follow_budgets(self) -> None:
        """Tells the budgets of the run what all workers have spent."""
        if not self._budgets:
            return
        spent, unknown = self._lost
        reserved = 0
        for worker in self._workers.values():
            if worker.report is not None:
                spending = worker.report.used.spending
                spent, unknown = spent + spending.spent, unknown + spending.unknown
                reserved += spending.reserved
        for budget in self._budgets:
            budget.follow(spent, unknown, reserved)
