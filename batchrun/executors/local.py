"""Runs requests in this process: reads ahead, settles each row in a place, hands out outcomes.

Outcomes come in batches, all that arrived in one turn of the event loop. They count as stored when
the next batch is asked for: only then are their slots given back, so that what is in flight is
never more than the gate allows.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Self

from batchrun.dispatch.dispatcher import Dispatcher
from batchrun.dispatch.gate import Gate, GateClosed
from batchrun.dispatch.row_attempts import Settled
from batchrun.errors import ErrorKind
from batchrun.records import BadRow, Failure, Outcome, Request

PLACES_PER_SLOT = 4  # rows in memory, at most, for each request that may be in flight
_SPARE = 8  # of them, rows that wait at the gate while all slots are taken: at least so many, ...
_SPARE_SHARE = 8  # ... and one for so many slots. Those that wait long are cold in the CPU's caches
# when their turn comes: with three for each slot a row took a tenth longer, at 256 and at 1,024.
_READ_AHEAD = 64  # rows read at once, off the event loop, or as many as slots (with a quarter of
# them, places found no row and ended: a new task for each row, a tenth of its time, at 256); ...
_READ_BYTES = 4 << 20  # ... fewer where their bodies are large
_MOST_AT_ONCE = 256  # outcomes in a batch: storing them holds up the event loop


class LocalExecutor:
    """One run's rows, from read to stored."""

    def __init__(self, dispatcher: Dispatcher, gate: Gate, in_flight: int) -> None:
        self._dispatcher = dispatcher
        self._gate = gate
        self._slots = in_flight
        self._spare = max(_SPARE, in_flight // _SPARE_SHARE)
        self._at_once = max(_READ_AHEAD, in_flight)
        # One turn of the event loop may take as many as are in flight.
        self._least_ahead = max(_READ_AHEAD // 2, in_flight)
        # A place is a task that settles row after row, and ends where none is left to take.
        self._places: set[asyncio.Task[None]] = set()
        self._starting = 0  # of them, those that have not taken a row yet
        self._rows: deque[Request | BadRow] = deque()  # read ahead
        self._wanted = asyncio.Event()  # more of them
        self._is_reading = False
        self._done: deque[Settled] = deque()
        self._handed_out: list[Settled] = []
        self._news = asyncio.Event()
        self._fed = False
        self.causes: list[BaseException] = []  # why nothing more is sent, in order
        gate.on_left = self._fill_places

    @asynccontextmanager
    async def run(self, requests: Iterator[Request | BadRow]) -> AsyncIterator[Self]:
        """Outcomes as they come, to the last; `causes` then says what stopped the sending."""
        feeder = asyncio.create_task(self._feed(requests))
        try:
            yield self
        finally:
            self.drop()
            feeder.cancel()
            await asyncio.gather(feeder, *self._places, return_exceptions=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Outcome]:
        held = [(one.slot, one.finish) for one in self._handed_out if one.slot is not None]
        self._handed_out = []
        self._gate.leave_all(held)
        if self._done:
            await asyncio.sleep(0)  # whatever else waits for its turn
        while not self._done:
            if self._fed and not self._places and (self.causes or not self._rows):
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        count = min(len(self._done), _MOST_AT_ONCE)
        self._handed_out = [self._done.popleft() for _ in range(count)]
        return [settled.outcome for settled in self._handed_out]

    @property
    def is_reading(self) -> bool:
        """Whether the input is waited for, with places free."""
        return self._is_reading and not self._rows and self._wanted_places() > 0

    def is_stopped(self) -> bool:
        return bool(self.causes)

    def stop(self, cause: BaseException) -> None:
        """Sends no more; what is in flight lands."""
        self.causes.append(cause)
        self._gate.close()
        self._wanted.set()
        self._news.set()

    def drop(self) -> None:
        """Drops what is in flight."""
        self._gate.close()
        self._rows.clear()
        for place in self._places:
            place.cancel()

    def rest(self) -> list[Outcome]:
        """What has arrived and was not handed out, where the iteration was broken off."""
        rest = [settled.outcome for settled in self._done]
        self._done.clear()
        return rest

    async def _feed(self, requests: Iterator[Request | BadRow]) -> None:
        try:
            while not self.is_stopped():
                # Reading may wait for a disk or unpack a large batch: not on the event loop.
                self._is_reading = True
                rows = await asyncio.to_thread(_read_some, requests, self._at_once)
                self._is_reading = False
                if not rows:
                    return
                self._rows.extend(rows)
                self._fill_places()
                # A stop may have come while rows were read: nobody takes them any more.
                if len(self._rows) > self._least_ahead and not self.is_stopped():
                    self._wanted.clear()
                    await self._wanted.wait()
        except Exception as error:  # noqa: BLE001 - judged where the run ends
            self.stop(error)
        finally:
            self._fed = True
            self._dispatcher.no_more_rows = not self._rows
            self._is_reading = False
            self._news.set()

    async def _settle_rows(self) -> None:
        """What happens in one place."""
        rows, settle, done = self._rows, self._dispatcher.settle, self._done
        self._starting -= 1
        while rows and not self.causes and not self._is_one_too_many():
            row = rows.popleft()
            if len(rows) <= self._least_ahead:
                self._wanted.set()
                self._dispatcher.no_more_rows = self._fed and not rows
            if isinstance(row, BadRow):
                done.append(Settled(self._never_sent(row)))
                self._news.set()
                await asyncio.sleep(0)  # nothing else makes this place wait
                continue
            try:
                settled = await settle(row)
            except GateClosed:
                return
            except Exception as error:  # noqa: BLE001 - a stop or a bug: what is in flight lands
                self.stop(error)
                return
            done.append(settled)
            self._news.set()

    def _wanted_places(self) -> int:
        """How many more there should be.

        With all slots taken, as few as will do. Else some limit holds rows back, perhaps of one
        scope only, and others may be let past them.
        """
        free = self._slots - self._gate.in_flight
        ended = len(self._done) + len(self._handed_out)  # their slots are about to be free
        wanted = free if free > 0 else self._spare + ended - self._gate.waiting
        return min(wanted, PLACES_PER_SLOT * self._slots - len(self._places))

    def _is_one_too_many(self) -> bool:
        gate = self._gate
        ended = len(self._done) + len(self._handed_out)  # their slots are about to be free
        return gate.waiting > self._spare + ended and gate.in_flight >= self._slots

    def _fill_places(self) -> None:
        if self.causes:
            return
        for _ in range(min(len(self._rows), self._wanted_places()) - self._starting):
            self._starting += 1
            place = asyncio.create_task(self._settle_rows())
            self._places.add(place)
            place.add_done_callback(self._ended)

    def _ended(self, place: asyncio.Task[None]) -> None:
        self._places.discard(place)
        self._fill_places()  # rows may have come since it saw that there were none
        self._news.set()

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


def _read_some(requests: Iterator[Request | BadRow], most: int) -> list[Request | BadRow]:
    rows: list[Request | BadRow] = []
    size = 0
    for row in requests:
        rows.append(row)
        size += len(row.body) if isinstance(row, Request) else 0
        if len(rows) >= most or size >= _READ_BYTES:
            break
    return rows
