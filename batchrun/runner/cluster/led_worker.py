"""What the driver knows about one worker: its process, its latest report, its state."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from batchrun.errors import BatchrunError, InputError, JobError, RunStopped, StopCause, StoreError
from batchrun.executors.fleet import Fleet
from batchrun.executors.messages import (
    UNREACHED,
    WorkerReport,
    WorkerStop,
    decode_tick,
    encode,
)
from batchrun.executors.worker_process import Greeting, WorkerFailed, WorkerProcess
from batchrun.formats.amounts import duration
from batchrun.job.credentials import Server
from batchrun.progress.summary import WorkerState
from batchrun.records import Totals
from batchrun.remote.access import Access
from batchrun.runner.cluster.worker import Worker, WorkerSetup

ALIVE = ("starting", "running", "silent", "draining")  # states
_SEE_S = 15.0  # a file written on one machine may take so long to appear on another
_SEE_AGAIN_S = 0.2
_BEGIN_S = 300.0  # a worker opens files that all share, on a machine that may be slow


class LedWorker:
    """A worker in its process, as the engine calls it."""

    def __init__(self, setup: WorkerSetup, servers: Mapping[str | None, Server]) -> None:
        self._worker = Worker(setup, servers)

    async def begin(self) -> str | None:
        try:
            await self._worker.start()
        except BatchrunError as error:
            return str(error)
        return None

    async def tick(self, message: bytes) -> bytes:
        return encode(await self._worker.tick(decode_tick(message)))

    async def ended(self) -> None:
        await self._worker.is_over.wait()


class Led:
    """What the driver knows of one worker."""

    def __init__(self, now_s: float) -> None:
        self.state = "starting"
        self.writer = 0  # its number among the writers of the run directory, once it has one
        self.process: WorkerProcess | None = None
        self.is_there = False  # its process has answered
        self.greeting: Greeting | None = None  # once it may take part
        self.report: WorkerReport | None = None
        self.totals: Totals | None = None  # exact, once it was adopted
        self.error: BaseException | None = None  # why it could not start, or no longer works
        self.stops = 0  # how many it has reported
        self.heard_s = now_s  # when it was last heard of
        self.answer_s = 0.0  # for so long after that, an answer may still arrive there
        self.ok_s = -math.inf  # when it last completed a row that is ok
        self.task: asyncio.Task[None] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it works, or is about to."""
        return self.state in ALIVE

    @property
    def is_able(self) -> bool:
        """Whether it completes rows, or is in its process and about to, as far as is known."""
        is_there = self.state == "running" or (self.state == "starting" and self.greeting)
        return bool(is_there) and self.error is None

    @property
    def has_disk(self) -> bool:
        """False once it works no more and has last said that it could not store everything."""
        return self.is_alive or self.report is None or not self.report.unstored

    @property
    def id(self) -> str:
        return f"w{self.writer}"

    @property
    def name(self) -> str:
        host = "" if self.greeting is None else f" on {self.greeting.host}"
        return f"worker {self.id}{host}" if self.writer else f"a worker{host}"

    def hear(self, report: WorkerReport, now_s: float) -> None:
        self.heard_s = now_s
        if self.report is None or report.number > self.report.number:
            if self.report is None or report.totals.ok > self.report.totals.ok:
                self.ok_s = now_s
            self.report = report
            if self.state == "silent":
                self.state = "running"

    async def greet(self, path: str, token: str, access: Access) -> Greeting:
        """Waits until its process is there and sees the run directory, if it ever does.

        Raises `WorkerFailed`.
        """
        assert self.process is not None  # noqa: S101 - it was started
        until_s = math.inf
        while True:
            said = await self.process.greet(path, token, access)
            self.is_there, now_s = True, time.monotonic()
            until_s = min(until_s, now_s + _SEE_S)
            if said.sees_run or now_s >= until_s:
                return said
            await asyncio.sleep(_SEE_AGAIN_S)

    async def begin(
        self,
        setup: WorkerSetup,
        servers: Mapping[str | None, Server],
        within_s: float = _BEGIN_S,
    ) -> None:
        """Makes the worker in its process. Raises `WorkerFailed`, also where that takes too long.

        It may begin later, if its machine only hung. Then it finds that it was adopted.
        """
        assert self.process is not None  # noqa: S101 - it was started
        call = asyncio.ensure_future(self.process.begin(LedWorker, setup, servers))
        await asyncio.wait((call,), timeout=within_s)
        if not call.done():
            call.add_done_callback(forget)
            raise WorkerFailed(f"it did not begin within {duration(within_s)}", is_over=False)
        if (problem := call.result()) is not None:
            raise WorkerFailed(problem, is_over=True)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


