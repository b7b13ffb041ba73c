"""Workers of a run in processes of their own, driven over pipes: each row once, whatever ends."""

import asyncio
import json
import os
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.executors.lease_book import remaining_of
from batchrun.executors.messages import FleetTick, Lease, StopOrder, WorkerReport
from batchrun.inputs.prompt_set import find_source
from batchrun.job.credentials import Server
from batchrun.job.job_file import load_job
from batchrun.limits.sharing.shares import DOLLAR, Shares
from batchrun.records import Resend, Totals
from batchrun.runner.asked_rows import RowSelection
from batchrun.runner.cluster.leases import places_of, planned_rows
from batchrun.runner.cluster.worker import worker_setup
from batchrun.runner.plan import make_plan, make_record
from batchrun.runner.resume import note_differences
from batchrun.simulator.server import serve
from batchrun.simulator.settings import SimulatorSettings
from batchrun.store.files import drained_name
from batchrun.store.run_dir import RunDir
from batchrun.store.verify import verify
from tests.remote.object_server import Bucket
from tests.runner.worker_process import WorkerProcess
from tests.runs import standing_rows
from tests.waiting import HANG_S, wait_until

_FAILING_DISKS = Path(__file__).parents[1] / "end_to_end" / "failing_disks"
_TICK_S = 0.02
_SILENCE_S, _SHORT_S = 60.0, 5.0
_ROWS = 120


@contextmanager
def _serving(settings: SimulatorSettings) -> Iterator[str]:
    """A simulator in a thread; its base URL."""
    ready, urls, ended = threading.Event(), list[str](), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with serve(settings) as url:
            urls.append(url)
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait()
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


