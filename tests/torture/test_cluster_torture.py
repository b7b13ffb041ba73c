"""Runs with three workers on Ray; anything may be killed, stopped or cut off at any moment.

Each row stands once; what was answered twice is no more than was in flight in what was killed, and
nothing where that was the driver or nobody. `make torture-cluster` runs it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from batchrun.remote.run_link import scratch_of
from benchmarks.timed import children_of
from tests.processes import run_batchrun
from tests.ray_cluster import standing_cluster, worker_pids
from tests.remote.object_server import Bucket
from tests.runs import standing_rows
from tests.torture.purse import Purse
from tests.torture.server import Server
from tests.waiting import HANG_S

_KILLS = int(os.environ.get("TORTURE_KILLS", "60"))
_KILLS_IN_A_STORE = max(_KILLS // 3, 1)
_FIGURES = Path(__file__).parents[2] / "runs"
_ROWS, _IN_FLIGHT, _WORKERS = 3_000, 24, 3
_SILENCE_S = 3.0
_CUT_OFF = Path(__file__).parents[1] / "end_to_end/cut_off_driver.py"
_WAYS = (
    *("worker", "worker", "driver", "driver", "sealing", "stopped worker", "worker cut off"),
    *("raylet", "head"),
)
_COSTS_NOTHING = ("driver", "sealing", "worker cut off")
_JOB = f"""
[input]
path = "rows.jsonl"
[request]
model = "m"
input = "{{{{ n }}}}"
[endpoint]
base_url = "BASE_URL"
timeout_s = 20
[limits]
concurrency = {_IN_FLIGHT}
give_up_after_s = 20
[output]
path = "RUN"
part_rows = 200
[cluster]
executor = "ray"
workers = {_WORKERS}
silence_s = {_SILENCE_S}
"""


_ACCESS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "something",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Campaign:
    """Runs in one cluster, one after another, each killed until it is complete."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], seed: int, bucket: Bucket | None
    ) -> None:
        """`bucket`: where the tables of the run are to be; its journals are on this machine."""
        folder.mkdir()
        self._name = "run" if bucket is None else f"{bucket.url}/run-{seed}"
        self._path = folder / "run"
        if bucket is not None:
            self._path = scratch_of(self._name, str(folder / "scratch"))
        self._folder, self._environment = folder, dict(environment)
        self._dice = random.Random(seed)
        self._server = Server(folder, environment, "--latency", "0.15", "--latency-spread", "0.5")
        rows = "".join(f'{{"n": "row {row}"}}\n' for row in range(_ROWS))
        (folder / "rows.jsonl").write_text(rows)
        job = _JOB.replace("BASE_URL", self._server.base_url).replace("RUN", self._name)
        scratch = "" if bucket is None else 'scratch = "scratch"\n'
        (folder / "job.toml").write_text(job + scratch)
        self._root = ""  # of the cluster's own files
        self.kills: Counter[str] = Counter()
        self.twice: Counter[str] = Counter()  # answers, by what was killed

    def close(self) -> None:
        self._server.close()

    def play(self, cluster: Mapping[str, str], purse: Purse) -> str | None:
        """Until the run is complete; the way that ended the cluster, if one did."""
        environment, self._root = {**self._environment, **cluster}, cluster["RAY_ROOT"]
        while purse.take():
            way = self._dice.choice(_WAYS)
            before = self._server.at_rest().completions - len(self._stored())
            with self._run(environment) as process:
                if not self._act(way, process):
                    purse.put_back()
                    break
            if way in ("raylet", "head"):
                return way
            self._wait_for_rest(environment)
            self._look(way, before)
        self._end(environment)
        return None

    @contextmanager
    def _run(self, environment: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
        with (self._folder / "errors.txt").open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, str(_CUT_OFF), "run", "job.toml", "--quiet"],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
            )
        try:
            yield process
            code = process.wait(HANG_S)
            assert code in (0, 3, -signal.SIGKILL), (code, self._said())
        finally:
            process.kill()
            process.wait(HANG_S)

    def _act(self, way: str, process: "subprocess.Popen[str]") -> bool:
        """Kills at a random moment; whether there was one before the run ended."""
        rows = self._completed() + self._dice.randrange(50, 600)
        while self._completed() < rows or not worker_pids(self._live(), "running"):
            if process.poll() is not None:
                return False
            time.sleep(0.05)
        time.sleep(self._dice.random() / 2)
        self.kills[way] += 1
        victim = self._dice.choice(worker_pids(self._live(), "running") or [0])
        with suppress(ProcessLookupError):
            match way:
                case "worker":
                    os.kill(victim, signal.SIGKILL)
                case "driver":
                    process.kill()
                case "sealing":
                    for pid in children_of(victim):
                        os.kill(pid, signal.SIGKILL)
                case "stopped worker":
                    os.kill(victim, signal.SIGSTOP)
                    time.sleep(_SILENCE_S + self._dice.random() * 4)
                    os.kill(victim, signal.SIGCONT)
                case "worker cut off":
                    cut = self._folder / "cut" / str(victim)
                    cut.parent.mkdir(exist_ok=True)
                    cut.touch()
                    time.sleep(_SILENCE_S + self._dice.random() * 4)
                    cut.unlink()
                case "raylet":
                    _kill_named("raylet/raylet", self._root)
                case "head":
                    _kill_named("gcs/gcs_server", self._root)
        return True

    def _wait_for_rest(self, environment: Mapping[str, str]) -> None:
        """Until no worker writes any more: a dry run waits for them, and puts in order."""
        done = run_batchrun(self._folder, environment, "run", "job.toml", "--dry-run")
        assert done.returncode == 0, done.stderr

    def _look(self, way: str, before: int) -> None:
        stored = self._stored()
        answered = self._server.at_rest().completions
        twice = answered - len(stored) - before
        self.twice[way] += twice
        most = 0 if way in _COSTS_NOTHING else _IN_FLIGHT
        assert 0 <= twice <= most, (way, twice, self._said())
        self._verify()

    def _end(self, environment: Mapping[str, str]) -> None:
        done = run_batchrun(self._folder, environment, "run", "job.toml", "--quiet")
        assert done.returncode == 0, done.stderr
        assert len(self._stored()) == _ROWS
        self._verify()

    def _verify(self) -> None:
        done = run_batchrun(self._folder, self._environment, "verify", self._name)
        assert done.returncode == 0, done.stdout + done.stderr

    def _stored(self) -> dict[str, tuple[bool, int]]:
        """Asserts that each row stands once."""
        return standing_rows(self._path) if (self._path / "run.json").exists() else {}

    def _live(self) -> dict[str, Any]:
        try:
            live: dict[str, Any] = json.loads((self._path / "live.json").read_bytes())
        except OSError:
            return {"workers": []}
        return live

    def _completed(self) -> int:
        live = self._live()
        return int(live.get("ok", 0)) + int(live.get("not_ok", 0))

    def _said(self) -> str:
        return (self._folder / "errors.txt").read_text()[-3000:]


