"""What bounds an exchange: deadlines, and the bytes that arriving answers may hold.

Over the budget one answer at a time is read on, the one that waited longest; the others stay with
the server, held back by TCP, until bytes are free again.

A timer for each attempt costs some 9 µs of a row's CPU, an entry in `DeadlineWatch` 0.1.
"""

import asyncio
import math
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

from msgspec import Struct

BUFFER_BYTES = 256 * 1024 * 1024


class ResponseBufferBudget:
    """What all answers of an endpoint may hold while they are read."""

    def __init__(self, size: int = BUFFER_BYTES) -> None:
        self.size = size  # bytes
        self.held = 0
        self._exempt: BufferShare | None = None  # the one that may exceed the budget
        self._waiting: deque[tuple[BufferShare, asyncio.Future[None]]] = deque()

    async def wait(self, share: "BufferShare") -> None:
        """Returns once this answer may be read on."""
        if self._exempt is None:
            self._exempt = share
        if self._exempt is share:
            return
        entry = (share, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await entry[1]
        except asyncio.CancelledError:
            with suppress(ValueError):  # its turn may have come in the same moment
                self._waiting.remove(entry)
            raise

    def release(self, share: "BufferShare") -> None:
        self.held -= share.held
        if self._exempt is share:
            self._exempt = None
        while self._waiting and (self.held <= self.size or self._exempt is None):
            waiting, turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            if self.held > self.size:
                self._exempt = waiting
            turn.set_result(None)


class BufferShare(Struct, eq=False):
    """What one answer holds of the budget."""

    budget: ResponseBufferBudget
    held: int = 0  # bytes

    def grow(self, size: int) -> bool:
        """Counts bytes that have arrived; true where the budget is exceeded."""
        self.held += size
        self.budget.held += size
        return self.budget.held > self.budget.size

    async def wait(self, deadline: "Deadline") -> None:
        """Returns once more may be read. The server is not charged for that time."""
        began_s, total_s, idle_s = deadline.now_s(), deadline.total_s, deadline.idle_s
        deadline.total_s = deadline.idle_s = math.inf
        await self.budget.wait(self)
        waited_s = deadline.now_s() - began_s
        deadline.total_s, deadline.idle_s = total_s + waited_s, idle_s + waited_s

    def release(self) -> None:
        if self.held:
            self.budget.release(self)


class Deadline:
    """One attempt's limits, watched while it is entered; raises `TimeoutError` when one is over."""

    __slots__ = ("_task", "_watch", "expired", "idle_s", "now_s", "total_s")

    def __init__(self, watch: "DeadlineWatch", timeout_s: float) -> None:
        self._watch = watch
        self._task: asyncio.Task[object] | None = None
        self.now_s = watch.loop.time
        self.total_s = self.idle_s = self.now_s() + timeout_s  # on the loop's clock
        self.expired = False

    def __enter__(self) -> Self:
        # The loop is given: to ask for the running one is a system call in Python 3.11.
        self._task = asyncio.current_task(self._watch.loop)
        self._watch.open.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._watch.open.discard(self)
        # As asyncio.timeout does: our own cancellation ends here, another one goes on.
        if self.expired and self._uncancel() and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def forgive(self) -> bool:
        """Takes our own cancellation back; false where it was another's."""
        is_ours = self._uncancel()
        self.expired = False
        self.idle_s = self.total_s  # else the next sweep would cancel what is still to do
        return is_ours

    def _uncancel(self) -> bool:
        return self.expired and self._task is not None and self._task.uncancel() == 0

    def expire(self) -> None:
        if self._task is not None:
            self.expired = True
            self._task.cancel()


class DeadlineWatch:
    """Looks over all open deadlines a few times a second."""

    def __init__(self, every_s: float) -> None:
        self.open: set[Deadline] = set()
        self.loop = asyncio.get_running_loop()
        self._every_s = every_s
        self._sweep()

    def close(self) -> None:
        self._timer.cancel()

    def _sweep(self) -> None:
        now_s = self.loop.time()
        for deadline in self.open:
            if not deadline.expired and min(deadline.total_s, deadline.idle_s) <= now_s:
                deadline.expire()
        self._timer = self.loop.call_later(self._every_s, self._sweep)
