"""Object stores and the Hub on loopback."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.remote.hub_server import Hub
from tests.remote.object_server import Bucket, Proxy


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
def hub() -> Iterator[Hub]:
    made = Hub("somebody/questions")
    yield made
    made.close()


@pytest.fixture
def hub_environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def questions() -> Callable[[int], str]:
    """So many rows of JSON Lines."""

    def make(count: int, first: int = 0) -> str:
        rows = range(first, first + count)
        return "".join(f'{{"id": "q{row}", "question": "How much is {row}?"}}\n' for row in rows)

    return make
