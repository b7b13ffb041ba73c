"""Workers as actors of a Ray cluster: the only module that imports Ray.

Actors are detached, and Ray never restarts them: they outlive the process of the run for as long as
they need to store what was in flight. Each new one has a name of its own. Secrets are arguments of
a method, which Ray passes from process to process; it would log the settings of its environments.
"""

import asyncio
import atexit
import logging
import os
import re
import secrets
import socket
import threading
from contextlib import suppress
from importlib import import_module
from typing import Any

from batchrun.errors import JobError
from batchrun.executors.local_cluster import LocalCluster
from batchrun.executors.worker_process import (
    FleetWorker,
    Greeting,
    MakeWorker,
    WorkerFailed,
    decode_greeting,
    encode_greeting,
    greeting,
)
from batchrun.remote.access import Access

_NAMESPACE = "batchrun"
_CONNECT_S = 10.0
_JOIN_S = 60.0
_LEAVE_S = 5.0
_LAST_CALL_S = 3.0  # a worker's process stays so long after its end, for the driver's last call
# When the head node is gone, Ray would end this process, which must still report that.
_HEAD_GONE_S = 10**6
_SAID = 500  # characters of Ray's errors
_CHECK = (
    "try `ray status` here, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH if it has a token"
)
_VERSION = re.compile(r"^ *(Ray|Python): (\S+)$", re.MULTILINE)  # in Ray's words, theirs first

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(_HEAD_GONE_S))
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray prints a warning

import ray  # noqa: E402 - it reads these when it is imported
from ray import exceptions  # noqa: E402


class _Actor:
    """The process of a worker, as Ray calls it."""

    def __init__(self) -> None:
        self._worker: FleetWorker | None = None
        self._watching: asyncio.Task[None] | None = None

    async def greet(self, path: str, token: str, access: Access) -> bytes:
        node = ray.get_runtime_context().get_node_id()
        return encode_greeting(await asyncio.to_thread(greeting, path, token, access, node))

    async def begin(self, make: MakeWorker, settings: object, secrets: object) -> str | None:
        self._worker = make(settings, secrets)
        self._watching = asyncio.create_task(self._end_with(self._worker))
        return await self._worker.begin()

    async def tick(self, message: bytes) -> bytes:
        if self._worker is None:
            raise RuntimeError("there is no worker yet")
        return await self._worker.tick(message)

    async def _end_with(self, worker: FleetWorker) -> None:
        """Ends the process soon after the worker, also if no driver is left to do it."""
        try:
            await worker.ended()
            await asyncio.sleep(_LAST_CALL_S)
        finally:
            os._exit(0)


class RayCluster:
    """A cluster that this process has joined; a process has one at a time."""

    def __init__(self, address: str, cpus: float, local: LocalCluster | None = None) -> None:
        """`cpus`: for each worker; `local`: a cluster that ends with this. Raises `JobError`."""
        self._cpus, self._local = cpus, local
        try:
            self._join(address)
        except BaseException:
            self.close()
            raise

    def _join(self, address: str) -> None:
        if "://" in address:
            raise JobError(
                f"the address {address} is for Ray's client, which batchrun does not use; run "
                "batchrun on a machine of the cluster, with HOST:6379 as the address (RAY_ADDRESS, "
                "or address in [cluster])"
            )
        if address != "auto":
            _check_port(address)
        # With `auto`, Ray would take the address from here, which may be another cluster.
        os.environ.pop("RAY_ADDRESS", None)
        logging.getLogger("ray").setLevel(logging.ERROR)
        problem: list[BaseException] = []

        def join() -> None:
            try:
                if address != "auto":
                    _knock(address)
                ray.init(
                    address=address,
                    namespace=_NAMESPACE,
                    log_to_driver=False,
                    configure_logging=False,
                )
            except Exception as error:  # noqa: BLE001 - said below
                problem.append(error)

        joining = threading.Thread(target=join, daemon=True)
        joining.start()
        joining.join(_JOIN_S)
        if joining.is_alive():
            raise JobError(f"the Ray cluster at {address} does not answer; {_CHECK}")
        if problem:
            raise JobError(_why_not_joined(address, problem[0])) from problem[0]
        atexit.unregister(ray.shutdown)  # it would wait for a head node that is gone
        _hush()

    def start(self, name: str) -> "RayActor":
        """May take seconds: call it in a thread. Raises `WorkerFailed`."""
        try:
            actor = (
                ray.remote(_Actor)
                .options(
                    name=f"{name}-{secrets.token_hex(4)}",
                    lifetime="detached",
                    num_cpus=self._cpus,
                    max_restarts=0,
                    max_task_retries=0,
                )
                .remote()
            )
        except Exception as error:  # whatever Ray raises, of which no list exists
            raise WorkerFailed(_in_words(error), is_over=True) from error
        return RayActor(actor)

    def problem(self) -> str | None:
        """Why no worker can be started any more, in words; None if it can."""
        if self._local is not None and self._local.has_ended:
            return "the Ray cluster on this machine has ended"
        return None

    def free_in_words(self) -> str:
        """Its free CPUs, in words; asks the cluster: call it in a thread."""
        try:
            free, of = (kind().get("CPU", 0.0) for kind in (_free, _all))
        except Exception as error:  # noqa: BLE001 - a cluster that ends
            return f"the Ray cluster does not answer ({_in_words(error)})"
        return (
            f"{free:g} of {of:g} CPUs of the Ray cluster are free, and each worker needs "
            f"{self._cpus:g} (cpus_per_worker in [cluster])"
        )

    def close(self) -> None:
        """Leaves the cluster, and ends one that was started for this run."""
        leaving = threading.Thread(target=_leave, daemon=True)
        leaving.start()
        leaving.join(_LEAVE_S)
        if self._local is not None:
            self._local.close()


