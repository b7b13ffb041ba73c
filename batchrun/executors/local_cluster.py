"""A Ray cluster on this machine for one run, which starts and ends it.

A process of its own runs `ray start` in a new session, and watches it. When the run ends, the
cluster ends. If the run is killed, the cluster stays until its workers have stored what was in
flight, that is, until the locks on their journals are free.
"""

import fcntl
import json
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from batchrun.errors import JobError

_MAIN = "from batchrun.executors.local_cluster import serve; serve()"
_RAY = "from ray.scripts.scripts import main; main()"
_ADDRESS = "127.0.0.1"
_START_S = 90.0  # until the cluster is there
_STOP_S = 20.0  # until it has ended
_DELETE_S = 5.0
_LOOK_S = 0.1
_OBJECT_STORE = 80 << 20  # bytes; the least that Ray takes is 75 MiB, and nothing is put there
_SAID = 2000  # characters of what Ray prints if it does not start
_CLOSE = b"close\n"


def refuse_without_ray() -> None:
    """Raises `JobError` where Ray is not installed; does not import it."""
    if find_spec("ray") is None:
        raise JobError(
            "--executor ray needs Ray, which is not installed; pip install 'batchrun[ray]'"
        )


class LocalCluster:
    """The cluster, as the run's own process sees it."""

    def __init__(self, run: Path, cpus: float, secret_variables: Collection[str]) -> None:
        """Starts it, with so many CPUs; takes seconds. Raises `JobError`.

        Must be called before Ray is imported, since Ray reads the environment then.
        `secret_variables` are left out of the environment of its processes.
        """
        # Paths of sockets below it must be short.
        self.folder = tempfile.mkdtemp(prefix="batchrun-", dir="/tmp")
        # The token keeps other users of this machine out; the last one keeps Ray on loopback.
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        kept = {name: text for name, text in os.environ.items() if name not in secret_variables}
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and this code
            [sys.executable, "-P", "-c", _MAIN, self.folder, str(math.ceil(cpus)), str(run)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**kept, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101 - pipes were asked for
        assert self._process.stdout is not None  # noqa: S101 - the same
        self._to, self._from = self._process.stdin, self._process.stdout
        answer = self._from.readline()
        started = (
            json.loads(answer) if answer.endswith(b"\n") else {"problem": "its process was killed"}
        )
        if "problem" in started:
            self.close()
            raise JobError(f"Ray cannot be started on this machine: {started['problem']}")
        self.address: str = started["address"]

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        """Ends the cluster and waits for its processes."""
        with suppress(BrokenPipeError):
            self._to.write(_CLOSE)
            self._to.close()
        self._from.close()
        try:
            self._process.wait(2 * _STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _delete(Path(self.folder))


def serve() -> None:
    """Runs in the process that starts and watches the cluster; ends with it."""
    folder, cpus, run = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    log = folder / "start.log"
    with log.open("wb") as said:
        cluster = subprocess.Popen(  # noqa: S603 - this interpreter, and Ray's code
            [sys.executable, "-c", _RAY, *_words(folder, cpus)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        started = _started(cluster, folder / "ray_current_cluster", log)
        sys.stdout.buffer.write(json.dumps(started).encode() + b"\n")
        sys.stdout.buffer.flush()
        if "address" in started:
            _watch(cluster, run)
    except BrokenPipeError:
        pass  # the run has ended meanwhile
    finally:
        cluster.terminate()
        try:
            cluster.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            cluster.kill()
        _delete(folder)


def _delete(folder: Path) -> None:
    """Deletes it, even if processes that are about to end still write there."""
    until_s = time.monotonic() + _DELETE_S
    while folder.exists() and time.monotonic() < until_s:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_LOOK_S)


def _words(folder: Path, cpus: str) -> list[str]:
    """The words of `ray start`: on loopback only, without a dashboard, on free ports."""
    words = [
        *("start", "--head", "--block", "--port=0", f"--node-ip-address={_ADDRESS}"),
        *("--include-dashboard=false", f"--temp-dir={folder}"),
        *(f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={_OBJECT_STORE}"),
        f"--dashboard-agent-listen-port={_free_port()}",
    ]
    if find_spec("grpc") is not None:  # then Ray starts a server for its client too
        words.append(f"--ray-client-server-port={_free_port()}")
    return words


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port


def _started(cluster: "subprocess.Popen[bytes]", file: Path, log: Path) -> dict[str, str]:
    """Waits for the address; returns it, or the problem."""
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        with suppress(OSError):
            if address := file.read_text(encoding="utf-8").strip():
                return {"address": address}
        if cluster.poll() is not None:
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            return {"problem": f"exit code {cluster.returncode}: {said[-_SAID:]}"}
        time.sleep(_LOOK_S)
    return {"problem": f"it did not start within {_START_S:.0f} s"}


def _watch(cluster: "subprocess.Popen[bytes]", run: Path) -> None:
    """Returns when the cluster should end, or has ended."""
    asked: list[bytes] = []

    def listen() -> None:
        asked.append(os.read(sys.stdin.fileno(), len(_CLOSE)))  # unbuffered

    threading.Thread(target=listen, daemon=True).start()
    while cluster.poll() is None:
        if asked and (asked[0] == _CLOSE or not _has_workers(run)):
            return
        time.sleep(_LOOK_S)


def _has_workers(run: Path) -> bool:
    """Whether a process holds the lock of a worker's journal."""
    for path in (run / "journal").glob("w*.lock"):
        with suppress(OSError), path.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False
