"""A driver and workers without an engine: what is slow, what never comes, and what is refused."""

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import JobError, StoreError
from batchrun.executors.worker_process import WorkerFailed
from batchrun.job.job_file import load_job
from batchrun.progress.summary import Summary
from batchrun.runner import start
from batchrun.runner.cluster import driver, lead, led_worker
from batchrun.runner.ending import StopSwitch
from batchrun.runner.engine import Watch
from batchrun.simulator.server import serve
from batchrun.simulator.settings import SimulatorSettings
from batchrun.store.sealing import seal
from batchrun.store.verify import verify
from batchrun.store.workers import adoption
from tests.processes import can_run
from tests.runner.pipe_cluster import PipeCluster, PipedWorker
from tests.runs import standing_rows
from tests.waiting import wait_until

_FAILING_DISKS = Path(__file__).parents[1] / "end_to_end" / "failing_disks"
_IN_FLIGHT, _WORKERS = 6, 3
_SILENCE_S = 2.0
_HANGS = ("sh", "-c", "exec sleep 600")  # in place of what follows
_OWN_FILES = ("unshare", "--user", "--map-root-user", "--mount")
_HIDE = (*_OWN_FILES, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')  # then a folder


class Lead:
    """Commands for one prompt set, whose workers are processes of a `PipeCluster`."""

    def __init__(self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.url, self._monkeypatch = folder, url, monkeypatch
        self.summary: Summary | None = None
        self.write_rows(60)

    def write_rows(self, rows: int) -> None:
        self.rows = rows
        lines = [json.dumps({"id": f"q{row}", "prompt": f"What is {row}?"}) for row in range(rows)]
        (self.folder / "rows.jsonl").write_text("\n".join(lines) + "\n")

    async def run(self, cluster: PipeCluster, **given: Any) -> Summary:
        """One to its end. Raises as `run_job`."""
        self._monkeypatch.setattr(lead, "_join_ray", lambda _run: cluster)
        self._monkeypatch.setattr(start, "refuse_without_ray", lambda: None)
        self.summary, self.stop = None, StopSwitch()
        settings: dict[str, object] = {
            "output.path": str(self.folder / "run"),
            "endpoint.base_url": self.url,
            "endpoint.api_key_env": "none",
            "request.model": "m",
            "limits.concurrency": _IN_FLIGHT,
            "cluster.executor": "ray",
            "cluster.workers": _WORKERS,
            "cluster.silence_s": _SILENCE_S,
        }
        dotted = {name.replace("__", "."): value for name, value in given.items()}
        job = load_job(self.folder / "rows.jsonl", settings | dotted)
        return await start.run_job(job, stop=self.stop, watch=Watch(summary=self._see))

    def _see(self, summary: Summary) -> None:
        self.summary = summary

    def states(self) -> dict[str, str]:
        workers = () if self.summary is None else self.summary.workers
        return {one.id: one.state for one in workers}

    def has_all_at_work(self, workers: int) -> bool:
        """Whether so many run, and each has completed some rows."""
        found = () if self.summary is None else self.summary.workers
        at_work = [one for one in found if one.state == "running" and one.completed >= 3]
        return len(at_work) == workers

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "run/events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]

    async def check(self, *, twice: int = 0) -> None:
        """Each row is there once and ok, and at most so many were answered twice."""
        rows = standing_rows(self.folder / "run")
        assert sorted(rows) == sorted(f"q{row}" for row in range(self.rows))
        assert all(ok for ok, _ in rows.values())
        assert verify(self.folder / "run").problems == []
        assert self.rows <= await self.answered() <= self.rows + twice

    async def answered(self) -> int:
        stats = await asyncio.to_thread(_stats, self.url)
        answers: int = stats["completions"]
        return answers


def _stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/stats") as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
    return found


async def _until(holds: Callable[[], bool], run: "asyncio.Task[Summary]") -> None:
    while not holds():
        assert not run.done(), run.exception() or run.result()
        await asyncio.sleep(0.02)


@pytest.fixture
async def led(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lead]:
    async with serve(SimulatorSettings(latency_s=0.15)) as url:
        yield Lead(tmp_path, url, monkeypatch)


def _worker(cluster: PipeCluster, writer: int) -> PipedWorker:
    return next(one for one in cluster.workers if one.process.writer == writer)


@pytest.mark.parametrize("slow_s", [3.0, pytest.param(12.0, marks=pytest.mark.long)])
async def test_workers_are_called_while_one_is_adopted_and_another_started_for_long(
    led: Lead, monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    """Longer than silence: whoever is not called then gives up its driver."""
    spans: list[tuple[str, float, float]] = []

    def slowly(what: str, takes_s: float) -> None:
        began_s = time.monotonic()
        time.sleep(takes_s)
        spans.append((what, began_s, time.monotonic()))

    def start_slowly(number: int) -> None:
        if number > _WORKERS:
            slowly("start", slow_s)

    def seal_slowly(*arguments: Any) -> None:
        slowly("adoption", slow_s + 1.0)  # the run ends after that
        seal(*arguments)

    monkeypatch.setattr(adoption, "seal", seal_slowly)
    led.write_rows(120)
    cluster = PipeCluster(start_slowly).prepare(_WORKERS)
    run = asyncio.create_task(led.run(cluster))
    await _until(lambda: led.has_all_at_work(_WORKERS), run)
    killed, *others = [_worker(cluster, writer) for writer in (1, 2, 3)]
    killed.process.process.kill()
    summary = await run
    assert (summary.exit_code, summary.ok) == (0, led.rows)
    assert {what for what, _, _ in spans} == {"adoption", "start"}
    for _, began_s, ended_s in spans:
        for worker in others:
            assert len([at_s for at_s in worker.called_s if began_s < at_s < ended_s]) > slow_s
    assert [name for name, state in led.states().items() if state == "adopted"] == ["w1"]
    assert [event["worker"] for event in led.events("worker_lost")] == ["w1"]
    assert {event["worker"] for event in led.events("worker_drained")} >= {"w2", "w3"}
    await led.check(twice=_IN_FLIGHT)


@pytest.mark.parametrize("fails", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_a_run_that_gets_no_worker_any_more_is_exit_3_and_goes_on_when_it_does(
    led: Lead, *, fails: bool
) -> None:
    """Those that it asks for cannot be started, or are waited for in vain."""

    def begin(number: int) -> None:
        if number > 2 and fails:
            raise WorkerFailed("there is no room", is_over=True)

    cluster = PipeCluster(begin).prepare(2)
    run = asyncio.create_task(led.run(cluster, cluster__workers=2, limits__give_up_after_s=1.0))
    await _until(lambda: led.has_all_at_work(2), run)
    cluster.before = _HANGS
    for worker in list(cluster.workers):
        worker.process.process.kill()
    summary = await run
    assert (summary.exit_code, summary.state) == (3, "stopped")
    assert str(summary.message).startswith("no worker was available for 1")
    assert ("there is no room" in str(summary.message)) == fails
    assert "run the same command again" in str(summary.message)
    assert 6 <= summary.ok == len(standing_rows(led.folder / "run")) < led.rows
    assert sorted(event["worker"] for event in led.events("worker_adopted")) == ["w1", "w2"]
    summary = await led.run(
        PipeCluster().prepare(2), cluster__workers=2, limits__give_up_after_s=1.0
    )
    assert (summary.exit_code, summary.ok) == (0, led.rows)
    assert sorted(led.states()) == ["w3", "w4"]
    await led.check(twice=_IN_FLIGHT)


async def test_when_all_disks_fail_it_is_exit_1_also_if_one_of_the_workers_was_cut_off(
    led: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For that one no other is started, which would be taken for one with a disk."""
    path = os.pathsep.join((str(_FAILING_DISKS), os.environ["PYTHONPATH"]))
    monkeypatch.setenv("PYTHONPATH", path)
    led.write_rows(2_000)  # enough for the other one meanwhile
    disks = led.folder / "failing_disks"
    disks.write_text("w1 600")
    cluster = PipeCluster().prepare(2)
    run = asyncio.create_task(led.run(cluster, cluster__workers=2))

    def is_held_by(writer: str) -> bool:
        return f"by worker {writer}" in str(led.summary and led.summary.message)

    await _until(lambda: is_held_by("w1"), run)
    _worker(cluster, 1).is_cut = True
    await _until(lambda: led.states()["w1"] in ("lost", "adopted"), run)
    disks.write_text("w1 w2 600")
    await _until(lambda: is_held_by("w2"), run)
    for _ in range(2):  # nobody wants to wait for a minute here
        led.stop.ask()
    with pytest.raises(StoreError, match="the disk reports an error") as raised:
        await run
    assert len(cluster.workers) == 2
    summary = raised.value.summary
    assert isinstance(summary, Summary)
    assert (summary.exit_code, led.states()) == (1, {"w1": "adopted", "w2": "ended"})
    assert [one.partition(" on ")[0] for one in summary.warnings] == ["worker w1", "worker w2"]
    assert 0 < await led.answered() - summary.ok <= 2 * _IN_FLIGHT


async def test_a_worker_of_another_version_is_named_before_anything_is_sent(led: Lead) -> None:
    cluster = PipeCluster()
    cluster.says = {"host": "far", "batchrun": "0.0.1"}
    with pytest.raises(JobError, match=r"worker on far has batchrun 0\.0\.1, .*; install the same"):
        await led.run(cluster, cluster__workers=1)
    assert not (led.folder / "run").exists()
    assert await led.answered() == 0


async def test_one_that_comes_late_with_another_version_is_a_warning(
    led: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on without it, and asks for others."""

    def come_late(number: int) -> None:
        if number > 1:
            wait_until(lambda: led.summary is not None and led.summary.completed > 0)

    monkeypatch.setattr(driver, "_GATHER_S", 0.0)
    cluster = PipeCluster(come_late).prepare(1)
    cluster.says = {"host": "far", "batchrun": "0.0.1"}
    cluster.prepare(1)
    cluster.before = _HANGS  # those that follow
    summary = await led.run(cluster, cluster__workers=2)
    assert (summary.exit_code, list(led.states())) == (0, ["w1"])
    (warning,) = summary.warnings
    assert warning.startswith("a worker that came later cannot take part: the worker on far has")
    await led.check()


async def test_loopback_with_workers_on_two_machines_is_refused(led: Lead) -> None:
    """That it goes well as the message says, and for a shared folder: see `test_ray_hosts.py`."""

    def on_its_own(number: int) -> None:
        cluster.says = {"host": f"host{number}", "machine": str(number)}

    cluster = PipeCluster(on_its_own)
    told = f"{led.url} is a loopback address, but there are workers on host1, host2;"
    with pytest.raises(JobError, match=told) as raised:
        await led.run(cluster, cluster__workers=2)
    assert "write per_node_endpoint = true into [cluster]" in str(raised.value)
    assert not (led.folder / "run").exists()
    assert await led.answered() == 0


@pytest.mark.skipif(not can_run(*_OWN_FILES, "true"), reason="no namespaces for this user")
async def test_a_worker_that_does_not_see_the_run_directory_is_refused(
    led: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(led_worker, "_SEE_S", 0.5)
    hidden = led.folder / "hidden"
    hidden.mkdir()
    cluster = PipeCluster()
    cluster.before = (*_HIDE, str(hidden))
    with pytest.raises(JobError) as raised:
        await led.run(cluster, cluster__workers=1, output__path=str(hidden / "run"))
    assert f"does not see the run directory {hidden / 'run'};" in str(raised.value)
    assert str(raised.value).endswith("at the same path, with -o")
    assert not list(hidden.iterdir())
    assert await led.answered() == 0
