"""One run from its plan to its end: sends, keeps, counts, watches, ends.

Follow one row: `inputs` reads it and makes a Request; the executor gives it a place; `dispatch`
gets its outcome; the keeper keeps it in the run directory, with whatever arrived at the same time,
and counts it. What stops the sending is collected, and judged by `ending` when all has landed.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import BatchrunError, Interrupted, RunStopped, StopCause, StoreError
from batchrun.executors.local import LocalExecutor, local_executor
from batchrun.job.sections import Job
from batchrun.limits.budget import Budget
from batchrun.pricing.prices import Prices
from batchrun.progress.bottleneck import Pulse
from batchrun.progress.live import Live
from batchrun.progress.status import higher_cap_usd, next_command
from batchrun.progress.summary import RunCounters, Summary, cost_of_left, left_in_words
from batchrun.records import BadRow, Largest, Outcome, Request, RunRecord
from batchrun.retry.failures import FirstRows, TooManyFailures
from batchrun.runner.ending import End, StopSwitch, end_of
from batchrun.runner.plan import Plan
from batchrun.runner.recorder import Recorder
from batchrun.store.reading import example_not_ok
from batchrun.store.run_dir import RunDir
from batchrun.store.snapshot import count_rows
from batchrun.transport.client import Client

DRAIN_S = 20.0  # what is in flight may take this long to land after the first signal


class Watch(Struct):
    """Whoever wants to see: each is called on the run's thread and must be quick."""

    plan: Callable[[Plan, Path], None] = lambda _plan, _path: None
    sending: Callable[[], None] = lambda: None  # the first request is about to go out
    summary: Callable[[Summary], None] = lambda _summary: None


