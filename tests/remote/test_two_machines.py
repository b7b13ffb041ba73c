"""A run in a store while a process has it: what another machine sees, and when it takes it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ForkServer, frozen
from tests.remote.object_server import Bucket, Call, Clock, Proxy
from tests.remote.test_store_kills import check
from tests.waiting import HANG_S, wait_until

Command = Callable[..., subprocess.CompletedProcess[str]]
SOON_RENEWED = Path(__file__).parent / "soon_renewed.py"
WOKEN = Path(__file__).parent / "woken.py"
_MINUTE_S = 62.0  # after which a claim has expired


class Place:
    """A run in a bucket, a server that it asks, and two machines."""

    def __init__(
        self, bucket: Bucket, folder: Path, variables: dict[str, str], fork_server: ForkServer
    ) -> None:
        self.bucket, self.url, self.folder = bucket, f"{bucket.url}/run", folder
        self.here = variables
        self.there = {**variables, "XDG_STATE_HOME": str(folder / "there")}
        self.server = fork_server.start(
            folder, variables, "simulate", "--port", 0, "--latency", 0.2
        )
        assert self.server.stdout is not None
        self.base_url = self.server.stdout.readline().strip()
        self.words = ("run", "job.toml", "--quiet", "--base-url", self.base_url, "--concurrency")
        self._started: list[subprocess.Popen[str]] = []

    def begin(self, every_s: float, **more: str) -> subprocess.Popen[str]:
        """The run here, one row at a time, whose claim and small files are written so often."""
        return self.begin_as(SOON_RENEWED, every_s, *self.words, 1, **more)

    def begin_as(self, script: Path, *words: object, **more: str) -> subprocess.Popen[str]:
        """A command here, by a script that changes batchrun's times."""
        process = subprocess.Popen(
            [str(word) for word in (sys.executable, script, *words)],
            cwd=self.folder,
            env={**self.here, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def claims(self) -> list[str]:
        return self.bucket.names("run/claims/")

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
        self.server.kill()
        self.server.communicate(HANG_S)
        for stream in filter(None, (self.server.stdout, self.server.stderr)):
            stream.close()
        self.server.close()


@pytest.fixture
def place(
    bucket: Bucket,
    s3: dict[str, str],
    environment: dict[str, str],
    fork_server: ForkServer,
    tmp_path: Path,
) -> Iterator[Place]:
    with closing(Place(bucket, tmp_path, {**environment, **s3}, fork_server)) as made:
        yield made


@pytest.mark.parametrize("other", ["has ended", "goes on"])
def test_a_run_that_stood_still_while_its_claim_expired_gives_way(
    other: str,
    place: Place,
    proxy: Proxy,
    store_clock: Clock,
    fork_server: ForkServer,
    batchrun: Command,
    verify: Callable[..., None],
    write_run: Callable[..., str],
) -> None:
    """Between the look at its claim and the renewal, which then puts the claim back."""
    write_run(60, place.url, "")
    stopped, let_go = threading.Event(), threading.Event()
    renewals: list[Call] = []
    started: list[subprocess.Popen[str]] = []

    def rule(call: Call) -> None:
        if call.method == "PUT" and "/claims/" in call.path and place.bucket.get("run/run.json"):
            renewals.append(call)
            if len(renewals) == 2:  # what it writes as it begins is there
                started[0].send_signal(signal.SIGSTOP)
                stopped.set()
                let_go.wait(HANG_S)

    proxy.rule = rule
    try:
        started.append(place.begin(0.5, AWS_ENDPOINT_URL=proxy.address))
        wait_until(stopped.is_set, started[0])
        (claim,) = place.claims()
        store_clock.ahead_s = _MINUTE_S
        words = (*place.words, 10)
        with closing(
            fork_server.start(place.folder, place.there, *words, is_heard=False)
        ) as second:
            if other == "has ended":
                assert second.wait(HANG_S) == 0
            else:
                wait_until(lambda: place.claims() not in ([], [claim]) or second.poll() is not None)
                wait_until(lambda: claim not in place.claims())
            let_go.set()
            wait_until(lambda: claim in place.claims())
            started[0].send_signal(signal.SIGCONT)
            said = started[0].communicate(timeout=HANG_S)[1]
            assert started[0].returncode == 1, said
            assert "another command has taken it over" in said
            assert claim not in place.claims()
            assert second.wait(HANG_S) == 0
    finally:
        let_go.set()
    check(place.bucket, place.folder, 60)
    verify(place.url, env=place.there)
    again = batchrun(*place.words, 10, env=place.here)  # whose journal has rows that are there
    assert again.returncode == 0, again.stderr
    check(place.bucket, place.folder, 60)


@pytest.mark.parametrize(
    "other", ["has taken it", pytest.param("was not there", marks=pytest.mark.long)]
)
def test_a_machine_that_was_suspended_sends_nothing_before_it_has_looked_at_its_claim(
    other: str,
    place: Place,
    store_clock: Clock,
    batchrun: Command,
    write_run: Callable[..., str],
) -> None:
    """Its time to look has not come yet: as long as it was suspended, its timers stood still."""
    write_run(15, place.url, "")
    suspended = place.folder / "suspended"
    suspended.touch()
    with closing(Proxy(place.base_url.removesuffix("/v1"))) as sent:
        words = [sent.address + "/v1" if word == place.base_url else word for word in place.words]
        process = place.begin_as(WOKEN, suspended, *words, 1)
        wait_until(lambda: len(sent.calls) >= 3, process)
        with frozen(process):
            store_clock.ahead_s = _MINUTE_S
            suspended.write_text("x" * round(_MINUTE_S))
            if other == "has taken it":
                done = batchrun(*place.words, 20, env=place.there)
                assert done.returncode == 0, done.stderr
            before = len(sent.calls)
        said = process.communicate(timeout=HANG_S)[1]
        if other == "has taken it":
            assert (process.returncode, len(sent.calls)) == (1, before), said
            assert "another command has taken it over" in said
            assert batchrun(*place.words, 1, env=place.here).returncode == 0
        else:
            assert process.returncode == 0, said
    check(place.bucket, place.folder, 15)


@pytest.mark.parametrize(
    "during",
    [
        "its end",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("bringing a run", "an import")),
    ],
)
def test_a_claim_is_renewed_as_long_as_it_is_needed(
    during: str,
    place: Place,
    proxy: Proxy,
    batchrun: Command,
    write_run: Callable[..., str],
) -> None:
    """A call takes as long as three renewals."""
    write_run(5, place.url, "")
    words: tuple[object, ...] = (*place.words, 5)
    if during == "bringing a run":
        assert batchrun(*words, "--limit", "2", env=place.here).returncode == 0
    if during == "an import":
        (place.folder / "answers.jsonl").write_text('{"id": "a", "answer": "b"}\n')
        words = ("import", "answers.jsonl", "--id", "id", "--text", "answer", "-o", place.url)
    renewals: list[Call] = []
    held: list[Call] = []
    kind = {
        "bringing a run": ("GET", "/live.json"),
        "its end": ("PUT", "/live.json"),  # after that of `run.json`
        "an import": ("PUT", "/responses/"),
    }[during]

    def rule(call: Call) -> None:
        if call.method == "PUT" and "/claims/" in call.path:
            renewals.append(call)
        if call.method != kind[0] or kind[1] not in call.path:
            return
        if during == "its end" and b'"finished"' not in (place.bucket.get("run/run.json") or b""):
            return
        held.append(call)
        most = len(renewals) + 3
        wait_until(lambda: len(renewals) >= most)

    proxy.rule = rule
    more = {"AWS_ENDPOINT_URL": proxy.address}
    if during == "bringing a run":
        more["XDG_STATE_HOME"] = place.there["XDG_STATE_HOME"]
    process = place.begin_as(SOON_RENEWED, 0.3, *words, **more)
    said = process.communicate(timeout=HANG_S)[1]
    assert process.returncode == 0, said
    assert held
    assert place.claims() == []


def test_another_machine_sees_how_a_run_is_doing_until_it_is_killed(
    place: Place, store_clock: Clock, batchrun: Command, write_run: Callable[..., str]
) -> None:
    write_run(3000, place.url, "")
    seen: list[dict[str, Any]] = []

    def has_risen() -> bool:
        done = batchrun("status", place.url, "--json", env=place.there)
        found = json.loads(done.stdout) if done.returncode != 2 else {}
        if found.get("ok", 0) > (seen[-1]["ok"] if seen else 0):
            seen.append(found)
        return len(seen) == 2

    process = place.begin(0.3)
    wait_until(has_risen, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(HANG_S)
    assert [one["state"] for one in seen] == ["running", "running"]
    (claim,) = place.claims()
    store_clock.ahead_s = -_MINUTE_S
    place.bucket.put(claim, place.bucket.get(claim) or b"")  # as it is after a minute
    done = batchrun("status", place.url, "--json", env=place.there)
    found = json.loads(done.stdout)
    assert (found["state"], found["exit_code"]) == ("killed", 137)
    assert found["next_command"].startswith("batchrun run job.toml ")