class RayActor:
    """A worker's process. The methods raise `WorkerFailed`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def greet(self, path: str, token: str, access: Access) -> Greeting:
        """Waits until the process is there."""
        return decode_greeting(await _answer(self._actor.greet, path, token, access))

    async def begin(self, make: MakeWorker, settings: object, secrets: object) -> str | None:
        """Makes the worker in it; returns why it cannot work, or None."""
        problem: str | None = await _answer(self._actor.begin, make, settings, secrets)
        return problem

    async def tick(self, message: bytes) -> bytes:
        """A `FleetTick` in, a `WorkerReport` out."""
        answer: bytes = await _answer(self._actor.tick, message)
        return answer

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        with suppress(Exception):  # it has ended, or nobody can be asked
            ray.kill(self._actor)


async def _answer(method: Any, *arguments: object) -> Any:
    """What an actor's method returns. Raises `WorkerFailed`."""
    try:
        return await method.remote(*arguments)
    except exceptions.ActorUnavailableError as error:
        raise WorkerFailed(_in_words(error), is_over=False) from error
    except exceptions.RayActorError as error:
        raise WorkerFailed(_in_words(error), is_over=True) from error
    except Exception as error:  # what the method raised, or Ray
        raise WorkerFailed(
            _in_words(error), is_over=not isinstance(error, exceptions.RayError)
        ) from error


def _free() -> dict[str, float]:
    free: dict[str, float] = ray.available_resources()
    return free


def _all() -> dict[str, float]:
    every: dict[str, float] = ray.cluster_resources()
    return every


def _hush() -> None:
    """Ends the thread of Ray that prints to standard output when a worker has died."""
    with suppress(AttributeError):
        worker = ray._private.worker.global_worker  # noqa: SLF001 - nothing public turns it off
        worker.threads_stopped.set()
        worker.gcs_error_subscriber.close()


def _leave() -> None:
    with suppress(Exception):
        ray.shutdown()


def _check_port(address: str) -> None:
    """Raises `JobError` if nobody listens there; Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    how = "set RAY_ADDRESS (or address in [cluster]) to HOST:6379, auto or local"
    if not host or not port.isdecimal():
        raise JobError(
            f"the address {address} of the Ray cluster is not of the form HOST:PORT; {how}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise JobError(
            f"no Ray cluster answers at {address} ({why}); start one with `ray start --head`, "
            f"or {how}"
        ) from error


def _knock(address: str) -> None:
    """Raises Ray's error if the cluster asks for another token; Ray would try for a minute."""
    try:
        setup = import_module("ray._private.authentication.authentication_token_setup")
        setup.ensure_token_if_auth_enabled(None, create_token_if_missing=False)
        ray._raylet.GcsClient(address=address)  # noqa: SLF001 - nothing public asks only that
    except Exception as error:  # also where this Ray has no such names
        if _is_about_token(error):
            raise


def _is_about_token(error: BaseException) -> bool:
    return type(error).__name__ == "AuthenticationError"  # Ray before 2.52 knows no tokens


def _why_not_joined(address: str, error: BaseException) -> str:
    if _is_about_token(error):
        return (
            f"the Ray cluster at {address} asks for its token; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to a file that holds the token of its head node"
        )
    versions = _VERSION.findall(str(error))
    if "Version mismatch" in str(error) and len(versions) == 4:
        theirs, ours = (" and ".join(map(" ".join, pair)) for pair in (versions[:2], versions[2:]))
        return (
            f"the Ray cluster at {address} has {theirs}, and this machine has {ours}; install the "
            "same versions on all machines of the cluster"
        )
    if address == "auto" and "Could not find any running Ray" in str(error):
        return (
            "no Ray cluster runs on this machine; start one with `ray start --head`, name another "
            "one with RAY_ADDRESS=HOST:6379, or let batchrun start one with RAY_ADDRESS=local"
        )
    return f"the Ray cluster at {address} cannot be joined ({_in_words(error)}); {_CHECK}"


def _in_words(error: BaseException) -> str:
    """Its last line, where Ray says what went wrong; without colours and guesses at causes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    text = text.partition(" Some common causes")[0]
    return "".join(letter for letter in text if letter.isprintable())[:_SAID]
