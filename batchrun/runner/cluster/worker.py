"""One worker of a run: completes the rows of its leases, and stores them as a writer of its own.

It knows nothing about the engine that runs it. A driver calls `tick` several times a second. If the
driver is silent for too long, the worker gives it up, waits for its requests in flight, and ends.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import BatchrunError, InputError, JobError, RunStopped
from batchrun.executors.local import LocalExecutor, local_executor
from batchrun.executors.messages import (
    AGAIN,
    UNREACHED,
    FleetTick,
    Lease,
    WorkerReport,
    WorkerStop,
)
from batchrun.inputs.prompt_set import PinnedSource, PromptSet
from batchrun.job.credentials import Server
from batchrun.job.job_file import with_user_prices
from batchrun.job.sections import Job, LimitsJob, PriceJob
from batchrun.limits.budget import picodollars
from batchrun.limits.sharing.fence import Fence
from batchrun.limits.sharing.shares import DOLLAR, SharesUsed
from batchrun.limits.sharing.worker_share import WorkerShare
from batchrun.pricing.prices import Prices
from batchrun.progress.bottleneck import Activity
from batchrun.records import BadRow, Largest, Request, RunRecord
from batchrun.remote.object_stores import RemoteError
from batchrun.runner.cluster.lease_feed import LeaseFeed
from batchrun.runner.cluster.leases import is_sent_again, lease_requests, renumbered
from batchrun.runner.cluster.worker_counts import Unheard, WorkerCounts
from batchrun.runner.ending import bug_in_words
from batchrun.runner.plan import Plan
from batchrun.runner.recorder import Recorder
from batchrun.runner.resume import EarlierOutcomes, with_background_ids
from batchrun.store.complete_rows import Span
from batchrun.store.reading import read_largest
from batchrun.store.run_dir import RunDir
from batchrun.store.workers.worker_dir import WorkerDir, last_write_s
from batchrun.transport.client import Client, fit_in_flight
from batchrun.transport.fallback import choose_connections
from batchrun.version import VERSION

_LOOK_EVERY_S = 0.2
_SETTLE_S = 0.4  # until other workers know what one measured: two ticks and their travel


class WorkerSetup(Struct, frozen=True):
    """What a worker is made from, without secrets."""

    job: Job
    source: PinnedSource
    path: Path  # of the run directory
    record: RunRecord  # of the command that has the run
    in_flight: int  # the most of the whole run
    silence_s: float  # a driver silent for longer is given up
    pricing: Mapping[str, PriceJob]  # from the job and from the user's file
    aliases: Mapping[str, str]
    spans: tuple[Span, ...] = ()  # where the older outcomes of rows to send again are
    largest: Mapping[str, Largest] = {}
    had_answers: bool = False
    met_before: str | None = None
    writer: int = 0  # as `RunDir.new_writer` gave it

    def of(self, writer: int) -> "WorkerSetup":
        """The setup of the worker with this number."""
        return replace(self, writer=writer)

    @property
    def answer_s(self) -> float:
        """How long after the driver's last message an answer may still arrive."""
        endpoints = [self.job.endpoint, *(one.endpoint for one in self.job.variants)]
        return last_write_s(self.silence_s, (one.timeout_s for one in endpoints if one is not None))


def worker_setup(
    job: Job, plan: Plan, run_dir: RunDir, record: RunRecord, *, in_flight: int, silence_s: float
) -> WorkerSetup:
    """What all workers of a run have in common, for `of`. Raises `JobError`, `StoreError`.

    `in_flight`: the most of the whole run. `silence_s`: a driver silent for longer is given up.
    """
    pricing, aliases = with_user_prices(job.pricing, job.aliases)
    has_cap, resumed = _has_cap(job.limits), plan.resumed
    return WorkerSetup(
        job=job,
        source=plan.prompts.pinned(plan.layout),
        path=run_dir.path.absolute(),
        record=record,
        in_flight=in_flight,
        silence_s=silence_s,
        pricing=pricing,
        aliases=aliases,
        spans=tuple(replace(span, path=span.path.absolute()) for span in resumed.spans),
        largest=read_largest(run_dir.path) if has_cap and resumed.totals.rows else {},
        had_answers=resumed.totals.ok > 0,
        met_before=record.met_error,
    )


def _has_cap(limits: LimitsJob) -> bool:
    return any(cap is not None for cap in (limits.max_cost_usd, limits.max_cost_per_command_usd))


