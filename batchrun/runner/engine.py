"""One run from its plan to its end: sends, records, counts, watches, ends.

Follow one row: `inputs` reads it and makes a `Request`; a worker of the executor takes it;
`dispatch` gets its `Outcome`; the recorder stores it in the run directory, with all that arrived at
the same time, and counts it. Causes to stop are collected, and judged by `ending` when what was in
flight has landed.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import (
    BatchrunError,
    Interrupted,
    JobError,
    RunStopped,
    StopCause,
    StoreError,
)
from batchrun.executors.local import local_executor
from batchrun.job.sections import Job
from batchrun.limits.budget import Budget
from batchrun.limits.sharing.fence import ClaimFence
from batchrun.pricing.prices import Prices
from batchrun.progress.bottleneck import Activity, bottleneck
from batchrun.progress.status import next_command
from batchrun.progress.summary import (
    RunCounters,
    Summary,
    WorkerState,
    cost_of_remaining,
    remaining_in_words,
)
from batchrun.records import BadRow, Largest, Outcome, Request, RunRecord
from batchrun.runner.ending import (
    End,
    FirstRows,
    StopSwitch,
    TooManyFailures,
    end_of,
    judge_rows,
    time_is_up,
)
from batchrun.runner.plan import Plan
from batchrun.runner.recorder import Recorder
from batchrun.runner.resume import EarlierOutcomes, numbered, with_background_ids
from batchrun.store.parts import count_rows
from batchrun.store.reading import example_not_ok, read_largest
from batchrun.store.run_dir import RunDir
from batchrun.transport.client import Client

_SHOW_EVERY_S = 0.25
_LIVE_EVERY_S = 1.0
_EVENT_EVERY_S = 10.0
_PLANNED_STOPS = (StopCause.BUDGET, StopCause.TIME)
DRAIN_S = 20.0  # what is in flight may take this long to land after the first signal


class Watch(Struct):
    """Whoever wants to see: each is called on the run's thread and must be quick."""

    doing: Callable[[str], None] = lambda _what: None  # what is done before the plan is there
    plan: Callable[[Plan, Path], None] = lambda _plan, _path: None
    budgets: Callable[[Sequence[Budget]], None] = lambda _budgets: None  # as they fill
    sending: Callable[[], None] = lambda: None  # the first request is about to go out
    summary: Callable[[Summary], None] = lambda _summary: None


class Executor(Protocol):
    """Where the requests of a run go. `causes` says why nothing more is sent, in order."""

    causes: list[BaseException]

    def run(
        self, requests: Iterator[Request | BadRow]
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Outcome]]]:
        """Outcomes as they come; they are stored by the time the next ones are asked for."""

    def stop(self, cause: BaseException) -> None:
        """Sends no more; what is in flight lands."""

    def drop(self) -> None:
        """Drops what is in flight."""

    def rest(self) -> list[Outcome]:
        """What has arrived and was not handed out, where the iteration was broken off."""

    def status(self) -> Activity:
        """How it is doing, for the display."""

    def workers(self) -> tuple[WorkerState, ...]:
        """The processes that send requests for it, if others do."""


