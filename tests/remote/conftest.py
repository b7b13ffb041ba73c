"""Object stores and the Hub on loopback."""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.remote.hub_server import Hub
from tests.remote.kills import Killer
from tests.remote.object_server import Bucket, Clock, Proxy
from tests.remote.other_stores import OtherBucket, OtherStore, azurite, fake_gcs, variables


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
) -> Killer:
    """Runs batchrun, and kills it before or after its write number N of those that `counts`."""
    return Killer(proxy, {**environment, **s3, "AWS_ENDPOINT_URL": proxy.address}, tmp_path)


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with azurite(tmp_path_factory.mktemp("azurite")) as address:
        yield address


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as address:
        yield address


@pytest.fixture(params=["azure", "google"])
def other_store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
) -> Iterator[OtherStore]:
    """The test itself goes past the proxy, which is of its own process: pyarrow asks Google's store
    with the interpreter locked.
    """
    kind = request.param
    server = request.getfixturevalue("azurite_server" if kind == "azure" else "gcs_server")
    proxy = Proxy(server)
    found = {"XDG_STATE_HOME": str(tmp_path / "state"), **variables(kind, proxy.address)}
    for name, value in variables(kind, server).items():
        monkeypatch.setenv(name, value)
    bucket = OtherBucket(kind, server, f"bucket-{uuid.uuid4().hex[:12]}")
    killed_at = Killer(proxy, {**environment, **found}, tmp_path)
    with closing(proxy):
        yield OtherStore(bucket, proxy, found, killed_at)


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
