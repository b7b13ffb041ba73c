"""Leads the workers of a run: starts them, calls each several times a second, adopts ended ones.

An executor (see `runner/engine.py`) whose workers store the outcomes themselves: it hands out no
outcomes, and counts what workers report. `executors/fleet.py` makes the decisions.

Each worker has a task of its own, so no call waits for another worker. Errors of the engine are a
hint to look at a worker; only its lock proves that it has ended.
"""

import asyncio
import contextlib
import math
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from batchrun.errors import JobError, RunStopped, StopCause, StoreError
from batchrun.executors.fleet import Fleet
from batchrun.executors.messages import (
    UNREACHED,
    StopOrder,
    WorkerStop,
    decode_report,
    encode,
)
from batchrun.executors.worker_process import (
    Cluster,
    Greeting,
    WorkerFailed,
    check_greeting,
    check_machines,
    write_probe,
)
from batchrun.formats.amounts import plural
from batchrun.job.credentials import Server
from batchrun.progress.bottleneck import Activity
from batchrun.progress.summary import WorkerState
from batchrun.records import BadRow, Outcome, Request, Totals
from batchrun.remote.access import own_access
from batchrun.runner.cluster.fleet_view import added, joined
from batchrun.runner.cluster.leases import places_of
from batchrun.runner.cluster.led_worker import (
    Led,
    cause_of,
    forget,
    held_in_words,
    holding_its_lock,
    latencies_of,
    none_came_in_words,
    not_begun_in_words,
    not_started_in_words,
    state_of,
    totals_of,
    unstored_in_words,
)
from batchrun.runner.cluster.worker import WorkerSetup
from batchrun.runner.ending import FirstRows, TooManyFailures
from batchrun.runner.engine import Run
from batchrun.store.files import JOURNAL, storing
from batchrun.store.reading import read_totals

_TICK_S = 0.15  # between two calls of a worker
_LOOK_S = 0.1  # between two looks at all of them
_GATHER_S = 10.0  # wait for more workers once one is there, before anything is sent
_MOST_GATHER_S = 40.0  # ... while one that is there does not see the run directory yet
_AGAIN_S = 1.0  # before a worker that could not be reached is called again
_MOST_BACKOFF_S = 60.0  # before another worker is started, if the last ones ended soon
_LOCK_S = 0.3  # between two attempts to take the lock of a worker
_KILL_AGAIN_S = 10.0
_SILENT_S = 5.0  # after this time the display shows a worker as silent
_ALONE = 2  # times the silence: that an endpoint is down for one worker, and answers others, ...
_ALONE_LEAST_S = 8.0  # ... in which it has sent it some more requests
_GIVE_UP_LOCK_S = 300.0  # beyond the time that a worker may need for its requests in flight
_ASK_FREE_S = 2.0
_SEAL_EVERY_S = 5.0
_WORKING = ("running", "silent")
_NAME = "batchrun-worker"
Result = TypeVar("Result")


