"""Runs requests in this process: reads ahead, gives each row a place, hands out its outcome.

An outcome counts as stored when the next one is asked for: only then are its slot and its place
given back, so that what is in flight is never more than the gate allows.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Self

from batchrun.dispatch.attempts import Dispatcher
from batchrun.dispatch.gate import Gate, GateClosed
from batchrun.dispatch.row import Settled
from batchrun.errors import ErrorKind
from batchrun.records import BadRow, Failure, Outcome, Request

PLACES_PER_SLOT = 4  # rows in memory for each request that may be in flight
_READ_AHEAD = 64  # rows read at once, off the event loop


class LocalExecutor:
    """One run's rows, from read to stored."""

    def __init__(self, dispatcher: Dispatcher, gate: Gate, in_flight: int) -> None:
        self._dispatcher = dispatcher
        self._gate = gate
        self._places = asyncio.BoundedSemaphore(PLACES_PER_SLOT * in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: deque[Settled] = deque()
        self._last: Settled | None = None
        self.is_reading = False  # waiting for the input, with places free
        self._news = asyncio.Event()
        self._fed = False
        self._stopped_by: BaseException | None = None

    @asynccontextmanager
    async def run(self, requests: Iterator[Request | BadRow]) -> AsyncIterator[Self]:
        """Outcomes as they come. The iteration ends with the error that stopped it, if one did."""
        feeder = asyncio.create_task(self._feed(requests))
        try:
            yield self
        finally:
            self.drop()
            feeder.cancel()
            await asyncio.gather(feeder, *self._tasks, return_exceptions=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if self._last is not None:
            self._give_back(self._last)
            self._last = None
        while not self._done:
            if self._fed and not self._tasks:
                if self._stopped_by is not None:
                    raise self._stopped_by
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._last = self._done.popleft()
        return self._last.outcome

    def is_stopped(self) -> bool:
        return self._stopped_by is not None

    def stop(self, error: BaseException) -> None:
        """Sends no more; what is in flight lands. The first error is the one that is raised."""
        if self._stopped_by is None:
            self._stopped_by = error
        self._gate.close()
        self._news.set()

    def drop(self) -> None:
        """Drops what is in flight."""
        self._gate.close()
        for task in self._tasks:
            task.cancel()

    async def _feed(self, requests: Iterator[Request | BadRow]) -> None:
        try:
            while not self.is_stopped():
                # Reading may wait for a disk or unpack a large batch: not on the event loop.
                self.is_reading = True
                rows = await asyncio.to_thread(lambda: list(islice(requests, _READ_AHEAD)))
                self.is_reading = False
                if not rows:
                    return
                for row in rows:
                    await self._places.acquire()
                    if self.is_stopped():
                        return
                    self._admit(row)
        except Exception as error:  # noqa: BLE001 - raised again where the outcomes end
            self.stop(error)
        finally:
            self._fed = self._dispatcher.no_more_rows = True
            self.is_reading = False
            self._news.set()

    def _admit(self, row: Request | BadRow) -> None:
        if isinstance(row, BadRow):
            self._done.append(Settled(self._never_sent(row)))
            self._news.set()
            return
        task = asyncio.create_task(self._settle(row))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._news.set()

    async def _settle(self, request: Request) -> None:
        try:
            settled = await self._dispatcher.settle(request)
        except GateClosed:
            self._places.release()
        except asyncio.CancelledError:
            self._places.release()
            raise
        except Exception as error:  # noqa: BLE001 - a stop or a bug: what is in flight lands first
            self._places.release()
            self.stop(error)
        else:
            self._done.append(settled)

    def _give_back(self, settled: Settled) -> None:
        if settled.slot is not None:
            self._gate.leave(settled.slot, settled.finish)
        self._places.release()

    def _never_sent(self, row: BadRow) -> Outcome:
        where = row.source if row.line is None else f"{row.source}:{row.line}"
        request = Request(
            row=row.row,
            custom_id=row.custom_id,
            source=row.source,
            body=b"",
            hash=row.hash,
            model=None,
            max_output_tokens=None,
            carried=row.carried,
        )
        failure = Failure(ErrorKind.INVALID_ROW, f"{where}: {row.message}", status="invalid")
        endpoint = self._dispatcher.endpoint
        return Outcome(request, failure, (), endpoint.base_url, endpoint.via)
