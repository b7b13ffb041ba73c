"""Room for answers that arrive: a budget in bytes, so that many large ones do not fill memory.

Over the budget one answer at a time is read on, the one that waited longest; the others stay with
the server, held back by TCP, until there is room again.
"""

import asyncio
from collections import deque
from contextlib import suppress

from msgspec import Struct

ANSWER_BYTES = 256 * 1024 * 1024


class Room:
    """What all answers of an endpoint hold while they are read."""

    def __init__(self, size: int = ANSWER_BYTES) -> None:
        self.size = size  # bytes
        self.held = 0
        self._reads_on: Share | None = None  # the one that may go beyond the budget
        self._waiting: deque[tuple[Share, asyncio.Future[None]]] = deque()

    async def wait(self, share: "Share") -> None:
        """Returns once this answer may be read on."""
        if self._reads_on is None:
            self._reads_on = share
        if self._reads_on is share:
            return
        entry = (share, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await entry[1]
        except asyncio.CancelledError:
            with suppress(ValueError):  # its turn may have come in the same moment
                self._waiting.remove(entry)
            raise

    def left(self, share: "Share") -> None:
        self.held -= share.held
        if self._reads_on is share:
            self._reads_on = None
        self._next()

    def _next(self) -> None:
        while self._waiting and (self.held <= self.size or self._reads_on is None):
            share, turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            if self.held > self.size:
                self._reads_on = share
            turn.set_result(None)


class Share(Struct, eq=False):
    """What one answer holds of a room."""

    room: Room
    held: int = 0  # bytes

    def grow(self, size: int) -> bool:
        """Counts bytes that have arrived; true where there is no room for more."""
        self.held += size
        self.room.held += size
        return self.room.held > self.room.size

    async def wait(self) -> None:
        """Returns once more may be read."""
        await self.room.wait(self)

    def leave(self) -> None:
        if self.held:
            self.room.left(self)
