"""Runs with workers on a real Ray cluster whose tables are in a store, on loopback."""

import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest

from tests.processes import Forked, ForkServer
from tests.ray_cluster import assert_hidden, standing_cluster, worker_pids
from tests.remote.hub_server import Hub
from tests.remote.object_server import Bucket, Call, Proxy
from tests.remote.other_stores import OtherBucket, OtherStore
from tests.waiting import HANG_S, wait_until

pytest.importorskip("ray", reason="the extra `ray` is not installed")
ROWS = 240
IN_FLIGHT = 12
MORE = f"""part_rows = 20
[limits]
concurrency = {IN_FLIGHT}
[cluster]
executor = "ray"
workers = 3
silence_s = 2.0
[endpoint.headers]
X-Team = "env:TEAM_KEY"
"""
_SECRETS = {
    "OPENAI_API_KEY": "a-secret-of-thirty-letters-000",
    "TEAM_KEY": "a-secret-of-thirty-letters-111",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-thirty-letters-222",
}
_COUNT = "SELECT count(*), count(DISTINCT custom_id) FROM responses WHERE ok"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Its processes know nothing of the store: what opens it comes with the run."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        environment.setenv("HF_HUB_DISABLE_XET", "1")
        with standing_cluster(4) as found:
            yield found


class Place:
    """A run in a bucket, the machine that it is started on, and the server that it asks."""

    def __init__(
        self,
        bucket: Bucket | OtherBucket,
        folder: Path,
        variables: dict[str, str],
        fork_server: ForkServer,
    ) -> None:
        self.url, self.bucket, self.folder = f"{bucket.url}/run", bucket, folder
        self.variables = variables
        self._server = fork_server
        self._started: list[Forked] = []
        simulator = self.begin("simulate", "--port", 0, "--latency", 0.2)
        self._base_url = simulator.stdout.readline().strip()
        self.words = ("run", "job.toml", "--base-url", self._base_url)

    def begin(self, *words: object, **more: str) -> Any:
        process = self._server.start(self.folder, {**self.variables, **more}, *words)
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait(HANG_S)
            for stream in filter(None, (process.stdout, process.stderr)):
                stream.close()
            process.close()

    def read_from(self, source: str) -> bytes:
        """The job reads its rows there, and no longer on this machine; what is to be there."""
        job, path = self.folder / "job.toml", self.folder / "prompts.jsonl"
        rows = path.read_bytes()
        path.unlink()
        job.write_text(job.read_text().replace(path.name, source))
        return rows

    @property
    def scratch(self) -> Path:
        (found,) = (self.folder / "state/batchrun").iterdir()
        return found

    @property
    def live(self) -> dict[str, Any]:
        files = list(self.folder.glob("state/batchrun/*/live.json"))
        found: dict[str, Any] = json.loads(files[0].read_bytes()) if files else {"workers": []}
        return found

    @property
    def completed(self) -> int:
        return sum(one["completed"] for one in self.live["workers"])

    @property
    def answered(self) -> int:
        with urlopen(self._base_url.removesuffix("/v1") + "/stats") as answer:  # noqa: S310
            found: int = json.load(answer)["completions"]
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Those of the objects themselves, which are all that there is."""
        rows: list[dict[str, Any]] = []
        for key in self.bucket.names("run/responses/"):
            path = self.folder / "copy.parquet"
            path.write_bytes(self.bucket.get(key) or b"")
            rows += pq.read_table(path).to_pylist()
        return rows

    def check(self, batchrun: Any) -> None:
        """Each row once, in the store alone, and nothing left over; as another machine sees it."""
        rows = self.rows()
        assert sorted(row["row"] for row in rows) == list(range(ROWS))
        assert all(row["ok"] for row in rows)
        keys = self.bucket.names()
        assert not [k for k in keys if k.endswith((".tmp", ".intent")) or "/claims/" in k]
        assert self.bucket.open_uploads() == []
        assert not list((self.scratch / "journal").iterdir())
        assert all(path.stat().st_size < 1000 for path in self.scratch.glob("*/*.parquet"))
        record = json.loads(self.bucket.get("run/run.json") or b"")
        assert (record["state"], record["executor"]) == ("finished", "ray")
        other = {**self.variables, "XDG_STATE_HOME": str(self.folder / "other")}
        verified = batchrun("verify", self.url, env=other)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        asked = batchrun("sql", self.url, _COUNT, "--format", "csv", env=other)
        assert asked.stdout.splitlines()[-1] == f"{ROWS},{ROWS}", asked.stderr


@pytest.fixture
def place(
    cluster: dict[str, str],
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    environment: dict[str, str],
    fork_server: ForkServer,
    tmp_path: Path,
    write_run: Callable[..., str],
) -> Iterator[Place]:
    variables = {**environment, **cluster, **s3, **_SECRETS, "AWS_ENDPOINT_URL": proxy.address}
    found = Place(bucket, tmp_path, variables, fork_server)
    write_run(ROWS, found.url, MORE)
    yield found
    found.close()


@pytest.mark.long
def test_a_worker_that_cannot_write_to_the_store_is_exit_2_before_anything_is_sent(
    place: Place, proxy: Proxy, batchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    proxy.rule = lambda call: "deny" if ".probe-" in call.path else None
    refused = batchrun(*place.words, env=place.variables)
    assert refused.returncode == 2, refused.stderr
    assert "cannot write to the store of this run" in refused.stderr
    assert (place.bucket.names(), place.answered) == ([], 0)


def test_what_a_killed_worker_has_stored_is_adopted_into_the_store(
    place: Place,
    cluster: dict[str, str],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """And no secret is in Ray's files, in those of the run, here or in the store, or in words.

    Its rows come from the store too. No part is ever full: they are there because a second has
    passed.
    """
    place.bucket.put("in/prompts.jsonl", place.read_from(f"{place.bucket.url}/in/prompts.jsonl"))
    path = place.folder / "job.toml"
    by_time = "part_rows = 1000\npart_seconds = 1"
    path.write_text(path.read_text().replace("part_rows = 20", by_time))
    process = place.begin(*place.words, "--json")
    wait_until(lambda: place.completed >= 60 and worker_pids(place.live, "running"), process)
    victim, *_ = worker_pids(place.live, "running")
    variables = Path(f"/proc/{victim}/environ").read_bytes().split(b"\0")
    assert b"RAY_USAGE_STATS_ENABLED=0" in variables
    secrets, ray_files = list(_SECRETS.values()), Path(cluster["RAY_ROOT"])
    assert_hidden(secrets, place.scratch, ray_files)
    os.kill(victim, signal.SIGKILL)
    shown = batchrun("status", place.url, env=place.variables)
    assert "workers:" in shown.stdout, shown.stderr
    out, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    assert "adopted" in {one["state"] for one in json.loads(out)["workers"]}
    assert ROWS <= place.answered <= ROWS + IN_FLIGHT
    place.check(batchrun)
    names = {key.rpartition("/")[2] for key in place.bucket.names("run/responses/")}
    parts = Counter(name.partition("-")[0] for name in names)
    assert {"w1", "w2", "w3"} <= parts.keys()
    assert max(parts.values()) > 2  # the last one of each holds the rest
    report = batchrun("report", place.url, env=place.variables)
    assert "adopted" in report.stdout, report.stderr
    copies = place.folder / "copies"
    for key in place.bucket.names():
        copy = copies / key
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(place.bucket.get(key) or b"")
    assert_hidden(secrets, place.folder, ray_files)
    answered = place.answered
    again = batchrun(*place.words, env=place.variables)
    assert (again.returncode, place.answered) == (0, answered), again.stderr


@pytest.mark.long
def test_a_worker_that_cannot_read_the_source_leaves_its_rows_to_others(
    place: Place, proxy: Proxy, questions: Callable[[int], str]
) -> None:
    rows, denied = 4 * ROWS, list[Call]()
    place.read_from(f"{place.bucket.url}/in/prompts.jsonl")
    place.bucket.put("in/prompts.jsonl", questions(rows))

    def rule(call: Call) -> str | None:
        if call.method != "GET" or "/in/" not in call.path or denied or place.completed < 60:
            return None
        denied.append(call)
        return "deny"

    proxy.rule = rule
    process = place.begin(*place.words)
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    assert denied
    events = (place.bucket.get("run/events.jsonl") or b"").decode().splitlines()
    (stopped,) = [line for line in events if "worker_stopped" in line]
    assert "in/prompts.jsonl: ACCESS_DENIED" in stopped
    assert sorted(row["row"] for row in place.rows()) == list(range(rows))
    assert place.answered == rows


@pytest.mark.long
def test_a_branch_of_the_hub_that_moves_meanwhile_changes_nothing(
    place: Place,
    hub: Hub,
    hub_environment: dict[str, str],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    questions: Callable[[int, int], str],
) -> None:
    """Workers that have another cache than the driver read the commit of its plan."""
    pytest.importorskip("huggingface_hub")
    commit = hub.commit({"data/a.jsonl": place.read_from("hf://datasets/somebody/questions/data")})
    process = place.begin(*place.words, **hub_environment)
    wait_until(lambda: place.completed >= 20, process)
    hub.commit({"data/a.jsonl": questions(2 * ROWS, 1000).encode()})
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    place.check(batchrun)
    assert {row["custom_id"] for row in place.rows()} == {f"q{row}" for row in range(ROWS)}
    api = [asked for asked in hub.asked if "/api/" in asked]
    assert (len(api), len([asked for asked in api if "/tree/" in asked])) == (2, 1)
    files = [asked for asked in hub.asked if "/resolve/" in asked]
    assert len([asked for asked in files if asked.startswith("GET")]) > 1  # the driver's, theirs
    assert all(f"/resolve/{commit}/" in asked for asked in files)


@pytest.mark.long
def test_a_killed_driver_costs_nothing_and_another_machine_goes_on_elsewhere(
    place: Place, batchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    process = place.begin(*place.words)
    wait_until(lambda: place.completed >= 60, process)
    process.kill()
    process.wait(HANG_S)
    other = {**place.variables, "XDG_STATE_HOME": str(place.folder / "other")}
    refused = batchrun(*place.words, env=other)
    assert refused.returncode == 2, refused.stderr
    assert "its claim expires after 60 s" in refused.stderr
    done = batchrun(*place.words, env=place.variables)
    assert done.returncode == 0, done.stderr
    assert place.answered == ROWS
    place.check(batchrun)
    again = batchrun(*place.words, env=other)
    assert (again.returncode, place.answered) == (0, ROWS), again.stderr


@pytest.mark.long
def test_rows_that_are_sent_again_stand_once_with_both_attempts(
    place: Place, batchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = place.folder / "job.toml"
    path.write_text(path.read_text().replace("part_rows = 20", "part_rows = 40"))
    half = batchrun(*place.words, "--limit", ROWS // 2, env=place.variables)
    assert half.returncode == 0, half.stderr
    path.write_text(path.read_text().replace("{{ question }}", "{{ question }}!"))
    process = place.begin(*place.words, "--rerun-changed")
    wait_until(lambda: place.completed >= 60 and worker_pids(place.live, "running"), process)
    os.kill(worker_pids(place.live, "running")[0], signal.SIGKILL)
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    place.check(batchrun)
    rows = sorted(place.rows(), key=lambda row: row["row"])
    assert all("!" in row["request"] for row in rows)
    attempts = [len(row["attempts"]) for row in rows]
    assert (min(attempts[: ROWS // 2]), max(attempts[ROWS // 2 :])) == (2, 1)


@pytest.mark.long
def test_the_journal_of_a_whole_machine_that_comes_back_after_another_has_gone_on(
    place: Place, batchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Driver and workers are killed with rows in their journals, and their claim is too old."""
    path = place.folder / "job.toml"
    path.write_text(path.read_text().replace("part_rows = 20", "part_rows = 1000"))
    process = place.begin(*place.words)
    wait_until(lambda: place.completed >= 60, process)
    workers = worker_pids(place.live, "running")
    process.kill()
    process.wait(HANG_S)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert len(list((place.scratch / "journal").glob("w[123]-*.log"))) == 3
    for claim in place.bucket.names("run/claims/"):
        place.bucket.delete(claim)  # as if a minute had passed
    other = {**place.variables, "XDG_STATE_HOME": str(place.folder / "other")}
    done = batchrun(*place.words, env=other)
    assert done.returncode == 0, done.stderr
    sent = place.answered
    assert ROWS < sent <= 2 * ROWS  # what was in those journals alone was sent again
    again = batchrun(*place.words, env=place.variables)
    assert (again.returncode, place.answered) == (0, sent), again.stderr
    place.check(batchrun)
    writers = {key.rpartition("/")[2].partition("-")[0] for key in place.bucket.names("run/resp")}
    assert not writers & {"w0", "w4"}  # of drivers, which store no rows here


