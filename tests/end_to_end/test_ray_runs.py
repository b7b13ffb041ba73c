"""Runs with workers on a real Ray cluster on loopback; skipped where the extra is absent."""

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.flaky_proxy import LATE, Asked, FlakyProxy, Way, flaky_proxy
from tests.processes import can_run, has_ended, read_rest, read_screen
from tests.ray_cluster import (
    assert_hidden,
    folder_of_cluster,
    raylet_of,
    standing_cluster,
    wait_for_none,
    worker_pids,
)
from tests.waiting import HANG_S, wait_until

pytest.importorskip("ray", reason="the extra `ray` is not installed")
Run = Callable[..., subprocess.CompletedProcess[str]]
Begin = Callable[..., Any]
ROWS, IN_FLIGHT = 400, 12
CUT_OFF = (sys.executable, str(Path(__file__).parent / "cut_off_driver.py"))
_PRICED = "[pricing.m]\ninput = 1.0\noutput = 1000.0\n[cluster]\nsilence_s = 2.0\n"
_CAP_USD, _MOST_USD = 12.0, 0.21  # of all rows together about half; of one answer
_CAPPED = ("--set", "max_output_tokens=200", "--max-cost", str(_CAP_USD))
# What `live.json` says of each worker.
_OF_WORKER = {
    "id",
    "host",
    "pid",
    "state",
    "completed",
    "in_flight",
    "waiting",
    "share",
    "silent_s",
}
_ALONE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
_STALLS = (Way.STALL, Way.STALL_LATE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Disks of its workers fail where a test says so."""
    sys.path.insert(0, str(Path(__file__).parent / "failing_disks"))
    try:
        with standing_cluster(4) as found:
            yield found
    finally:
        sys.path.pop(0)


class RayRun:
    """A prompt set, a simulator, and the run of three workers that asks it."""

    def __init__(
        self, request: pytest.FixtureRequest, folder: Path, batchrun: Run, begin: Begin, stats: Any
    ) -> None:
        self._request, self._folder = request, folder
        self._batchrun, self._begin, self._stats = batchrun, begin, stats
        self.base_url = ""
        self.words: list[str] = []

    def prepare(
        self, *more: str, rows: int = ROWS, latency_s: float = 0.05, job: str | None = None
    ) -> str:
        """Writes the rows and the job, if it says more; the simulator's base URL."""
        ask = self._request.getfixturevalue
        source = str(ask("write_rows")(ask("questions")(rows)))
        self.base_url = ask("simulator")("--latency", latency_s)
        if job is not None:
            source = ask("write_job")(f'[input]\npath = "{source}"\n{job}')
        self.words = ["run", source, "--prompt", "{{ question }}", "--model", "m", "-o", "run"]
        self.words += ["--base-url", self.base_url, "--concurrency", str(IN_FLIGHT)]
        self.words += ["--executor", "ray", "--workers", "3", *more]
        return self.base_url

    def ask(self, base_url: str) -> None:
        """Another server than the simulator."""
        self.words[self.words.index("--base-url") + 1] = base_url

    def begin(self, *more: str, env: dict[str, str] | None = None, **options: Any) -> Any:
        """Starts it, on the cluster of this module or as `env` says."""
        return self._begin(*self.words, *more, env=env or self.cluster, **options)

    def done(
        self, *more: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self._batchrun(*self.words, *more, env=env or self.cluster)

    @property
    def cluster(self) -> dict[str, str]:
        found: dict[str, str] = self._request.getfixturevalue("cluster")
        return found

    @property
    def live(self) -> dict[str, Any]:
        path = self._folder / "run/live.json"
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {"workers": []}
        return found

    def pids(self, *states: str) -> list[int]:
        return worker_pids(self.live, *states)

    def wait_for_rows(self, process: Any, workers: int = 1) -> list[int]:
        """Until some rows are complete, and so many workers run; these."""

        def has_come_so_far() -> bool:
            completed = sum(one["completed"] for one in self.live["workers"])
            return completed >= 60 and len(self.pids("running")) >= workers

        wait_until(has_come_so_far, process)
        return self.pids("running")

    def end_of(self, process: Any) -> str:
        """What it wrote to standard output; it must end well."""
        out, said = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
        return str(out)

    @property
    def answered(self) -> int:
        """How many requests the simulator has answered."""
        answers: int = self._stats(self.base_url)["completions"]
        return answers

    @property
    def billed_usd(self) -> float:
        """What all answers of the simulator cost, also those that nobody has got."""
        tokens = self._stats(self.base_url)["tokens"]
        billed: float = (tokens["input"] + tokens["output"] * 1000) / 1e6
        return billed

    @property
    def most_in_flight(self) -> int:
        most: int = self._stats(self.base_url)["most_in_flight"]
        return most

    def check(self, rows: int = ROWS, *, twice: int = 0) -> None:
        """Each row is there once, and at most so many were answered twice."""
        assert self._request.getfixturevalue("totals")() == (rows, rows, rows)
        assert rows <= self.answered <= rows + twice
        self._request.getfixturevalue("verify")()


@pytest.fixture
def ray_run(
    request: pytest.FixtureRequest, tmp_path: Path, batchrun: Run, begin: Begin, stats: Any
) -> RayRun:
    return RayRun(request, tmp_path, batchrun, begin, stats)


@pytest.mark.long
def test_three_workers_complete_each_row_once(ray_run: RayRun, tmp_path: Path) -> None:
    ray_run.prepare()
    done = ray_run.done("--json")
    assert done.returncode == 0, done.stderr
    ray_run.check()
    assert ray_run.most_in_flight <= IN_FLIGHT
    summary = json.loads(done.stdout)
    assert (summary["ok"], summary["left"], summary["state"]) == (ROWS, 0, "finished")
    assert [one["state"] for one in summary["workers"]] == ["ended"] * 3
    assert all(one["completed"] for one in summary["workers"])
    record = json.loads((tmp_path / "run/run.json").read_bytes())
    assert (record["executor"], record["workers"]) == ("ray", 3)
    assert not list((tmp_path / "run/journal").glob("w[1-9]*"))
    again = ray_run.done()
    assert (again.returncode, ray_run.answered) == (0, ROWS), again.stderr


def test_a_killed_worker_costs_what_it_had_in_flight(
    ray_run: RayRun, tmp_path: Path, batchrun: Run
) -> None:
    """Who does what, and which was lost, is shown while it goes on and afterwards."""
    ray_run.prepare(latency_s=0.2)
    screen, terminal = pty.openpty()
    variables = ray_run.cluster | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = ray_run.begin("--json", env=variables, stdin=terminal, stderr=terminal)
    os.close(terminal)
    seen = ThreadPoolExecutor(1).submit(read_screen, screen)
    killed, *_ = ray_run.wait_for_rows(process, workers=3)
    live = {one["id"]: one for one in ray_run.live["workers"]}
    assert sorted(live) == ["w1", "w2", "w3"]
    assert all(one.keys() >= _OF_WORKER for one in live.values())
    assert 0.5 < sum(one["share"] for one in live.values()) <= 1
    lost = next(name for name, one in live.items() if one["pid"] == killed)
    shown = batchrun("status", "run").stdout
    assert "workers:    3 running" in shown
    does = rf"{lost}: +running, \S+ \(process {killed}\): \d+ rows, \d+ in flight"
    assert re.search(does, shown), shown
    os.kill(killed, signal.SIGKILL)
    summary = json.loads(ray_run.end_of(process))
    panels = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.result(HANG_S))
    assert "workers     3 running" in panels
    assert re.search(rf"{lost} +adopted, \S+ \(process {killed}\): \d+ rows", panels), panels
    assert re.search(r"workers .*1 adopted", panels), panels
    ray_run.check(twice=IN_FLIGHT)
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    of_workers = {
        kind: [one for one in events if one["event"] == f"worker_{kind}"]
        for kind in ("started", "lost", "adopted", "drained")
    }
    assert [(one["worker"], one["pid"]) for one in of_workers["lost"]] == [(lost, killed)]
    assert [one["worker"] for one in of_workers["adopted"]] == [lost]
    started = {one["worker"] for one in of_workers["started"]}
    assert started >= {"w1", "w2", "w3"}
    assert started - {lost} == {one["worker"] for one in of_workers["drained"]}
    ended = of_workers["adopted"] + of_workers["drained"]
    assert sum(one["rows"] for one in ended) == ROWS
    assert ray_run.most_in_flight <= IN_FLIGHT
    assert (summary["ok"], summary["left"], summary["state"]) == (ROWS, 0, "finished")
    states = [one["state"] for one in summary["workers"]]
    assert (states.count("adopted"), states.count("ended") >= 2) == (1, True), states
    record = json.loads((tmp_path / "run/run.json").read_bytes())
    assert (record["executor"], record["workers"]) == ("ray", 3)
    assert not list((tmp_path / "run/journal").iterdir())
    batchrun("report", "run", "--html", "report.html")
    report = batchrun("report", "run").stdout
    for words in (report, re.sub(r"<[^>]+>", " ", (tmp_path / "report.html").read_text())):
        of_lost = re.search(rf"Workers.*?{lost}\s+\S+\s+adopted\s+\d+", words, re.DOTALL)
        assert of_lost, words
        assert re.search(r"Workers.*?w\d\s+\S+\s+drained\s+\d+", words, re.DOTALL), words
    answered = ray_run.answered
    again = ray_run.done()
    assert (again.returncode, ray_run.answered) == (0, answered), again.stderr


def test_a_worker_cut_off_and_one_stopped_for_longer_than_silence_cost_nothing(
    ray_run: RayRun, tmp_path: Path
) -> None:
    """Both are given up and others begin; both land what they had once, and nothing after it."""
    ray_run.prepare(latency_s=0.2, job="[cluster]\nsilence_s = 3.0\n")
    (tmp_path / "cut").mkdir()
    process = ray_run.begin("--json", command=CUT_OFF)
    cut, stopped, _ = ray_run.wait_for_rows(process, workers=3)
    (tmp_path / "cut" / str(cut)).touch()
    os.kill(stopped, signal.SIGSTOP)
    try:
        wait_until(lambda: cut in ray_run.pids("adopted"), process)
        (tmp_path / "cut" / str(cut)).unlink()
        assert stopped in ray_run.pids("lost")
    finally:
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)
    out = ray_run.end_of(process)
    wait_until(lambda: has_ended(cut) and has_ended(stopped))
    ray_run.check()
    assert ray_run.most_in_flight <= IN_FLIGHT
    states = [one["state"] for one in json.loads(out)["workers"]]
    assert states.count("adopted") >= 2, states
    assert not list((tmp_path / "run/journal").iterdir())


