"""Runs on two hosts whose network is cut: each row once, whoever gives up whom."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import has_ended
from tests.ray_cluster import worker_pids
from tests.two_hosts import SERVER, TwoHosts, two_hosts, why_not
from tests.waiting import HANG_S, wait_until

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
_CUT_S = 60.0
_IN_FLIGHT = 12
_WITHOUT_LOCKS = Path(__file__).parent / "without_locks"
_FETCH = "import sys, urllib.request as web; print(web.urlopen(sys.argv[1]).read().decode())"
_JOB = f"""
[input]
path = "prompts.jsonl"
[request]
model = "m"
input = "{{{{ question }}}}"
[endpoint]
base_url = "BASE_URL"
api_key_env = "none"
TIMEOUT
[limits]
concurrency = {_IN_FLIGHT}
LIMITS
[output]
path = "PATH"
[cluster]
executor = "ray"
workers = 3
SILENCE
"""


class Hosts:
    """Two hosts, of which the second has two of the three workers of a run."""

    def __init__(self, folder: Path, hosts: TwoHosts, begin: Callable[..., Any]) -> None:
        self.folder, self._hosts = folder, hosts
        served = begin(
            *("simulate", "--host", SERVER, "--port", "8080", "--latency", "0.3"),
            before=hosts.server.inside,
        )
        assert served.stdout is not None
        self.base_url = served.stdout.readline().strip()

    def workers(self) -> list[dict[str, Any]]:
        path = self.folder / "live.json"
        found: list[dict[str, Any]] = []
        if path.exists():
            found = json.loads(path.read_bytes())["workers"]
        return found

    def pids(self, state: str) -> set[int]:
        return set(worker_pids({"workers": self.workers()}, state))

    def work(self, rows: int) -> bool:
        """Whether all three do, and each has completed so many."""
        done = [one["completed"] for one in self.workers() if one["state"] == "running"]
        return len(done) == 3 and min(done) >= rows

    def far(self) -> tuple[int, int]:
        """The workers on the second host."""
        one, other = self.pids("running") & set(self._hosts.node.processes())
        return one, other

    def stats(self) -> dict[str, Any]:
        """What the server has done."""
        words = [sys.executable, "-c", _FETCH, f"{self.base_url.removesuffix('/v1')}/stats"]
        done = subprocess.run(
            [*self._hosts.server.inside, *words], capture_output=True, check=True, timeout=HANG_S
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture
def network() -> Iterator[TwoHosts]:
    with two_hosts() as hosts:
        yield hosts


def test_a_minute_without_a_word_between_driver_and_workers_costs_nothing(
    tmp_path: Path,
    environment: dict[str, str],
    network: TwoHosts,
    write_rows: Any,
    write_job: Any,
    questions: Any,
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    totals: Any,
) -> None:
    """Two of three workers reach the server, and not the driver, for twice as long as silence."""
    rows, a_minute = 700, 600
    write_rows(questions(rows))
    hosts = Hosts(tmp_path / "run", network, begin)
    job = _JOB.replace("PATH", "run").replace("LIMITS", f"requests_per_minute = {a_minute}")
    write_job(job.replace("TIMEOUT", "").replace("SILENCE", ""), hosts.base_url)
    with network.cluster(environment, (1, 2)) as address:
        variables = {"RAY_ADDRESS": address}
        process = begin("run", "job.toml", "--json", env=variables, before=network.head.inside)
        wait_until(lambda: hosts.work(10), process)
        far = hosts.far()
        network.cut()
        mended_s = time.monotonic() + _CUT_S
        wait_until(lambda: set(far) <= hosts.pids("adopted"), process)
        assert time.monotonic() < mended_s
        wait_until(lambda: all(map(has_ended, far)))
        time.sleep(max(0.0, mended_s - time.monotonic()))
        network.mend()
        _, said = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
    stats = hosts.stats()
    assert totals() == (rows, rows, rows)
    assert (stats["completions"], stats["most_in_flight"] <= _IN_FLIGHT) == (rows, True), stats
    by_second = {int(second): one["requests"] for second, one in stats["by_second"].items()}
    for first in by_second:
        assert sum(by_second.get(second, 0) for second in range(first, first + 60)) <= a_minute
    verified = batchrun("verify", "run")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_without_locks_a_worker_that_comes_back_after_its_rows_were_given_away_stores_nothing(
    tmp_path: Path,
    environment: dict[str, str],
    network: TwoHosts,
    write_rows: Any,
    write_job: Any,
    questions: Any,
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    totals: Any,
) -> None:
    """One of those cut off is stopped too, and goes on once it was taken for dead."""
    rows = 600
    write_rows(questions(rows))
    run = "without_locks/run"
    hosts = Hosts(tmp_path / run, network, begin)
    job = _JOB.replace("PATH", run).replace("LIMITS", "")
    job = job.replace("TIMEOUT", "timeout_s = 3").replace("SILENCE", "silence_s = 3")
    write_job(job, hosts.base_url)
    path = os.pathsep.join((str(_WITHOUT_LOCKS), environment["PYTHONPATH"]))
    variables = {**environment, "PYTHONPATH": path}
    with network.cluster(variables, (1, 2)) as address:
        variables["RAY_ADDRESS"] = address
        process = begin("run", "job.toml", "--json", env=variables, before=network.head.inside)
        wait_until(lambda: hosts.work(10), process)
        cut, stopped = hosts.far()
        os.kill(stopped, signal.SIGSTOP)
        network.cut()
        wait_until(lambda: stopped in hosts.pids("adopted"), process)
        os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: has_ended(stopped))
        assert has_ended(cut)
        network.mend()
        _, said = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
        assert "cannot lock" in said
    stats = hosts.stats()
    assert totals(run) == (rows, rows, rows)
    assert rows <= stats["completions"] <= rows + _IN_FLIGHT
    assert stats["most_in_flight"] <= _IN_FLIGHT
    verified = batchrun("verify", run)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert not list((tmp_path / run / "journal").iterdir())
