"""Which rows are leased to which worker, so that each is, until it is complete. No I/O."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from batchrun.errors import InputError
from batchrun.executors.messages import COMPLETE, Lease

_LOOK = 1 << 16  # marks looked at at once
MOST_DEATHS = 5  # of workers that had the same rows


class LeasedFile(Struct, frozen=True):
    """A file of the source, as leases are cut from it."""

    file: int  # its place among the files
    row: int  # its first row in the whole input
    rows: int
    offsets: Sequence[int] = ()  # bytes at which every `step`th row begins; empty: not known
    step: int = 1000
    is_whole: bool = False  # it can only be read from its beginning: one lease


class _Span(Struct):
    """Rows of a file that are leased to nobody."""

    file: LeasedFile
    first: int  # within the file
    rows: int
    deaths: int = 0  # of workers that had them


class _Leased(Struct):
    """A lease and what became of it."""

    lease: Lease
    span: _Span
    is_done: bool = False


class LeaseBook:
    """All leases of one command. A lease is done when its worker says so, or taken back."""

    def __init__(self, files: Sequence[LeasedFile], marks: bytearray, width: int = 1) -> None:
        """`marks`: of all requests of the input, in order, `width` for each row."""
        self.marks, self._width = marks, width
        self._free: deque[_Span] = deque(_Span(one, 0, one.rows) for one in files if one.rows)
        self._leased: dict[str, dict[int, _Leased]] = {}  # by worker and id
        self._ids = 0
        self._open = 0  # leases
        self._left = len(marks) - marks.count(COMPLETE)  # requests leased to nobody

    @property
    def left_rows(self) -> float:
        """Rows leased to nobody, about, where a row is several requests."""
        return self._left / self._width

    @property
    def is_leased(self) -> bool:
        """Whether no row is left to lease, unless a worker dies."""
        return self._left == 0

    @property
    def is_done(self) -> bool:
        """Whether each row is complete."""
        return self._left == 0 and self._open == 0

    def lease(self, worker: str, rows: int) -> Lease | None:
        """About so many rows that are not complete, at least one; null where there are none."""
        while self._free:
            span = self._free[0]
            self._skip(span)
            if not span.rows:
                self._free.popleft()
                continue
            taken = self._take(span, max(1, rows >> span.deaths))
            if not span.rows:
                self._free.popleft()
            lease = self._as_lease(taken)
            self._leased.setdefault(worker, {})[lease.id] = _Leased(lease, taken)
            self._open += 1
            self._left -= len(lease.marks) - lease.marks.count(COMPLETE)
            return lease
        return None

    def done(self, worker: str, ids: Iterable[int]) -> int:
        """The worker has stored every row of these; how many of them are news."""
        count, mine = 0, self._leased.get(worker, {})
        for one in ids:
            leased = mine.get(one)
            if leased is not None and not leased.is_done:
                leased.is_done = True
                count += 1
        self._open -= count
        return count

    def held_by(self, worker: str, *, open_only: bool = True) -> list[Lease]:
        """Its leases; with those that are done, in case that its disk was lost."""
        mine = self._leased.get(worker, {}).values()
        return [one.lease for one in mine if not (open_only and one.is_done)]

    def take_back(self, worker: str, marks: Mapping[int, bytes]) -> int:
        """The worker is dead; `marks`: of each of its leases that is not done, what is complete.

        Of one that is done too, where that is not so. How many requests are leased to nobody now
        that were leased. Raises `InputError` where too many workers have died with the same rows.
        """
        before, failed = self._left, None
        for leased in self._leased.pop(worker, {}).values():
            lease, span = leased.lease, leased.span
            self._open -= not leased.is_done
            now = marks.get(lease.id)
            if now is None:
                if leased.is_done:
                    continue
                now = lease.marks  # nobody knows: all of it again, as far as it is not complete
            first = lease.row * self._width
            self.marks[first : first + len(now)] = now
            remaining = len(now) - now.count(COMPLETE)
            if remaining:
                self._left += remaining
                is_moving = remaining < len(lease.marks) - lease.marks.count(COMPLETE)
                span.deaths = 0 if is_moving else span.deaths + 1
                self._free.appendleft(span)
                if span.deaths >= MOST_DEATHS:
                    failed = lease
        if failed is not None:
            raise InputError(
                f"{MOST_DEATHS} workers died one after the other while they had rows "
                f"{failed.row:,} to {failed.row + failed.rows - 1:,} of the input (from 0); see "
                "the engine's logs for why, for instance too little memory, and run again to go on"
            )
        return self._left - before

    def _skip(self, span: _Span) -> None:
        """Past the complete rows at the beginning of a span."""
        if span.file.is_whole:
            first = span.file.row * self._width
            if self.marks.count(COMPLETE, first, first + span.rows * self._width) == (
                span.rows * self._width
            ):
                span.rows = 0
            return
        while span.rows:
            at = (span.file.row + span.first) * self._width
            looked = min(max(1, _LOOK // self._width), span.rows)
            some = self.marks[at : at + looked * self._width]
            rows = (len(some) - len(some.lstrip(bytes((COMPLETE,))))) // self._width
            span.first, span.rows = span.first + rows, span.rows - rows
            if rows < looked:
                return

    def _take(self, span: _Span, rows: int) -> _Span:
        """So many rows that are not complete from the beginning of a span, which shrinks."""
        file, width = span.file, self._width
        count = span.rows
        if not file.is_whole:
            count, wanted = 0, rows * width
            while count < span.rows and wanted > 0:
                more = min(max(1, wanted // width), span.rows - count, _LOOK)
                at = (file.row + span.first + count) * width
                end = at + more * width
                wanted -= more * width - self.marks.count(COMPLETE, at, end)
                count += more
        taken = _Span(file, span.first, count, span.deaths)
        span.first, span.rows = span.first + count, span.rows - count
        return taken

    def _as_lease(self, span: _Span) -> Lease:
        file = span.file
        self._ids += 1
        index = min(span.first // file.step, len(file.offsets) - 1)
        row = file.row + span.first
        return Lease(
            id=self._ids,
            file=file.file,
            first=span.first,
            row=row,
            rows=span.rows,
            offset=file.offsets[index] if index >= 0 else 0,
            offset_row=index * file.step if index >= 0 else 0,
            marks=bytes(self.marks[row * self._width : (row + span.rows) * self._width]),
        )
