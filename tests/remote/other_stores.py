"""The stores of Azure and Google on loopback: Azurite and fake-gcs-server."""

import hmac
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path

from batchrun.remote import object_stores
from batchrun.remote.object_stores import ObjectStore, RemoteObject, store_of
from tests.processes import free_port
from tests.remote.kills import Killer
from tests.remote.object_server import Proxy
from tests.waiting import HANG_S, wait_until

_SERVERS = Path(__file__).parents[2] / ".servers/stores"  # as `make test-stores` installs them
_ACCOUNT, _KEY = "somebody", "c29tZXRoaW5n"
_VERSION = "2021-12-02"


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Its address."""
    port, node = free_port(), shutil.which("node")
    assert node is not None
    script = _SERVERS / "node_modules/azurite/dist/src/blob/main.js"
    command = [node, str(script), "--blobPort", str(port), "--location", str(folder), "--silent"]
    command += ["--skipApiVersionCheck", "--disableProductStyleUrl"]
    with _running(command, folder, port, AZURITE_ACCOUNTS=f"{_ACCOUNT}:{_KEY}"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def fake_gcs(folder: Path) -> Iterator[str]:
    """Its address."""
    port = free_port()
    (binary,) = (_SERVERS / "venv").glob("lib/*/site-packages/*/vendor/fake-gcs-server/bin/*")
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory"]
    with _running(command, folder, port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], folder: Path, port: int, **more: str) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers)
        yield
    finally:
        process.kill()
        process.wait(HANG_S)


def variables(kind: str, address: str) -> dict[str, str]:
    """The environment in which batchrun finds the store."""
    if kind == "google":
        return {"STORAGE_EMULATOR_HOST": address}
    account = f"AccountName={_ACCOUNT};AccountKey={_KEY}"
    return {"AZURE_STORAGE_CONNECTION_STRING": f"{account};BlobEndpoint={address}/{_ACCOUNT}"}


class OtherBucket:
    """A new bucket, looked at as its owner does, past the proxy."""

    def __init__(self, kind: str, address: str, name: str) -> None:
        """This process's environment must be that of the server."""
        self.kind, self.name = kind, name
        self.url = f"{'abfs' if kind == 'azure' else 'gs'}://{name}"
        self._host = address.removeprefix("http://")
        for cached in (store_of, object_stores._store, object_stores._filesystem):
            cached.cache_clear()
        self.store: ObjectStore = store_of(self.url)[0]
        if kind == "azure":
            self.store.files.create_dir(name)
        else:
            self._ask("POST", "/storage/v1/b", json.dumps({"name": name}))

    def objects(self, prefix: str = "") -> list[RemoteObject]:
        return [one for one in self.store.listing("") if one.key.startswith(prefix)]

    def names(self, prefix: str = "") -> list[str]:
        return [one.key for one in self.objects(prefix)]

    def get(self, key: str) -> bytes | None:
        return self.store.read(key)

    def put(self, key: str, data: bytes | str) -> None:
        self.store.write(key, data.encode() if isinstance(data, str) else data)

    def delete(self, key: str) -> None:
        self.store.delete(key)

    def open_uploads(self) -> list[str]:
        """Azure: objects of which there are only blocks. Google's are seen by nobody."""
        if self.kind == "google":
            return []
        query = {"comp": "list", "include": "uncommittedblobs", "restype": "container"}
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
        path = f"/{_ACCOUNT}/{self.name}"
        signed = "GET" + "\n" * 12 + "".join(f"{name}:{headers[name]}\n" for name in headers)
        signed += f"/{_ACCOUNT}{path}" + "".join(f"\n{name}:{query[name]}" for name in query)
        digest = hmac.new(b64decode(_KEY), signed.encode(), sha256).digest()
        headers["Authorization"] = f"SharedKey {_ACCOUNT}:{b64encode(digest).decode()}"
        url = f"{path}?{'&'.join(f'{name}={value}' for name, value in query.items())}"
        page = self._ask("GET", url, headers=headers)
        there = re.findall(r"<Blob>\s*<Name>(.*?)</Name>", page.decode())
        return [name for name in there if name not in self.names() and not name.endswith("/")]

    def _ask(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> bytes:
        connection = http.client.HTTPConnection(self._host, timeout=HANG_S)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status == 200, data
        return data


class OtherStore:
    """A bucket of Azure's or Google's, the proxy before it, and the environment of both."""

    def __init__(
        self, bucket: OtherBucket, proxy: Proxy, environment: dict[str, str], killed_at: Killer
    ) -> None:
        self.bucket, self.proxy, self.environment = bucket, proxy, environment
        self.kind, self.url, self.killed_at = bucket.kind, bucket.url, killed_at