class _Told(BatchrunError):  # noqa: N818 - no fault
    """The driver asked to stop, which need not be reported."""


class Worker:
    """Open from `start` until `is_over`."""

    def __init__(self, setup: WorkerSetup, servers: Mapping[str | None, Server]) -> None:
        """`servers`: by variant, for those with their own; None: the server of all others."""
        self._setup, self._servers = setup, servers
        limits = setup.job.limits
        self._share = WorkerShare(
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            has_budget=_has_cap(limits),
            settle_s=_SETTLE_S,
        )
        self._done = Unheard[int]()  # leases
        self._feed = LeaseFeed(self._read, self._done.add)
        self._counts = WorkerCounts(self._feed.stored)
        self._earlier = EarlierOutcomes(setup.spans)
        self._causes: list[BaseException] = []
        self._leases: set[int] = set()  # all that it has ever had
        self._number = 0
        self._is_last = False
        self._has_drained = False
        self._is_hurried = False  # waits for no disk
        self.is_over = asyncio.Event()  # everything is on disk, and the lock is free
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Opens the run directory and gets ready for leases. Raises `JobError`, `StoreError`."""
        setup, job = self._setup, self._setup.job
        self._prompts = PromptSet.reopen(setup.source, job)
        self._dir = await asyncio.to_thread(WorkerDir.open, setup.path, setup.writer, setup.record)
        self._recorder = Recorder(
            self._dir,
            self._counts,
            self._earlier,
            lambda variant: job.endpoint_of(variant).base_url,
            self._stop,
        )
        try:
            await asyncio.to_thread(
                self._dir.start,
                part_rows=job.output.part_rows,
                part_bytes=job.output.part_bytes,
                part_seconds=job.output.part_seconds,
                replaces=bool(setup.spans),
                seal_in_process=True,
            )
            async with contextlib.AsyncExitStack() as opening:
                clients = await self._open_clients(opening)
                self._fence = Fence(setup.silence_s)
                self._executor = self._make_executor(clients)
                self._executor.on_stop = self._feed.close
                self._open = opening.pop_all()
        except BaseException:
            await asyncio.to_thread(self._dir.close)
            raise
        self._hear()
        self._running = asyncio.create_task(self._run())

    async def tick(self, tick: FleetTick) -> WorkerReport:
        """Obeys the tick, and reports."""
        if self._fence.is_silent:
            self._give_up()
        else:
            self._hear()
        for lease in tick.leases:
            if lease.id not in self._leases:
                self._leases.add(lease.id)
                self._feed.add(lease)
        self._done.heard(tick.heard)
        self._counts.failures.heard(tick.heard)
        now_s = asyncio.get_running_loop().time()
        if self._share.obey(tick.seq, tick.shares, tick.scopes, now_s):
            self._is_last = tick.last
            if tick.stop is not None:
                self._stop(_Told(tick.stop.reason))
                self._is_hurried = tick.stop.hurried
                if tick.stop.drop:
                    self._executor.drop()
        self._executor.note_last(is_last=self._is_last and not self._feed.unread)
        self._dir.seal_old()
        return self._report()

    def _hear(self) -> None:
        if self._fence.hear() and not self._dir.can_lock:
            self._dir.write_until(time.monotonic() + self._setup.answer_s)

    def _read(self, lease: Lease) -> Iterator[Request | BadRow]:
        """The requests of a lease, with older outcomes and ids of background responses."""
        self._dir.unfinished.refresh()
        expansion = self._prompts.expansion
        requests = lease_requests(self._prompts, self._setup.source.layout, lease)
        if AGAIN in lease.marks:
            requests = self._earlier.read_ahead(
                requests, lambda one: is_sent_again(lease, expansion, one)
            )
        return with_background_ids(renumbered(requests, lease), self._dir.unfinished)

    async def _open_clients(self, opening: contextlib.AsyncExitStack) -> dict[str | None, Client]:
        connect, _ = await choose_connections()
        clients = {}
        for variant, server in self._servers.items():
            clients[variant] = Client(
                server.endpoint,
                server.key,
                server.headers,
                VERSION,
                self._recorder.begin,
                connect=connect,
                words=self._setup.job.retry.words,
            )
            await opening.enter_async_context(clients[variant])
        return clients

    def _make_executor(self, clients: Mapping[str | None, Client]) -> LocalExecutor:
        setup = self._setup
        here, _ = fit_in_flight(setup.job.limits)
        return local_executor(
            setup.job,
            clients,
            Prices(setup.pricing, setup.aliases),
            min(here, setup.in_flight),
            budgets=(),
            largest=setup.largest,
            unfinished=self._recorder,
            had_answers=setup.had_answers,
            met_before=setup.met_before,
            share=self._share,
            further=(self._fence,),
        )

    async def _run(self) -> None:
        """Completes what is leased until a stop, and then writes everything to disk."""
        watching = asyncio.create_task(self._watch())
        try:
            async with self._executor.run(self._feed) as arriving:
                async for outcomes in arriving:
                    if not self._dir.can_lock and self._fence.silent_s > self._setup.answer_s:
                        self._dir.write_until(-math.inf)  # the machine may have been suspended
                    try:
                        self._recorder.record(outcomes)
                    except Exception as bug:  # noqa: BLE001 - reported; the others must be stored
                        self._stop(bug)
                    outcomes.clear()
            await self._recorder.write_held(
                lambda: self._is_hurried or self._fence.is_silent,
                lambda _: None,  # the driver reads it in each report
            )
        except Exception as error:  # noqa: BLE001 - reported
            self._causes.append(error)
        self._feed.close()
        try:
            await self._open.aclose()
            unknown_usd = self._used().spending.unknown / DOLLAR
            await asyncio.to_thread(self._dir.close, has_drained=True, unknown_usd=unknown_usd)
        except Exception as error:  # noqa: BLE001 - reported
            self._causes.append(error)
        self._has_drained = True
        watching.cancel()
        self.is_over.set()

    async def _watch(self) -> None:
        """Gives up a driver that is silent for too long."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._fence.is_silent:
                self._give_up()
                return

    def _give_up(self) -> None:
        silence_s = self._setup.silence_s
        self._stop(_Told(f"no message from the driver for {silence_s:g} s"))

    def _stop(self, cause: BaseException) -> None:
        """Reads and sends nothing more; requests in flight finish."""
        was_told = any(isinstance(one, _Told) for one in self._executor.causes)
        if not (was_told and isinstance(cause, _Told)):
            self._executor.stop(cause)

    def _used(self) -> SharesUsed:
        """What was spent on answers that are not stored is in no table: it counts as unknown."""
        used = self._share.used(asyncio.get_running_loop().time())
        held = min(picodollars(self._recorder.unstored_usd), used.spending.spent)
        if not held:
            return used
        spent, unknown = used.spending.spent - held, used.spending.unknown + held
        return replace(used, spending=replace(used.spending, spent=spent, unknown=unknown))

    def _report(self) -> WorkerReport:
        self._number += 1
        counts, executor = self._counts, self._executor
        activity = Activity() if self._has_drained else executor.status()
        is_reading = activity.is_reading and self._feed.unread > 0  # else it waits for leases
        causes = [*executor.causes, *(one for one in self._causes if one not in executor.causes)]
        return WorkerReport(
            number=self._number,
            seq=self._share.seq,
            done=self._done.tell(self._number),
            unread=self._feed.unread,
            totals=counts.totals(),
            replaced=counts.replaced,
            sent_rows=counts.sent_rows,
            failed_rows=counts.failed_rows,
            failures=counts.failures.tell(self._number),
            used=self._used(),
            stops=tuple(_as_stop(one) for one in causes if not isinstance(one, _Told)),
            activity=replace(activity, write_s=self._recorder.write_s, is_reading=is_reading),
            retries=activity.retries,
            p50_s=counts.latencies.quantile(0.5),
            p99_s=counts.latencies.quantile(0.99),
            sent=counts.sent.times,
            is_drained=self._has_drained,
            unstored=self._recorder.held_in_words,
        )


def _as_stop(cause: BaseException) -> WorkerStop:
    kind = type(cause).__name__
    if isinstance(cause, InputError) and isinstance(cause.__cause__, (JobError, RemoteError)):
        kind = UNREACHED
    if isinstance(cause, RunStopped):
        return WorkerStop(str(cause), cause.cause, kind, cause.endpoint_error, cause.rows)
    return WorkerStop(
        str(cause) if isinstance(cause, BatchrunError) else bug_in_words(cause), None, kind
    )
