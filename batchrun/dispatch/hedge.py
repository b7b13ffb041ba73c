"""Second copies of the last slow rows: the first answer counts, the other copy is cancelled.

Only once no fresh row is left: before that, a second copy would take the slot of a first one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from batchrun.dispatch.gate import GateClosed
from batchrun.errors import RunStopped

_LATENCIES = 1_000  # of the last answers
_FEWEST = 20  # before that, nobody knows what slow is
_SLOW = 0.99  # the share of answers that come sooner than a slow one
_LOOK_EVERY_S = 0.1

Copy = TypeVar("Copy")


class Hedge:
    """Knows what slow is, and runs a row's copies against each other."""

    def __init__(self, is_tail: Callable[[], bool]) -> None:
        self._is_tail = is_tail
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._loop = asyncio.get_running_loop()
        self._due: dict[asyncio.Future[None], float] = {}  # to when the first copy was sent
        self._timer: asyncio.TimerHandle | None = None

    def answered(self, latency_s: float) -> None:
        self._latencies.append(latency_s)

    async def race(
        self,
        first: Coroutine[Any, Any, Copy],
        second: Callable[[Callable[[], None]], Coroutine[Any, Any, Copy]],
        is_answer: Callable[[Copy], bool],
    ) -> list[Copy]:
        """The copies that came to an end, the one that counts first. Raises as `first` does.

        `second` calls what it is given once it may be sent. Until then it is given up when the
        first copy fails: it may wait for what that one holds.
        """
        tasks = [asyncio.create_task(first)]
        is_sent = asyncio.Event()
        due: asyncio.Future[None] = self._loop.create_future()
        self._due[due] = self._loop.time()
        self._look_later()
        try:
            await asyncio.wait((tasks[0], due), return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                tasks.append(asyncio.create_task(second(is_sent.set)))
            return await _first_answer(tasks, is_answer, is_sent.is_set)
        finally:
            self._due.pop(due, None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._is_tail() and len(self._latencies) >= _FEWEST:
            ranked = sorted(self._latencies)
            sent_s = self._loop.time() - ranked[int(_SLOW * (len(ranked) - 1))]
            for due in [due for due, first_s in self._due.items() if first_s < sent_s]:
                del self._due[due]
                if not due.done():
                    due.set_result(None)
        if self._due:
            self._look_later()


async def _first_answer(
    tasks: list["asyncio.Task[Copy]"],
    is_answer: Callable[[Copy], bool],
    is_second_sent: Callable[[], bool],
) -> list[Copy]:
    ended: list[Copy] = []
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            try:
                copy = task.result()
            except (GateClosed, RunStopped):
                if task is tasks[0]:
                    raise
                continue  # no second copy may go: the first one goes on
            ended.append(copy)
        ended.sort(key=is_answer, reverse=True)
        if ended and (is_answer(ended[0]) or not is_second_sent()):
            break
    return ended
