"""The one place that waits before a send: rows go in first come first in, as limits allow.

Attempts at rows that were let in before have a line of their own, of which one goes in after five
fresh rows: retries mix with these, and do not pile up behind all of them.

Some limits hold for the whole run, some for one scope. A scope that has to wait does not hold up
another; a limit of the whole run holds up everybody, so that a large request is never overtaken
for ever by small ones.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from batchrun.errors import RunStopped
from batchrun.limits.verdicts import GO, Limit, LimitStatus, Stop, Wait
from batchrun.records import Finish, Need, Scope, Slot


class GateClosed(Exception):  # noqa: N818 - the run is stopping; nothing went wrong
    """No attempt goes in any more; whoever waited goes home with its row unsettled."""


_FRESH = 5  # rows that were never let in, to one that was


class _Waiter(Struct, eq=False):
    number: int
    need: Callable[[], Need]
    turn: asyncio.Future[Slot]


class _Scope:
    """One scope's limits and its lines, which take turns."""

    __slots__ = ("again", "all", "finished", "fresh", "fresh_in_a_row", "limits", "started")

    def __init__(self, shared: Sequence[Limit], limits: Sequence[Limit]) -> None:
        self.limits = limits
        self.share(shared)
        self.again: deque[_Waiter] = deque()  # of rows that were let in before
        self.fresh: deque[_Waiter] = deque()
        self.fresh_in_a_row = 0

    @property
    def line(self) -> deque[_Waiter]:
        """Whose turn it is."""
        is_fresh = self.fresh and (not self.again or self.fresh_in_a_row < _FRESH)
        return self.fresh if is_fresh else self.again

    def share(self, shared: Sequence[Limit]) -> None:
        """The limits of the whole run are these."""
        self.all = (*shared, *self.limits)
        self.started = [limit.started for limit in self.all]
        self.finished = [limit.finished for limit in self.all]

    def pop(self, line: deque[_Waiter]) -> _Waiter:
        """The first of the line whose turn it is."""
        self.fresh_in_a_row = self.fresh_in_a_row + 1 if line is self.fresh else 0
        return line.popleft()


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
        self.held_by: Limit | None = None  # what the first in line waits for
        self.on_left: Callable[[], None] = lambda: None  # called when slots were given back
        self._shared = shared
        self._of_scope = of_scope
        self._scopes: dict[Scope, _Scope] = {}
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
        place = self._scopes.get(scope)
        if place is None:
            place = self._scopes[scope] = _Scope(self._shared, self._of_scope(scope))
        turn: asyncio.Future[Slot] = self._loop.create_future()
        self._numbers += 1
        waiter = _Waiter(self._numbers, need, turn)
        queue = place.again if again else place.fresh
        queue.append(waiter)
        self.waiting += 1
        # Else the first in line waits already.
        if self.waiting == 1 or again or len(self._scopes) > 1:
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
                self._wake()  # whoever was behind may need less
            raise

    def leave(self, slot: Slot, finish: Finish) -> None:
        """Gives the slot back."""
        self.leave_all(((slot, finish),))

    def leave_all(self, ended: Sequence[tuple[Slot, Finish]]) -> None:
        """Gives slots back; whoever waits is asked once for all of them."""
        self.in_flight -= len(ended)
        now_s = self._loop.time()
        for slot, finish in ended:
            for finished in self._scopes[slot.need.scope].finished:
                finished(slot, finish, now_s)
        if self.waiting and ended:
            self._wake()
        self.on_left()

    def drop(self, shared: Limit) -> None:
        """A limit of the whole run that has done its work is asked and told no more."""
        self._shared = [limit for limit in self._shared if limit is not shared]
        for scope in self._scopes.values():
            scope.share(self._shared)

    async def pause(self, seconds: float) -> None:
        """A backoff: holds no slot. Raises `GateClosed` as soon as the gate is closed."""
        if seconds > 0 and not self._closed.done():
            await asyncio.wait((self._closed,), timeout=seconds)
        if self._closed.done():
            raise GateClosed

    def close(self) -> None:
        """Lets nobody in any more; what is in flight goes on."""
        if not self._closed.done():
            self._closed.set_result(None)
        self._send_home(GateClosed())

    def statuses(self) -> list[LimitStatus]:
        """How all limits stand, the one that holds up the first in line before the others."""
        now_s = self._loop.time()
        limits = [*self._shared, *(limit for one in self._scopes.values() for limit in one.limits)]
        limits.sort(key=lambda limit: limit is not self.held_by)
        return [limit.status(now_s) for limit in limits]

    def _wake(self) -> None:
        """Lets in whoever may go, and sees to it that the others are asked again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.held_by = None
        again_s, now_s = math.inf, self._loop.time()
        queues = self._queues()
        while queues:
            for queue in queues:
                line = queue.line
                waiter = line[0]
                if waiter.turn.done():  # cancelled while it waited
                    break
                need = waiter.need()
                if not _lets_in(queue.all, need, now_s):
                    try:
                        until_s = self._held(self._shared, need, now_s)
                        if until_s is not None:
                            self._wake_at(min(again_s, until_s))
                            return
                        until_s = self._held(queue.limits, need, now_s)
                    except RunStopped as stop:
                        self._send_home(stop)
                        return
                    if until_s is not None:
                        again_s = min(again_s, until_s)
                        continue
                waiter.turn.set_result(self._start(queue, need, now_s))
                break
            else:
                self._wake_at(again_s)
                return
            queue.pop(line)
            self.waiting -= 1
            self.held_by, again_s = None, math.inf
            if len(queues) > 1 or not line:
                queues = self._queues()

    def _queues(self) -> list[_Scope]:
        """Scopes in which somebody waits; who waits longest comes first."""
        queues = [one for one in self._scopes.values() if one.fresh or one.again]
        if len(queues) > 1:
            queues.sort(key=lambda one: one.line[0].number)
        return queues

    def _held(self, limits: Sequence[Limit], need: Need, now_s: float) -> float | None:
        """Until when; null where nothing holds. Raises `RunStopped`."""
        latest_s: float | None = None
        for limit in limits:
            verdict = limit.verdict(need, now_s)
            if verdict is GO:
                continue
            if isinstance(verdict, Stop):
                raise RunStopped(verdict.reason, verdict.cause)
            if isinstance(verdict, Wait) and (latest_s is None or verdict.until_s > latest_s):
                latest_s = verdict.until_s
                self.held_by = self.held_by or limit
        return latest_s

    def _start(self, queue: _Scope, need: Need, now_s: float) -> Slot:
        self.in_flight += 1
        for started in queue.started:
            started(need, now_s)
        return Slot(need, now_s)

    def _send_home(self, error: Exception) -> None:
        for queue in self._scopes.values():
            while line := queue.line:
                turn = queue.pop(line).turn
                if not turn.done():
                    turn.set_exception(error)
        self.waiting = 0

    def _wake_at(self, until_s: float) -> None:
        if until_s != math.inf:
            self._timer = self._loop.call_at(until_s, self._wake)


def _lets_in(limits: Sequence[Limit], need: Need, now_s: float) -> bool:
    """Whether none of them holds: mostly so, and then nobody asks which one and until when."""
    for limit in limits:  # noqa: SIM110 - a generator is a second frame at each step
        if limit.verdict(need, now_s) is not GO:
            return False
    return True
