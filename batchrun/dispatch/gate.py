"""The one place that waits before a send: first come, first in, as limits allow.

Attempts at rows that were let in before have a queue of their own, of which one goes in after five
fresh rows: retries mix with these, and do not pile up behind all of them.

Some limits hold for the whole run, some for one scope. A scope that has to wait does not hold up
another; a limit of the whole run holds up all attempts, so that small requests never overtake a
large one for ever.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from batchrun.errors import RunStopped
from batchrun.limits.verdicts import GO, Ends, Limit, LimitStatus, Stop, Wait
from batchrun.records import Finish, Need, Scope, Slot


class GateClosed(Exception):  # noqa: N818 - the run is stopping; nothing went wrong
    """No attempt goes in any more; rows that wait get no outcome."""


_FRESH = 5  # rows that were never let in, to one that was


class _Waiter(Struct, eq=False):
    number: int
    need: Callable[[], Need]
    turn: asyncio.Future[Slot]


class _Queues:
    """One scope's limits and its two queues, which take turns."""

    __slots__ = (
        *("_shared", "again", "all", "ends", "finished", "fresh", "fresh_in_a_row"),
        *("limits", "started"),
    )

    def __init__(self, shared: Sequence[Limit], limits: Sequence[Limit]) -> None:
        self._shared, self.limits = shared, limits
        self._set()
        self.again: deque[_Waiter] = deque()  # of rows that were let in before
        self.fresh: deque[_Waiter] = deque()
        self.fresh_in_a_row = 0

    @property
    def next(self) -> deque[_Waiter]:
        """The queue whose turn it is."""
        is_fresh = self.fresh and (not self.again or self.fresh_in_a_row < _FRESH)
        return self.fresh if is_fresh else self.again

    def drop(self, limit: Limit) -> None:
        """Takes out a limit of the scope."""
        self.limits = [one for one in self.limits if one is not limit]
        self._set()

    def _set(self) -> None:
        self.all = (*self._shared, *self.limits)
        self.started = [limit.started for limit in self.all]
        self.finished = [limit.finished for limit in self.all]
        self.ends = [limit.ends_s for limit in self.limits if isinstance(limit, Ends)]

    def pop(self, queue: deque[_Waiter]) -> _Waiter:
        """The first of the queue whose turn it is."""
        self.fresh_in_a_row = self.fresh_in_a_row + 1 if queue is self.fresh else 0
        return queue.popleft()


def no_limits(_scope: Scope) -> Sequence[Limit]:
    return ()


