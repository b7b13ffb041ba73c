"""Runs whose tables are in a store: written, gone on with, and read, from several machines."""

import asyncio
import json
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from batchrun.remote import object_stores
from batchrun.remote.object_stores import RemoteError, within
from batchrun.remote.run_link import Link, place_of, write_link
from batchrun.remote.run_mirror import is_current
from batchrun.simulator.server import serve
from batchrun.simulator.settings import SimulatorSettings
from tests.processes import COMMAND
from tests.remote.object_server import Bucket, Call, Proxy
from tests.waiting import HANG_S

Command = Callable[..., subprocess.CompletedProcess[str]]
PROMPT = ("--prompt", "{{ question }}", "--model", "m", "--simulate", "--quiet")


@pytest.fixture
def job(bucket: Bucket, write_run: Callable[..., str]) -> Callable[..., str]:
    """Writes so many rows, and a job whose tables go into the bucket; the words that run it."""

    def write(rows: int, more: str = "part_rows = 10") -> str:
        return write_run(rows, f"{bucket.url}/runs/first", more)

    return write


def parts_of(bucket: Bucket, tmp_path: Path, table: str = "responses") -> list[dict[str, Any]]:
    """The rows of a table, read from the objects themselves."""
    rows: list[dict[str, Any]] = []
    for number, key in enumerate(bucket.names(f"runs/first/{table}/")):
        assert key.rpartition("/")[2].startswith("w"), key
        path = tmp_path / f"copy-{number}.parquet"
        path.write_bytes(bucket.get(key) or b"")
        rows += pq.read_table(path).to_pylist()
    return sorted(rows, key=lambda row: row["row"])


def scratch_of(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "state/batchrun").iterdir()
    return folder


@contextmanager
def said_in_time() -> Iterator[None]:
    """What cannot be reached or written is said within 30 s; longer is a hang."""
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < 30


def test_a_run_is_in_the_store_and_nothing_of_it_here(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, job: Any
) -> None:
    done = batchrun("run", job(45), "--simulate", env=s3)
    assert done.returncode == 0, done.stderr
    url = f"{bucket.url}/runs/first"
    assert f"run directory {url}" in done.stderr
    assert f"tables: {url}/responses/*.parquet" in done.stderr
    assert [row["custom_id"] for row in parts_of(bucket, tmp_path)] == [f"q{n}" for n in range(45)]
    record = json.loads(bucket.get("runs/first/run.json") or b"")
    assert record["state"] == "finished"
    assert record["store"] == url
    assert "something" not in json.dumps(record)
    assert json.loads(bucket.get("runs/first/live.json") or b"")["ok"] == 45
    assert b'"finished"' in (bucket.get("runs/first/events.jsonl") or b"")
    keys = bucket.names()
    assert not [key for key in keys if "/claims/" in key or key.endswith((".tmp", ".intent"))]
    assert bucket.open_uploads() == []
    scratch = scratch_of(tmp_path)
    assert not list((scratch / "journal").glob("*.log"))
    assert all(path.stat().st_size < 1000 for path in scratch.glob("*/*.parquet"))
    again = batchrun("run", "job.toml", "--simulate", env=s3)
    assert again.returncode == 0, again.stderr
    assert "nothing left to send" in again.stderr
    assert bucket.names() == keys


