"""A whole run on one page: plan, send, store, count, end.

Follow one row: `plan` has read it once; `inputs` reads it again and makes a Request; the executor
gives it a place; `dispatch` gets its outcome; the run directory keeps it; the tally counts it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from batchrun.dispatch.attempts import Dispatcher
from batchrun.dispatch.gate import Gate
from batchrun.endpoint.client import Client
from batchrun.errors import BatchrunError, InputError, Interrupted, RunStopped, StoreError
from batchrun.executors.local import LocalExecutor
from batchrun.inputs.read import find_source
from batchrun.job import STDIN, EndpointJob, Job, api_key, header_values
from batchrun.plan import Plan, kept_input, make_plan, make_record, refuse_other_use, run_path
from batchrun.policy.concurrency import FirstAlone, InFlight
from batchrun.policy.retry import FirstRows
from batchrun.records import BadRow, Request, RunRecord
from batchrun.report.summary import Summary, Tally, next_command
from batchrun.simulator.behavior import Behavior
from batchrun.simulator.server import serve
from batchrun.store.run_dir import RunDir
from batchrun.store.tables import example_not_ok
from batchrun.version import VERSION

DRAIN_S = 20.0  # what is in flight may take this long to land after the first signal
_SHOW_EVERY_S = 0.25
_LIVE_EVERY_S = 1.0
_EVENT_EVERY_S = 10.0


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Uvloop where it runs: a quarter faster over a whole run."""
    try:
        import uvloop  # noqa: PLC0415 - it does not exist everywhere
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class StopSwitch:
    """Asks a run to stop: the first time what is in flight lands, the second time it is dropped.

    For signal handlers; asked from the run's own thread while it runs.
    """

    def __init__(self) -> None:
        self.asked: list[Interrupted] = []
        self._listener: Callable[[], None] | None = None

    def ask(self, message: str, exit_code: int) -> None:
        self.asked.append(Interrupted(message, exit_code))
        if self._listener is not None:
            self._listener()

    def listen(self, listener: Callable[[], None]) -> None:
        self._listener = listener
        if self.asked:
            listener()

    @property
    def is_sending(self) -> bool:
        """Whether anything may be in flight."""
        return self._listener is not None

    def check(self, _rows: int = 0) -> None:
        """Raises `Interrupted` once asked: for work that is not sending."""
        if self.asked:
            raise self.asked[0]


class Watch(Struct):
    """Whoever wants to see: each is called on the run's thread and must be quick."""

    plan: Callable[[Plan, Path], None] = lambda _plan, _path: None
    summary: Callable[[Summary], None] = lambda _summary: None


async def run_job(
    job: Job,
    *,
    simulate: bool = False,
    limit: int | None = None,
    command: str | None = None,
    stop: StopSwitch | None = None,
    watch: Watch | None = None,
) -> Summary:
    """Runs or resumes; the summary's `exit_code` says how it ended: 0, 3, 4, or 128 + a signal.

    Raises `JobError` and `InputError` before anything is sent, `StoreError` where the disk fails.
    """
    stop, watch = stop or StopSwitch(), watch or Watch()
    # First, since a wrong path is the first thing to hear of.
    source = None if job.input.path == STDIN else find_source(job.input)
    path = run_path(job, simulate=simulate)
    key = None if simulate else api_key(job.endpoint)
    headers = {} if simulate else header_values(job.endpoint)
    with contextlib.ExitStack() as stack:
        began_s = time.monotonic()

        def claimed() -> RunDir:
            run_dir = stack.enter_context(contextlib.closing(RunDir.open(path)))
            refuse_other_use(job, run_dir, simulate=simulate)
            return run_dir

        run_dir = sha256 = None
        if source is None:
            run_dir = claimed()
            kept = await asyncio.to_thread(kept_input, job, run_dir)
            source, sha256 = kept
        elif path.exists():
            run_dir = claimed()
        plan = await asyncio.to_thread(
            make_plan, job, source, run_dir, path, limit=limit, on_rows=stop.check
        )
        run_dir = run_dir or claimed()
        watch.plan(plan, path)
        record = make_record(job, plan, run_dir, simulate, command, sha256)
        tally = Tally(record.totals, began_s)
        run = _Run(job, run_dir, plan, record, tally, watch, stop)
        try:
            if plan.to_settle:
                async with contextlib.AsyncExitStack() as servers:
                    endpoint = job.endpoint
                    if simulate:
                        base_url = await servers.enter_async_context(serve(Behavior()))
                        endpoint = _simulated(endpoint, base_url)
                    client = Client(endpoint, key, headers, VERSION, run.begin)
                    await servers.enter_async_context(client)
                    await run.send(client, limit)
            return await run.end()
        except StoreError as error:
            run.failed(error)
            raise


def _simulated(endpoint: EndpointJob, base_url: str) -> EndpointJob:
    """The job's settings, but for the simulator at this address."""
    return replace(endpoint, base_url=base_url, api_key_env="none", headers={}, query={})


