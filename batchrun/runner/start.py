"""A whole run on one page: claim the run directory, plan, send, end."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime
from functools import partial

from msgspec.structs import replace

from batchrun.errors import JobError, StoreError
from batchrun.executors.local_cluster import refuse_without_ray
from batchrun.inputs.prompt_set import find_source
from batchrun.job.credentials import (
    Server,
    api_key,
    header_values,
    refuse_plain_http,
    refuse_written_secrets,
)
from batchrun.job.sections import STDIN, EndpointJob, Job
from batchrun.job.stop_time import stop_time
from batchrun.progress.summary import RunCounters, Summary
from batchrun.runner.asked_rows import ALL_ROWS, RowSelection
from batchrun.runner.ending import StopSwitch, time_is_up
from batchrun.runner.engine import Run, Watch
from batchrun.runner.output_place import refuse_place, run_path, store_run_url
from batchrun.runner.plan import Plan, known_prices, make_plan, make_record
from batchrun.runner.resume import note_differences
from batchrun.runner.run_source import (
    accept_input,
    drop_input,
    pinned_source,
    refuse_other_use,
    stored_input,
)
from batchrun.simulator.settings import SimulatorSettings
from batchrun.store.run_dir import RunDir
from batchrun.transport.client import Client, fit_in_flight
from batchrun.transport.fallback import Connect, choose_connections
from batchrun.version import VERSION


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Uvloop where it runs: a quarter faster over a whole run."""
    try:
        import uvloop  # noqa: PLC0415 - it does not exist everywhere
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def run_job(
    job: Job,
    selection: RowSelection = ALL_ROWS,
    *,
    simulate: bool = False,
    simulator: SimulatorSettings | None = None,
    command: str | None = None,
    stop: StopSwitch | None = None,
    watch: Watch | None = None,
    insecure_http: bool = False,
) -> Summary:
    """Runs or resumes; the summary's `exit_code` says how it ended: 0, 3, 4, or 128 + a signal.

    `simulator`: its settings for `simulate`, where these are not the defaults. A later run without
    `selection` sends the rest too.
    Raises `JobError` and `InputError` before anything is sent, `StoreError` where the disk fails.
    """
    stop, watch = stop or StopSwitch(), watch or Watch()
    stop_at = _stop_at(job)
    check = partial(_check, job, stop, stop_at)
    # First, since a wrong path is the first thing to hear of.
    is_piped = job.input.path == STDIN
    found = None if is_piped else await asyncio.to_thread(find_source, job.input)
    path = run_path(job, simulate=simulate)
    url = store_run_url(job, path)
    refuse_place(path, url)
    _check_answers(simulator)
    refuse_written_secrets(job, command)
    has_workers = _has_workers(job)
    servers = {} if simulate else await _destinations(job, command, watch, insecure_http)
    with contextlib.ExitStack() as stack:
        began_s = time.monotonic()

        watch.doing(f"opening {url or path}")
        # Before anything is read: of two commands for one directory one alone goes on.
        # A store or earlier workers may take their time, in which signals are heard.
        opened = await asyncio.to_thread(
            RunDir.open, path, url, partial(_wait_for_workers, check, watch)
        )
        run_dir = stack.enter_context(_closing(opened))
        refuse_other_use(run_dir, simulate=simulate)
        if found is None:
            watch.doing("copying standard input")
            source, sha256 = await asyncio.to_thread(stored_input, job, run_dir, check)
        else:
            source, sha256 = pinned_source(job, found, run_dir.record), None
        # What is sent again, and what is to get the name of a variant, must stand in a part.
        if selection.resend.is_asked or (job.variants and run_dir.has_no_variants):
            watch.doing(f"finishing the parts of {path}")
            await asyncio.to_thread(run_dir.finish)
        prices = known_prices(job)
        plan = await asyncio.to_thread(
            make_plan,
            job,
            source,
            run_dir,
            path,
            selection,
            check=check,
            doing=watch.doing,
            prices=prices,
            in_parts=has_workers,
        )
        stop.check()
        most_in_flight, too_few_files = fit_in_flight(job.limits, here=simulate)
        sends = plan.to_complete and not has_workers
        connect, fallback = await choose_connections() if sends else (None, None)
        of_workers = _file_of_one_worker(plan, job) if has_workers else None
        warnings = [warning for warning in (too_few_files, fallback, of_workers) if warning]
        plan = replace(plan, warnings=(*plan.warnings, *warnings))
        watch.plan(plan, path)
        if plan.resumed.adopted is not None:
            watch.doing(f"naming the rows of {path}")
            await asyncio.to_thread(run_dir.name_variant, plan.resumed.adopted)
        await asyncio.to_thread(_note_agreed, run_dir, plan)
        record = make_record(job, plan, run_dir, simulate, command, sha256)
        counters = RunCounters(
            record.totals,
            began_s,
            again=plan.resumed.resent.rows,
            began_at=time.time_ns() // 1000,
        )
        run = Run(
            job, run_dir, plan, record, counters, watch, stop, prices, most_in_flight, stop_at
        )
        if plan.to_complete:
            async with _serving(run, servers, simulator) as reached:
                if has_workers:
                    await _send_by_workers(run, reached, check)
                else:
                    await _send_here(run, reached, connect)
        return await run.end()