def test_what_another_machine_wrote_in_the_same_second_is_not_taken_for_ones_own(
    bucket: Bucket, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stores tell times by the second, and both files are as long."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    bucket.put("run/run.json", '{"pid": 1}')
    link = Link(f"{bucket.url}/run")
    store, prefix = place_of(link)
    found = store.find(f"{prefix}run.json")
    assert found is not None
    write_link(tmp_path, replace(link, seen={"run.json": (found.size, found.stamp)}))
    for text, is_ours in (('{"pid": 1}', True), ('{"pid": 2}', False)):
        (tmp_path / "run.json").write_text(text)
        assert is_current(tmp_path, link.url) is is_ours


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_commands_that_look_at_a_run_take_its_url(
    place: str, bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, job: Any
) -> None:
    assert batchrun("run", job(30), "--simulate", "--quiet", env=s3).returncode == 0
    url = f"{bucket.url}/runs/first"
    env = s3 if place == "here" else {**s3, "XDG_STATE_HOME": str(tmp_path / "other")}
    status = batchrun("status", url, "--json", env=env)
    found = json.loads(status.stdout)
    assert (found["run"], found["state"], found["ok"]) == (url, "finished", 30)
    shown = batchrun("show", url, "q7", env=env)
    assert shown.returncode == 0, shown.stderr
    assert "How much is 7?" in shown.stdout
    verified = batchrun("verify", url, env=env)
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.startswith(f"{url}: 30 rows, each once: 30 in")
    sql = "SELECT run, count(*), count(DISTINCT custom_id) FROM responses GROUP BY run"
    asked = batchrun("sql", url, sql, "--format", "csv", env=env)
    assert asked.returncode == 0, asked.stderr
    assert f'"{url}",30,30' in asked.stdout
    calls = batchrun("sql", url, "SELECT count(*) FROM tool_calls", "--format", "csv", env=env)
    assert calls.returncode == 0, calls.stderr
    report = batchrun("report", url, env=env)
    assert report.returncode == 0, report.stderr
    assert url in report.stdout
    assert batchrun("cost", url, env=env).returncode == 0
    assert batchrun("export", url, "all.csv", env=env).returncode == 0
    assert len((tmp_path / "all.csv").read_text().splitlines()) >= 31
    assert not list((tmp_path / "other").glob("**/*"))


def test_a_run_in_a_store_as_source(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, job: Any
) -> None:
    assert batchrun("run", job(12), "--simulate", "--quiet", env=s3).returncode == 0
    url = f"{bucket.url}/runs/first"
    words = ("--prompt", "Shorter: {{ output_text }}", "--model", "m", "--simulate", "-o", "second")
    done = batchrun("run", url, *words, env=s3)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "second/responses").num_rows == 12


def test_another_machine_goes_on(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, job: Any
) -> None:
    name = job(40)
    assert batchrun("run", name, "--simulate", "--limit", "15", env=s3).returncode == 0
    other = {**s3, "XDG_STATE_HOME": str(tmp_path / "other")}
    some = batchrun("run", name, "--simulate", "--limit", "25", env=other)
    assert some.returncode == 0
    _, named = some.stderr.splitlines()[-1].split("next: batchrun ")
    done = batchrun(*shlex.split(named), env=s3)
    assert done.returncode == 0, done.stderr
    assert "25 complete, 15 to send" in done.stderr
    assert [row["custom_id"] for row in parts_of(bucket, tmp_path)] == [f"q{n}" for n in range(40)]
    assert batchrun("verify", f"{bucket.url}/runs/first", env=other).returncode == 0
    writers = {key.rpartition("/")[2].partition("-")[0] for key in bucket.names("runs/first/resp")}
    assert writers == {"w0", "w1"}


def test_the_folder_of_a_run_in_a_store_stands_for_its_url(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, job: Any
) -> None:
    """What is refused for the URL is refused for the folder too."""
    name = job(12, "part_rows = 10\n[cluster]\nsilence_s = 46")
    assert batchrun("run", name, "--simulate", "--limit", "5", env=s3).returncode == 0
    scratch, url = scratch_of(tmp_path), f"{bucket.url}/runs/first"
    workers = ("--executor", "ray", "--workers", "2")
    for place in (url, scratch):
        for option in ((), ("--dry-run",)):
            words = ("run", name, "--simulate", *workers, *option, "-o", place)
            refused = batchrun(*words, env=s3)
            assert refused.returncode == 2, refused.stderr
            assert f"silence_s is 46, and the run is in a store ({url})" in refused.stderr
            assert "set silence_s in [cluster] to 45 or less" in refused.stderr
    done = batchrun("run", name, "--simulate", "-o", scratch, env=s3)
    assert done.returncode == 0, done.stderr
    assert "5 complete, 7 to send" in done.stderr
    assert [row["custom_id"] for row in parts_of(bucket, tmp_path)] == [f"q{n}" for n in range(12)]
    assert json.loads(bucket.get("runs/first/run.json") or b"")["store"] == url


def test_rows_that_are_sent_again_stand_once(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, job: Any
) -> None:
    name = job(40)
    assert batchrun("run", name, "--simulate", "--limit", "25", env=s3).returncode == 0
    changed = (tmp_path / "job.toml").read_text().replace("{{ question }}", "{{ question }}!")
    (tmp_path / "job.toml").write_text(changed)
    refused = batchrun("run", name, "--simulate", env=s3)
    assert refused.returncode == 2, refused.stderr
    done = batchrun("run", name, "--simulate", "--rerun-changed", env=s3)
    assert done.returncode == 0, done.stderr
    rows = parts_of(bucket, tmp_path)
    assert [row["custom_id"] for row in rows] == [f"q{n}" for n in range(40)]
    assert all("!" in row["request"] for row in rows)
    assert len(rows[0]["attempts"]) == 2
    assert batchrun("verify", f"{bucket.url}/runs/first", env=s3).returncode == 0
    assert not [key for key in bucket.names() if key.endswith((".tmp", ".intent"))]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be reached"),
        ({}, "no such bucket"),
    ],
)
def test_a_store_that_cannot_be_written_is_said_at_the_start(
    change: dict[str, str], said: str, s3: dict[str, str], batchrun: Command, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"question": "?"}\n')
    words = ("run", "prompts.jsonl", *PROMPT, "-o", "s3://nowhere-at-all/run")
    with said_in_time():
        done = batchrun(*words, env={**s3, **change})
    assert done.returncode == 2
    assert said in done.stderr
    assert not list((tmp_path / "state").glob("**/*.*"))


