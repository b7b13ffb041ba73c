"""The messages between a driver and its workers. No I/O.

The driver calls each worker several times a second with a `FleetTick`, and gets a `WorkerReport`
back. Either may be lost, or arrive twice or late. So all counts are totals since the worker began,
and lists are repeated until the other side has them: leases until `WorkerReport.seq` reaches their
tick; finished leases and failures until `FleetTick.heard` reaches their report. From a tick that is
older than the latest one, a worker takes only the leases, each once. A driver ignores a report that
is older than the latest one.
"""

from msgspec import Struct, msgpack

from batchrun.errors import ErrorKind, StopCause
from batchrun.limits.sharing.shares import ScopeNews, Shares, SharesUsed
from batchrun.progress.bottleneck import Activity
from batchrun.records import Totals

# In `Lease.marks`, for each request.
TO_SEND, COMPLETE, AGAIN = 0, 1, 2  # AGAIN: the new outcome replaces an older one
FAILURES = 20  # most in one report


class Lease(Struct, frozen=True):
    """Rows of one file, for one worker to complete."""

    id: int  # never used again
    file: int  # index of the file among those of the source, as planned
    first: int  # row of the file, from 0
    row: int  # the same row in the whole input
    rows: int
    offset: int  # of JSON Lines: the byte at which row `offset_row` of the file begins; else 0
    offset_row: int  # at or before `first`
    marks: bytes  # one for each request, row by row; a row may have several requests
    line: int = 1  # line number of row `offset_row` in the file
    hashes: bytes = b""  # 8 for each request, in the order of `marks`
    numbers: bytes = b""  # 8 for each row: its number in the tables, where that is not `row`


class StopOrder(Struct, frozen=True):
    """Nothing more is sent."""

    reason: str
    drop: bool = False  # requests in flight are dropped; else they finish
    hurried: bool = False  # nor does a disk get time to take what has arrived


class FleetTick(Struct, frozen=True):
    """From the driver to one worker."""

    seq: int  # grows with each tick of this worker, from 1
    heard: int = 0  # the number of the latest report that the driver has
    leases: tuple[Lease, ...] = ()  # those that the worker may not have yet
    shares: Shares = Shares()
    scopes: tuple[ScopeNews, ...] = ()  # what all workers together know
    last: bool = False  # there are no more rows than those leased
    stop: StopOrder | None = None


UNREACHED = "unreached"  # a `WorkerStop.kind`: the input is elsewhere, and it cannot read that


class WorkerStop(Struct, frozen=True):
    """Why a worker has stopped sending by itself."""

    message: str
    cause: StopCause | None = None  # None: its disk, the input, or a bug
    kind: str = ""  # the exception's class: RunStopped, StoreError, InputError, ...; or UNREACHED
    endpoint_error: str | None = None  # as in `RunStopped`
    rows: int | None = None


class FailedRow(Struct, frozen=True):
    """A row that was sent and failed."""

    row: int
    kind: ErrorKind
    message: str
    status: str = "failed"


class WorkerReport(Struct, frozen=True):
    """From a worker to the driver: the answer to a tick."""

    number: int  # grows with each report of this worker, from 1
    seq: int  # of the latest tick that it obeys
    done: tuple[int, ...] = ()  # leases whose rows are all stored, until the driver knows
    unread: int = 0  # rows of its leases that are still to be read
    totals: Totals = Totals()  # of what it has stored
    replaced: Totals = Totals()  # of the older outcomes that these have replaced
    sent_rows: int = 0  # of the stored rows, those that were sent
    failed_rows: int = 0  # of these, those that failed, as `limits.max_failures` counts
    failures: tuple[FailedRow, ...] = ()  # the latest, until the driver knows
    used: SharesUsed = SharesUsed()
    stops: tuple[WorkerStop, ...] = ()  # all of them
    activity: Activity = Activity()  # for the display
    retries: int = 0
    p50_s: float | None = None
    p99_s: float | None = None
    sent: tuple[int, int] | None = None  # its first send and its last answer, µs since 1970
    is_drained: bool = False  # nothing is in flight; what arrived is on disk, but for ...
    unstored: str = ""  # ... what the disk does not take, in words: `3 answers`


_encode = msgpack.Encoder().encode
_ticks, _reports = msgpack.Decoder(FleetTick), msgpack.Decoder(WorkerReport)


def encode(message: FleetTick | WorkerReport) -> bytes:
    """As it travels."""
    return _encode(message)


def decode_tick(data: bytes) -> FleetTick:
    """Raises `msgspec.DecodeError`."""
    return _ticks.decode(data)


def decode_report(data: bytes) -> WorkerReport:
    """Raises `msgspec.DecodeError`."""
    return _reports.decode(data)
