"""Runs with three workers on Ray; anything may be killed, stopped or cut off at any moment.

In a folder, with the tables in a store, and where no file can be locked. Each row stands once; what
was answered twice is no more than was in flight in what was killed, and nothing where that was the
driver or nobody. `make torture-cluster` runs it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from batchrun.remote.run_link import scratch_of
from benchmarks.timed import children_of
from tests.processes import has_ended, run_batchrun
from tests.ray_cluster import standing_cluster, worker_pids
from tests.remote.object_server import Bucket
from tests.runs import standing_rows
from tests.torture.server import Server
from tests.waiting import HANG_S, wait_until

_KILLS = int(os.environ.get("TORTURE_KILLS", "60"))
_KILLS_ELSEWHERE = max(_KILLS // 3, 1)  # than in a folder
_FIGURES = Path(__file__).parents[2] / "runs"
_ROWS, _IN_FLIGHT, _WORKERS = 3_000, 24, 3
_SILENCE_S = 3.0
_LOOK_EVERY_S = 0.05
_END_TO_END = Path(__file__).parents[1] / "end_to_end"
_CUT_OFF, _WITHOUT_LOCKS = _END_TO_END / "cut_off_driver.py", _END_TO_END / "without_locks"
_WAYS = {  # and how often, one after the other
    "worker": 3,
    "driver": 3,
    "sealing": 2,
    "worker cut off": 2,
    "stopped worker": 3,
    "stopped until adopted": 2,
    "raylet": 1,
    "head": 1,
}
_COSTS_NOTHING = ("driver", "sealing", "stopped worker", "worker cut off")
_ENDS_THE_CLUSTER = ("raylet", "head")
_ENDS_THE_COMMAND = ("driver", *_ENDS_THE_CLUSTER)
_CODES = {"driver": (-signal.SIGKILL,), "raylet": (0, 3), "head": (0, 3)}  # of the others: 0
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
    """A run with a server of its own, struck in one way after another until it is complete."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], seed: int, bucket: Bucket | None
    ) -> None:
        """`bucket`: where the tables of the run are to be; its journals are on this machine.

        Below a folder `without_locks` no file can be locked, if the environment says so.
        """
        folder.mkdir(parents=True)
        self._name = "run" if bucket is None else f"{bucket.url}/run-{seed}"
        self._path = folder / "run"
        if bucket is not None:
            self._path = scratch_of(self._name, str(folder / "scratch"))
        self._folder, self._environment = folder, dict(environment)
        self._has_locks = folder.parent.name != "without_locks"
        self._dice = random.Random(seed)
        self._server = Server(folder, environment, "--latency", "0.15", "--latency-spread", "0.5")
        rows = "".join(f'{{"n": "row {row}"}}\n' for row in range(_ROWS))
        (folder / "rows.jsonl").write_text(rows)
        job = _JOB.replace("BASE_URL", self._server.base_url).replace("RUN", self._name)
        scratch = "" if bucket is None else 'scratch = "scratch"\n'
        (folder / "job.toml").write_text(job + scratch)
        self._root = ""  # of the cluster's own files
        # How it was struck by then, how often, and what was answered twice before.
        self._last: tuple[str, int, int] | None = None
        self.kills: Counter[str] = Counter()
        self.twice: Counter[str] = Counter()  # answers, by what was killed

    def close(self) -> None:
        self._server.close()

    def play(self, cluster: Mapping[str, str], ways: deque[str]) -> bool:
        """Strikes in these ways, in order, until the run is complete; whether it is.

        If not, the cluster was killed, and the next call continues in another one.
        """
        environment, self._root = {**self._environment, **cluster}, cluster["RAY_ROOT"]
        self._look(environment)
        while ways:
            way, before = ways[0], self._server.at_rest().completions - len(self._stored())
            times = 0
            with self._run(environment) as process:
                while ways and ways[0] == way and self._act(way, process):
                    ways.popleft()
                    times += 1
                    if way in _ENDS_THE_COMMAND:
                        break
                code = process.wait(HANG_S)
            allowed = _CODES.get(way, (0,)) if times else (0,)
            assert code in allowed, (way, code, self._said())
            if not times:
                break
            self._last = way, times, before
            if way in _ENDS_THE_CLUSTER:
                return False
            self._look(environment)
            if way not in _ENDS_THE_COMMAND:
                break  # its command has completed the run
        self._end(environment)
        return True

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
        finally:
            process.kill()
            process.wait(HANG_S)

    def _act(self, way: str, process: "subprocess.Popen[str]") -> bool:
        """Strikes at a random moment; whether there was one before the run ended."""
        rows = self._completed() + self._dice.randrange(50, 600)
        while self._completed() < rows:
            if process.poll() is not None:
                return False
            time.sleep(_LOOK_EVERY_S)
        time.sleep(self._dice.random() / 2)
        while not self._strike(way, process):
            if process.poll() is not None:
                return False
            time.sleep(_LOOK_EVERY_S)
        self.kills[way] += 1
        return True

    def _strike(self, way: str, process: "subprocess.Popen[str]") -> bool:
        """Whether there was somebody to be struck."""
        victims = worker_pids(self._live(), "running")
        if way == "sealing":
            victims = [pid for pid in victims if children_of(pid)]
        if not victims or process.poll() is not None:
            return False
        victim = self._dice.choice(victims)
        longer_s = _SILENCE_S + self._dice.random() * 4
        try:
            match way:
                case "worker":
                    os.kill(victim, signal.SIGKILL)
                case "driver":
                    process.kill()
                case "sealing":
                    for pid in children_of(victim):
                        os.kill(pid, signal.SIGKILL)
                case "stopped worker":
                    with _stopped(victim):
                        time.sleep(longer_s)
                case "stopped until adopted":
                    self._stop_until_adopted(victim, process)
                case "worker cut off":
                    with self._cut_off(victim):
                        time.sleep(longer_s)
                case "raylet":
                    _kill_named("raylet/raylet", self._root)
                case "head":
                    _kill_named("gcs/gcs_server", self._root)
        except ProcessLookupError:  # it has just ended
            return False
        return True

    def _stop_until_adopted(self, victim: int, process: "subprocess.Popen[str]") -> None:
        """Until others have its rows; its driver kills it, without locks only after that."""

        def is_adopted() -> bool:
            return victim in worker_pids(self._live(), "adopted")

        with _stopped(victim):
            wait_until(lambda: is_adopted() or process.poll() is not None)
            assert is_adopted(), self._said()
        wait_until(lambda: has_ended(victim))

    @contextmanager
    def _cut_off(self, victim: int) -> Iterator[None]:
        """Nothing goes between it and its driver meanwhile."""
        cut = self._folder / "cut" / str(victim)
        cut.parent.mkdir(exist_ok=True)
        cut.touch()
        try:
            yield
        finally:
            cut.unlink()

    def _look(self, environment: Mapping[str, str]) -> None:
        """What the last strike has cost, if it was not looked at."""
        if self._last is None:
            return
        (way, times, before), self._last = self._last, None
        # Until no worker writes any more: a dry run waits for them, and puts in order.
        done = run_batchrun(self._folder, environment, "run", "job.toml", "--dry-run")
        assert done.returncode == 0, done.stderr
        stored = self._stored()
        twice = self._server.at_rest().completions - len(stored) - before
        self.twice[way] += twice
        assert 0 <= twice <= times * _most(way), (way, times, twice, self._said())
        self._verify()

    def _end(self, environment: Mapping[str, str]) -> None:
        done = run_batchrun(self._folder, environment, "run", "job.toml", "--json")
        assert done.returncode == 0, done.stderr
        assert ("cannot lock" in done.stderr) is not self._has_locks, done.stderr
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