class Run:
    """One run from its plan to its end."""

    def __init__(
        self,
        job: Job,
        run_dir: RunDir,
        plan: Plan,
        record: RunRecord,
        counters: RunCounters,
        watch: Watch,
        stop: StopSwitch,
        prices: Prices,
        most_in_flight: int,
        stop_at: float | None = None,
    ) -> None:
        self.job, self.run_dir, self.plan, self.record = job, run_dir, plan, record
        self.counters, self.watch, self.stop = counters, watch, stop
        self.prices, self.most_in_flight = prices, most_in_flight
        self.earlier = EarlierOutcomes(plan.resumed.spans)
        self.recorder = Recorder(run_dir, counters, self.earlier, self._base_url, self._stop_for)
        spent_usd = (record.totals.cost_usd or 0.0) + (record.gone.cost_usd or 0.0)
        spent_usd += run_dir.unfinished.cost_usd
        cap_usd = job.limits.max_cost_usd
        self.budget = None if cap_usd is None else Budget(cap_usd, spent_usd, record.unknown_usd)
        cap_usd = job.limits.max_cost_per_command_usd
        self.command_budget = None if cap_usd is None else Budget(cap_usd, 0.0, of_command=True)
        watch.budgets(self.budgets)
        self.stop_at = stop_at  # seconds since 1970; null: never
        self.causes: list[BaseException] = []  # why nothing more is sent
        self._warnings: list[str] = []  # since the plan was made
        self.waits_for: str | None = None  # what must be done now, while it goes on
        self._executor: Executor | None = None
        self._about_disk = ""  # whether answers were stored that the disk did not take at once

    def _base_url(self, variant: str | None) -> str:
        return self.job.endpoint_of(variant).base_url

    def _stop_for(self, cause: BaseException) -> None:
        """Nothing more is sent; what is in flight lands."""
        if self._executor is None:
            self.causes.append(cause)
        else:
            self._executor.stop(cause)

    async def send(self, clients: Mapping[str | None, Client], limit: int | None) -> None:
        """Every remaining row, to its outcome in the journal; `end` says how it ended.

        `clients`: by the variants that have an endpoint of their own; null: of all others.
        """

        async def make() -> Executor:
            return await self._make_executor(clients)

        await self._carry_out(make, limit)

    async def lead(self, make: Callable[[], Awaitable[Executor]]) -> None:
        """The same by an executor whose workers store the outcomes."""
        await self._carry_out(make, None)

    def tell(self, state: str, message: str | None = None) -> None:
        """Shows what is done where nothing is sent, and what is waited for."""
        self.watch.summary(self._summary(state, message=message))

    def warn(self, what: str) -> None:
        """A warning that the summary has from now on."""
        self._warnings.append(what)

    async def _carry_out(self, make: Callable[[], Awaitable[Executor]], limit: int | None) -> None:
        try:
            await self._prepare()
            self._executor = await make()
            await self._send(self._executor, limit)
        except asyncio.CancelledError:
            self._cancelled()
            raise
        except Exception as error:
            if isinstance(error, JobError) and self._executor is None:  # nothing was sent
                raise
            self.causes.append(error)  # judged at the end
        if self._executor is not None:
            self.causes += self._executor.causes

    def _cancelled(self) -> None:
        """The caller has broken off: what has arrived is stored, and `run.json` says so."""
        if self._executor is not None:
            self.recorder.record(self._executor.rest())
        remaining = self.counters.remaining(self.plan.rows)
        end = end_of([Interrupted("cancelled", 130)], remaining=remaining, not_asked=0, not_ok=0)
        with contextlib.suppress(StoreError):
            self.run_dir.finish()
            self._save_end(end, end.message, count_rows(self.run_dir.path), None)

    async def _prepare(self) -> None:
        """The run directory takes outcomes from now on."""
        run_dir, output = self.run_dir, self.job.output
        run_dir.save(self.record)
        if self.record.older_schema is not None:
            self.tell("rewriting an older run directory")
            await asyncio.to_thread(run_dir.upgrade)
            self.record = replace(self.record, older_schema=None)
        run_dir.start(
            part_rows=output.part_rows,
            part_bytes=output.part_bytes,
            part_seconds=output.part_seconds,
            replaces=self.plan.resumed.resent.rows > 0,
            seal_in_process=True,
        )
        run_dir.log_event("started", rows=self.plan.rows_in_all, to_send=self.plan.to_send)

    async def _make_executor(self, clients: Mapping[str | None, Client]) -> Executor:
        largest: Mapping[str, Largest] = {}
        if self.budgets and self.plan.resumed.totals.rows:
            largest = await asyncio.to_thread(read_largest, self.run_dir.path)
        may_be_taken = self.run_dir.may_be_taken
        return local_executor(
            self.job,
            clients,
            self.prices,
            self.most_in_flight,
            budgets=self.budgets,
            largest=largest,
            unfinished=self.recorder,
            had_answers=self.plan.resumed.totals.ok > 0,
            met_before=self.record.met_error,
            further=() if may_be_taken is None else (ClaimFence(may_be_taken),),
        )

    async def _send(self, executor: Executor, limit: int | None) -> None:
        plan, resumed = self.plan, self.plan.resumed
        requests = plan.prompts.requests(plan.layout, resumed.complete, limit)
        if resumed.resent.rows:
            number, again = plan.expansion.number, resumed.again
            requests = self.earlier.read_ahead(requests, lambda one: again[number(one)])
        requests = numbered(requests, resumed)
        requests = with_background_ids(requests, self.run_dir.unfinished)
        watchers = (
            FirstRows(resumed.totals.without(resumed.resent)),
            TooManyFailures(self.job.limits),
        )
        self._stop_in_time(executor)
        async with executor.run(requests) as arriving, self._watched(executor):
            self.stop.listen(lambda: self._interrupt(executor))
            self.watch.sending()
            async for outcomes in arriving:
                try:
                    self._take(outcomes, executor, watchers)
                except Exception as bug:  # noqa: BLE001 - the others must land: judged at the end
                    executor.stop(bug)
                outcomes.clear()  # their rows may be large
        self._about_disk = await self.recorder.write_held(
            is_hurried=lambda: len(self.stop.asked) > 1,
            tell=partial(self.tell, "waiting for the disk"),
        )

    def _take(
        self,
        outcomes: list[Outcome],
        executor: Executor,
        watchers: Sequence[FirstRows | TooManyFailures],
    ) -> None:
        """Records outcomes, and stops where too many rows fail."""
        self.recorder.record(outcomes)
        for watcher in watchers:
            for outcome in outcomes:
                if (reason := watcher.count(outcome)) is not None:
                    executor.stop(RunStopped(reason, StopCause.FAILURES))

    @contextlib.asynccontextmanager
    async def _watched(self, executor: Executor) -> AsyncIterator[None]:
        """Shows and writes how the run is doing while it is entered."""

        def activity() -> Activity:
            self._stop_in_time(executor)
            return replace(executor.status(), write_s=self.recorder.write_s)

        def stop_on_error(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                executor.stop(error)

        watching = _watch_run(self.run_dir, activity, self._summary, self.watch.summary)
        ticker = asyncio.create_task(watching)
        ticker.add_done_callback(stop_on_error)
        try:
            yield
        finally:
            ticker.cancel()
            await asyncio.wait((ticker,))  # it may be writing the file that the end writes too

    def _stop_in_time(self, executor: Executor) -> None:
        """Nothing more is sent once it is time; asked a few times a second."""
        if self.stop_at is not None and time.time() >= self.stop_at:
            self.stop_at = None
            said = [one.says for one in executor.status().limits if one.says]
            executor.stop(time_is_up(self.job.limits, said[0] if said else None))

    def _interrupt(self, executor: Executor) -> None:
        for cause in self.stop.asked:
            executor.stop(cause)
        if len(self.stop.asked) > 1:  # the first may have come before anything was sent
            executor.drop()
            return
        asyncio.get_running_loop().call_later(DRAIN_S, executor.drop)
        try:
            self.run_dir.log_event("stopping", why=str(self.stop.asked[0]))
        except StoreError as error:
            executor.stop(error)

    async def end(self) -> Summary:
        """Everything into Parquet, the totals into `run.json`.

        Raises `StoreError` where the disk failed, `BatchrunError` for a bug; `run.json` says so, if
        it still can.
        """
        run_dir, causes, totals = self.run_dir, self.causes, self.counters.totals()
        not_ok, verdict = judge_rows(self.job.limits, totals, self.record.judged)
        parts, example = self.record.parts, None
        if not any(isinstance(cause, StoreError) for cause in causes):
            try:
                await asyncio.to_thread(run_dir.finish)
                parts = await asyncio.to_thread(count_rows, run_dir.path)
                example = example_not_ok(run_dir.path) if not_ok and not causes else None
            except StoreError as error:
                causes.append(error)
        postponed = self.plan.resumed.postponed
        remaining = self.counters.remaining(self.plan.rows) + postponed
        not_asked = self.plan.rows - self.plan.rows_in_all + postponed
        end = end_of(causes, remaining=remaining, not_asked=not_asked, not_ok=not_ok)
        message, cap_usd = end.message, None
        if end.state == "limited":
            message = "; ".join(filter(None, (f"{self.plan.limited_to} done", verdict)))
        elif end.state == "finished":
            message = verdict
        elif end.state == "failed":
            message = f"{message}{self._about_disk}"
        elif isinstance(end.cause, RunStopped) and end.cause.cause in _PLANNED_STOPS:
            message = f"{message}; {remaining_in_words(totals, remaining - not_asked)}"
            cap_usd = self._higher_cap_usd()
        summary = self._summary(
            end.state,
            exit_code=end.exit_code,
            message=message,
            next_command=next_command(
                self.record.command,
                run_dir.name,
                end.exit_code,
                totals.statuses,
                example,
                cap_usd=cap_usd,
                remaining=remaining - self.plan.left_out,
                asked=remaining - not_asked,
                beyond_pilot=self.plan.beyond_pilot,
            ),
        )
        has_failed = end.state == "failed"
        with contextlib.suppress(StoreError) if has_failed else contextlib.nullcontext():
            self._save_end(end, message, parts, cap_usd)
        with contextlib.suppress(StoreError):  # run.json says it already
            if self.plan.to_complete:
                run_dir.log_event(end.state, exit_code=end.exit_code, message=message)
            run_dir.write_live(summary)
        self.watch.summary(summary)
        if has_failed:
            kind = StoreError if isinstance(end.cause, StoreError) else BatchrunError
            failure = kind(message)
            failure.summary = summary
            raise failure from end.cause
        return summary

    def _save_end(
        self, end: End, message: str | None, parts: dict[str, int], higher_cap_usd: float | None
    ) -> None:
        workers = () if self._executor is None else self._executor.workers()
        self.run_dir.save(
            replace(
                self.record,
                state=end.state,
                exit_code=end.exit_code,
                message=message,
                totals=self.counters.totals(),
                parts=parts,
                again=self.counters.again + self.plan.resumed.postponed,
                # Of workers that could not be adopted, all that they may still spend.
                unknown_usd=self.unknown_usd + sum(one.reserved_usd for one in workers),
                higher_cap_usd=higher_cap_usd,
                met_error=self._met_error(end),
                updated_at=time.time_ns() // 1000,
            )
        )

    def _met_error(self, end: End) -> str | None:
        """The error that the next command may end rows with, where it meets it again."""
        cause = end.cause
        if not isinstance(cause, RunStopped):
            return None
        remaining = self.counters.remaining(self.plan.rows_in_all)
        return cause.endpoint_error if cause.rows is None or remaining <= cause.rows else None

    def _higher_cap_usd(self) -> float | None:
        if self.budget is None or not self.budget.is_used_up:
            return None
        left = self.counters.remaining(self.plan.rows_in_all)
        return self.budget.enough_usd(left, cost_of_remaining(self.counters.totals(), left))

    def _summary(
        self,
        state: str,
        activity: Activity | None = None,
        binds: str | None = None,
        *,
        exit_code: int | None = None,
        message: str | None = None,
        next_command: str | None = None,
    ) -> Summary:
        workers = () if self._executor is None else self._executor.workers()
        return self.counters.summary(
            run=self.run_dir.name,
            state=state,
            rows=self.plan.rows_in_all,
            source_rows=self.plan.rows,
            postponed=self.plan.resumed.postponed,
            left_out=self.plan.left_out,
            beyond_pilot=self.plan.beyond_pilot,
            now_s=time.monotonic(),
            activity=activity,
            binds=binds,
            exit_code=exit_code,
            message=self.waits_for if message is None and exit_code is None else message,
            next_command=next_command,
            simulated=self.record.simulated,
            unknown_usd=self.unknown_usd,
            unfinished=self.run_dir.unfinished.answers,
            unfinished_usd=self.run_dir.unfinished.cost_usd,
            reserved_usd=self._reserved_usd(workers),
            warnings=(*self.plan.warnings, *self._warnings),
            samples=self.plan.expansion.samples,
            variants=tuple(one.name for one in self.job.variants),
            cap_usd=self.job.limits.max_cost_usd,
            workers=workers,
        )

    def _reserved_usd(self, workers: Sequence[WorkerState]) -> float:
        """For what is in flight, and for what else `workers` may still start."""
        if workers:
            return sum(one.reserved_usd for one in workers)
        return max((one.reserved_usd for one in self.budgets), default=0.0)

    @property
    def budgets(self) -> list[Budget]:
        return [one for one in (self.budget, self.command_budget) if one is not None]

    @property
    def unknown_usd(self) -> float:
        """Reserved for attempts that reported no usage; spent on answers that no disk took."""
        unstored_usd = self.recorder.unstored_usd
        if self.budget is not None:
            return self.budget.unknown_usd + unstored_usd
        of_command = self.command_budget.unknown_usd if self.command_budget is not None else 0.0
        return self.record.unknown_usd + of_command + unstored_usd


async def _watch_run(
    run_dir: RunDir,
    activity: Callable[[], Activity],
    summary: Callable[[str, Activity, str], Summary],
    show: Callable[[Summary], None],
) -> None:
    """Looks at the run a few times a second until it is cancelled. Raises `StoreError`."""
    live_s = -_LIVE_EVERY_S
    begun_s = tick_s = time.monotonic()
    looked_s, cpu_s, write_s = begun_s, time.process_time(), 0.0
    paused: str | None = None  # as last logged
    while True:
        now_s, now_cpu_s, now = time.monotonic(), time.process_time(), activity()
        passed_s = max(now_s - looked_s, 1e-3)
        binds = bottleneck(now, (now_cpu_s - cpu_s) / passed_s, (now.write_s - write_s) / passed_s)
        looked_s, cpu_s, write_s = now_s, now_cpu_s, now.write_s
        current = summary("stopping" if now.is_stopping else "running", now, binds)
        show(current)
        if current.paused_by != paused:
            if paused is not None:
                run_dir.log_event("over", of=paused)
            paused = current.paused_by
            if paused is not None:
                run_dir.log_event(paused, binds=binds)
        run_dir.seal_old()
        if now_s - live_s >= _LIVE_EVERY_S:
            live_s = now_s
            # To replace a file may take a disk 0.1 s, on which the event loop must not wait.
            await _to_its_end(run_dir.write_live, current)
        if now_s >= tick_s:  # more often at first: much changes then, and short runs have some too
            tick_s = now_s + min(_EVENT_EVERY_S, max(_LIVE_EVERY_S, now_s - begun_s))
            run_dir.log_event("tick", settled=current.settled, left=current.left, binds=binds)
        await asyncio.sleep(_SHOW_EVERY_S)


async def _to_its_end(write: Callable[[Summary], None], summary: Summary) -> None:
    """In a thread; a cancellation waits until it has ended."""
    written = asyncio.get_running_loop().run_in_executor(None, write, summary)
    try:
        await asyncio.shield(written)
    except asyncio.CancelledError:
        await asyncio.wait((written,))
        written.exception()  # retrieved: the end writes the file again and meets the error itself
        raise