class Gate:
    """Lets attempts in when all limits say so, and counts what is in flight.

    `shared` are the limits of the whole run; `of_scope` makes those of a scope when it is first
    seen.
    """

    def __init__(
        self,
        shared: Sequence[Limit],
        of_scope: Callable[[Scope], Sequence[Limit]] = no_limits,
    ) -> None:
        self.in_flight = 0
        self.waiting = 0
        self.blocked_by: Limit | None = None  # what the first waiter waits for
        self.on_free: Callable[[], None] = lambda: None  # called when slots were given back
        self._shared = shared
        self._of_scope = of_scope
        self._scopes: dict[Scope, _Queues] = {}
        self._loop = asyncio.get_running_loop()
        self._numbers = 0
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, scope: Scope, need: Callable[[], Need], *, again: bool = False) -> Slot:
        """Takes a slot; `need` is asked when it may be this attempt's turn.

        `again`: the row was let in before.

        Raises `GateClosed`, or `RunStopped` where a limit ends the run.
        """
        if self._closed.done():
            raise GateClosed
        queues = self._scopes.get(scope)
        if queues is None:
            queues = self._scopes[scope] = _Queues(self._shared, self._of_scope(scope))
        turn: asyncio.Future[Slot] = self._loop.create_future()
        self._numbers += 1
        waiter = _Waiter(self._numbers, need, turn)
        queue = queues.again if again else queues.fresh
        is_first = not queues.fresh and not queues.again
        queue.append(waiter)
        self.waiting += 1
        # Else the scope's first waiter has been asked already.
        if is_first or again:
            self._wake()
        if turn.done():
            return turn.result()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(turn.result(), Finish(answered=False))  # let in and cancelled at once
            elif waiter in queue:
                queue.remove(waiter)
                self.waiting -= 1
                self._wake()  # the next one may need less
            raise

    def leave(self, slot: Slot, finish: Finish) -> None:
        """Gives the slot back."""
        self.leave_all(((slot, finish),))

    def leave_all(self, ended: Sequence[tuple[Slot, Finish]]) -> None:
        """Gives slots back; the waiters are asked once for all of them."""
        self.in_flight -= len(ended)
        now_s = self._loop.time()
        for slot, finish in ended:
            for finished in self._scopes[slot.need.scope].finished:
                finished(slot, finish, now_s)
        if self.waiting and ended:
            self._wake()
        self.on_free()

    def drop(self, limit: Limit, scope: Scope) -> None:
        """Takes out a limit of a scope that has done its work."""
        self._scopes[scope].drop(limit)

    def ask_again(self) -> None:
        """A limit has changed, perhaps."""
        if self.waiting:
            self._wake()

    async def pause(self, seconds: float) -> None:
        """A backoff: holds no slot. Raises `GateClosed` as soon as the gate is closed."""
        if seconds > 0 and not self._closed.done():
            await asyncio.wait((self._closed,), timeout=seconds)
        if self._closed.done():
            raise GateClosed

    def close(self) -> None:
        """Lets no attempt in any more; what is in flight goes on."""
        if not self._closed.done():
            self._closed.set_result(None)
        self._refuse_all(GateClosed())

    def statuses(self) -> list[LimitStatus]:
        """The status of all limits, first of the one that the first waiter waits for."""
        now_s = self._loop.time()
        limits = [*self._shared, *(limit for one in self._scopes.values() for limit in one.limits)]
        limits.sort(key=lambda limit: limit is not self.blocked_by)
        return [limit.status(now_s) for limit in limits]

    def _wake(self) -> None:
        """Lets in all that may go, and sees to it that the others are asked again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.blocked_by = None
        again_s, now_s = math.inf, self._loop.time()
        scopes = self._waiting_scopes()
        while scopes:
            for queues in scopes:
                queue = queues.next
                waiter = queue[0]
                if waiter.turn.done():  # cancelled while it waited
                    break
                need = waiter.need()
                if not _let_in(queues.all, need, now_s):
                    try:
                        until_s = self._wait_until(self._shared, need, now_s)
                        if until_s is not None:
                            self._wake_at(min(again_s, until_s))
                            return
                        until_s = self._wait_until(queues.limits, need, now_s)
                    except RunStopped as stop:
                        self._refuse_all(stop)
                        return
                    if until_s is not None:
                        again_s = min(again_s, until_s)
                        continue
                waiter.turn.set_result(self._start(queues, need, now_s))
                break
            else:
                # A limit that ends the run is asked then, however long another one makes it wait.
                ends = [ends_s(now_s) for one in scopes for ends_s in one.ends]
                self._wake_at(min((again_s, *ends)))
                return
            queues.pop(queue)
            self.waiting -= 1
            self.blocked_by, again_s = None, math.inf
            if len(scopes) > 1 or not queue:
                scopes = _reordered(scopes, queues)

    def _waiting_scopes(self) -> list[_Queues]:
        """Scopes with waiters, the one whose next waiter came first before the others."""
        scopes = [one for one in self._scopes.values() if one.fresh or one.again]
        if len(scopes) > 1:
            scopes.sort(key=lambda one: one.next[0].number)
        return scopes

    def _wait_until(self, limits: Sequence[Limit], need: Need, now_s: float) -> float | None:
        """Until when the limits make it wait; null where none does. Raises `RunStopped`."""
        latest_s: float | None = None
        for limit in limits:
            verdict = limit.verdict(need, now_s)
            if verdict is GO:
                continue
            if isinstance(verdict, Stop):
                raise RunStopped(
                    verdict.reason,
                    verdict.cause,
                    endpoint_error=verdict.endpoint_error,
                    rows=verdict.rows,
                )
            if isinstance(verdict, Wait) and (latest_s is None or verdict.until_s > latest_s):
                latest_s = verdict.until_s
                self.blocked_by = self.blocked_by or limit
        return latest_s

    def _start(self, queues: _Queues, need: Need, now_s: float) -> Slot:
        self.in_flight += 1
        for started in queues.started:
            started(need, now_s)
        return Slot(need, now_s)

    def _refuse_all(self, error: Exception) -> None:
        for queues in self._scopes.values():
            while queue := queues.next:
                turn = queues.pop(queue).turn
                if not turn.done():
                    turn.set_exception(error)
        self.waiting = 0

    def _wake_at(self, until_s: float) -> None:
        if until_s != math.inf:
            self._timer = self._loop.call_at(until_s, self._wake)


def _reordered(scopes: list[_Queues], changed: _Queues) -> list[_Queues]:
    """As `_waiting_scopes`, where the first waiter of one scope has gone in."""
    scopes.remove(changed)
    if changed.fresh or changed.again:
        number = changed.next[0].number
        later = (at for at, one in enumerate(scopes) if one.next[0].number > number)
        scopes.insert(next(later, len(scopes)), changed)
    return scopes


def _let_in(limits: Sequence[Limit], need: Need, now_s: float) -> bool:
    """Whether no limit makes it wait: mostly so, and then it is not asked which and until when."""
    for limit in limits:  # noqa: SIM110 - a generator is a second frame at each step
        if limit.verdict(need, now_s) is not GO:
            return False
    return True
