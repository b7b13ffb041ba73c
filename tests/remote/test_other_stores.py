"""The stores of Azure and Google: Azurite and fake-gcs-server, as `make test-stores` has them."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from batchrun.simulator.server import serve
from batchrun.simulator.settings import SimulatorSettings
from tests.remote.object_server import AtRandom, Call
from tests.remote.other_stores import OtherBucket, OtherStore

pytestmark = pytest.mark.stores
Command = Callable[..., subprocess.CompletedProcess[str]]
PROMPT = ("--prompt", "{{ question }}", "--model", "m", "--simulate", "--quiet")


class Place:
    """A run in a bucket of Azure's or Google's."""

    def __init__(
        self, store: OtherStore, batchrun: Command, verify: Callable[..., None], folder: Path
    ) -> None:
        self.bucket, self.proxy, self.killed_at = store.bucket, store.proxy, store.killed_at
        self.url, self.kind, self.environment = store.url, store.kind, store.environment
        self._batchrun, self._verify, self._folder = batchrun, verify, folder

    @property
    def elsewhere(self) -> dict[str, str]:
        """The environment of another machine."""
        return {**self.environment, "XDG_STATE_HOME": str(self._folder / "other")}

    def run(self, *words: object) -> None:
        """`batchrun ...`, which must end well."""
        done = self._batchrun(*words, env=self.environment)
        assert done.returncode == 0, done.stderr

    def check(self, rows: int) -> None:
        """Each row is there once, and nothing is left over."""
        assert rows_of(self.bucket, self._folder) == sorted(f"q{row}" for row in range(rows))
        self._verify(f"{self.url}/run", env=self.environment)
        assert json.loads(self.bucket.get("run/run.json") or b"")["state"] == "finished"
        assert self.bucket.open_uploads() == []
        # The spare object of a claim, of one that was killed while it wrote it, stays for a minute.
        left = [key for key in self.bucket.names() if not re.search(r"/claims/\.\w+\.tmp$", key)]
        assert not [key for key in left if key.endswith((".tmp", ".intent")) or "/claims/" in key]


def rows_of(bucket: OtherBucket, folder: Path) -> list[str]:
    found: list[str] = []
    for key in bucket.names("run/responses/"):
        path = folder / "copy.parquet"
        path.write_bytes(bucket.get(key) or b"")
        found += pq.read_table(path, columns=["custom_id"])["custom_id"].to_pylist()
    return sorted(found)


@pytest.fixture
def place(
    other_store: OtherStore, batchrun: Command, verify: Callable[..., None], tmp_path: Path
) -> Place:
    return Place(other_store, batchrun, verify, tmp_path)


def test_sources_and_runs(place: Place, batchrun: Command, questions: Callable[..., str]) -> None:
    url = place.url
    place.bucket.put("in/a.jsonl", questions(20))
    place.bucket.put("in/b.jsonl", questions(20, 20))
    words = ("run", f"{url}/in/*.jsonl", *PROMPT, "-o", f"{url}/run")
    place.run(*words, "--limit", "25")
    place.run(*words)
    place.check(40)
    for command in (("status",), ("verify",), ("report",), ("show", "q3")):
        looked = batchrun(command[0], f"{url}/run", *command[1:], env=place.elsewhere)
        assert looked.returncode == 0, looked.stderr
    record = json.loads(place.bucket.get("run/run.json") or b"")
    assert (record["state"], record["store"]) == ("finished", f"{url}/run")


# Of a run of 30 rows, to Azure with spare objects.
_WRITES = {"azure": 82, "google": 21}
_REPLACING = {"azure": 10, "google": 9}  # those of parts, while they are replaced
# The end of one is the beginning of the next.
_EACH_WRITE = [(kind, number) for kind, most in _WRITES.items() for number in range(1, most + 1, 2)]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("other_store", "number"), _EACH_WRITE, indirect=["other_store"])
def test_killed_at_a_write(
    number: int, moment: str, place: Place, write_run: Callable[..., str], batchrun: Command
) -> None:
    """Another machine sees no row twice and nothing damaged; here the run goes on."""
    job = write_run(30, f"{place.url}/run", "")
    words = ("run", job, "--simulate", "--quiet")
    assert place.killed_at(number, moment, *words)
    sql = "SELECT count(*) - count(DISTINCT custom_id) FROM responses"
    seen = batchrun("sql", f"{place.url}/run", sql, "--format", "csv", env=place.elsewhere)
    if seen.returncode:
        assert "is not a run in a store" in seen.stderr
    else:
        assert seen.stdout.splitlines()[-1] == "0"
    place.run(*words)
    place.check(30)


def test_no_write_of_a_run_is_left_out(place: Place, write_run: Callable[..., str]) -> None:
    job = write_run(30, f"{place.url}/run", "")
    assert not place.killed_at(1000, "before", "run", job, "--simulate", "--quiet")
    assert place.killed_at.has_writes(_WRITES[place.kind])


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(1, 11))
def test_killed_while_parts_are_replaced(
    number: int,
    moment: str,
    place: Place,
    questions: Callable[..., str],
    batchrun: Command,
    tmp_path: Path,
) -> None:
    """Seen from another machine, each row is there once at any moment."""
    (tmp_path / "prompts.jsonl").write_text(questions(30))
    words = ["run", "prompts.jsonl", "--model", "m", "--simulate", "--quiet"]
    words += ["-o", f"{place.url}/run", "--prompt"]
    place.run(*words, "{{ question }}")
    again = (*words, "{{ question }}!", "--rerun-changed")
    is_killed = place.killed_at(number, moment, *again, counts=".parquet")
    assert is_killed == (number <= _REPLACING[place.kind])
    sql = "SELECT count(*), count(DISTINCT custom_id) FROM responses"
    seen = batchrun("sql", f"{place.url}/run", sql, "--format", "csv", env=place.elsewhere)
    assert seen.stdout.splitlines()[-1] == "30,30", seen.stderr
    place.run(*again)
    place.check(30)


def test_another_machine_goes_on_after_a_kill(
    place: Place, write_run: Callable[..., str], batchrun: Command
) -> None:
    """As a part is uploaded, of which Azure then has an empty object."""
    words = ("run", write_run(60, f"{place.url}/run", "part_rows = 20"), "--simulate", "--quiet")
    assert place.killed_at(2, "after", *words, counts="responses")
    for claim in place.bucket.names("run/claims/"):
        place.bucket.delete(claim)  # as if a minute had passed
    done = batchrun(*words, env=place.elsewhere)
    assert done.returncode == 0, done.stderr
    place.check(60)
    place.run(*words)
    place.check(60)


@pytest.mark.parametrize("option", ["SOURCE", "-o"])
def test_a_store_that_fails_is_said(
    option: str,
    place: Place,
    batchrun: Command,
    questions: Callable[..., str],
    tmp_path: Path,
) -> None:
    url = place.url
    place.proxy.rule = lambda _call: "fail"
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
    assert isinstance(place.bucket.store.files, fs.AzureFileSystem | fs.GcsFileSystem)