@pytest.mark.long
def test_a_worker_that_never_begins_is_replaced(ray_run: RayRun, tmp_path: Path) -> None:
    ray_run.prepare(rows=200, latency_s=0.5)
    (tmp_path / "hang").write_text("2.0")
    out = ray_run.end_of(ray_run.begin("--json", command=CUT_OFF))
    ray_run.check(200)
    states = [one["state"] for one in json.loads(out)["workers"]]
    assert (states.count("adopted"), states.count("ended")) == (1, 3), states
    assert '"why":"it did not begin within 2.0 s"' in (tmp_path / "run/events.jsonl").read_text()


def _ways_of_a_bad_night(seed: int, refused: set[int]) -> Callable[[Asked, FlakyProxy], Way]:
    """What befalls each request, drawn from the seed; the first of each worker is refused for ever.

    But for that of the whole run: a run whose first request is refused stops.
    """
    is_over = False

    def say(asked: Asked, proxy: FlakyProxy) -> Way:
        nonlocal is_over
        if not proxy.answered or asked.attempt > 1:  # so that no row uses up its attempts
            return Way.NOT_FOUND if asked.row in refused else Way.ANSWER
        if asked.nth == 0 or asked.row in refused:
            refused.add(asked.row)
            return Way.NOT_FOUND
        if proxy.answered > ROWS / 2 and not is_over:
            is_over = True
            proxy.cut(1.0)
        draw = random.Random(f"{seed} {asked.row} {asked.attempt}")
        ways = [way for way in Way if way not in (Way.ANSWER, Way.NOT_FOUND, Way.KEY)]
        if asked.attempt:  # of time-outs a row has two
            ways = [way for way in ways if way not in _STALLS]
        return draw.choice(ways) if draw.random() < 0.15 else Way.ANSWER

    return say


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 4))]
)
def test_stalls_cuts_and_refusals_between_workers_and_server_cost_what_was_in_flight(
    seed: int, ray_run: RayRun, totals: Any, verify: Callable[..., None]
) -> None:
    base_url = ray_run.prepare(job="[endpoint]\ntimeout_s = 5\n[retry]\nmax_wait_s = 0.5\n")
    refused: set[int] = set()
    with flaky_proxy(base_url, _ways_of_a_bad_night(seed, refused)) as proxy:
        ray_run.ask(proxy.base_url)
        done = ray_run.done("--json")
    assert done.returncode == 4, done.stderr
    assert refused
    assert totals() == (ROWS, ROWS, ROWS - len(refused))
    assert json.loads(done.stdout)["statuses"] == {
        "completed": ROWS - len(refused),
        "failed": len(refused),
    }
    # The server has seen each row once, and once more for each time that its answer was lost.
    too_often = {
        row: (seen, proxy.lost[row])
        for row, seen in proxy.forwarded.items()
        if seen > 1 + proxy.lost[row]
    }
    assert not too_often
    assert ray_run.answered == proxy.forwarded.total()
    assert all(proxy.ways[way] for way in (*LATE, Way.STALL, Way.RESET, Way.HALF_CLOSE))
    verify()