class Driver:
    """The workers of one run, from the first request for one until the last has ended."""

    def __init__(
        self,
        cluster: Cluster,
        fleet: Fleet,
        run: Run,
        setup: Callable[[], WorkerSetup],
        servers: Mapping[str | None, Server],
    ) -> None:
        """`setup`: makes the setup of one more worker; `servers`: as for `Worker`."""
        self._cluster, self._fleet, self._run = cluster, fleet, run
        self._setup, self._servers = setup, servers
        self._job, self._dir = run.job, run.run_dir
        self._wanted = self._job.cluster.workers or 1
        self._silence_s = self._job.cluster.silence_s
        self._token = secrets.token_hex(8)
        self._probe: Path | None = None
        self._go = asyncio.Event()  # workers may begin
        self._news = asyncio.Event()
        self._workers: list[Led] = []
        self._failed_starts = 0  # in a row
        self._next_start_s = 0.0
        self._idle_s = math.inf  # since when no worker has worked
        self._again = run.plan.resumed.resent.rows  # rows whose older outcome still counts
        self._first_rows = FirstRows(run.plan.resumed.totals.without(run.plan.resumed.resent))
        self._too_many = TooManyFailures(self._job.limits)
        self._is_sealing = False
        self._refused: set[str] = set()  # why workers could not take part, in words
        self.causes: list[BaseException] = []  # why nothing more is sent, in order

    async def gather(self, tell: Callable[[str], None], check: Callable[[], None]) -> None:
        """Waits for workers, before anything is sent. `check` raises if the run should stop.

        Raises `JobError` if a worker cannot take part, `RunStopped` if none comes, and what
        `check` raises.
        """
        journal = self._dir.path / JOURNAL
        is_new = not journal.exists()
        try:
            with storing(self._dir.path, "write"):
                self._probe = write_probe(self._dir.path, self._token)
            await self._gather(tell, check)
            self._check_machines(self._greetings())
        except BaseException:
            self.end_all()
            if is_new:
                with contextlib.suppress(OSError):
                    journal.rmdir()
            raise

    async def _gather(self, tell: Callable[[str], None], check: Callable[[], None]) -> None:
        began_s, first_s, looked_s, free = time.monotonic(), math.inf, -math.inf, ""
        for _ in range(self._wanted):
            self._ask_for_one(began_s)
        while True:
            check()
            if (failed := next((one for one in self._workers if one.error), None)) is not None:
                raise JobError(not_started_in_words(failed)) from failed.error
            now_s, ready = time.monotonic(), len(self._greetings())
            first_s = min(first_s, now_s) if ready else first_s
            has_come = any(one.is_there and one.greeting is None for one in self._workers)
            longest_s = _MOST_GATHER_S if has_come else _GATHER_S
            if ready == self._wanted or now_s - first_s >= longest_s:
                return
            if not ready and now_s - began_s >= self._job.limits.outage_s:
                raise RunStopped(none_came_in_words(now_s - began_s, free), StopCause.ENDPOINT)
            if now_s - looked_s >= _ASK_FREE_S:
                looked_s, free = now_s, await _aside(self._cluster.free_in_words)
            tell(f"{ready} of {plural(self._wanted, 'worker')} started; {free}")
            await asyncio.sleep(_LOOK_S)

    @asynccontextmanager
    async def run(self, _requests: Iterator[Request | BadRow]) -> AsyncIterator[Self]:
        """Hands out no outcomes; ends when all workers have ended."""
        self._idle_s = time.monotonic()
        self._go.set()
        try:
            yield self
        finally:
            self.end_all()
        self._follow(await _aside(partial(read_totals, self._dir.path)))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Outcome]:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), _LOOK_S)
        self._news.clear()
        self._look(time.monotonic())
        if self._is_over():
            raise StopAsyncIteration
        return []

    def stop(self, cause: BaseException) -> None:
        """Sends nothing more; requests in flight finish."""
        self.causes.append(cause)
        self._order(StopOrder(str(cause)))

    def drop(self) -> None:
        """Drops the requests in flight."""
        is_hurried = len(self._run.stop.asked) > 1
        self._order(StopOrder("what is in flight is dropped", drop=True, hurried=is_hurried))

    def rest(self) -> list[Outcome]:
        """No outcomes: workers store theirs."""
        return []

    def status(self) -> Activity:
        """How all workers are doing, for the display."""
        reports = [one.report for one in self._workers if one.is_alive and one.report is not None]
        activities = [report.activity for report in reports]
        return joined(activities, time.monotonic(), is_stopping=bool(self.causes))

    def workers(self) -> tuple[WorkerState, ...]:
        """Each that has begun, for the display."""
        now_s = time.monotonic()
        return tuple(state_of(one, self._fleet, now_s) for one in self._workers if one.writer)

    # --- what happens several times a second

    def _look(self, now_s: float) -> None:
        for one in self._workers:
            if one.state == "running" and now_s - one.heard_s >= _SILENT_S:
                one.state = "silent"
        working = [one for one in self._workers if one.state in _WORKING]
        self._idle_s = math.inf if working else min(self._idle_s, now_s)
        if self._fleet.is_done:
            self._order(StopOrder("all rows are complete"))
        elif not self.causes:
            if (reason := self._fleet.stop_reason(now_s)) is not None:
                self.stop(reason)
            self._stop_cut_off(now_s)
            self._replace_lost(now_s)
        self._judge_rows()
        self._seal()
        self._run.waits_for = held_in_words(self._workers)
        self._follow(None)

    def _replace_lost(self, now_s: float) -> None:
        """Asks for new workers in place of lost ones, but not of those whose disk took no answers.

        A new one may get the same disk, and would lose what it pays for in the same way.
        """
        alive = sum(one.is_alive for one in self._workers)
        wanted = self._wanted - sum(not one.has_disk for one in self._workers)
        if not alive and (problem := self._cluster.problem()) is not None:
            self.stop(RunStopped(f"{problem}; run the same command again", StopCause.ENDPOINT))
        elif now_s - self._idle_s >= self._job.limits.outage_s:
            why = none_came_in_words(now_s - self._idle_s, not_begun_in_words(self._workers))
            self.stop(RunStopped(why, StopCause.ENDPOINT))
        elif alive < wanted and now_s >= self._next_start_s:
            self._ask_for_one(now_s)
            self._next_start_s = now_s + min(2.0**self._failed_starts, _MOST_BACKOFF_S)
            self._failed_starts += 1  # until one works

    def _stop_cut_off(self, now_s: float) -> None:
        """Of workers that reach no endpoint, while others do, others complete the rows."""
        patience_s = max(_ALONE * self._silence_s, _ALONE_LEAST_S)
        cut_off = self._fleet.cut_off(now_s, patience_s)
        for led in self._workers:
            if led.state == "running" and led.writer in cut_off and led.error is None:
                why = f"the endpoint answers other workers, and not this one: {cut_off[led.writer]}"
                self._fleet.stop(StopOrder(why), led.writer)
                self._log_stop(led, RunStopped(why, StopCause.ENDPOINT))

    def _log_stop(self, led: Led, why: BaseException) -> None:
        """One worker sends nothing more, and the run goes on."""
        led.error = why
        held = (
            {} if led.report is None or not led.report.unstored else {"held": led.report.unstored}
        )
        self._log("worker_stopped", led, why=str(why), **held)

    def _judge_rows(self) -> None:
        """Stops if too many rows fail."""
        reports = [one.report for one in self._workers if one.report is not None]
        failures = [failure for report in reports for failure in report.failures]
        if self.causes or not failures:
            return
        rows = sum(report.sent_rows for report in reports)
        failed = sum(report.failed_rows for report in reports)
        kinds = added(report.totals for report in reports).error_kinds
        last = failures[-1]
        for reason in (
            self._first_rows.look(rows, kinds, last.kind, last.message),
            self._too_many.look(rows, failed, last.kind, last.message),
        ):
            if reason is not None:
                self.stop(RunStopped(reason, StopCause.FAILURES))

    def _judge_stop(self, led: Led, stop: WorkerStop) -> None:
        """Stops the run for a worker's error, unless only this worker has it."""
        cause = cause_of(led, stop)
        others = [one for one in self._workers if one is not led and one.is_able]
        since_s = time.monotonic() - self._job.limits.outage_s
        is_network = stop.cause is StopCause.ENDPOINT or stop.kind == UNREACHED
        is_alone = isinstance(cause, StoreError) or (
            is_network and any(one.ok_s > since_s for one in others)
        )
        if others and is_alone:  # its machine, perhaps: others complete its rows
            self._log_stop(led, cause)
        else:
            self.stop(cause)

    def _follow(self, totals: Totals | None) -> None:
        """Counts what workers report; `totals`: those of the run, from its tables."""
        plan, reports = self._run.plan, [one.report for one in self._workers if one.report]
        # Older outcomes count until new ones are stored; for adopted workers the number is exact.
        open_reports = [one.report for one in self._workers if one.report and one.totals is None]
        again = self._again - sum(report.replaced.rows for report in open_reports)
        if totals is None:
            new = [totals_of(one) for one in self._workers]
            replaced = added(report.replaced for report in reports)
            totals = added([plan.resumed.totals, *new]).without(replaced)
        examples = {
            failure.kind.value: failure.message
            for report in reports
            for failure in reversed(report.failures)
        }
        self._run.counters.follow(
            totals,
            completed=sum(totals_of(one).rows for one in self._workers),
            again=again,
            examples=examples,
            latencies_s=latencies_of(reports),
            spans=[report.sent for report in reports],
        )

    def _seal(self) -> None:
        """If rows are sent again, seals from time to time what workers leave to this process."""
        if self._is_sealing or not self._run.plan.resumed.resent.rows:
            return
        self._is_sealing = True

        async def seal() -> None:
            try:
                await _aside(self._dir.seal_full_segments)
            except StoreError as error:
                self.stop(error)
            await asyncio.sleep(_SEAL_EVERY_S)
            self._is_sealing = False

        self._sealing = asyncio.create_task(seal())

    def _is_over(self) -> bool:
        """Whether no worker is left that can still do something."""
        if any(one.task is not None and not one.task.done() for one in self._workers):
            return False
        return bool(self.causes) or self._fleet.is_done

    def _order(self, order: StopOrder) -> None:
        """Sends the order with each worker's next tick; workers that are starting never begin."""
        self._fleet.stop(order)
        for one in self._workers:
            if one.state == "starting" and one.task is not None:
                one.task.cancel()
        self._news.set()

    # --- one worker, from asking for it until it is adopted

    def _ask_for_one(self, now_s: float) -> None:
        led = Led(now_s)
        self._workers.append(led)
        led.task = asyncio.create_task(self._lead(led))

    async def _lead(self, led: Led) -> None:
        try:
            await self._start(led)
            await self._go.wait()
            await self._begin(led)
            self._log("worker_started", led)
            await self._call(led)
            led.state = "draining"
        except (WorkerFailed, JobError) as error:
            led.error, led.state = error, "lost"
            if led.writer:
                self._log("worker_lost", led, why=str(error))
            elif isinstance(error, JobError) and str(error) not in self._refused:
                self._refused.add(str(error))
                self._run.warn(f"a worker that came later cannot take part: {error}")
        except asyncio.CancelledError:
            led.state = "lost"
            led.kill()
            raise
        except Exception as error:  # noqa: BLE001 - the driver's own disk, or a bug: the run ends
            led.error, led.state = error, "lost"
            self.stop(error)
        if led.writer:
            try:
                await self._adopt(led)
            except Exception as error:  # noqa: BLE001 - else nobody sees it, and its rows stay out
                self.stop(error)
        led.kill()  # where it has not ended by itself
        self._news.set()

    async def _start(self, led: Led) -> None:
        """Starts its process; checks that it may take part. Raises `JobError`, `WorkerFailed`."""
        led.process = await _aside(partial(self._cluster.start, _NAME))
        path = self._dir.path.absolute()
        said = await led.greet(str(path), self._token, own_access())
        check_greeting(said, path)
        if self._go.is_set():  # before that, `gather` checks all together
            self._check_machines([said, *self._greetings()])
        led.greeting, led.heard_s = said, time.monotonic()
        self._news.set()

    async def _begin(self, led: Led) -> None:
        """Makes it ready for leases. Raises `WorkerFailed`, `StoreError`."""
        setup = await _aside(self._setup)  # a run in a store writes there
        led.writer, led.answer_s = setup.writer, setup.answer_s
        await led.begin(setup, self._servers)
        led.heard_s = time.monotonic()
        self._fleet.add(led.writer, led.heard_s)
        led.state = "running"

    async def _call(self, led: Led) -> None:
        """Calls it until it has nothing in flight any more. Raises `WorkerFailed`."""
        assert led.process is not None  # noqa: S101 - `_start` came before
        while True:
            message = encode(self._fleet.tick(led.writer, time.monotonic()))
            report = decode_report(await self._answer(led, message))
            now_s = time.monotonic()
            led.hear(report, now_s)
            self._fleet.hear(led.writer, report, now_s)
            for stop in report.stops[led.stops :]:
                self._judge_stop(led, stop)
            led.stops = max(led.stops, len(report.stops))
            if report.sent_rows:
                self._failed_starts = 0
            self._news.set()
            if report.is_drained:
                return
            await asyncio.sleep(_TICK_S)

    async def _answer(self, led: Led, message: bytes) -> bytes:
        """Its answer to a tick. Raises `WorkerFailed` if it does not answer for too long."""
        assert led.process is not None  # noqa: S101 - `_start` came before
        while True:
            call = asyncio.ensure_future(led.process.tick(message))
            left_s = led.heard_s + self._silence_s - time.monotonic()
            await asyncio.wait((call,), timeout=max(left_s, _AGAIN_S))
            if not call.done():  # it gives up this driver too; its lock will show when it has ended
                call.add_done_callback(forget)
                raise WorkerFailed(f"no answer for {self._silence_s:g} s", is_over=False)
            try:
                return call.result()
            except WorkerFailed as error:
                if error.is_over or time.monotonic() - led.heard_s >= self._silence_s:
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def _adopt(self, led: Led) -> None:
        """Takes over what it stored, and makes its other rows free for new leases."""
        rows = self._fleet.rows_of(led.writer)
        lost_s, killed_s = time.monotonic(), -math.inf
        while True:
            now_s = time.monotonic()
            is_silent = now_s - led.heard_s >= led.answer_s + self._silence_s
            adopt = partial(self._dir.adopt, led.writer, rows, is_silent=is_silent)
            adopted = await _aside(adopt)
            if adopted is not None:
                break
            if is_silent and now_s - killed_s >= _KILL_AGAIN_S:
                killed_s = now_s
                led.kill()
            if is_silent and now_s - lost_s >= led.answer_s + _GIVE_UP_LOCK_S:
                self.stop(holding_its_lock(led, now_s - lost_s))
                return
            await asyncio.sleep(_LOCK_S)
        expansion, complete = self._run.plan.expansion, adopted.complete
        places = partial(places_of, expansion=expansion, rows=complete)
        self._again -= self._fleet.adopted(led.writer, places, time.monotonic())
        led.totals = adopted.totals
        was_lost, led.state = led.state == "lost", "adopted" if led.state == "lost" else "ended"
        facts: dict[str, object] = {"rows": adopted.totals.rows}
        if led.report is not None and led.report.unstored:
            facts["unstored"] = led.report.unstored
            self._run.warn(unstored_in_words(led, led.report.unstored))
        for warning in adopted.warnings:
            self._run.warn(warning)
        self._log("worker_adopted" if was_lost else "worker_drained", led, **facts)

    def end_all(self) -> None:
        """Ends all workers, and waits for none."""
        for one in self._workers:
            if one.task is not None and not one.task.done():
                one.task.cancel()
            one.kill()
        if self._probe is not None:
            with contextlib.suppress(OSError):
                self._probe.unlink(missing_ok=True)

    def _greetings(self) -> list[Greeting]:
        return [one.greeting for one in self._workers if one.is_alive and one.greeting is not None]

    def _check_machines(self, greetings: Sequence[Greeting]) -> None:
        """Raises `JobError` if each machine would call its own loopback."""
        simulated = self._run.record.simulated
        if simulated or not self._job.cluster.per_node_endpoint:
            endpoints = [server.endpoint for server in self._servers.values()]
            urls = [one.base_url for one in endpoints if one.is_loopback]
            check_machines(greetings, urls, simulated=simulated)

    def _log(self, event: str, led: Led, **facts: object) -> None:
        said = led.greeting
        place = {} if said is None else {"host": said.host, "pid": said.pid}
        try:
            self._dir.log_event(event, worker=led.id, **place, **facts)
        except StoreError as error:
            self.stop(error)


async def _aside(work: Callable[[], Result]) -> Result:
    """Runs it in a thread that nobody waits for at exit, even if it never returns."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def finish(take: Callable[[], None]) -> None:
        if not done.done():
            take()

    def do() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it goes to whoever waits
            take = partial(done.set_exception, error)
        else:
            take = partial(done.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(finish, take)

    threading.Thread(target=do, daemon=True).start()
    return await done
