"""Runs requests in this process: reads ahead, workers complete the rows, outcomes are handed out.

Outcomes come in batches of what arrived in one turn of the event loop. They count as stored when
the next batch is asked for. Only then are their slots free again, so that there are never more
requests in flight than the gate allows.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from batchrun.dispatch.dispatcher import (
    Completed,
    Destination,
    Dispatcher,
    Endpoint,
    Unfinished,
)
from batchrun.dispatch.gate import Gate, GateClosed
from batchrun.errors import ErrorKind
from batchrun.job.sections import Job
from batchrun.limits.budget import Budget
from batchrun.limits.concurrency import FirstAlone
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes, user_limits
from batchrun.limits.sharing.worker_share import WorkerShare
from batchrun.limits.verdicts import Limit
from batchrun.pricing.prices import Prices
from batchrun.progress.bottleneck import Activity
from batchrun.progress.summary import WorkerState
from batchrun.records import BadRow, Failure, Largest, Outcome, Request, RowKey, Scope
from batchrun.remote.object_stores import GivenUp, giving_up

WORKERS_PER_SLOT = 4  # at most, for each request that may be in flight; each holds one row
# Workers that wait at the gate while all slots are taken: one for every _SPARE_SHARE slots, but at
# least _SPARE. Rows that wait long have left the CPU's caches when their turn comes: with three
# waiting workers for each slot, a row took a tenth longer, at 256 and at 1,024 in flight.
_SPARE = 8
_SPARE_SHARE = 8
# Rows read at once, off the event loop; as many as slots if there are more slots. With a quarter of
# that, workers found no row and ended, and each row needed a new task: a tenth of its time, at 256.
_READ_AHEAD = 64
_READ_BYTES = 4 << 20  # fewer rows at once where their bodies are large
# Bytes of large rows in memory, from reading to storing. While a row is sent, its body is in memory
# twice; 500 rows of 4 MB took 420 MB in all. A row larger than this is sent alone.
_ROW_BYTES = 112 << 20
_LARGE_BYTES = 16 << 10  # rows from this size on count; smaller ones are bounded by their number
_LOOK_AGAIN_S = 0.05  # between checks whether all rows in memory only wait for others
_MOST_AT_ONCE = 256  # outcomes in a batch: storing them holds up the event loop
_OLDEST = 3  # rows named while the last ones are waited for


def local_executor(
    job: Job,
    endpoints: Mapping[str | None, Endpoint],
    prices: Prices,
    in_flight: int,
    *,
    budgets: Sequence[Budget],
    largest: Mapping[str, Largest],
    unfinished: Unfinished,
    had_answers: bool,
    met_before: str | None,
    share: WorkerShare | None = None,
    further: Sequence[Limit] = (),
) -> "LocalExecutor":
    """The executor of a job.

    `endpoints`: by variant, for those with their own; None: the endpoint of all others.
    `largest`: by model, what answers of earlier commands needed; `had_answers`: there were some;
    `met_before`: the error that ended the last command because rows failed in the same way.
    `share`: if this process is one of several workers, its part of the user's limits and budgets,
    which replaces them. `further`: more limits, which hold for all attempts.
    """
    limits = job.limits
    shared: list[Limit]
    if share is None:
        shared = user_limits(in_flight, limits.requests_per_minute, limits.tokens_per_minute)
        shared += budgets
    else:
        shared = share.limits
    shared += further
    patience = Patience(limits.outage_s, limits.unanswered_s, had_answers, met_before)
    per_minute = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
    given = [of for of, most in per_minute.items() if most is not None]
    adapts_to_s = job.endpoint.timeout_s if limits.concurrency == "auto" else None
    scopes = Scopes(in_flight, patience, largest, given, adapts_to_s)

    def limits_of(scope: Scope) -> Sequence[Limit]:
        first = FirstAlone()
        if share is not None and share.met(scope, first):
            return scopes.limits(scope)
        first.on_open = lambda: gate.drop(first, scope)
        return first, *scopes.limits(scope)

    gate = Gate(shared, limits_of)
    destinations = {
        variant: Destination(endpoint, job.endpoint_of(variant).api_key_env)
        for variant, endpoint in endpoints.items()
    }
    endpoint, key_name = destinations.get(None) or next(iter(destinations.values()))
    dispatcher = Dispatcher(
        endpoint,
        gate,
        scopes,
        job.retry,
        prices,
        key_name=key_name,
        has_budget=bool(budgets) if share is None else share.has_budget,
        hedges=limits.hedge,
        unfinished=unfinished,
        of_variants={name: one for name, one in destinations.items() if name is not None},
    )
    executor = LocalExecutor(dispatcher, gate, in_flight)
    if share is not None:
        share.join(gate, scopes)
        share.resized = executor.resize
    return executor


class LocalExecutor:
    """The rows of one run. They wait in `_rows` until a worker takes them."""

    def __init__(self, dispatcher: Dispatcher, gate: Gate, in_flight: int) -> None:
        self._dispatcher = dispatcher
        self._gate = gate
        self._slots = in_flight
        self._spare = max(_SPARE, in_flight // _SPARE_SHARE)
        self._at_once = max(_READ_AHEAD, in_flight)
        # One turn of the event loop may take as many rows as are in flight.
        self._least_ahead = max(_READ_AHEAD // 2, in_flight)
        # A worker is a task that completes row after row, and ends where it finds none to take.
        self._workers: set[asyncio.Task[None]] = set()
        self._starting = 0  # how many of them have not taken a row yet
        self._rows: deque[Request | BadRow] = deque()  # read ahead
        self._large = LargeRows(_ROW_BYTES)
        self._wanted = asyncio.Event()  # more rows should be read
        self._is_reading = False
        self._done: deque[Completed] = deque()
        self._handed_out: list[Completed] = []
        self._news = asyncio.Event()
        self._fed = False
        self._given_up = threading.Event()  # no more rows are waited for
        self._is_last = False  # all known rows are read, but more may come
        self.causes: list[BaseException] = []  # why nothing more is sent, in order
        self.on_stop: Callable[[], None] = lambda: None  # called also when an error stops it
        gate.on_free = self._start_workers

    def resize(self, in_flight: int) -> None:
        """Sets how many may be in flight; rows are read ahead for one at least."""
        self._slots = max(1, in_flight)
        self._spare = max(_SPARE, self._slots // _SPARE_SHARE)
        self._at_once = max(_READ_AHEAD, self._slots)
        self._least_ahead = max(_READ_AHEAD // 2, self._slots)
        self._wanted.set()
        self._start_workers()

    @asynccontextmanager
    async def run(self, requests: Iterator[Request | BadRow | None]) -> AsyncIterator[Self]:
        """Gives outcomes as they arrive, to the last; `causes` then says what stopped the sending.

        None among the requests says that the next one may take long to come.
        """
        feeder = asyncio.create_task(self._feed(requests))
        try:
            yield self
        finally:
            self.drop()
            feeder.cancel()
            await asyncio.gather(feeder, *self._workers, return_exceptions=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Outcome]:
        held = [(one.slot, one.finish) for one in self._handed_out if one.slot is not None]
        if self._large:
            for one in self._handed_out:
                if self._large.stored(one.outcome.request.key):
                    self._wanted.set()
        self._handed_out = []
        self._gate.leave_all(held)
        if self._done:
            await asyncio.sleep(0)  # lets everything else take its turn
        while not self._done:
            if self._fed and not self._workers and (self.causes or not self._rows):
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        count = min(len(self._done), _MOST_AT_ONCE)
        self._handed_out = [self._done.popleft() for _ in range(count)]
        return [completed.outcome for completed in self._handed_out]

    def status(self) -> Activity:
        """What it is doing now, for the display."""
        dispatcher, gate = self._dispatcher, self._gate
        return Activity(
            is_stopping=bool(self.causes),
            in_flight=gate.in_flight,
            retrying=dispatcher.retrying + dispatcher.held,
            retries=dispatcher.retries(),
            is_limited=gate.waiting > 0,
            is_reading=self._is_reading and not self._rows and self._missing_workers() > 0,
            limits=gate.statuses(),
            oldest=dispatcher.oldest(_OLDEST) if dispatcher.is_tail() else (),
            now_s=asyncio.get_running_loop().time(),
        )

    def workers(self) -> tuple[WorkerState, ...]:
        """No workers: this process sends everything."""
        return ()

    def stop(self, cause: BaseException) -> None:
        """Sends nothing more; requests in flight finish."""
        self.causes.append(cause)
        self._given_up.set()
        self._gate.close()
        self.on_stop()
        self._wanted.set()
        self._news.set()

    def drop(self) -> None:
        """Drops the requests in flight."""
        self._given_up.set()
        self._gate.close()
        self._rows.clear()
        for worker in self._workers:
            worker.cancel()

    def note_last(self, *, is_last: bool) -> None:
        """Says whether all requests known so far are read; further ones may still come."""
        self._is_last = is_last
        self._dispatcher.no_more_rows = (is_last or self._fed) and not self._rows

    def rest(self) -> list[Outcome]:
        """The outcomes that arrived but were not handed out, if the iteration was broken off."""
        rest = [completed.outcome for completed in self._done]
        self._done.clear()
        return rest

    async def _feed(self, requests: Iterator[Request | BadRow | None]) -> None:
        giving_up.set(self._given_up)
        try:
            while not self.causes:
                # Reading may wait for a disk or unpack a large batch: not on the event loop.
                self._is_reading = True
                rows = await asyncio.to_thread(_read_some, requests, self._at_once)
                self._is_reading = False
                if not rows:
                    return
                self._rows.extend(rows)
                self._large.add(rows)
                del rows
                self._start_workers()
                # A stop may have come while rows were read; nobody takes rows then.
                while not self._wants_more() and not self.causes:
                    self._wanted.clear()
                    # No event says that all rows of a full budget wait for others to be sent.
                    timeout_s = _LOOK_AGAIN_S if self._large.is_full else None
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._wanted.wait(), timeout_s)
        except Exception as error:  # noqa: BLE001 - judged where the run ends
            if not isinstance(error.__cause__, GivenUp):
                self.stop(error)
        finally:
            self._fed = True
            self._dispatcher.no_more_rows = not self._rows
            self._is_reading = False
            self._news.set()

    def _wants_more(self) -> bool:
        """Whether rows should be read now."""
        if len(self._rows) > self._least_ahead:
            return False
        if not self._large.is_full:
            return True
        # Rows that wait for the results of others need others, whatever memory that takes.
        return not self._rows and self._dispatcher.held == len(self._workers)

    async def _work(self) -> None:
        """What one worker does."""
        rows, complete, done, gate = self._rows, self._dispatcher.complete, self._done, self._gate
        self._starting -= 1
        while rows and not self.causes:
            if self._waiting_too_many() > 0 and gate.in_flight >= self._slots:
                return
            row = rows.popleft()
            if len(rows) <= self._least_ahead:
                self._wanted.set()
                self._dispatcher.no_more_rows = (self._fed or self._is_last) and not rows
            if isinstance(row, BadRow):
                done.append(Completed(self._never_sent(row)))
                self._news.set()
                await asyncio.sleep(0)  # nothing else makes this worker wait
                continue
            try:
                done.append(await complete(row))  # no name, which would keep it in memory
            except GateClosed:
                return
            except Exception as error:  # noqa: BLE001 - a stop or a bug: requests in flight finish
                self.stop(error)
                return
            self._news.set()

    def _missing_workers(self) -> int:
        """How many more workers there should be; below zero if there are enough.

        If all slots are taken, only a few spare ones. If slots are free, some limit holds rows
        back, perhaps of one scope only, and workers with rows of other scopes may pass them.
        """
        free = self._slots - self._gate.in_flight
        wanted = free if free > 0 else -self._waiting_too_many()
        most = WORKERS_PER_SLOT * self._slots + self._dispatcher.held
        return min(wanted, most - len(self._workers))

    def _waiting_too_many(self) -> int:
        """How many workers wait beyond the spare ones and the slots that will soon be free."""
        return self._gate.waiting - self._spare - len(self._done) - len(self._handed_out)

    def _start_workers(self) -> None:
        if self.causes:
            return
        for _ in range(min(len(self._rows), self._missing_workers()) - self._starting):
            self._starting += 1
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        self._start_workers()  # rows may have come since it saw that there were none
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
            sample=row.sample,
            variant=row.variant,
        )
        failure = Failure(ErrorKind.INVALID_ROW, f"{where}: {row.message}", status="invalid")
        endpoint = self._dispatcher.endpoint_of(row.variant)
        return Outcome(request, failure, (), endpoint.base_url, endpoint.via)


class LargeRows:
    """Counts the bytes of large rows in memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sizes: dict[RowKey, int] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._sizes)

    @property
    def is_full(self) -> bool:
        return self._bytes >= self._most

    def add(self, rows: Sequence[Request | BadRow]) -> None:
        """Counts rows that were read."""
        for row in rows:
            if not row.carried and isinstance(row, Request) and len(row.body) < _LARGE_BYTES:
                continue  # mostly so
            size = _size(row)
            if size >= _LARGE_BYTES:
                self._sizes[row.key] = size
                self._bytes += size

    def stored(self, key: RowKey) -> bool:
        """Notes that a row has left memory; returns whether it was a large one."""
        size = self._sizes.pop(key, 0)
        self._bytes -= size
        return size > 0


def _size(row: Request | BadRow) -> int:
    """About how many bytes its body and its carried values have."""
    size = len(row.body) if isinstance(row, Request) else 0
    for value in row.carried:
        kind = type(value)
        if kind is str or kind is bytes:
            size += len(value)
        elif kind is dict or kind is list:
            size += _nested_size(value)
    return size


def _nested_size(value: Any) -> int:
    match value:
        case str() | bytes():
            return len(value)
        case dict():
            return sum(map(_nested_size, value.values()))
        case list():
            return sum(map(_nested_size, value))
    return 8


def _read_some(requests: Iterator[Request | BadRow | None], most: int) -> list[Request | BadRow]:
    rows: list[Request | BadRow] = []
    size = 0
    for row in requests:
        if row is None:
            if rows:
                break
            continue
        rows.append(row)
        size += _size(row)
        if len(rows) >= most or size >= _READ_BYTES:
            break
    return rows