@contextlib.asynccontextmanager
async def _serving(
    run: Run, servers: Mapping[str | None, Server], simulator: SimulatorSettings | None
) -> AsyncIterator[Mapping[str | None, Server]]:
    """Where requests go: the job's servers, or a simulator that serves meanwhile."""
    if not run.record.simulated:
        yield servers
        return
    async with _simulated(run.job.endpoint, simulator or SimulatorSettings()) as endpoint:
        yield {None: Server(endpoint, None, {})}


async def _send_here(
    run: Run, servers: Mapping[str | None, Server], connect: Connect | None
) -> None:
    """Every remaining row, from this process."""
    async with contextlib.AsyncExitStack() as open_clients:
        clients = {}
        for variant, server in servers.items():
            client = clients[variant] = Client(
                server.endpoint,
                server.key,
                server.headers,
                VERSION,
                run.recorder.begin,
                connect=connect,
                words=run.job.retry.words,
            )
            await open_clients.enter_async_context(client)
        await run.send(clients, run.plan.limit)


async def _send_by_workers(
    run: Run, servers: Mapping[str | None, Server], check: Callable[[], None]
) -> None:
    """The same by workers."""
    from batchrun.runner.cluster.lead import lead_run  # noqa: PLC0415 - 14 ms of a local run

    await lead_run(run, servers, check)


async def _destinations(
    job: Job, command: str | None, watch: Watch, insecure_http: bool
) -> dict[str | None, Server]:
    """The job's endpoint, and those of the variants that have their own. Raises `JobError`."""
    endpoints: dict[str | None, EndpointJob] = {None: job.endpoint}
    endpoints |= {one.name: one.endpoint for one in job.variants if one.endpoint is not None}
    if len(endpoints) > len(job.variants) > 0:  # nothing goes to that of the job
        del endpoints[None]
    servers: dict[str | None, Server] = {}
    for variant, endpoint in endpoints.items():
        if not insecure_http:
            refuse_plain_http(endpoint)
        if endpoint.api_key_command is not None:
            watch.doing("waiting for the command of --api-key-command")
        key = await asyncio.to_thread(api_key, endpoint)
        if endpoint.api_key_command is not None:
            refuse_written_secrets(job, command, key)
        servers[variant] = Server(endpoint, key, header_values(endpoint))
    return servers


def _has_workers(job: Job) -> bool:
    """Whether workers send the requests. Raises `JobError` where they cannot."""
    if job.cluster.executor == "local":
        return False
    refuse_without_ray()
    return True


def _file_of_one_worker(plan: Plan, job: Job) -> str | None:
    """A warning where a file keeps all workers but one waiting."""
    from batchrun.runner.cluster.leases import one_worker_file  # noqa: PLC0415 - not in other runs

    return one_worker_file(plan, job.cluster.workers or 1)


def _check(job: Job, stop: StopSwitch, stop_at: float | None) -> None:
    """Raises `Interrupted` or `RunStopped` where work that is not sending should end."""
    stop.check()
    if stop_at is not None and time.time() >= stop_at:
        raise time_is_up(job.limits)


def _stop_at(job: Job) -> float | None:
    """Seconds since 1970. Raises `JobError` where it is past."""
    text, now = job.limits.stop_at, datetime.now()  # noqa: DTZ005 - local, as the user means it
    if text is None:
        return None
    moment = stop_time(text, now)
    if moment <= now.timestamp():
        later = datetime.fromtimestamp(moment).strftime("%H:%M")  # noqa: DTZ006
        raise JobError(
            f"limits.stop_at (--stop-at) is {text}, which is past; give a later time, such as "
            f"--stop-at {later} for the next {later}"
        )
    return moment


def _check_answers(settings: SimulatorSettings | None) -> None:
    """Raises `JobError` where the simulator cannot read what it is to know."""
    try:
        if settings is not None:
            settings.known_answers()
    except ValueError as error:
        raise JobError(str(error)) from error


def _wait_for_workers(check: Callable[[], None], watch: Watch, who: str) -> None:
    """Called while workers of an earlier command land what they have in flight."""
    check()
    watch.doing(who)


def _note_agreed(run_dir: RunDir, plan: Plan) -> None:
    """The run directory holds what the plan accepts, before anything is sent. `StoreError`."""
    note_differences(run_dir, plan.resumed)
    accept_input(run_dir, plan.prompts)


@contextlib.contextmanager
def _closing(run_dir: RunDir) -> Iterator[RunDir]:
    """Closed at the end, whose own error says more than one of closing."""
    try:
        yield run_dir
    except BaseException:
        drop_input(run_dir)
        with contextlib.suppress(StoreError):
            run_dir.close()
        raise
    run_dir.close()


@contextlib.asynccontextmanager
async def _simulated(
    endpoint: EndpointJob, settings: SimulatorSettings
) -> AsyncIterator[EndpointJob]:
    """The job's settings, but for a simulator that serves meanwhile."""
    # aiohttp's server takes 40 ms to import.
    from batchrun.simulator.server import serve  # noqa: PLC0415

    async with serve(settings) as base_url:
        keyless = replace(endpoint, api_key_env="none", api_key_command=None)
        yield replace(keyless, base_url=base_url, headers={}, query={})