def _kill_named(name: str, root: str) -> None:
    """The process of a cluster whose files are below a folder."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            words = (entry / "cmdline").read_text().split("\0")
            if name in words[0] and any(root in word for word in words):
                os.kill(int(entry.name), signal.SIGKILL)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {**_ACCESS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    yield Bucket(address, "torture")
    server.stop()


@pytest.mark.torture
@pytest.mark.timeout(4 * 3_600)
@pytest.mark.parametrize("place", ["folder", "store"])
def test_nothing_is_lost_or_answered_twice_whatever_is_killed(
    place: str, tmp_path: Path, environment: Mapping[str, str], request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    in_store: Bucket | None = request.getfixturevalue("bucket") if place == "store" else None
    if in_store is not None:
        access = {name: text for name, text in os.environ.items() if name.startswith("AWS_")}
        environment = {**environment, **access}
    most = _KILLS if in_store is None else _KILLS_IN_A_STORE
    purse, began_s = Purse(most), time.monotonic()
    kills, twice, runs = Counter[str](), Counter[str](), 0
    campaign: Campaign | None = None
    while kills.total() < most:
        with standing_cluster(_WORKERS + 1) as cluster:
            while kills.total() < most:
                if campaign is None:
                    campaign = Campaign(tmp_path / f"run-{runs}", environment, runs, in_store)
                    request.addfinalizer(campaign.close)
                    runs += 1
                if campaign.play(cluster, purse) is not None:
                    break  # the same run goes on in a new cluster
                kills += campaign.kills
                twice += campaign.twice
                campaign.close()
                campaign = None
                sys.stderr.write(f"{kills.total()} kills, {runs} runs\n")
    told = "\n".join(
        [
            "| killed | times | answered twice, at most |",
            "| --- | --- | --- |",
            *(f"| {way} | {kills[way]} | {twice[way]} |" for way in dict.fromkeys(_WAYS)),
            f"\n{runs} runs of {_ROWS:,} rows, {time.monotonic() - began_s:.0f} s",
        ]
    )
    if in_store is not None:
        keys = in_store.names()
        assert not [key for key in keys if key.endswith((".tmp", ".intent")) or "/claims/" in key]
        assert in_store.open_uploads() == []
    _FIGURES.mkdir(exist_ok=True)
    name = "torture_cluster" if in_store is None else "torture_cluster_store"
    (_FIGURES / f"{name}.md").write_text(told + "\n")
    sys.stderr.write(told + "\n")
