"""Which worker has which rows, until each row is complete. No I/O."""

from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from msgspec import Struct

from batchrun.errors import InputError
from batchrun.executors.messages import AGAIN, COMPLETE, Lease

MOST_DEATHS = 5  # of workers in a row that had the same rows and completed none of them


class UnleasedRows(Protocol):
    """The rows of a run that were never leased."""

    left: int  # requests to send

    def cut(self, requests: int) -> Lease | None:
        """The next rows, with about so many requests to send; None if there are no more."""

    def rest(self, lease: Lease, done: Collection[int]) -> Lease | None:
        """A new lease of the rows that are not complete; None if all are.

        `done`: places of the requests in the lease that have an outcome.
        """


class _Leased(Struct):
    """A lease, and how many workers have died with it."""

    lease: Lease
    deaths: int = 0


class LeaseBook:
    """All leases of one command. A lease ends when its worker reports it, or is taken back."""

    def __init__(self, rows: UnleasedRows) -> None:
        self._rows = rows
        self._returned: deque[_Leased] = deque()  # of dead workers
        self._leased: dict[int, dict[int, _Leased]] = {}  # open ones, by worker and id
        self._again: dict[int, int] = {}  # requests sent again in leases that are done, by worker

    @property
    def left(self) -> int:
        """How many requests are leased to nobody."""
        return self._rows.left + sum(remaining_of(one.lease) for one in self._returned)

    @property
    def is_done(self) -> bool:
        """Whether each row is complete."""
        return not (any(self._leased.values()) or self._returned or self._rows.left)

    def lease(self, worker: int, requests: int) -> Lease | None:
        """Leases about so many requests to the worker; None if there are none left."""
        if self._returned:
            leased = self._returned.popleft()
        elif (lease := self._rows.cut(requests)) is not None:
            leased = _Leased(lease)
        else:
            return None
        self._leased.setdefault(worker, {})[leased.lease.id] = leased
        return leased.lease

    def done(self, worker: int, ids: Iterable[int]) -> None:
        """Ends leases whose rows the worker has all stored; it may report them repeatedly."""
        mine = self._leased.get(worker, {})
        for one in ids:
            leased = mine.pop(one, None)
            if leased is not None:
                again = leased.lease.marks.count(AGAIN)
                self._again[worker] = self._again.get(worker, 0) + again

    def held_by(self, worker: int) -> list[Lease]:
        """Its leases that are not done."""
        return [one.lease for one in self._leased.get(worker, {}).values()]

    def take_back(
        self, worker: int, places: Callable[[Lease], Collection[int]], *, has_died: bool = True
    ) -> int:
        """The worker can store nothing any more.

        `places`: of the requests in a lease that have an outcome. `has_died`: else it was told to
        end. Gives how many requests that were sent again have a new one, by this worker. Raises
        `InputError` where too many workers have died with the same rows.
        """
        again, killer = self._again.pop(worker, 0), None
        for leased in self._leased.pop(worker, {}).values():
            lease = leased.lease
            done = places(lease)
            again += sum(lease.marks[place] == AGAIN for place in done)
            rest = self._rows.rest(lease, done)
            if rest is None:
                continue
            is_moving = remaining_of(rest) < remaining_of(lease)
            deaths = 0 if is_moving else leased.deaths + has_died
            self._returned.append(_Leased(rest, deaths))
            if self._returned[-1].deaths >= MOST_DEATHS:
                killer = rest
        if killer is not None:
            raise InputError(
                f"{MOST_DEATHS} workers in a row ended while they had rows {killer.row + 1:,} to "
                f"{killer.row + killer.rows:,} of the input, and completed none of them; look in "
                "the logs of the cluster for the cause, such as too little memory, then run the "
                "same command again"
            )
        return again


def remaining_of(lease: Lease) -> int:
    """How many requests of a lease are to be sent."""
    return remaining_in(lease.marks)


def remaining_in(marks: bytes | bytearray) -> int:
    """How many of the requests with these marks are to be sent."""
    return len(marks) - marks.count(COMPLETE)


def rows_of(leases: Iterable[Lease]) -> list[int]:
    """The rows of leases, by their numbers in the tables."""
    rows: list[int] = []
    for lease in leases:
        if not lease.numbers:
            rows += range(lease.row, lease.row + lease.rows)
            continue
        numbers = array("q")
        numbers.frombytes(lease.numbers)
        rows += (number for number in numbers if number >= 0)
    return rows