def test_a_key_that_is_refused_from_the_first_request_on_costs_one_request(
    ray_run: RayRun,
) -> None:
    """It goes out alone, from one of three workers, which all wait for what comes of it."""
    base_url = ray_run.prepare()
    with flaky_proxy(base_url, lambda _asked, _proxy: Way.KEY) as proxy:
        ray_run.ask(proxy.base_url)
        done = ray_run.done("--json")
    assert done.returncode == 3, done.stderr
    assert "this key was revoked this morning" in done.stderr
    assert (proxy.asked.total(), json.loads(done.stdout)["ok"]) == (1, 0)


def _after_some(
    way: Way, victims: list[str], *, is_of_one: bool
) -> Callable[[Asked, FlakyProxy], Way]:
    """What befalls the requests after the first ones: of the first of `victims`, or of all."""

    def say(asked: Asked, proxy: FlakyProxy) -> Way:
        if proxy.answered < 60:
            return Way.ANSWER
        victims.append(asked.client)
        return way if asked.client == victims[0] or not is_of_one else Way.ANSWER

    return say


@pytest.mark.parametrize(
    ("way", "told"),
    [
        (Way.KEY, "this key was revoked this morning"),
        pytest.param(Way.NOT_FOUND, "there is no such prompt", marks=pytest.mark.long),
        pytest.param(Way.UNAVAILABLE, "no server is ready", marks=pytest.mark.long),
    ],
)
def test_what_stops_one_worker_for_the_endpoint_stops_all_in_its_words(
    ray_run: RayRun,
    tmp_path: Path,
    totals: Any,
    verify: Callable[..., None],
    way: Way,
    told: str,
) -> None:
    """The key is refused to one of them from a moment on, and anything else to all."""
    more = () if way is Way.KEY else ("--give-up-after", "20")  # workers too are waited for so long
    base_url = ray_run.prepare(*more, latency_s=0.2)
    with flaky_proxy(base_url, _after_some(way, [], is_of_one=way is Way.KEY)) as proxy:
        ray_run.ask(proxy.base_url)
        done = ray_run.done("--json")
    assert done.returncode == 3, done.stderr
    assert told in done.stderr, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["state"], told in summary["message"]) == ("stopped", True), summary
    assert not {"running", "silent"} & {one["state"] for one in summary["workers"]}
    rows, _, ok = totals()
    assert 60 <= rows == ok == summary["ok"] == ray_run.answered < ROWS
    assert not list((tmp_path / "run/journal").glob("*.log"))
    verify()