def _bodies(url: str) -> dict[str, Any]:
    """What became of each body."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/stats?by=body") as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
    return found


def _answers(url: str) -> Counter[str]:
    """How often each body was answered."""
    return Counter({key: one["completions"] for key, one in _bodies(url).items()})


class _Driver:
    """The least that leads workers: leases, reports, adoption."""

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        resend: Resend | None = None,
        store: str | None = None,
        **given: Any,
    ) -> None:
        """`store`: the URL of the run, where its tables are in a store."""
        dotted = {key.replace("__", "."): value for key, value in given.items()}
        base = {
            "output.path": str(folder / "run"),
            "endpoint.base_url": url,
            "endpoint.api_key_env": "none",
            "request.model": "m",
            "input.skip_bad_rows": True,
        }
        self.job = load_job(folder / "rows.jsonl", {**base, **dotted})
        self.run_dir = RunDir.open(folder / "run", store)
        if resend is not None:
            self.run_dir.finish()
        selection = RowSelection(resend=resend or Resend())
        source, path = find_source(self.job.input), self.run_dir.path
        self.plan = make_plan(self.job, source, self.run_dir, path, selection, in_parts=True)
        note_differences(self.run_dir, self.plan.resumed)
        record = make_record(
            self.job, self.plan, self.run_dir, simulate=False, command=None, sha256=None
        )
        self.run_dir.save(record)
        self.planned = planned_rows(self.plan)
        self.workers: list[WorkerProcess] = []
        self.leased: dict[int, dict[int, Lease]] = {}  # by writer and id
        self.again: list[Lease] = []  # of workers that died
        self.seqs, self.reports = Counter[int](), dict[int, WorkerReport]()

    def start(self, workers: int, silence_s: float = _SILENCE_S) -> None:
        started = [WorkerProcess(self.run_dir.new_writer()) for _ in range(workers)]
        for worker in started:  # so that none is silent while others import what they need
            worker.wait()
        record = self.run_dir.record
        assert record is not None
        setup = worker_setup(
            self.job, self.plan, self.run_dir, record, in_flight=8, silence_s=silence_s
        )
        for worker in started:
            servers: dict[str | None, Server] = {None: Server(self.job.endpoint, None, {})}
            worker.start(setup.of(worker.writer), servers)
        self.workers += started

    def tick(self, worker: WorkerProcess, stop: StopOrder | None = None) -> WorkerReport | None:
        """One; null where the worker is dead: its rows are leased to others."""
        leased = self.leased.setdefault(worker.writer, {})
        known = self.reports.get(worker.writer)
        new, unread = [], 0 if known is None else known.unread
        while stop is None and unread < 8:
            lease = self.again.pop() if self.again else self.planned.cut(7)
            if lease is None:
                break
            leased[lease.id] = lease
            unread += remaining_of(lease)
            new.append(lease)
        self.seqs[worker.writer] += 1
        tick = FleetTick(
            self.seqs[worker.writer],
            heard=0 if known is None else known.number,
            leases=tuple(new),
            shares=Shares(in_flight=8, purse=100 * DOLLAR),
            last=not (self.planned.left or self.again),
            stop=stop,
        )
        try:
            report = worker.tick(tick)
        except EOFError:
            self.adopt(worker)
            return None
        self.reports[worker.writer] = report
        for one in report.done:
            leased.pop(one, None)
        return report

    def adopt(self, worker: WorkerProcess) -> None:
        worker.end()
        self.workers.remove(worker)
        leased = self.leased.pop(worker.writer)
        rows = [row for one in leased.values() for row in range(one.row, one.row + one.rows)]
        adopted = None

        def is_adopted() -> bool:
            nonlocal adopted
            adopted = self.run_dir.adopt(worker.writer, rows)
            return adopted is not None

        wait_until(is_adopted)
        assert adopted is not None
        for lease in leased.values():
            done = places_of(lease, self.plan.expansion, adopted.complete)
            if (rest := self.planned.rest(lease, done)) is not None:
                self.again.append(rest)

    def kill_all(self) -> None:
        for worker in self.workers:
            worker.end()
        self.run_dir.close()

    def lead(self, until: Callable[[], bool] = lambda: False) -> None:
        """Until nothing is leased any more, or `until`."""
        while not until():
            assert self.workers, "all have left"
            for worker in list(self.workers):
                self.tick(worker)
            if not (self.planned.left or self.again or any(self.leased.values())):
                return
            time.sleep(_TICK_S)

    def end(self) -> None:
        for worker in list(self.workers):
            while (report := self.tick(worker, StopOrder("all is done"))) is not None:
                if report.is_drained:
                    break
                time.sleep(_TICK_S)
            worker.process.wait()
            worker.end()
        self.run_dir.finish()
        self.run_dir.close()

    @property
    def completed(self) -> int:
        return sum(report.totals.rows for report in self.reports.values())


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [json.dumps({"id": f"q{row}", "prompt": f"What is {row}?"}) for row in range(_ROWS)]
    lines[17] = "{broken"
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def make_driver(rows: Path) -> Iterator[Callable[..., _Driver]]:
    """Their workers end with the test."""
    made: list[_Driver] = []

    def make(url: str, **given: Any) -> _Driver:
        made.append(_Driver(rows, url, **given))
        return made[-1]

    yield make
    for driver in made:
        driver.kill_all()


def _stand(folder: Path) -> dict[str, tuple[bool, int]]:
    """All rows, each once; whether they are ok, and their attempts."""
    rows = standing_rows(folder / "run")
    assert verify(folder / "run").problems == []
    assert sorted(rows) == sorted(["17" if n == 17 else f"q{n}" for n in range(_ROWS)])
    return rows


def test_each_row_is_completed_once_while_a_worker_is_killed(
    rows: Path, make_driver: Callable[..., _Driver]
) -> None:
    with _serving(SimulatorSettings(latency_s=0.02)) as url:
        driver = make_driver(url)
        driver.start(3)
        driver.lead(until=lambda: driver.completed >= 40)
        killed = driver.workers[0]
        killed.process.kill()
        driver.lead()
        assert killed not in driver.workers
        driver.end()
        answers = _answers(url)
    stand = _stand(rows)
    assert sum(ok for ok, _ in stand.values()) == _ROWS - 1
    assert len(answers) == _ROWS - 1
    assert sum(answers.values()) - (_ROWS - 1) <= 8  # what was in flight in what was killed
    writers = {path.name.partition("-")[0] for path in (rows / "run/responses").iterdir()}
    assert writers == {"w1", "w2", "w3"}
    totals = Totals()
    for report in driver.reports.values():
        totals = totals.plus(report.totals)
    assert _ROWS - 40 <= totals.rows <= _ROWS  # the last report of the killed one did not come


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """In a store that workers find."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    yield Bucket(address, "bucket-of-workers")
    server.stop()


def test_parts_of_a_worker_are_in_the_store_in_time_though_none_is_full(
    make_driver: Callable[..., _Driver], bucket: Bucket
) -> None:
    def parts() -> list[str]:
        return bucket.names("run/responses/")

    with _serving(SimulatorSettings(latency_s=0.3)) as url:
        driver = make_driver(url, store=f"{bucket.url}/run", output__part_seconds=1)
        driver.start(1)
        driver.lead(until=lambda: "run/responses/w1-000001.parquet" in parts())
        assert 0 < driver.completed < _ROWS - 1
        driver.end()
    stored = bucket.get("run/responses/w1-000001.parquet")
    assert stored is not None
    assert pq.read_table(pa.BufferReader(stored)).num_rows < driver.completed
    assert len(parts()) > 1


def test_a_worker_that_its_driver_leaves_lands_what_is_in_flight_and_ends(
    rows: Path, make_driver: Callable[..., _Driver]
) -> None:
    with _serving(SimulatorSettings(latency_s=0.05)) as url:
        driver = make_driver(url)
        driver.start(2, silence_s=_SHORT_S)
        driver.lead(until=lambda: driver.completed >= 30)
        left = list(driver.workers)
        assert [worker.process.wait(HANG_S) for worker in left] == [0, 0]
        for worker in left:
            assert (rows / "run" / drained_name(worker.writer)).exists()
            driver.adopt(worker)
        driver.start(1)
        driver.lead()
        driver.end()
        answers = _answers(url)
    _stand(rows)
    assert set(answers.values()) == {1}