class Run:
    """One run from its plan to its end."""

    def __init__(
        self,
        job: Job,
        run_dir: RunDir,
        plan: Plan,
        record: RunRecord,
        tally: RunCounters,
        watch: Watch,
        stop: StopSwitch,
        prices: Prices,
        most_in_flight: int,
    ) -> None:
        self.job, self.run_dir, self.plan, self.record = job, run_dir, plan, record
        self.tally, self.watch, self.stop = tally, watch, stop
        self.prices, self.most_in_flight = prices, most_in_flight
        self.keeper = Recorder(run_dir, tally, plan.resumed, job.endpoint.base_url, self._stop)
        spent_usd = (record.totals.cost_usd or 0.0) + (record.gone.cost_usd or 0.0)
        spent_usd += run_dir.unfinished.cost_usd
        cap_usd = job.limits.max_cost_usd
        self.budget = None if cap_usd is None else Budget(cap_usd, spent_usd, record.unknown_usd)
        self.causes: list[BaseException] = []  # why nothing more is sent
        self._executor: LocalExecutor | None = None
        self._of_disk = ""  # what came of answers that the disk did not take at once

    def _stop(self, cause: BaseException) -> None:
        """Nothing more is sent; what is in flight lands."""
        if self._executor is None:
            self.causes.append(cause)
        else:
            self._executor.stop(cause)

    async def send(self, client: Client, limit: int | None) -> None:
        """Every row that is not settled, to its outcome in the journal; `end` says what came."""
        try:
            await self._send(client, limit)
        except asyncio.CancelledError:
            self._cancelled()
            raise
        except Exception as error:  # noqa: BLE001 - judged at the end
            self.causes.append(error)
        if self._executor is not None:
            self.causes += self._executor.causes

    def _cancelled(self) -> None:
        """Whoever called has broken off: what has arrived is stored, and `run.json` says so."""
        if self._executor is not None:
            self.keeper.keep(self._executor.rest())
        remaining = self.tally.left(self.plan.rows)
        end = end_of([Interrupted("cancelled", 130)], remaining=remaining, not_asked=0, not_ok=0)
        with contextlib.suppress(StoreError):
            self.run_dir.finish()
            self._save_end(end, end.message, count_rows(self.run_dir.path), None)

    async def _send(self, client: Client, limit: int | None) -> None:
        job, run_dir = self.job, self.run_dir
        run_dir.save(self.record)
        if self.record.older_schema is not None:
            self.watch.summary(self._summary("rewriting an older run directory"))
            await asyncio.to_thread(run_dir.upgrade)
            self.record = replace(self.record, older_schema=None)
        resumed = self.plan.resumed
        run_dir.start(
            part_rows=job.output.part_rows,
            part_bytes=job.output.part_bytes,
            replaces=resumed.resent.rows > 0,
            seal_in_process=True,
        )
        run_dir.log_event("started", rows=self.plan.rows_in_all, to_send=self.plan.to_send)
        largest: Mapping[str, Largest] = {}
        if self.budget is not None and resumed.totals.rows:
            from batchrun.reports.sql import read_largest  # noqa: PLC0415 - duckdb takes 0.1 s

            largest = await asyncio.to_thread(read_largest, run_dir.path)
        executor = self._executor = local_executor(
            job,
            client,
            self.prices,
            self.most_in_flight,
            budget=self.budget,
            largest=largest,
            unfinished=self.keeper,
        )
        requests = self._taken_up(
            self.plan.prompts.requests(self.plan.layout, resumed.settled, limit)
        )
        watchers = (FirstRows(resumed.totals.without(resumed.resent)), TooManyFailures(job.limits))
        async with (
            executor.run(requests) as arriving,
            self._watched(executor),
        ):
            self.stop.listen(lambda: self._interrupt(executor))
            self.watch.sending()
            async for outcomes in arriving:
                try:
                    self._take(outcomes, watchers)
                except Exception as bug:  # noqa: BLE001 - the others must land: judged at the end
                    self._stop(bug)
        self._of_disk = await self.keeper.write_held(
            is_hurried=lambda: len(self.stop.asked) > 1,
            tell=lambda said: self.watch.summary(
                self._summary("waiting for the disk", message=said)
            ),
        )

    def _take(
        self, outcomes: Sequence[Outcome], watchers: Sequence[FirstRows | TooManyFailures]
    ) -> None:
        """Outcomes that have arrived: into the run directory, and looked at."""
        self.keeper.keep(outcomes)
        for watcher in watchers:
            for outcome in outcomes:
                if (reason := watcher.told(outcome)) is not None:
                    self._stop(RunStopped(reason, StopCause.FAILURES))

    def _taken_up(self, requests: Iterator[Request | BadRow]) -> Iterator[Request | BadRow]:
        """The requests; those begun in background by an earlier command know their response."""
        requests = self.keeper.with_earlier(requests)
        if not self.run_dir.unfinished:  # mostly so: a row is read with less
            yield from requests
            return
        for request in requests:
            begun = self.run_dir.unfinished.begun(request.key)
            if isinstance(request, Request) and begun is not None and begun.hash == request.hash:
                yield replace(request, resume_id=begun.response_id)
            else:
                yield request

    async def end(self) -> Summary:
        """Everything into Parquet, the totals into `run.json`.

        Raises `StoreError` where the disk failed, `BatchrunError` for a bug; `run.json` says so, if
        it still can.
        """
        run_dir, causes, totals = self.run_dir, self.causes, self.tally.totals()
        not_ok, parts, example = totals.rows - totals.ok, self.record.parts, None
        if not any(isinstance(cause, StoreError) for cause in causes):
            try:
                await asyncio.to_thread(run_dir.finish)
                parts = await asyncio.to_thread(count_rows, run_dir.path)
                example = example_not_ok(run_dir.path) if not_ok and not causes else None
            except StoreError as error:
                causes.append(error)
        postponed = self.plan.resumed.postponed
        remaining = self.tally.left(self.plan.rows) + postponed
        not_asked = self.plan.rows - self.plan.rows_in_all + postponed
        end = end_of(causes, remaining=remaining, not_asked=not_asked, not_ok=not_ok)
        if end.state == "failed":
            self._fail(end, remaining)
        message, higher_cap_usd = end.message, None
        if end.state == "limited":
            message = f"{self.plan.limited_to} done"
        if isinstance(end.cause, RunStopped) and end.cause.cause is StopCause.BUDGET:
            message = f"{message}; {left_in_words(totals, remaining - not_asked)}"
            higher_cap_usd = self._higher_cap_usd()
        summary = self._summary(
            end.state,
            exit_code=end.exit_code,
            message=message,
            next_command=next_command(
                self.record.command,
                run_dir.path,
                end.exit_code,
                totals.statuses,
                example,
                cap_usd=higher_cap_usd,
                left=remaining,
            ),
        )
        self._save_end(end, message, parts, higher_cap_usd)
        with contextlib.suppress(StoreError):  # run.json says it already
            self._say_end(summary)
        self.watch.summary(summary)
        return summary

    def _fail(self, end: End, remaining: int) -> NoReturn:
        """`run.json` says that the run has failed, if it still can."""
        said = f"{end.message}{self._of_disk}"
        totals, path = self.tally.totals(), self.run_dir.path
        goes_on = next_command(
            self.record.command, path, end.exit_code, totals.statuses, None, left=remaining
        )
        summary = self._summary(
            end.state, exit_code=end.exit_code, message=said, next_command=goes_on
        )
        with contextlib.suppress(StoreError):
            self._save_end(end, said, self.record.parts, None)
            self._say_end(summary)
        self.watch.summary(summary)
        error = StoreError(said) if isinstance(end.cause, StoreError) else BatchrunError(said)
        error.summary = summary
        raise error from end.cause

    def _say_end(self, summary: Summary) -> None:
        """What `run.json` says, for those who look elsewhere. Raises `StoreError`."""
        if self.plan.to_settle:
            code, message = summary.exit_code, summary.message
            self.run_dir.log_event(summary.state, exit_code=code, message=message)
        self.run_dir.write_live(summary)

    def _save_end(
        self, end: End, message: str | None, parts: dict[str, int], higher_cap_usd: float | None
    ) -> None:
        self.run_dir.save(
            replace(
                self.record,
                state=end.state,
                exit_code=end.exit_code,
                message=message,
                totals=self.tally.totals(),
                parts=parts,
                again=self.tally.again + self.plan.resumed.postponed,
                unknown_usd=self.unknown_usd,
                higher_cap_usd=higher_cap_usd,
                updated_at=time.time_ns() // 1000,
            )
        )

    def _higher_cap_usd(self) -> float | None:
        budget, totals = self.budget, self.tally.totals()
        if budget is None:
            return None
        left = self.tally.left(self.plan.rows_in_all)
        spent_usd = budget.spent_usd + budget.unknown_usd
        return higher_cap_usd(spent_usd, left, cost_of_left(totals, left), budget.refused_usd)

    def _interrupt(self, executor: LocalExecutor) -> None:
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

    @contextlib.asynccontextmanager
    async def _watched(self, executor: LocalExecutor) -> AsyncIterator[None]:
        """Shows and writes how the run stands while it is entered."""

        def pulse() -> Pulse:
            return replace(executor.status(), write_s=self.keeper.write_s)

        live = Live(self.run_dir, pulse, self._summary, self.watch.summary)
        ticker = asyncio.create_task(live.watch())
        ticker.add_done_callback(lambda task: _stop_on_error(task, executor))
        try:
            yield
        finally:
            ticker.cancel()
            await asyncio.wait((ticker,))  # it may be writing the file that the end writes too

    def _summary(
        self,
        state: str,
        pulse: Pulse | None = None,
        binds: str | None = None,
        *,
        exit_code: int | None = None,
        message: str | None = None,
        next_command: str | None = None,
    ) -> Summary:
        return self.tally.summary(
            run=str(self.run_dir.path),
            state=state,
            rows=self.plan.rows_in_all,
            source_rows=self.plan.rows,
            postponed=self.plan.resumed.postponed,
            now_s=time.monotonic(),
            pulse=pulse,
            binds=binds,
            exit_code=exit_code,
            message=message,
            next_command=next_command,
            simulated=self.record.simulated,
            unknown_usd=self.unknown_usd,
            unfinished=self.run_dir.unfinished.answers,
            unfinished_usd=self.run_dir.unfinished.cost_usd,
            reserved_usd=self.budget.reserved_usd if self.budget is not None else 0.0,
            cap_usd=self.job.limits.max_cost_usd,
        )

    @property
    def unknown_usd(self) -> float:
        """Reserved for tries that never told what they cost."""
        return self.budget.unknown_usd if self.budget is not None else self.record.unknown_usd


def _stop_on_error(task: asyncio.Task[None], executor: LocalExecutor) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        executor.stop(error)
