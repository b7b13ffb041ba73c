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
Begin = Callable[..., Any]
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

    def __init__(
        self, folder: Path, hosts: TwoHosts, begin: Begin, verify: Any, totals: Any
    ) -> None:
        self.network, self._folder, self._begin = hosts, folder, begin
        self._verify, self._totals = verify, totals
        self.run = ""
        served = begin(
            *("simulate", "--host", SERVER, "--port", "8080", "--latency", "0.3"),
            before=hosts.server.inside,
        )
        assert served.stdout is not None
        self.base_url = served.stdout.readline().strip()

    def begin(self, run: str, variables: dict[str, str], **lines: str) -> Any:
        """Starts it as `start` does, and waits until all three workers have completed some rows."""
        process = self.start(run, variables, **lines)
        wait_until(self._all_work, process)
        return process

    def start(
        self,
        run: str,
        variables: dict[str, str],
        *,
        limits: str = "",
        more: str = "",
        last: str = "",
        base_url: str | None = None,
    ) -> Any:
        """Starts the run; `limits`, `more` and `last`: lines of [limits], [endpoint], [cluster]."""
        self.run = run
        job = _JOB.replace("PATH", run).replace("LIMITS", limits)
        job = job.replace("BASE_URL", base_url or self.base_url)
        job = job.replace("TIMEOUT", more).replace("SILENCE", last)
        (self._folder / "job.toml").write_text(job)
        return self._begin(
            "run", "job.toml", "--json", env=variables, before=self.network.head.inside
        )

    def _workers(self) -> list[dict[str, Any]]:
        path = self._folder / self.run / "live.json"
        found: list[dict[str, Any]] = []
        if path.exists():
            found = json.loads(path.read_bytes())["workers"]
        return found

    def pids(self, state: str) -> set[int]:
        return set(worker_pids({"workers": self._workers()}, state))

    def _all_work(self) -> bool:
        done = [one["completed"] for one in self._workers() if one["state"] == "running"]
        return len(done) == 3 and min(done) >= 10

    def far(self) -> tuple[int, int]:
        """The workers on the second host."""
        one, other = self.pids("running") & set(self.network.node.processes())
        return one, other

    def stats(self) -> dict[str, Any]:
        """What the server has done."""
        words = [sys.executable, "-c", _FETCH, f"{self.base_url.removesuffix('/v1')}/stats"]
        done = subprocess.run(
            [*self.network.server.inside, *words],
            capture_output=True,
            check=True,
            timeout=HANG_S,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def end(self, process: Any) -> str:
        """The network is whole again and the run ends well; what it said."""
        self.network.mend()
        _, said = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
        return str(said)

    def check(self, rows: int, *, twice: int = 0) -> dict[str, Any]:
        """Each row is there once, and at most so many were answered twice; what the server did."""
        stats = self.stats()
        assert self._totals(self.run) == (rows, rows, rows)
        assert rows <= stats["completions"] <= rows + twice, stats
        assert stats["most_in_flight"] <= _IN_FLIGHT, stats
        self._verify(self.run)
        return stats


@pytest.fixture
def network() -> Iterator[TwoHosts]:
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture
def hosts(network: TwoHosts, tmp_path: Path, begin: Begin, verify: Any, totals: Any) -> Hosts:
    """Its processes end before the network does."""
    return Hosts(tmp_path, network, begin, verify, totals)


def test_a_minute_without_a_word_between_driver_and_workers_costs_nothing(
    environment: dict[str, str], hosts: Hosts, write_rows: Any, questions: Any
) -> None:
    """Two of three workers reach the server, and not the driver, for twice as long as silence."""
    rows, a_minute = 700, 600
    write_rows(questions(rows))
    with hosts.network.cluster(environment, (1, 2)) as address:
        variables = {"RAY_ADDRESS": address}
        process = hosts.begin("run", variables, limits=f"requests_per_minute = {a_minute}")
        far = hosts.far()
        hosts.network.cut()
        mended_s = time.monotonic() + _CUT_S
        wait_until(lambda: set(far) <= hosts.pids("adopted"), process)
        assert time.monotonic() < mended_s
        wait_until(lambda: all(map(has_ended, far)))
        time.sleep(max(0.0, mended_s - time.monotonic()))
        hosts.end(process)
    stats = hosts.check(rows)
    by_second = {int(second): one["requests"] for second, one in stats["by_second"].items()}
    for first in by_second:
        assert sum(by_second.get(second, 0) for second in range(first, first + 60)) <= a_minute


def test_without_locks_a_worker_that_comes_back_after_its_rows_were_given_away_stores_nothing(
    tmp_path: Path, environment: dict[str, str], hosts: Hosts, write_rows: Any, questions: Any
) -> None:
    """One of those cut off is stopped too, and goes on once it was taken for dead."""
    rows, run = 600, "without_locks/run"
    write_rows(questions(rows))
    path = os.pathsep.join((str(_WITHOUT_LOCKS), environment["PYTHONPATH"]))
    variables = {**environment, "PYTHONPATH": path}
    with hosts.network.cluster(variables, (1, 2)) as address:
        variables["RAY_ADDRESS"] = address
        process = hosts.begin(run, variables, more="timeout_s = 3", last="silence_s = 3")
        cut, stopped = hosts.far()
        os.kill(stopped, signal.SIGSTOP)
        hosts.network.cut()
        wait_until(lambda: stopped in hosts.pids("adopted"), process)
        os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: has_ended(stopped))
        assert has_ended(cut)
        assert "cannot lock" in hosts.end(process)
    hosts.check(rows, twice=_IN_FLIGHT)
    assert not list((tmp_path / run / "journal").iterdir())


def test_what_hosts_do_not_share_is_refused_and_goes_well_as_the_message_says(
    tmp_path: Path,
    environment: dict[str, str],
    hosts: Hosts,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    totals: Any,
    verify: Any,
) -> None:
    """A run directory of one host alone, and an address that each host takes for its own."""
    rows, loopback = 200, "http://127.0.0.1:8081/v1"
    write_rows(questions(rows))
    own = tmp_path / "own"
    own.mkdir()

    def refused(run: str, **given: str) -> str:
        process = hosts.start(run, variables, **given)
        _, said = process.communicate(timeout=HANG_S)
        assert process.returncode == 2, said
        assert not (tmp_path / run).exists()
        return str(said)

    with hosts.network.cluster(environment, (1, 2), own) as address:
        variables = {"RAY_ADDRESS": address}
        said = refused("own/run")
        assert f"the worker on node does not see the run directory {own / 'run'}" in said
        assert "give a folder that all machines of the cluster share, at the same path" in said
        said = refused("run", base_url=loopback)
        assert f"{loopback} is a loopback address, but there are workers on head, node" in said
        assert "write per_node_endpoint = true into [cluster]" in said
        assert hosts.stats()["requests"] == 0
        for host in (hosts.network.head, hosts.network.node):
            words = ("simulate", "--port", "8081", "--latency", "0.1")
            served = begin(*words, before=host.inside)
            assert served.stdout is not None
            assert served.stdout.readline().strip() == loopback
        per_node = "per_node_endpoint = true"
        process = hosts.start("run", variables, base_url=loopback, last=per_node)
        _, said = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
    assert totals("run") == (rows, rows, rows)
    verify("run")
