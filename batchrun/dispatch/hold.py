"""Rows that would end as failed wait here until others show whether it is the endpoint that fails.

Never more than a few hundred: where so many fail, each in a way of its own, it is the rows, and who
watches over failures must see them.
"""

import asyncio
from collections.abc import Callable

from batchrun.dispatch.gate import Gate

_LOOK_EVERY_S = 0.05
MOST_HELD = 200  # ten times the rows that fail in the same way before the endpoint is held


class Hold:
    """The rows that wait; one task looks for all of them."""

    def __init__(self, gate: Gate, is_alone: Callable[[], bool]) -> None:
        """`is_alone`: whether no other row is left that could show it."""
        self._gate, self._is_alone = gate, is_alone
        self._known: dict[asyncio.Future[None], Callable[[], bool]] = {}  # the first row first
        self._looks: asyncio.Task[None] | None = None

    async def wait(self, is_known: Callable[[], bool]) -> None:
        """Until it is known, or cannot be found out. Raises `GateClosed`."""
        known = asyncio.get_running_loop().create_future()
        self._known[known] = is_known
        try:
            if is_known() or self._is_alone():
                return
            if len(self._known) > MOST_HELD:
                self._release(next(iter(self._known)))
            if self._looks is None:
                self._looks = asyncio.create_task(self._look())
            await known
        finally:
            self._known.pop(known, None)

    async def _look(self) -> None:
        try:
            while self._known:
                await self._gate.pause(_LOOK_EVERY_S)
                is_alone = self._is_alone()
                for known, is_known in list(self._known.items()):
                    if is_alone or is_known():
                        self._release(known)
        except Exception as error:  # noqa: BLE001 - `GateClosed`, or a bug: nobody waits for ever
            for known in self._known:
                if not known.done():
                    known.set_exception(error)
        finally:
            self._looks = None

    def _release(self, known: asyncio.Future[None]) -> None:
        self._known.pop(known, None)
        if not known.done():
            known.set_result(None)
