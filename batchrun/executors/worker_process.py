"""A worker as its driver sees it, whatever engine runs it, and what both must agree on.

A worker is an object in a process of its own, perhaps on another machine. The driver calls it and
awaits its answers. An error is only a hint that the worker may have ended; the lock on its journal
proves it.
"""

import os
import platform
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.inputs.requests import HASH_RULE
from batchrun.remote.access import Access, take_access, why_not_written
from batchrun.remote.run_link import read_link
from batchrun.store.run_dir import SCHEMA_VERSION
from batchrun.version import VERSION

_PROBE = "probe-{}.tmp"  # in the journal folder; readers of runs ignore such names


class WorkerFailed(Exception):  # noqa: N818 - a hint, which the driver judges
    """A worker did not answer. `is_over`: the engine says that it never will."""

    def __init__(self, message: str, *, is_over: bool) -> None:
        super().__init__(message)
        self.is_over = is_over


class Greeting(Struct, frozen=True):
    """What a worker says about itself first."""

    batchrun: str
    python: str  # major and minor version
    schema: int
    hash_rule: int
    host: str
    machine: str  # identifies the machine; two machines may have the same host name
    pid: int
    sees_run: bool  # it sees the file that the driver has just written into the run directory
    store_problem: str | None = None  # why it cannot write to the store that the run is in


class FleetWorker(Protocol):
    """What runs in the process of a worker."""

    async def begin(self) -> str | None:
        """Prepares its work; returns why it cannot work, or None."""

    async def tick(self, message: bytes) -> bytes:
        """A `FleetTick` in, a `WorkerReport` out."""

    async def ended(self) -> None:
        """Returns when it has nothing more to do, even if nobody calls it any more."""


MakeWorker = Callable[[Any, Any], FleetWorker]  # from its settings and their secrets


class WorkerProcess(Protocol):
    """A process that was asked for. The methods raise `WorkerFailed`."""

    async def greet(self, path: str, token: str, access: Access) -> Greeting:
        """Waits until the process is there, and gives it what opens stores."""

    async def begin(self, make: MakeWorker, settings: object, secrets: object) -> str | None:
        """Makes the worker in it; returns why it cannot work, or None."""

    async def tick(self, message: bytes) -> bytes:
        """A `FleetTick` in, a `WorkerReport` out."""

    def kill(self) -> None:
        """Ends the process, whatever it is doing."""


class Cluster(Protocol):
    """Where workers are started."""

    def start(self, name: str) -> WorkerProcess:
        """May take seconds: call it in a thread. Raises `WorkerFailed`."""

    def problem(self) -> str | None:
        """Why no worker can be started any more, in words; None if it can."""

    def free_in_words(self) -> str:
        """Its free resources, in words."""

    def close(self) -> None:
        """Ends what was started only for this run, but not workers that were not killed."""


def greeting(
    path: str, token: str, access: Access | None = None, machine: str | None = None
) -> Greeting:
    """That of this process, which has `access` from now on. Tries a run's store."""
    take_access(access or {})
    is_there = _holds(Path(path, "journal", _PROBE.format(token)), token)
    return Greeting(
        batchrun=VERSION,
        python=_python(),
        schema=SCHEMA_VERSION,
        hash_rule=HASH_RULE,
        host=socket.gethostname(),
        machine=machine or socket.gethostname(),
        pid=os.getpid(),
        sees_run=is_there,
        store_problem=why_not_written(Path(path), token) if is_there else None,
    )


def write_probe(path: Path, token: str) -> Path:
    """Writes the file that proves to the driver which workers see the run. Raises `OSError`."""
    probe = path / "journal" / _PROBE.format(token)
    probe.parent.mkdir(exist_ok=True)
    probe.write_text(token, encoding="ascii")
    return probe


def check_greeting(said: Greeting, path: Path) -> None:
    """Raises `JobError` if the worker cannot take part in the run of this process."""
    where = f"the worker on {said.host}"
    for what, theirs, ours in (
        ("batchrun", said.batchrun, VERSION),
        ("Python", said.python, _python()),
        ("schema", said.schema, SCHEMA_VERSION),
        ("rule for hashes", said.hash_rule, HASH_RULE),
    ):
        if theirs != ours:
            raise JobError(
                f"{where} has {what} {theirs}, and this machine has {ours}; install the same "
                "version on all machines of the cluster"
            )
    if not said.sees_run:
        link = read_link(path)
        if link is not None:
            raise JobError(
                f"{where} does not see {path}, the folder with the journals of {link.url}; give a "
                "folder that all machines of the cluster share, at the same path, with scratch in "
                "[cluster] or XDG_STATE_HOME. If a worker dies, its answers can only be taken over "
                "from there"
            )
        raise JobError(
            f"{where} does not see the run directory {path}; give a folder that all machines of "
            "the cluster share, at the same path, with -o"
        )
    if said.store_problem is not None:
        raise JobError(
            f"{where} cannot write to the store of this run: {said.store_problem}. Keys in the "
            "environment of this command are given to all workers; files with keys, and roles, "
            "must be there on each machine"
        )


def check_machines(
    greetings: Sequence[Greeting], base_urls: Sequence[str], *, simulated: bool
) -> None:
    """Raises `JobError` if workers on several machines would each call their own loopback.

    `base_urls`: the loopback addresses that requests go to.
    """
    machines = {one.machine: one.host for one in greetings}
    if len(machines) < 2 or not base_urls:
        return
    hosts = ", ".join(sorted(machines.values()))
    if simulated:
        raise JobError(
            f"the simulator of --simulate answers on one machine only, but there are workers on "
            f'{hosts}; use address = "local" in [cluster], or start `batchrun simulate --host '
            "0.0.0.0` and give --base-url http://HOST:8080/v1 --api-key-env none instead"
        )
    raise JobError(
        f"{base_urls[0]} is a loopback address, but there are workers on {hosts}; give an address "
        "that all of them can reach. If each machine has a server of its own, write "
        "per_node_endpoint = true into [cluster]"
    )


def encode_greeting(said: Greeting) -> bytes:
    """As JSON, so that other versions can read it."""
    return msgspec.json.encode(said)


def decode_greeting(data: Any) -> Greeting:
    """Raises `WorkerFailed` if it is not a greeting."""
    try:
        return msgspec.json.decode(data, type=Greeting)
    except (msgspec.DecodeError, TypeError) as error:
        raise WorkerFailed(f"its first answer cannot be read ({error})", is_over=True) from error


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _holds(probe: Path, token: str) -> bool:
    try:
        return probe.read_text(encoding="ascii") == token
    except OSError:
        return False
