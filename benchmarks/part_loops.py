"""The loops that `parts` times: each goes over the same rows with one part of batchrun alone."""

import asyncio
import io
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import uvloop
from msgspec.structs import replace

from batchrun.dialects.responses import parse_response
from batchrun.dispatch.dispatcher import Dispatcher
from batchrun.dispatch.gate import Gate
from batchrun.executors.local import LocalExecutor
from batchrun.inputs.prompt_set import PromptSet, find_source
from batchrun.job.job_file import load_job
from batchrun.job.sections import Job
from batchrun.limits.concurrency import FirstAlone, InFlight
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.pricing.prices import Prices
from batchrun.progress.bottleneck import Activity, bottleneck
from batchrun.progress.display import Progress
from batchrun.progress.summary import RunCounters
from batchrun.records import Finish, Need, Outcome, Reply, Request, Scope, Totals
from batchrun.runner.plan import Plan, make_plan, make_record
from batchrun.store.columns import response_batch, tool_call_batch
from batchrun.store.files import FileId
from batchrun.store.journal import read_outcomes
from batchrun.store.parts import SLICE_ROWS, new_files, write_parts
from batchrun.store.run_dir import RunDir
from batchrun.transport.client import Client
from benchmarks.lean_answers import BODY

IN_FLIGHT = 64
AT_ONCE = 16  # outcomes that arrive together, and are written so: less than are seen with 64
LOOKS = 100  # of which one is the mean
LOOKS_PER_S = 4  # as `report.live` does
ROWS_PER_S = 5_000  # about what one process reaches
Loop = Callable[[], float]  # one loop over all rows, in seconds of CPU


class Material:
    """Rows in every state that a run brings them to."""

    def __init__(self, job: Job, plan: Plan, requests: list[Request], reply: Reply) -> None:
        self.job, self.plan, self.requests, self.reply = job, plan, requests, reply
        self.prices = Prices(job.pricing)
        endpoint = job.endpoint.base_url
        self.scope = Scope(endpoint, job.endpoint.api_key_env, requests[0].model or "")
        self.outcomes: list[Outcome] = []


class _AtOnce:
    """An endpoint that has its answer ready."""

    via = "plain"

    def __init__(self, base_url: str, reply: Reply) -> None:
        self.base_url = base_url
        self._reply = reply

    async def send(
        self,
        _request: Request,
        _client_request_id: str,
        _left_s: float,
        _on_accepted: Callable[[], None],
    ) -> Reply:
        return self._reply


