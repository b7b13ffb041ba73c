"""Gives the requests of a worker's leases one by one, and tells which leases are done.

An executor iterates over it in a thread, which waits for the next lease; everything else is called
on the event loop.
"""

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Self

from msgspec import Struct

from batchrun.errors import InputError
from batchrun.executors.lease_book import remaining_of
from batchrun.executors.messages import Lease
from batchrun.records import BadRow, Outcome, Request, RowKey

Read = Callable[[Lease], Iterator[Request | BadRow]]


class _Open(Struct):
    """A lease with requests that are not yet stored."""

    lease: int
    unread: int
    unstored: int


class LeaseFeed:
    """An iterator that ends at `close`; None in it says that the next request may take long."""

    def __init__(self, read: Read, on_done: Callable[[int], None]) -> None:
        """`read`: gives the requests of a lease; the iterator raises what it raises.

        `on_done`: called with the id of each lease whose requests are all stored.
        """
        self._read, self._on_done = read, on_done
        self._leases: SimpleQueue[Lease | None] = SimpleQueue()
        self._open: dict[int, _Open] = {}
        self._of: dict[RowKey, _Open] = {}  # by requests that were read and are not stored
        self._requests: Iterator[Request | BadRow] | None = None  # of the lease in `_reading`
        self._reading: _Open | None = None
        self._has_told = False
        self._is_closed = False

    @property
    def unread(self) -> int:
        """How many requests of all leases are not read yet."""
        return sum(one.unread for one in list(self._open.values()))

    def add(self, lease: Lease) -> None:
        """Adds a lease, to be read after the earlier ones."""
        requests = remaining_of(lease)
        if not requests:
            self._on_done(lease.id)
            return
        self._open[lease.id] = _Open(lease.id, requests, requests)
        self._leases.put(lease)

    def close(self) -> None:
        """Nothing more is read."""
        self._is_closed = True
        self._leases.put(None)

    def stored(self, outcomes: Iterable[Outcome]) -> None:
        """Notes that these are stored."""
        for outcome in outcomes:
            one = self._of.pop(outcome.request.key, None)
            if one is None:
                continue
            one.unstored -= 1
            if not one.unstored:
                del self._open[one.lease]
                self._on_done(one.lease)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Request | BadRow | None:
        """Raises `InputError` if a lease holds fewer rows than were planned."""
        while not self._is_closed:
            if self._requests is not None and self._reading is not None:
                request = next(self._requests, None)
                if request is not None:
                    self._reading.unread -= 1
                    self._of[request.key] = self._reading
                    return request
                self._requests = None
                if self._reading.unread:
                    raise InputError(
                        "the input has fewer rows than when the run was planned; restore it, do "
                        "not change it during a run, and run the same command again"
                    )
            if self._leases.empty() and not self._has_told:
                self._has_told = True
                return None
            lease = self._leases.get()
            if lease is not None:
                self._has_told = False
                self._reading, self._requests = self._open[lease.id], self._read(lease)
        self._requests = None  # closes its file
        raise StopIteration