class _Run:
    """One run from its plan to its end."""

    def __init__(
        self,
        job: Job,
        run_dir: RunDir,
        plan: Plan,
        record: RunRecord,
        tally: Tally,
        watch: Watch,
        stop: StopSwitch,
    ) -> None:
        self.job, self.run_dir, self.plan, self.record = job, run_dir, plan, record
        self.tally, self.watch, self.stop = tally, watch, stop
        self.rows = plan.totals.rows + plan.to_settle
        self.ended_by: BatchrunError | None = None

    async def send(self, client: Client, limit: int | None) -> None:
        """Every row that is not settled, to its outcome in the journal."""
        job, run_dir, tally = self.job, self.run_dir, self.tally
        run_dir.save(self.record)
        run_dir.start(part_rows=job.output.part_rows, part_bytes=job.output.part_bytes)
        run_dir.log_event("started", rows=self.rows, to_send=self.plan.to_send)
        in_flight = job.limits.concurrency
        gate = Gate([InFlight(in_flight), FirstAlone()])
        dispatcher = Dispatcher(client, gate, job.retry, job.endpoint.api_key_env)
        executor = LocalExecutor(dispatcher, gate, in_flight)
        requests = self._taken_up(
            self.plan.prompts.requests(self.plan.layout, self.plan.settled, limit)
        )
        first_rows = FirstRows(self.record.totals)
        try:
            async with (
                executor.run(requests) as outcomes,
                self._watched(executor, gate, dispatcher),
            ):
                self.stop.listen(lambda: self._interrupt(executor))
                async for outcome in outcomes:
                    run_dir.keep(outcome)
                    tally.count(outcome)
                    if (reason := first_rows.told(outcome)) is not None:
                        executor.stop(RunStopped(reason))
        except (RunStopped, Interrupted) as end:
            self.ended_by = end
        except InputError as error:  # the files changed since the plan; the run can go on later
            self.ended_by = RunStopped(str(error))

    async def begin(self, request: Request, response_id: str) -> None:
        """A background response has begun: on disk before it is waited for."""
        await asyncio.to_thread(self.run_dir.begin, request, response_id)

    def _taken_up(self, requests: Iterator[Request | BadRow]) -> Iterator[Request | BadRow]:
        """The requests; those begun in background by an earlier command know their response."""
        started = dict(self.run_dir.started)
        for request in requests:
            begun = started.get(request.custom_id)
            if isinstance(request, Request) and begun is not None and begun.hash == request.hash:
                yield replace(request, resume_id=begun.response_id)
            else:
                yield request

    async def end(self) -> Summary:
        """Everything into Parquet, the totals into `run.json`."""
        run_dir, totals = self.run_dir, self.tally.totals()
        await asyncio.to_thread(run_dir.finish)
        exit_code = 0 if totals.ok == totals.rows else 4
        state, message = "finished", None
        if self.ended_by is not None:
            exit_code, message = self.ended_by.exit_code, str(self.ended_by)
            state = "stopped" if isinstance(self.ended_by, RunStopped) else "interrupted"
        example = example_not_ok(run_dir.path) if exit_code == 4 else None
        summary = self._summary(
            state,
            exit_code=exit_code,
            message=message,
            next_command=next_command(self.record.command, run_dir.path, exit_code, example),
        )
        self._save_end(state, exit_code, message)
        if self.plan.to_settle:
            run_dir.log_event(state, exit_code=exit_code, message=message)
            run_dir.write_live(summary)
        self.watch.summary(summary)
        return summary

    def failed(self, error: StoreError) -> None:
        """The disk failed: `run.json` says so, if it still can."""
        with contextlib.suppress(StoreError):
            self._save_end("failed", error.exit_code, str(error))

    def _save_end(self, state: str, exit_code: int, message: str | None) -> None:
        self.run_dir.save(
            replace(
                self.record,
                state=state,
                exit_code=exit_code,
                message=message,
                totals=self.tally.totals(),
                updated_at=time.time_ns() // 1000,
            )
        )

    def _interrupt(self, executor: LocalExecutor) -> None:
        if len(self.stop.asked) > 1:
            executor.drop()
            return
        executor.stop(self.stop.asked[0])
        self.run_dir.log_event("stopping", why=str(self.stop.asked[0]))
        asyncio.get_running_loop().call_later(DRAIN_S, executor.drop)

    @contextlib.asynccontextmanager
    async def _watched(
        self, executor: LocalExecutor, gate: Gate, dispatcher: Dispatcher
    ) -> AsyncIterator[None]:
        """Shows and writes how the run stands while it is entered."""

        async def tick() -> None:
            live_s = event_s = -_EVENT_EVERY_S
            while True:
                now_s = time.monotonic()
                state = "stopping" if executor.is_stopped() else "running"
                summary = self._summary(state, gate.in_flight, dispatcher.retrying)
                self.watch.summary(summary)
                if now_s - live_s >= _LIVE_EVERY_S:
                    live_s = now_s
                    self.run_dir.write_live(summary)
                if now_s - event_s >= _EVENT_EVERY_S:
                    event_s = now_s
                    self.run_dir.log_event("tick", settled=summary.settled, left=summary.left)
                await asyncio.sleep(_SHOW_EVERY_S)

        ticker = asyncio.create_task(tick())
        ticker.add_done_callback(lambda task: _stop_on_error(task, executor))
        try:
            yield
        finally:
            ticker.cancel()

    def _summary(
        self,
        state: str,
        in_flight: int = 0,
        retrying: int = 0,
        *,
        exit_code: int | None = None,
        message: str | None = None,
        next_command: str | None = None,
    ) -> Summary:
        return self.tally.summary(
            run=str(self.run_dir.path),
            state=state,
            rows=self.rows,
            now_s=time.monotonic(),
            in_flight=in_flight,
            retrying=retrying,
            exit_code=exit_code,
            message=message,
            next_command=next_command,
        )


def _stop_on_error(task: asyncio.Task[None], executor: LocalExecutor) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        executor.stop(error)