def _ways(place: str) -> deque[str]:
    """Those to come: in each round all of `_WAYS`, in any order."""
    dice, most = random.Random(place), _KILLS if place == "folder" else _KILLS_ELSEWHERE
    rounds = chain.from_iterable(dice.sample(list(_WAYS), len(_WAYS)) for _ in range(most))
    each = chain.from_iterable(repeat(way, _WAYS[way]) for way in rounds)
    return deque(islice(each, most))


def _most(way: str) -> int:
    """Answers that may be lost when somebody is struck so."""
    return 0 if way in _COSTS_NOTHING else _IN_FLIGHT


@contextmanager
def _stopped(victim: int) -> Iterator[None]:
    """It does nothing meanwhile; it may be killed. Raises `ProcessLookupError` if it has ended."""
    os.kill(victim, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)


def _kill_named(name: str, root: str) -> None:
    """The process of a cluster whose files are below a folder. Raises `ProcessLookupError`."""
    found = 0
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            words = (entry / "cmdline").read_text().split("\0")
            if name in words[0] and any(root in word for word in words):
                os.kill(int(entry.name), signal.SIGKILL)
                found += 1
    if not found:
        raise ProcessLookupError(name)


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
@pytest.mark.parametrize("place", ["folder", "store", "without_locks"])
def test_nothing_is_lost_or_answered_twice_whatever_is_killed(
    place: str,
    tmp_path: Path,
    environment: Mapping[str, str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    in_store: Bucket | None = request.getfixturevalue("bucket") if place == "store" else None
    if in_store is not None:
        access = {name: text for name, text in os.environ.items() if name.startswith("AWS_")}
        environment = {**environment, **access}
    if place == "without_locks":
        monkeypatch.syspath_prepend(_WITHOUT_LOCKS)  # for the processes of the cluster
        path = os.pathsep.join((str(_WITHOUT_LOCKS), environment["PYTHONPATH"]))
        monkeypatch.setenv("HOST_EACH", "1")
        environment = {**environment, "PYTHONPATH": path, "HOST_EACH": "1"}
    ways, began_s = _ways(place), time.monotonic()
    kills, twice, runs = Counter[str](), Counter[str](), 0
    campaign: Campaign | None = None
    while ways or campaign is not None:
        with standing_cluster(_WORKERS + 1) as cluster:
            while ways or campaign is not None:
                if campaign is None:
                    folder = tmp_path / place / f"run-{runs}"
                    campaign = Campaign(folder, environment, runs, in_store)
                    request.addfinalizer(campaign.close)
                    runs += 1
                if not campaign.play(cluster, ways):
                    break  # the same run goes on in a new cluster
                kills += campaign.kills
                twice += campaign.twice
                campaign.close()
                campaign = None
                sys.stderr.write(f"{kills.total()} kills, {runs} runs\n")
    told = "\n".join(
        [
            "| killed | times | answered twice, in all | at most |",
            "| --- | --- | --- | --- |",
            *(
                f"| {way} | {kills[way]} | {twice[way]} | {kills[way] * _most(way)} |"
                for way in _WAYS
            ),
            f"\n{runs} runs of {_ROWS:,} rows, {time.monotonic() - began_s:.0f} s",
        ]
    )
    if in_store is not None:
        keys = in_store.names()
        assert not [key for key in keys if key.endswith((".tmp", ".intent")) or "/claims/" in key]
        assert in_store.open_uploads() == []
    _FIGURES.mkdir(exist_ok=True)
    name = "torture_cluster" if place == "folder" else f"torture_cluster_{place}"
    (_FIGURES / f"{name}.md").write_text(told + "\n")
    sys.stderr.write(told + "\n")