def test_a_folder_for_the_journal_that_cannot_be_is_said_with_what_names_another(
    s3: dict[str, str], batchrun: Command, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"question": "?"}\n')
    env = {**s3, "XDG_STATE_HOME": str(tmp_path / "prompts.jsonl")}
    for option in ((), ("--dry-run",)):
        done = batchrun("run", "prompts.jsonl", *PROMPT, "-o", "s3://bucket/run", *option, env=env)
        assert done.returncode == 2
        assert "prompts.jsonl is a file" in done.stderr
        assert "XDG_STATE_HOME, or scratch in [cluster]" in done.stderr


@pytest.mark.parametrize(
    ("fault", "said"),
    [("deny", "refused or not allowed to do this"), ("fail", "the store is overloaded or failing")],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_store_that_refuses_reads_or_writes_is_said_too(
    method: str,
    fault: str,
    said: str,
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    batchrun: Command,
    tmp_path: Path,
) -> None:
    """Whether it can be read does not say whether it can be written."""
    (tmp_path / "prompts.jsonl").write_text('{"question": "?"}\n')
    proxy.rule = lambda call: fault if call.method == method else None
    env = {**s3, "AWS_ENDPOINT_URL": proxy.address}
    with said_in_time():
        done = batchrun("run", "prompts.jsonl", *PROMPT, "-o", f"{bucket.url}/run", env=env)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert f"{bucket.url}/run" in done.stderr
    assert bucket.names() == []
    assert not list((tmp_path / "state").glob("**/*.*"))


@pytest.mark.long
async def test_a_run_whose_claim_another_command_has_taken_stops_and_loses_nothing(
    bucket: Bucket,
    s3: dict[str, str],
    environment: dict[str, str],
    batchrun: Command,
    tmp_path: Path,
    job: Any,
) -> None:
    """It looks every 10 s."""
    name = job(400, "part_rows = 1000")
    async with serve(SimulatorSettings(latency_s=0.2)) as base_url:
        words = ("run", name, "--base-url", base_url, "--concurrency", "1", "--quiet")
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, *words),
            cwd=tmp_path,
            env={**environment, **s3},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while not bucket.names("runs/first/claims/"):
            await asyncio.sleep(0.05)
        for claim in bucket.names("runs/first/claims/"):
            bucket.delete(claim)
        said = (await asyncio.wait_for(process.communicate(), HANG_S))[1].decode()
        assert process.returncode == 1, said
        assert "another machine may continue this run (another command has taken it over)" in said
        assert "run the same command again" in said
        assert list(scratch_of(tmp_path).glob("journal/w*.log"))
        done = await asyncio.to_thread(batchrun, *words[:4], "--quiet", env=s3)
    assert done.returncode == 0, done.stderr
    assert len(parts_of(bucket, tmp_path)) == 400


@pytest.mark.long
@pytest.mark.parametrize("source", ["prompts.jsonl", "s3://bucket/prompts.jsonl"])
def test_a_store_that_is_silent_is_said_too(
    source: str, proxy: Proxy, s3: dict[str, str], batchrun: Command, tmp_path: Path
) -> None:
    """By the library's own limits: three times 5 s; else after a time, see `within`."""
    (tmp_path / "prompts.jsonl").write_text('{"question": "?"}\n')
    proxy.rule = lambda _call: "silence"
    env = {**s3, "AWS_ENDPOINT_URL": proxy.address}
    with said_in_time():
        done = batchrun("run", source, *PROMPT, "-o", "s3://bucket/run", env=env)
    assert done.returncode == 2
    assert re.search(r"cannot be reached|no answer for \d+ s", done.stderr), done.stderr