def _cpu_s(work: Callable[[], object]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


def _run(work: Callable[[], Awaitable[object]]) -> None:
    async def awaited() -> None:
        await work()

    uvloop.run(awaited())


def _dispatching(material: Material) -> tuple[Gate, Dispatcher]:
    job = material.job
    patience = Patience(job.limits.outage_s, job.limits.unanswered_s)
    scopes = Scopes(IN_FLIGHT, patience)
    gate = Gate([InFlight(IN_FLIGHT), FirstAlone()], scopes.limits)
    endpoint = _AtOnce(job.endpoint.base_url, material.reply)
    key_name = job.endpoint.api_key_env
    return gate, Dispatcher(endpoint, gate, scopes, job.retry, material.prices, key_name=key_name)


def _read(material: Material) -> None:
    plan = material.plan
    for _ in plan.prompts.requests(plan.layout, bytearray(plan.rows)):
        pass


def _parse(material: Material) -> None:
    for request in material.requests:
        parse_response(BODY, request)


async def _gate(material: Material) -> None:
    gate, _ = _dispatching(material)
    need, finish = (
        Need(material.scope, 1500),
        Finish(tokens=873, advertised=material.reply.advertised),
    )
    for _ in material.requests:
        gate.leave(await gate.enter(material.scope, lambda: need), finish)


async def _settle(material: Material) -> None:
    gate, dispatcher = _dispatching(material)
    for request in material.requests:
        settled = await dispatcher.complete(request)
        assert settled.slot is not None
        gate.leave(settled.slot, settled.finish)


async def _execute(material: Material) -> None:
    gate, dispatcher = _dispatching(material)
    executor = LocalExecutor(dispatcher, gate, IN_FLIGHT)
    async with executor.run(iter(material.requests)) as outcomes:
        material.outcomes = [one async for some in outcomes for one in some]


def _count(material: Material) -> None:
    tally = RunCounters(Totals(), 0.0)
    for first in range(0, len(material.outcomes), AT_ONCE):
        tally.count(material.outcomes[first : first + AT_ONCE])


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def _show(material: Material) -> None:
    """So many looks at a run that goes on, drawn on a terminal."""
    gate, dispatcher = _dispatching(material)
    slot = await gate.enter(material.scope, lambda: Need(material.scope, 1500))
    gate.leave(slot, Finish(tokens=873, advertised=material.reply.advertised))
    tally, progress = RunCounters(Totals(), 0.0), Progress(_Terminal())
    outcomes = material.outcomes[:LOOKS]
    for look, outcome in enumerate(outcomes, 1):
        tally.count((outcome,))
        activity = Activity(
            in_flight=IN_FLIGHT,
            retries=dispatcher.retries(),
            is_limited=True,
            limits=gate.statuses(),
            oldest=dispatcher.oldest(3),
            now_s=asyncio.get_running_loop().time(),
        )
        summary = tally.summary(
            run="run",
            state="running",
            rows=len(material.outcomes),
            now_s=look / LOOKS_PER_S,
            activity=activity,
            binds=bottleneck(activity, 0.5, 0.0),
        )
        progress.show(summary)
    progress.close()


def _shown(material: Material) -> float:
    """What the looks take while all rows pass at full speed."""
    rows = len(material.outcomes)
    taken_s = _cpu_s(lambda: _run(lambda: _show(material))) / min(LOOKS, rows)
    return taken_s * LOOKS_PER_S * rows / ROWS_PER_S


def _columns(material: Material) -> None:
    outcomes, layout = material.outcomes, material.plan.layout
    for first in range(0, len(outcomes), SLICE_ROWS):
        some = outcomes[first : first + SLICE_ROWS]
        response_batch(some, layout, store_request=True)
        tool_call_batch(some)


def _opened(material: Material, folder: Path) -> RunDir:
    run_dir = RunDir.open(folder)
    run_dir.save(
        make_record(material.job, material.plan, run_dir, simulate=False, command=None, sha256=None)
    )
    return run_dir


def _parquet(material: Material) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = _opened(material, Path(folder) / "run")
        record = run_dir.record
        assert record is not None

        def write() -> None:
            with new_files() as files:
                write_parts(files, run_dir.path, FileId(0, 1), material.outcomes, record)

        taken_s = _cpu_s(write)
        run_dir.close()
        return taken_s


def _started(material: Material, folder: Path) -> RunDir:
    run_dir = _opened(material, folder)
    run_dir.start(part_rows=1 << 30, part_bytes=1 << 40)
    return run_dir


def _journal(material: Material) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = _started(material, Path(folder) / "run")

        def keep() -> None:
            for first in range(0, len(material.outcomes), AT_ONCE):
                run_dir.store_some(material.outcomes[first : first + AT_ONCE])

        taken_s = _cpu_s(keep)
        run_dir.close()
        return taken_s


def _read_back(material: Material) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = _started(material, Path(folder) / "run")
        for outcome in material.outcomes:
            run_dir.store(outcome)
        run_dir.close()
        (segment,) = (Path(folder) / "run" / "journal").glob("*.log")
        with segment.open("rb", buffering=1 << 20) as file:
            return _cpu_s(lambda: sum(1 for _ in read_outcomes(file)))


async def _send(material: Material, url: str) -> None:
    endpoint = replace(material.job.endpoint, base_url=url)
    left, numbers = iter(material.requests), count()
    async with Client(endpoint, None, {}, "0") as client:

        async def work() -> None:
            for request in left:
                await client.send(request, f"0123456789abcdef-{next(numbers):x}", 3600.0)

        await asyncio.gather(*[work() for _ in range(IN_FLIGHT)])


async def _one_reply(job: Job, url: str, request: Request) -> Reply:
    async with Client(replace(job.endpoint, base_url=url), None, {}, "0") as client:
        return await client.send(request, "0123456789abcdef-1", 3600.0)


def make_material(lines: Path, url: str) -> Material:
    job = load_job(str(lines), {"output.path": str(lines.parent / "run")})
    plan = make_plan(job, find_source(job.input), None, lines.parent / "run")
    prompts: PromptSet = plan.prompts
    found = prompts.requests(plan.layout, bytearray(plan.rows))
    requests = [request for request in found if isinstance(request, Request)]
    reply = uvloop.run(_one_reply(job, url, requests[0]))
    # Of some thousand answers a second, a hundred are asked what limits they tell.
    return Material(job, plan, requests, replace(reply, advertised=()))


def loops_over(material: Material, url: str) -> dict[str, Loop]:
    """In this order: the executor makes the outcomes that later parts take."""
    return {
        "execute": lambda: _cpu_s(lambda: _run(lambda: _execute(material))),
        "read": lambda: _cpu_s(lambda: _read(material)),
        "parse": lambda: _cpu_s(lambda: _parse(material)),
        "gate": lambda: _cpu_s(lambda: _run(lambda: _gate(material))),
        "settle": lambda: _cpu_s(lambda: _run(lambda: _settle(material))),
        "send": lambda: _cpu_s(lambda: _run(lambda: _send(material, url))),
        "journal": lambda: _journal(material),
        "count": lambda: _cpu_s(lambda: _count(material)),
        "show": lambda: _shown(material),
        "columns": lambda: _cpu_s(lambda: _columns(material)),
        "read back": lambda: _read_back(material),
        "parquet": lambda: _parquet(material),
    }
