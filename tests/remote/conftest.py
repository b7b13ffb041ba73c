"""Object stores and the Hub on loopback."""

import datetime as dt
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.processes import COMMAND
from tests.remote.hub_server import Hub
from tests.remote.object_server import Bucket, Call, Clock, Proxy
from tests.waiting import HANG_S


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an object store."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str) -> Bucket:
    """A new one."""
    return Bucket(s3_server, f"bucket-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def store_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of the object store, by which claims expire."""
    from moto.core.utils import utcnow

    clock = Clock()
    monkeypatch.setattr(
        "moto.s3.models.utcnow", lambda: utcnow() + dt.timedelta(seconds=clock.ahead_s)
    )
    return clock


@pytest.fixture
def proxy(s3_server: str) -> Iterator[Proxy]:
    """Before the store; passes everything on unless a test says otherwise."""
    made = Proxy(s3_server)
    yield made
    made.close()


@pytest.fixture
def s3(s3_server: str, tmp_path: Path) -> dict[str, str]:
    """The environment in which batchrun finds the store."""
    return {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "aws-config"),
        "AWS_ENDPOINT_URL": s3_server,
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }


@pytest.fixture
def killed_at(
    proxy: Proxy, s3: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> Callable[..., bool]:
    """Runs batchrun, and kills it before or after its write number N of those that `counts`."""

    def run(number: int, moment: str, *words: str, counts: str = "") -> bool:
        """Whether it came to that write."""
        writes: list[Call] = []
        process: list[subprocess.Popen[str]] = []

        def strike(when: str, call: Call) -> None:
            if call.method in ("PUT", "POST", "DELETE") and counts in call.path:
                if when == "before":
                    writes.append(call)
                if len(writes) == number and moment == when and writes[-1] == call:
                    with suppress(ProcessLookupError):
                        os.kill(process[0].pid, signal.SIGKILL)

        def rule(call: Call) -> str | None:
            strike("before", call)
            if moment == "before" and len(writes) >= number:
                return "silence" if call in writes else "fail"
            return None

        proxy.rule, proxy.after = rule, lambda call: strike("after", call)
        env = {**environment, **s3, "AWS_ENDPOINT_URL": proxy.address}
        process.append(
            subprocess.Popen(
                [*COMMAND, *words],
                cwd=tmp_path,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        _, said = process[0].communicate(timeout=HANG_S)
        proxy.rule, proxy.after = lambda _call: None, lambda _call: None
        assert process[0].returncode in (0, -9), said
        return process[0].returncode == -9

    return run


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub("somebody/questions")
    yield made
    made.close()


@pytest.fixture
def hub_environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}


JOB = """
[input]
path = "prompts.jsonl"
[request]
model = "m"
input = "{{{{ question }}}}"
[output]
path = "{url}"
{more}
"""


@pytest.fixture
def write_run(tmp_path: Path, questions: Callable[[int], str]) -> Callable[..., str]:
    """Writes so many rows, and a job whose tables go to a URL; the name of the job.

    `more`: further lines of [output], and further sections.
    """

    def write(rows: int, url: str, more: str) -> str:
        (tmp_path / "prompts.jsonl").write_text(questions(rows))
        (tmp_path / "job.toml").write_text(JOB.format(url=url, more=more))
        return "job.toml"

    return write


@pytest.fixture
def questions() -> Callable[[int], str]:
    """So many rows of JSON Lines."""

    def make(count: int, first: int = 0) -> str:
        rows = range(first, first + count)
        return "".join(f'{{"id": "q{row}", "question": "How much is {row}?"}}\n' for row in rows)

    return make