def test_a_worker_that_was_stopped_for_too_long_sends_and_doubles_nothing(
    rows: Path, make_driver: Callable[..., _Driver]
) -> None:
    with _serving(SimulatorSettings(latency_s=0.05)) as url:
        driver = make_driver(url)
        driver.start(2, silence_s=_SHORT_S)
        driver.lead(until=lambda: driver.completed >= 40)
        stopped, other = driver.workers
        stopped.process.send_signal(signal.SIGSTOP)
        until_s = time.monotonic() + 1.5 * _SHORT_S
        while time.monotonic() < until_s:
            driver.tick(other)
            time.sleep(_TICK_S)
        assert driver.run_dir.adopt(stopped.writer) is None  # its lock says that it lives
        before = sum(_answers(url).values())
        stopped.process.send_signal(signal.SIGCONT)
        report = driver.tick(stopped)
        while report is not None and not report.is_drained:
            time.sleep(_TICK_S)
            driver.tick(other)
            report = driver.tick(stopped)
        assert sum(_answers(url).values()) - before <= 8  # what was in flight in the other
        stopped.process.wait(HANG_S)
        if stopped in driver.workers:
            driver.adopt(stopped)
        driver.lead()
        driver.end()
        answers = _answers(url)
    _stand(rows)
    assert set(answers.values()) == {1}


def test_rows_that_are_sent_again_keep_their_earlier_attempts(
    rows: Path, make_driver: Callable[..., _Driver]
) -> None:
    with _serving(SimulatorSettings(latency_s=0.002, fault_rates={"500_json": 0.3})) as url:
        first = make_driver(url, retry__max_attempts=1)
        first.start(1)
        first.lead()
        first.end()
    failed = {name for name, (ok, _) in _stand(rows).items() if not ok} - {"17"}
    assert failed
    with _serving(SimulatorSettings(latency_s=0.002)) as url:
        driver = make_driver(url, resend=Resend(failed=True))
        assert driver.plan.to_complete == len(failed)
        driver.start(2)
        driver.lead()
        driver.end()
        assert len(_answers(url)) == len(failed)
    stand = _stand(rows)
    assert {name for name, (ok, _) in stand.items() if not ok} == {"17"}
    assert {name for name, (_, attempts) in stand.items() if attempts == 2} == failed
    replaced = [report.replaced.rows for report in driver.reports.values()]
    assert sum(replaced) == len(failed)


def test_a_worker_says_what_it_could_not_store_and_two_stops_end_its_wait(
    rows: Path, make_driver: Callable[..., _Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.pathsep.join((str(_FAILING_DISKS), os.environ["PYTHONPATH"]))
    monkeypatch.setenv("PYTHONPATH", path)
    (rows / "failing_disks").write_text("w1 600")
    price = {"m": {"input": 0.0, "output": 1000.0}}
    with _serving(SimulatorSettings(latency_s=0.05)) as url:
        driver = make_driver(url, pricing=price, limits__max_cost_usd=100.0)
        driver.start(1)

        def has_landed() -> bool:
            reports = driver.reports.values()
            return any(one.stops and not one.used.in_flight for one in reports)

        driver.lead(until=has_landed)
        (worker,) = driver.workers
        report = driver.reports[worker.writer]
        while not report.is_drained:
            said = driver.tick(worker, StopOrder("dropped", drop=True, hurried=True))
            assert said is not None
            report = said
        answers = sum(_answers(url).values())
        worker.process.wait(HANG_S)
    assert [(one.kind, "cannot write" in one.message) for one in report.stops] == [
        ("StoreError", True)
    ]
    words = [f"{answers} answer{'' if answers == 1 else 's'}"]
    # Row 17 cannot be sent; it may be among the first that the worker gets.
    assert report.unstored.split(", ") in (words, [*words, "1 note of invalid rows"])
    assert 1 <= answers <= 8
    spending = report.used.spending  # of what is in no table nobody knows later what it has cost
    assert spending.spent < 100 < spending.unknown  # picodollars, of which some are rounded
    assert spending.reserved == 0
    mark = json.loads((rows / "run" / drained_name(worker.writer)).read_bytes())
    assert mark == {"rows": 0, "unknown_usd": spending.unknown / DOLLAR}


def test_background_work_of_a_killed_worker_is_waited_for_by_another(
    rows: Path, make_driver: Callable[..., _Driver]
) -> None:
    with _serving(SimulatorSettings(latency_s=0.2)) as url:
        driver = make_driver(url, endpoint__mode="background")
        driver.start(2)
        driver.lead(until=lambda: driver.completed >= 10)
        driver.workers[0].process.kill()
        driver.lead()
        driver.end()
        created = [one["background"]["created"] for one in _bodies(url).values()]
    _stand(rows)
    assert len(created) == _ROWS - 1
    assert (
        sum(created) - (_ROWS - 1) < 4
    )  # those whose id was not yet on disk: most were polled for