@pytest.mark.long
@pytest.mark.parametrize("who", ["driver", "worker"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", [1, 7, 12])
def test_killed_at_a_part(
    number: int,
    moment: str,
    who: str,
    place: Place,
    proxy: Proxy,
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """As one of the parts is uploaded, of whichever worker it is."""
    parts: list[Call] = []
    struck: list[int] = []

    def strike(when: str, call: Call) -> None:
        if call.method != "PUT" or ".parquet" not in call.path:
            return
        if when == "before":
            parts.append(call)
        if len(parts) >= number and when == moment and not struck:
            writer = int(call.path.rpartition("/")[2].partition("-")[0][1:])
            pids = {one["id"]: one["pid"] for one in place.live["workers"]}
            pid = process.pid if who == "driver" else pids.get(f"w{writer}")
            if pid is not None:
                struck.append(pid)
                os.kill(pid, signal.SIGKILL)

    def rule(call: Call) -> str | None:
        strike("before", call)
        return None

    process = place.begin(*place.words)
    proxy.rule, proxy.after = rule, lambda call: strike("after", call)
    _, said = process.communicate(timeout=HANG_S)
    proxy.rule, proxy.after = lambda _call: None, lambda _call: None
    assert struck
    assert process.returncode == (0 if who == "worker" else -9), said
    done = batchrun(*place.words, env=place.variables)
    assert done.returncode == 0, done.stderr
    assert ROWS <= place.answered <= ROWS + (IN_FLIGHT if who == "worker" else 0)
    place.check(batchrun)


@pytest.mark.stores
def test_a_run_in_the_stores_of_others(
    other_store: OtherStore,
    cluster: dict[str, str],
    environment: dict[str, str],
    fork_server: ForkServer,
    write_run: Callable[..., str],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """Azure and Google; a worker is killed as one of its parts is uploaded."""
    secrets = {name: value for name, value in _SECRETS.items() if not name.startswith("AWS")}
    variables = {**environment, **cluster, **other_store.environment, **secrets}
    place = Place(other_store.bucket, tmp_path, variables, fork_server)
    write_run(ROWS, place.url, MORE)
    struck: list[int] = []

    def strike(call: Call) -> None:
        part = re.search(r"/responses/(w\d+)-\d+\.parquet", unquote(call.path))
        if not struck and call.method in ("PUT", "POST") and part is not None:
            pids = {one["id"]: one["pid"] for one in place.live["workers"]}
            if (pid := pids.get(part[1])) is not None:
                struck.append(pid)
                os.kill(pid, signal.SIGKILL)

    other_store.proxy.after = strike
    with closing(place):
        done = batchrun(*place.words, "--json", env=variables)
        assert done.returncode == 0, done.stderr
        assert struck
        assert "adopted" in {one["state"] for one in json.loads(done.stdout)["workers"]}
        assert ROWS <= place.answered <= ROWS + IN_FLIGHT
        place.check(batchrun)
        again = batchrun(*place.words, env=variables)
        assert (again.returncode, place.answered <= ROWS + IN_FLIGHT) == (0, True), again.stderr


@pytest.mark.long
@pytest.mark.parametrize("fault", ["fail", "half"])
def test_parts_of_workers_that_arrive_torn_or_not_are_tried_again(
    fault: str,
    place: Place,
    proxy: Proxy,
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    failed: set[str] = set()

    def rule(call: Call) -> str | None:
        if call.method != "PUT" or ".parquet" not in call.path or call.path in failed:
            return None
        failed.add(call.path)
        return fault

    proxy.rule = rule
    done = batchrun(*place.words, env=place.variables)
    assert done.returncode == 0, done.stderr
    assert (len(failed) > 5, place.answered) == (True, ROWS)
    place.check(batchrun)