@pytest.mark.long
def test_a_worker_that_alone_reaches_no_server_leaves_its_rows_to_others(
    ray_run: RayRun, tmp_path: Path
) -> None:
    base_url = ray_run.prepare(latency_s=0.2, job="[cluster]\nsilence_s = 3.0\n")
    victims: list[str] = []
    with flaky_proxy(base_url, _after_some(Way.RESET, victims, is_of_one=True)) as proxy:
        ray_run.ask(proxy.base_url)
        done = ray_run.done("--json")
    assert done.returncode == 0, done.stderr
    ray_run.check()
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    stopped = [event for event in events if event["event"] == "worker_stopped"]
    assert len(stopped) == 1
    assert "the endpoint answers other workers, and not this one" in stopped[0]["why"]
    assert proxy.of_clients[victims[0]] < ROWS


@pytest.mark.long
def test_a_worker_that_stands_still_for_good_is_killed_and_its_rows_go_to_others(
    ray_run: RayRun,
) -> None:
    """Its lock cannot be taken while it lives."""
    ray_run.prepare(latency_s=0.2, job="[endpoint]\ntimeout_s = 2\n[cluster]\nsilence_s = 2.0\n")
    process = ray_run.begin()
    stopped, *_ = ray_run.wait_for_rows(process)
    os.kill(stopped, signal.SIGSTOP)
    ray_run.end_of(process)
    assert has_ended(stopped)
    ray_run.check(twice=IN_FLIGHT)


