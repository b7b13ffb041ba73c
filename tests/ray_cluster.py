"""A Ray cluster on loopback that outlives the runs in it, as a standing one does."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.executors.local_cluster import LocalCluster

# What `LocalCluster` sets, and whoever joins it needs.
_SET = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


@contextmanager
def standing_cluster(cpus: int) -> Iterator[dict[str, str]]:
    """What a command finds it by."""
    before = {name: os.environ.get(name) for name in _SET}
    with tempfile.TemporaryDirectory(prefix="batchrun-none-") as nowhere:
        cluster = LocalCluster(Path(nowhere), cpus, ())
        try:
            found = {name: os.environ[name] for name in _SET}
            yield {"RAY_ADDRESS": cluster.address, "RAY_ROOT": cluster.folder, **found}
        finally:
            cluster.close()
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def worker_pids(live: Mapping[str, object], *states: str) -> list[int]:
    """Of the workers in a summary that are in one of these states."""
    workers = live.get("workers")
    assert isinstance(workers, list)
    return [one["pid"] for one in workers if one["state"] in states]


def raylet_of(worker: int) -> int:
    """The process of the node that the process of a worker belongs to."""
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid"))


def folder_of_cluster(worker: int) -> str:
    """Where the files of the cluster are that the process of a worker belongs to."""
    words = Path(f"/proc/{raylet_of(worker)}/cmdline").read_text()
    return words[words.index("/tmp/batchrun-") :].split("/session")[0]


def assert_hidden(secrets: Sequence[str], *folders: Path) -> None:
    """In no file of these folders, and in no process's command line, is one of the secrets."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert all(any(path.is_relative_to(folder) for path in files) for folder in folders)
    for path in files:
        with suppress(FileNotFoundError):  # it was a temporary one
            data = path.read_bytes()
            text = f"{path} ".encode() + data
            if path.suffix == ".parquet" and data.startswith(b"PAR1"):  # and not the stub of one
                text += repr(pq.read_table(pa.BufferReader(data)).to_pydict()).encode()
            assert not [one for one in secrets if one.encode() in text], path
    for secret in secrets:
        assert not processes_with(secret)


def processes_with(text: str) -> list[str]:
    """The command lines of all processes that hold a text."""
    shown = subprocess.run(
        ["ps", "-ewwo", "pid,stat,args"],  # noqa: S607 - where it is differs
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [line for line in shown.splitlines() if text in line and " Z" not in line]


def wait_for_none(text: str, within_s: float) -> list[str]:
    """The processes that hold a text, once there are none or it is time."""
    end_s = time.monotonic() + within_s
    while (found := processes_with(text)) and time.monotonic() < end_s:
        time.sleep(0.1)
    return found
