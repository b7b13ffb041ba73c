"""Cuts the rows of a plan into leases, and reads the rows of a lease in the worker.

Leases are cut in the order of the input, in one pass. Only the reading does I/O.
"""

import re
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import count

from msgspec.structs import replace

from batchrun.executors.lease_book import remaining_in
from batchrun.executors.messages import AGAIN, COMPLETE, TO_SEND, Lease
from batchrun.formats.amounts import plural
from batchrun.inputs.prompt_set import PromptSet
from batchrun.inputs.rows import OFFSETS_EVERY, FilePart, FileSpan
from batchrun.job.expansion import Expansion
from batchrun.records import BadRow, Layout, Request
from batchrun.runner.plan import Plan
from batchrun.runner.resume import Resumed

# In a lease, complete ones included; more only if the file can be read only as a whole.
MOST_REQUESTS = 65_536
_REMAINING = re.compile(rb"[^\x01]")  # the mark of a request to send
_AS_COMPLETE = bytes.maketrans(bytes((AGAIN,)), bytes((TO_SEND,)))


class PlannedRows:
    """The rows of a plan that are not leased yet: 1 byte for each request."""

    def __init__(
        self,
        spans: Sequence[FileSpan],
        expansion: Expansion,
        marks: bytearray,
        hashes: "array[int]",
        numbers: "array[int] | None" = None,
    ) -> None:
        """`marks` and `hashes`: one for each request; `marks` as in `Lease`.

        `numbers`: the number of each row in the tables, if it is not its place in the input.
        """
        self._spans, self._width = [span for span in spans if span.rows], expansion.width
        self._firsts = [span.first for span in self._spans]
        self._marks, self._hashes, self._numbers = marks, hashes, numbers
        self._next = 0  # request
        self._ids = count(1)
        self.left = remaining_in(marks)  # requests

    def cut(self, requests: int) -> Lease | None:
        """The next rows, with about so many requests to send; None if there are no more.

        More if the file cannot be read in such small parts; fewer if the file ends.
        """
        found = _REMAINING.search(self._marks, self._next)
        if found is None:
            return None
        row = found.start() // self._width
        span = self._spans[bisect_right(self._firsts, row) - 1]
        end = self._end(row, span, requests)
        lease = self._lease(span.part(row, end - row))
        self._next = end * self._width
        self.left -= remaining_in(lease.marks)
        return lease

    def rest(self, lease: Lease, done: Collection[int]) -> Lease | None:
        """A new lease of the rows that are not complete; None if all are.

        `done`: places of the requests in the lease that have an outcome.
        """
        marks = bytearray(lease.marks)
        for place in done:
            marks[place] = COMPLETE
        if not remaining_in(marks):
            return None
        return replace(lease, id=next(self._ids), marks=bytes(marks))

    def _end(self, row: int, span: FileSpan, requests: int) -> int:
        """The row after the last one of a lease that begins with `row`."""
        width, marks, last = self._width, self._marks, span.first + span.rows
        most = min(last, row + max(1, span.least, MOST_REQUESTS // width))
        end, wanted = row, max(requests, 1)
        while end < most and wanted > 0:
            step = min(most, end - (-wanted // width))
            wanted -= remaining_in(marks[end * width : step * width])
            end = step
        end = min(most, max(end, row + span.least))
        while end > row + 1 and not remaining_in(marks[(end - 1) * width : end * width]):
            end -= 1
        return end

    def _lease(self, part: FilePart) -> Lease:
        first, end = part.first * self._width, (part.first + part.rows) * self._width
        before = self._spans[bisect_right(self._firsts, part.first) - 1].first
        in_file = part.first - before
        numbers = b""
        if self._numbers is not None:
            numbers = self._numbers[part.first : part.first + part.rows].tobytes()
        return Lease(
            id=next(self._ids),
            file=part.file,
            first=in_file,
            row=part.first,
            rows=part.rows,
            offset=part.offset,
            offset_row=in_file - part.skipped,
            marks=bytes(self._marks[first:end]),
            line=part.line,
            hashes=self._hashes[first:end].tobytes(),
            numbers=numbers,
        )


def planned_rows(plan: Plan) -> PlannedRows:
    """The rows that a plan sends; the plan must be made for leases. Raises `InputError`."""
    resumed, expansion = plan.resumed, plan.expansion
    marks = bytearray(resumed.complete)
    if plan.limit is not None:
        marks[plan.limit :] = bytes((COMPLETE,)) * max(len(marks) - plan.limit, 0)
    at = resumed.again.find(1)
    while at >= 0:
        if marks[at] != COMPLETE:
            marks[at] = AGAIN
        at = resumed.again.find(1, at + 1)
    numbers = _stored_numbers(resumed, marks, expansion)
    return PlannedRows(plan.prompts.file_spans(), expansion, marks, plan.prompts.hashes, numbers)


def one_worker_file(plan: Plan, workers: int) -> str | None:
    """A warning of a file that one worker must read while others wait; None: no such file.

    Raises `InputError`.
    """
    whole = [span for span in plan.prompts.file_spans() if span.least >= span.rows]
    largest = max(whole, key=lambda span: span.rows, default=None)
    if largest is None or workers < 2 or largest.rows * workers <= plan.source_rows:
        return None
    file, _, rows = plan.prompts.spans()[largest.file]
    if rows < OFFSETS_EVERY:
        return None
    return (
        f"{file} holds {rows:,} of {plural(plan.source_rows, 'row')} and can only be read from "
        f"its start, so a single one of {workers} workers completes them; store it as JSON Lines "
        "without compression, as Parquet, or as several files"
    )


def _stored_numbers(
    resumed: Resumed, marks: bytearray, expansion: Expansion
) -> "array[int] | None":
    """The number of each row in the tables; None if each number is the row's place."""
    if resumed.next_row is None:
        return None
    numbers, number, width = array("q", resumed.stored_rows), resumed.next_row, expansion.width
    for row, known in enumerate(numbers):
        if known < 0 and remaining_in(marks[row * width : (row + 1) * width]):
            numbers[row] = number
            number += 1
    return numbers


def places_of(
    lease: Lease, expansion: Expansion, rows: Iterable[tuple[int, int, str | None]]
) -> set[int]:
    """The places in the lease of those rows that belong to it.

    `rows`: `row`, `sample` and `variant` of each, as in the tables.
    """
    numbers = _numbers_of(lease)
    known = range(lease.row, lease.row + lease.rows) if numbers is None else numbers
    at = {number: place for place, number in enumerate(known) if number >= 0}
    return {
        at[row] * expansion.width + expansion.first_sample(0, variant) + sample
        for row, sample, variant in rows
        if row in at
    }


def _numbers_of(lease: Lease) -> "array[int] | None":
    if not lease.numbers:
        return None
    numbers = array("q")
    numbers.frombytes(lease.numbers)
    return numbers


def lease_requests(prompts: PromptSet, layout: Layout, lease: Lease) -> Iterator[Request | BadRow]:
    """The requests of a lease, the same as when the whole source is read. Raises `InputError`."""
    hashes = array("Q")
    hashes.frombytes(lease.hashes)
    part = FilePart(
        lease.file,
        lease.row,
        lease.rows,
        lease.offset,
        lease.line,
        lease.first - lease.offset_row,
    )
    complete = bytearray(lease.marks.translate(_AS_COMPLETE))
    return prompts.part(part, layout, complete, hashes)


def renumbered(requests: Iterator[Request | BadRow], lease: Lease) -> Iterator[Request | BadRow]:
    """The requests, with the numbers of their rows in the tables."""
    numbers = _numbers_of(lease)
    if numbers is None:
        return requests
    return (replace(one, row=numbers[one.row - lease.row]) for one in requests)


def is_sent_again(lease: Lease, expansion: Expansion, request: Request | BadRow) -> bool:
    """Whether the request, whose row is its place in the input, has an older outcome."""
    return lease.marks[expansion.number(request) - lease.row * expansion.width] == AGAIN