@pytest.mark.long
def test_a_killed_driver_costs_nothing(ray_run: RayRun) -> None:
    ray_run.prepare(latency_s=0.2, job="[cluster]\nsilence_s = 2.0\n")
    process = ray_run.begin()
    ray_run.wait_for_rows(process)
    process.kill()
    process.wait(HANG_S)
    done = ray_run.done()
    assert done.returncode == 0, done.stderr
    assert "waiting for workers" in done.stderr
    ray_run.check()


def test_rows_removed_from_the_input_are_no_rows_without_an_outcome(
    ray_run: RayRun, tmp_path: Path
) -> None:
    ray_run.prepare(rows=60)
    source = tmp_path / ray_run.words[1]
    lines = [f'{{"custom_id": "r{row}", "question": "{row}"}}\n' for row in range(60)]
    source.write_text("".join(lines[:40]))
    assert ray_run.done().returncode == 0
    source.write_text("".join(lines[20:]))
    done = ray_run.done("--rerun-changed", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [summary[name] for name in ("ok", "left", "state")] == [40, 0, "finished"]
    assert ray_run.answered == 60


def test_when_the_disks_of_all_workers_fail_the_run_ends_and_no_other_worker_pays(
    ray_run: RayRun, tmp_path: Path
) -> None:
    ray_run.prepare()
    workers = [f"w{writer}" for writer in range(1, 20)]
    (tmp_path / "failing_disks").write_text(" ".join([*workers, "60"]))
    process = ray_run.begin("--json")

    def is_held_by_all() -> bool:
        live = ray_run.live
        if live.get("state") != "stopping" or live["in_flight"]:
            return False
        return str(live["message"]).count(" by worker w") == 3

    wait_until(is_held_by_all, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # nobody wants to wait for a minute here
    out, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 1, said
    assert "the disk reports an error" in said
    lost = [int(count) for count in re.findall(r"w\d.*: (\d+) answers? that had arrived", said)]
    summary = json.loads(out)
    assert {one["id"] for one in summary["workers"]} == {"w1", "w2", "w3"}
    assert ray_run.answered - summary["ok"] == sum(lost) <= IN_FLIGHT
    assert sum("could not be stored" in one for one in summary["warnings"]) == len(lost) == 3
    events = (tmp_path / "run/events.jsonl").read_text()
    assert events.count('"unstored":"') == 3


@pytest.mark.long
def test_when_the_disk_of_one_worker_fails_the_others_complete_its_rows(
    ray_run: RayRun, tmp_path: Path
) -> None:
    ray_run.prepare()
    (tmp_path / "failing_disks").write_text("w1 2")
    ray_run.end_of(ray_run.begin())
    ray_run.check()
    events = (tmp_path / "run/events.jsonl").read_text()
    assert re.search(r'"worker_stopped","worker":"w1".*"held":"\d+ answers?"', events), events
    assert "unstored" not in events  # the disk took them in the end


def _spent_usd(query: Any) -> float:
    spent: float = query("SELECT sum(cost_usd) FROM read_parquet(?)")[0][0]
    return spent


def test_a_cap_holds_with_what_a_killed_worker_had_in_flight(
    ray_run: RayRun, query: Any, totals: Any
) -> None:
    ray_run.prepare(*_CAPPED, latency_s=0.3, job=_PRICED)
    process = ray_run.begin()
    os.kill(ray_run.wait_for_rows(process)[0], signal.SIGKILL)
    said = read_rest(process)
    assert process.returncode == 3, said
    assert "the budget is used up" in said
    answered = ray_run.answered
    assert 0 <= answered - totals()[0] <= IN_FLIGHT
    assert _CAP_USD / 2 < _spent_usd(query) <= ray_run.billed_usd + 1e-9 <= _CAP_USD
    again = ray_run.done()
    assert (again.returncode, ray_run.answered) == (3, answered), again.stderr


@pytest.mark.long
def test_a_cap_is_used_up_after_a_killed_driver_whose_workers_stored_what_was_in_flight(
    ray_run: RayRun, query: Any, totals: Any, tmp_path: Path
) -> None:
    ray_run.prepare(*_CAPPED, latency_s=0.3, job=_PRICED)
    process = ray_run.begin()
    ray_run.wait_for_rows(process)
    process.kill()
    process.wait(HANG_S)
    assert ray_run.live["reserved_usd"] > _MOST_USD
    done = ray_run.done()
    assert done.returncode == 3, done.stderr
    assert "the last command was killed" not in done.stderr
    assert _CAP_USD - _MOST_USD < ray_run.billed_usd <= _CAP_USD
    assert _spent_usd(query) == pytest.approx(ray_run.billed_usd)
    assert totals()[0] == ray_run.answered
    assert json.loads((tmp_path / "run/run.json").read_bytes())["unknown_usd"] == 0.0


@pytest.mark.long
def test_a_cluster_that_dies_is_exit_3_and_the_same_command_continues_on_another(
    ray_run: RayRun, totals: Any
) -> None:
    ray_run.prepare("--give-up-after", "3", latency_s=0.2, job="[cluster]\nsilence_s = 3.0\n")
    with standing_cluster(4) as dying:
        process = ray_run.begin(env=dying)
        worker, *_ = ray_run.wait_for_rows(process)
        os.kill(raylet_of(worker), signal.SIGKILL)
        said = read_rest(process)
    assert process.returncode == 3, said
    assert "no worker was available for 3" in said
    assert "run the same command again" in said
    rows, _, ok = totals()
    assert 60 <= rows == ok < ROWS
    done = ray_run.done()
    assert done.returncode == 0, done.stderr
    ray_run.check(twice=IN_FLIGHT)


@pytest.mark.long
def test_ctrl_c_lands_what_is_in_flight_of_all_workers(ray_run: RayRun, totals: Any) -> None:
    ray_run.prepare(latency_s=0.2)
    process = ray_run.begin()
    ray_run.wait_for_rows(process)
    process.send_signal(signal.SIGINT)
    said = read_rest(process)
    assert process.returncode == 130, said
    rows, _, ok = totals()
    assert rows == ok == ray_run.answered < ROWS
    assert ray_run.done().returncode == 0
    ray_run.check()


@pytest.mark.long
def test_limits_and_failures_are_those_of_the_whole_run(
    ray_run: RayRun, simulator: Any, stats: Any
) -> None:
    ray_run.prepare("--max-attempts", "1")
    failing = simulator("--fault", "422_text=1")
    ray_run.ask(failing)
    done = ray_run.done()
    assert done.returncode == 3, done.stderr
    assert "the first 20 rows all failed the same way" in done.stderr
    assert stats(failing)["requests"] < 100


def test_a_cluster_of_a_killed_run_ends_once_its_workers_have_stored_what_was_in_flight(
    ray_run: RayRun, tmp_path: Path
) -> None:
    """None of its secrets is in a file or on a command line: of the API, a header and a store."""
    header = '[endpoint.headers]\nX-Team = "env:TEAM_KEY"\n'
    ray_run.prepare(latency_s=0.2, job=f"[cluster]\nsilence_s = 2.0\n{header}")
    secrets = {
        "OPENAI_API_KEY": "a-secret-of-thirty-letters-000",
        "TEAM_KEY": "a-secret-of-thirty-letters-111",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-thirty-letters-222",
    }
    local = {"RAY_ADDRESS": "local", "AWS_ACCESS_KEY_ID": "somebody", **secrets}
    process = ray_run.begin(env=local)
    pid, *_ = ray_run.wait_for_rows(process)
    variables = Path(f"/proc/{pid}/environ").read_bytes()
    assert not [name for name, secret in secrets.items() if secret.encode() in variables]
    assert b"RAY_USAGE_STATS_ENABLED=0" in variables.split(b"\0")
    root = folder_of_cluster(pid)
    assert_hidden(list(secrets.values()), Path(root), tmp_path)
    process.kill()
    process.wait(HANG_S)
    assert wait_for_none(root, HANG_S) == []
    assert not Path(root).exists()
    done = ray_run.done(env=local)
    assert done.returncode == 0, done.stderr
    ray_run.check()


def test_what_cannot_be_joined_is_exit_2(ray_run: RayRun, tmp_path: Path) -> None:
    ray_run.prepare()
    for address, told in (
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("ray://127.0.0.1:10001", "is for Ray's client"),
        ("somewhere", "is not of the form HOST:PORT"),
    ):
        done = ray_run.done(env={"RAY_ADDRESS": address})
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not can_run(*_ALONE, "true"), reason="no namespaces for this user")
def test_without_a_cluster_on_this_machine_is_exit_2(ray_run: RayRun, tmp_path: Path) -> None:
    """Its process sees no other, so that it does not find the cluster of another test."""
    ray_run.prepare()
    none = {"RAY_ADDRESS": "", "RAY_TMPDIR": str(tmp_path)}
    process = ray_run.begin(env=none, before=_ALONE)
    _, said = process.communicate(timeout=HANG_S)
    assert "no Ray cluster runs on this machine; start one with `ray start --head`" in said
    assert "RAY_ADDRESS=local" in said
    assert process.returncode == 2, said
    assert not (tmp_path / "run").exists()


def test_a_cluster_is_joined_with_its_token_alone_and_without_a_worker_it_is_exit_3(
    ray_run: RayRun, tmp_path: Path
) -> None:
    ray_run.prepare("--give-up-after", "1", job="[cluster]\ncpus_per_worker = 64\n")
    given = ray_run.cluster
    address = {name: text for name, text in given.items() if not name.startswith("RAY_AUTH")}
    (tmp_path / "token").write_text(given["RAY_AUTH_TOKEN"])
    for mode, token in (("disabled", ""), ("token", "f" * 64)):
        done = ray_run.done(env=address | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token})
        assert done.returncode == 2, done.stderr
        assert f"the Ray cluster at {given['RAY_ADDRESS']} asks for its token" in done.stderr
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file" in done.stderr
        assert not (tmp_path / "run").exists()
    told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = ray_run.done(env=address | told | {"RAY_AUTH_TOKEN": ""})
    assert done.returncode == 3, done.stderr
    assert "no worker was available for 1" in done.stderr
    assert "each worker needs 64" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_without_workers_does_not_import_ray(tmp_path: Path) -> None:
    code = (
        "import sys, batchrun; from batchrun.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'ray', 'huggingface_hub'} & sys.modules.keys()"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "one"}\n')
    words = ("run", "rows.jsonl", "--model", "m", "--simulate", "--quiet")
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