@pytest.mark.long
@pytest.mark.parametrize("last", ["list-type", "w1.started", "live.json"])
def test_a_store_that_falls_silent_before_anything_is_sent_is_said_too(
    last: str, proxy: Proxy, s3: dict[str, str], batchrun: Command, job: Any
) -> None:
    """At any of the calls that follow the claim: after the first one that names `last`."""
    assert batchrun("run", job(5), "--simulate", "--quiet", env=s3).returncode == 0
    named: list[Call] = []

    def rule(call: Call) -> str | None:
        if named:
            return "silence"
        if last in call.path:
            named.append(call)
        return None

    proxy.rule = rule
    there = {**s3, "AWS_ENDPOINT_URL": proxy.address, "XDG_STATE_HOME": s3["XDG_STATE_HOME"] + "2"}
    with said_in_time():
        done = batchrun("run", "job.toml", "--simulate", "--quiet", env=there)
    assert done.returncode == 2, done.stderr
    assert re.search(r"cannot be reached|no answer for \d+ s", done.stderr), done.stderr


def test_what_a_library_waits_for_has_an_end() -> None:
    with pytest.raises(RemoteError, match="a store: no answer for 0 s"):
        within(0.01, "a store", threading.Event().wait)


def test_what_a_killed_delete_holds_in_azure_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_stores, "_LEASE_PAUSE_S", 0.01)
    errors = [OSError("Azure Error: [LeaseIdMissing] 412"), OSError("[LeaseAlreadyPresent] 409")]

    def call() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert object_stores._once_free(call) == "done"
    errors.append(OSError("[BlobNotFound] 404"))
    with pytest.raises(OSError, match="BlobNotFound"):
        object_stores._once_free(call)


def test_two_drivers_keep_out_of_each_other(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, job: Any
) -> None:
    name = job(5)
    claim = {"host": "another", "pid": 17, "scratch": "/somewhere"}
    bucket.put("runs/first/claims/0123", json.dumps(claim))
    done = batchrun("run", name, "--simulate", env=s3)
    assert done.returncode == 2
    assert "in use by process 17 on another" in done.stderr
    assert bucket.names("runs/first/") == ["runs/first/claims/0123"]


def test_a_run_that_another_machine_writes_is_live(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, job: Any
) -> None:
    assert batchrun("run", job(12), "--simulate", "--quiet", env=s3).returncode == 0
    bucket.put("runs/first/claims/0123", '{"host": "another", "pid": 17, "scratch": "/somewhere"}')
    url, other = f"{bucket.url}/runs/first", {**s3, "XDG_STATE_HOME": str(tmp_path / "other")}
    verified = batchrun("verify", url, env=other)
    assert verified.returncode == 0, verified.stderr
    assert "live: a process writes to this run" in verified.stdout
    watched = batchrun("status", url, "--watch", env=other)
    assert watched.returncode == 2
    assert "works on the machine that writes the run" in watched.stderr


@pytest.mark.parametrize("fault", ["fail", pytest.param("cut", marks=pytest.mark.long)])
def test_uploads_that_fail_are_tried_again(
    fault: str,
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    batchrun: Command,
    tmp_path: Path,
    job: Any,
) -> None:
    failed: set[tuple[str, str]] = set()

    def once(call: Any) -> str | None:
        mark = call.method, call.path
        if mark in failed or ".parquet" not in call.path:
            return None
        failed.add(mark)
        return fault

    proxy.rule = once
    env = {**s3, "AWS_ENDPOINT_URL": proxy.address}
    done = batchrun("run", job(30), "--simulate", "--quiet", env=env)
    assert done.returncode == 0, done.stderr
    assert len(failed) > 3
    assert len(parts_of(bucket, tmp_path)) == 30
    assert batchrun("verify", f"{bucket.url}/runs/first", env=env).returncode == 0


async def test_parts_are_sealed_by_time(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, job: Any
) -> None:
    """A store has what is older, though no part is full."""
    slow = SimulatorSettings(latency_s=0.25)
    async with serve(slow) as base_url:
        name = job(12, "part_seconds = 1")
        words = ("run", name, "--base-url", base_url, "--concurrency", "1", "--quiet")
        done = await asyncio.to_thread(batchrun, *words, env=s3)
    assert done.returncode == 0, done.stderr
    assert len(bucket.names("runs/first/responses/")) >= 2
    assert len(parts_of(bucket, tmp_path)) == 12


_WITHOUT_A_STORE = """
import sys
import batchrun
assert not [name for name in sys.modules if name.startswith(("pyarrow", "batchrun.remote"))]
sys.argv = ["batchrun", "run", "p.jsonl", "--model", "m", "--simulate", "--quiet"]
from batchrun.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
assert not [name for name in sys.modules if name.startswith(("huggingface_hub", "boto"))]
from batchrun.remote.object_stores import _filesystem
assert _filesystem.cache_info().currsize == 0
"""


def test_no_client_of_a_store_is_there_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"input": "a"}')
    command = [sys.executable, "-c", _WITHOUT_A_STORE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
