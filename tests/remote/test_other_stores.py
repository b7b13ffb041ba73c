"""The stores of Azure and Google: Azurite and fake-gcs-server, as `make test-stores` has them."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from batchrun.remote.object_stores import ObjectStore, store_of
from batchrun.simulator.server import serve
from batchrun.simulator.settings import SimulatorSettings
from tests.processes import COMMAND, free_port
from tests.remote.object_server import AtRandom, Call, Proxy
from tests.waiting import HANG_S, wait_until

pytestmark = pytest.mark.stores
SERVERS = Path(__file__).parents[2] / ".servers/stores"
Command = Callable[..., subprocess.CompletedProcess[str]]
PROMPT = ("--prompt", "{{ question }}", "--model", "m", "--simulate", "--quiet")


def _started(command: list[str], folder: Path, port: int, **more: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    import socket

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers)
    return process


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = free_port(), tmp_path_factory.mktemp("azurite")
    node = shutil.which("node")
    assert node is not None
    script = SERVERS / "node_modules/azurite/dist/src/blob/main.js"
    command = [node, str(script), "--blobPort", str(port), "--location", str(folder), "--silent"]
    command += ["--skipApiVersionCheck", "--disableProductStyleUrl"]
    process = _started(command, folder, port, AZURITE_ACCOUNTS="somebody:c29tZXRoaW5n")
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(HANG_S)


@pytest.fixture(scope="module")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = free_port(), tmp_path_factory.mktemp("gcs")
    (binary,) = (SERVERS / "venv").glob("lib/*/site-packages/*/vendor/fake-gcs-server/bin/*")
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory"]
    process = _started(command, folder, port)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(HANG_S)


class Place:
    """A new bucket, the proxy before its server, and the environment in which both are found."""

    def __init__(
        self,
        proxy: Proxy,
        url: str,
        environment: dict[str, str],
        batchrun: Command,
        verify: Callable[..., None],
    ) -> None:
        self.proxy, self.url, self.environment = proxy, url, environment
        self._batchrun, self._verify = batchrun, verify

    def run(self, *words: object) -> None:
        """`batchrun ...`, which must end well."""
        done = self._batchrun(*words, env=self.environment)
        assert done.returncode == 0, done.stderr

    def check(self, rows: int) -> None:
        """Each row is there once."""
        assert _rows(_store(self.url), "run") == sorted(f"q{row}" for row in range(rows))
        self._verify(f"{self.url}/run", env=self.environment)


@pytest.fixture(params=["azure", "google"])
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batchrun: Command,
    verify: Callable[..., None],
) -> Iterator[Place]:
    """The test itself goes past the proxy, which is of its own process: pyarrow asks Google's store
    with the interpreter locked.
    """
    is_azure = request.param == "azure"
    server = request.getfixturevalue("azurite" if is_azure else "gcs_server")
    proxy = Proxy(server)

    def variables(address: str) -> dict[str, str]:
        if not is_azure:
            return {"STORAGE_EMULATOR_HOST": address}
        account = "AccountName=somebody;AccountKey=c29tZXRoaW5n"
        endpoint = f"{account};BlobEndpoint={address}/somebody"
        return {"AZURE_STORAGE_CONNECTION_STRING": endpoint}

    environment = {"XDG_STATE_HOME": str(tmp_path / "state"), **variables(proxy.address)}
    for name, value in variables(server).items():
        monkeypatch.setenv(name, value)
    bucket = tmp_path.name.replace("_", "-").lower()[:40]
    url = f"{'abfs' if is_azure else 'gs'}://{bucket}"
    if is_azure:
        _store(url).files.create_dir(bucket)
    else:
        connection = http.client.HTTPConnection(server.removeprefix("http://"))
        connection.request("POST", "/storage/v1/b", json.dumps({"name": bucket}))
        assert connection.getresponse().status == 200
        connection.close()
    yield Place(proxy, url, environment, batchrun, verify)
    proxy.close()


def _store(url: str) -> ObjectStore:
    from batchrun.remote import object_stores

    for cached in (store_of, object_stores._store, object_stores._filesystem):
        cached.cache_clear()
    return store_of(url)[0]


def _rows(store: ObjectStore, prefix: str) -> list[str]:
    import pyarrow.parquet as pq

    found: list[str] = []
    for one in store.listing(f"{prefix}/responses"):
        with store.files.open_input_file(store.paths([one.key])[0]) as file:
            found += pq.read_table(file, columns=["custom_id"])["custom_id"].to_pylist()
    return sorted(found)


def test_sources_and_runs(
    place: Place, batchrun: Command, questions: Callable[..., str], tmp_path: Path
) -> None:
    url = place.url
    store = _store(url)
    store.write("in/a.jsonl", questions(20).encode())
    store.write("in/b.jsonl", questions(20, 20).encode())
    words = ("run", f"{url}/in/*.jsonl", *PROMPT, "-o", f"{url}/run")
    place.run(*words, "--limit", "25")
    place.run(*words)
    place.check(40)
    other = {**place.environment, "XDG_STATE_HOME": str(tmp_path / "other")}
    for command in (("status",), ("verify",), ("report",), ("show", "q3")):
        looked = batchrun(command[0], f"{url}/run", *command[1:], env=other)
        assert looked.returncode == 0, looked.stderr
    record = json.loads(store.read("run/run.json") or b"")
    assert (record["state"], record["store"]) == ("finished", f"{url}/run")


@pytest.mark.parametrize("number", [3, 4, 7, 8, 9, 10, 12])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_a_write(
    number: int,
    moment: str,
    place: Place,
    environment: dict[str, str],
    questions: Callable[..., str],
    tmp_path: Path,
) -> None:
    proxy = place.proxy
    (tmp_path / "prompts.jsonl").write_text(questions(300))
    words = ["run", "prompts.jsonl", *PROMPT, "-o", f"{place.url}/run"]
    writes: list[Call] = []
    process: list[subprocess.Popen[Any]] = []

    def strike(when: str, call: Call) -> None:
        if call.method in ("PUT", "POST", "DELETE"):
            writes.extend([call] if when == "before" else [])
            if len(writes) == number and when == moment:
                process[0].send_signal(signal.SIGKILL)

    def rule(call: Call) -> str | None:
        strike("before", call)
        return None

    proxy.rule, proxy.after = rule, lambda call: strike("after", call)
    command = [sys.executable, *COMMAND[1:], *words]
    process.append(
        subprocess.Popen(command, cwd=tmp_path, env={**environment, **place.environment})
    )
    process[0].wait(HANG_S)
    proxy.rule, proxy.after = lambda _call: None, lambda _call: None
    place.run(*words)
    place.check(300)


@pytest.mark.parametrize("fault", ["fail", "silence"])
@pytest.mark.parametrize("option", ["SOURCE", "-o"])
def test_a_store_that_does_not_answer_is_said(
    option: str,
    fault: str,
    place: Place,
    batchrun: Command,
    questions: Callable[..., str],
    tmp_path: Path,
) -> None:
    url = place.url
    place.proxy.rule = lambda _call: fault
    (tmp_path / "prompts.jsonl").write_text(questions(1))
    words = ("prompts.jsonl", "-o", f"{url}/run")
    if option == "SOURCE":
        words = (f"{url}/in/a.jsonl", "-o", "run")
    done = batchrun("run", *words, *PROMPT, env=place.environment)
    assert done.returncode == 2, done.stderr
    assert f"{url}/{'in/a.jsonl' if option == 'SOURCE' else 'run'}" in done.stderr


@pytest.mark.parametrize("fault", ["fail", "cut"])
def test_what_fails_once_is_tried_again(
    fault: str, place: Place, questions: Callable[..., str], tmp_path: Path
) -> None:
    failed: set[tuple[str, str]] = set()

    def once(call: Call) -> str | None:
        mark = call.method, re.sub(r"upload_id=\w+", "", call.path)  # a new one for each attempt
        if mark in failed or not re.search(r"\.parquet|/claims|%2Fclaims", call.path):
            return None
        failed.add(mark)
        return fault

    place.proxy.rule = once
    (tmp_path / "prompts.jsonl").write_text(questions(300))
    place.run("run", "prompts.jsonl", *PROMPT, "-o", f"{place.url}/run")
    assert failed
    place.check(300)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("faults", [("fail",), ("cut",), ("half",), ("fail", "cut")], ids="+".join)
def test_a_run_with_faults_at_random_writes(
    faults: tuple[str, ...],
    seed: int,
    place: Place,
    write_run: Callable[..., str],
) -> None:
    job = write_run(300, f"{place.url}/run", "part_rows = 20")
    # Half of what is no part is refused by Azure, whose signatures say how long it is.
    writes = ("PUT", "POST", "DELETE")
    name = ".parquet" if "half" in faults else ""
    rule = AtRandom(seed, 0.15, faults, lambda one: one.method in writes and name in one.path)
    place.proxy.rule = rule
    place.run("run", job, "--simulate", "--quiet")
    assert [call for _, call in rule.met if ".parquet" in call.path]
    place.proxy.rule = lambda _call: None
    place.check(300)


@pytest.mark.parametrize("number", [7, 9])
def test_a_write_that_is_never_answered(
    number: int, place: Place, questions: Callable[..., str], tmp_path: Path
) -> None:
    """The library gives it up after a minute or two; at the first contact that is exit code 2."""
    (tmp_path / "prompts.jsonl").write_text(questions(300))
    writes: list[Call] = []

    def rule(call: Call) -> str | None:
        if call.method in ("GET", "HEAD"):
            return None
        writes.append(call)
        return "silence" if len(writes) == number else None

    place.proxy.rule = rule
    place.run("run", "prompts.jsonl", *PROMPT, "-o", f"{place.url}/run")
    assert len(writes) >= number
    place.check(300)


async def test_a_claim_whose_renewal_is_never_answered_is_renewed_again_at_once(
    place: Place, questions: Callable[..., str], tmp_path: Path
) -> None:
    """The library would wait for minutes, and others take the run after one."""
    (tmp_path / "prompts.jsonl").write_text(questions(80))
    times_s: list[float] = []  # of writes: several at the start, then those that renew it
    silent_s: list[float] = []

    def rule(call: Call) -> str | None:
        if call.method in ("GET", "HEAD", "DELETE") or "claims" not in call.path:
            return None
        times_s.append(time.monotonic())
        if silent_s or times_s[-1] - times_s[0] < 5:
            return None
        silent_s.append(times_s[-1])
        return "silence"

    place.proxy.rule = rule
    words = ["run", "prompts.jsonl", "--prompt", "{{ question }}", "--model", "m", "--quiet"]
    words += ["--concurrency", "1", "-o", f"{place.url}/run"]
    async with serve(SimulatorSettings(latency_s=0.5)) as base_url:
        await asyncio.to_thread(place.run, *words, "--base-url", base_url)
    assert [one for one in times_s if one > silent_s[0]]
    place.check(80)


def test_the_clients_are_those_of_pyarrow(place: Place) -> None:
    assert isinstance(_store(place.url).files, fs.AzureFileSystem | fs.GcsFileSystem)
