"""The one place that waits before a send: attempts go in first come first in, as limits allow."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from batchrun.errors import RunStopped
from batchrun.policy.verdicts import Go, Stop, Verdict, Wait
from batchrun.records import Need


class Limit(Protocol):
    """One bound on starting attempts; it is told of each start and finish."""

    def verdict(self, need: Need, now_s: float) -> Verdict: ...
    def started(self, need: Need, now_s: float) -> None: ...
    def finished(self, need: Need, now_s: float, *, answered: bool) -> None: ...


class GateClosed(Exception):  # noqa: N818 - the run is stopping; nothing went wrong
    """No attempt goes in any more; whoever waited goes home with its row unsettled."""


class Gate:
    """Lets attempts in when all limits say so, and counts what is in flight."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.in_flight = 0
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Need, asyncio.Future[None]]] = deque()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, need: Need) -> None:
        """Takes a slot. Raises `GateClosed`, or `RunStopped` where a limit ends the run."""
        if self._closed.done():
            raise GateClosed
        if not self._waiting and self._may_start(need):
            self._start(need)
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((need, turn))
        self._wake()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(need, answered=False)  # let in and cancelled at once
            raise

    def leave(self, need: Need, *, answered: bool) -> None:
        """Gives the slot back; `answered`: the server answered, whatever it said."""
        self.in_flight -= 1
        now_s = self._loop.time()
        for limit in self._limits:
            limit.finished(need, now_s, answered=answered)
        self._wake()

    async def pause(self, seconds: float) -> None:
        """A backoff: holds no slot. Raises `GateClosed` as soon as the gate is closed."""
        if not self._closed.done():
            await asyncio.wait((self._closed,), timeout=seconds)
        if self._closed.done():
            raise GateClosed

    def close(self) -> None:
        """Lets nobody in any more; what is in flight goes on."""
        if not self._closed.done():
            self._closed.set_result(None)
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(GateClosed())

    def _may_start(self, need: Need) -> bool:
        now_s = self._loop.time()
        until_s = now_s
        for limit in self._limits:
            match limit.verdict(need, now_s):
                case Go():
                    pass
                case Wait(limit_until_s):
                    until_s = max(until_s, limit_until_s)
                case Stop(reason):
                    raise RunStopped(reason)
        if until_s > now_s:
            self._wake_at(until_s)
            return False
        return True

    def _start(self, need: Need) -> None:
        self.in_flight += 1
        now_s = self._loop.time()
        for limit in self._limits:
            limit.started(need, now_s)

    def _wake(self) -> None:
        while self._waiting:
            need, turn = self._waiting[0]
            if not turn.done():  # else cancelled while it waited
                try:
                    if not self._may_start(need):
                        return
                except RunStopped as stop:
                    turn.set_exception(stop)
                else:
                    self._start(need)
                    turn.set_result(None)
            self._waiting.popleft()

    def _wake_at(self, until_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if until_s != float("inf"):
            self._timer = self._loop.call_at(until_s, self._wake)