def forget(call: "asyncio.Future[Any]") -> None:
    """An answer that comes too late, or never."""
    if not call.cancelled():
        call.exception()


def totals_of(led: Led) -> Totals:
    """The totals of what it has completed."""
    if led.totals is not None:
        return led.totals
    return Totals() if led.report is None else led.report.totals


def latencies_of(reports: Sequence[WorkerReport]) -> tuple[float, float] | None:
    """The median, weighed by rows, and the longest of the 99th percentiles."""
    known = [one for one in reports if one.p50_s is not None and one.p99_s is not None]
    rows = sum(one.sent_rows for one in known)
    if not rows:
        return None
    p50_s = sum((one.p50_s or 0.0) * one.sent_rows for one in known) / rows
    return p50_s, max(one.p99_s or 0.0 for one in known)


def state_of(led: Led, fleet: Fleet, now_s: float) -> WorkerState:
    said, report = led.greeting, led.report
    unknown_usd, reserved_usd = fleet.open_usd(led.writer, now_s)
    return WorkerState(
        id=led.id,
        host="" if said is None else said.host,
        pid=0 if said is None else said.pid,
        state=led.state,
        completed=totals_of(led).rows,
        in_flight=report.used.in_flight if report and led.is_alive else 0,
        waiting=report.used.waiting if report and led.is_alive else 0,
        share=fleet.share_of(led.writer) if led.is_alive else None,
        silent_s=round(now_s - led.heard_s, 1) if led.is_alive else 0.0,
        unknown_usd=unknown_usd,
        reserved_usd=reserved_usd,
    )


def cause_of(led: Led, stop: WorkerStop) -> BaseException:
    """The stop as an exception that `ending` can judge."""
    if stop.cause is not None:
        return RunStopped(
            stop.message, stop.cause, endpoint_error=stop.endpoint_error, rows=stop.rows
        )
    if stop.kind in ("InputError", UNREACHED):
        return InputError(stop.message)
    kind = StoreError if stop.kind == "StoreError" else BatchrunError
    return kind(f"{led.name}: {stop.message}")


def not_started_in_words(led: Led) -> str:
    if isinstance(led.error, JobError):
        return str(led.error)
    return (
        f"a worker cannot be started: {led.error}; install the same versions of batchrun and "
        "Python on all machines of the cluster"
    )


def none_came_in_words(waited_s: float, why: str) -> str:
    because = f" ({why})" if why else ""
    return (
        f"no worker was available for {duration(waited_s)}{because}; check the cluster with "
        "`ray status`, then run the same command again, perhaps with fewer --workers"
    )


def not_begun_in_words(workers: Sequence[Led]) -> str:
    """Why the last of those that never began did not; empty where nobody knows."""
    errors = [one.error for one in workers if one.error is not None and not one.writer]
    return str(errors[-1]) if errors else ""


def held_in_words(workers: Sequence[Led]) -> str | None:
    """What workers hold because their disks do not take it; None if they hold nothing."""
    reports = [(one.name, one.report) for one in workers if one.is_alive and one.report is not None]
    held = [(name, report) for name, report in reports if report.unstored]
    if not held:
        return None
    stops = [stop for _, report in held for stop in report.stops if stop.kind == "StoreError"]
    why = f"{stops[0].message}. " if stops else ""
    what = "; ".join(f"{report.unstored} by {name}" for name, report in held)
    return f"{why}Held for up to a minute: {what}"


def unstored_in_words(led: Led, unstored: str) -> str:
    """`unstored`: as in `WorkerReport`."""
    return (
        f"{led.name}: {unstored} that had arrived could not be stored; paid for, but their rows "
        "are sent again"
    )


def holding_its_lock(led: Led, silent_s: float) -> RunStopped:
    return RunStopped(
        f"{led.name} has not answered for {duration(silent_s)}, but still holds the lock of its "
        "journal; end its process, then run the same command again",
        StopCause.ENDPOINT,
    )
