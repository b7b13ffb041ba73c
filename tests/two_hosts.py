"""Two hosts and a server, as network namespaces of this machine, whose network can be cut.

Each host reaches the server by a cable of its own, and the other host by another one. They share
the files of this machine.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.waiting import HANG_S, wait_until

SERVER = "10.91.0.1"
_HEAD_ADDRESS, _NODE_ADDRESS = "10.91.3.1", "10.91.3.2"  # of the hosts, over their cable
_NOBODY = "02:00:00:00:00:99"  # a network card that is not there
_OWN = ("unshare", "--user", "--map-root-user", "--net", "--uts")
_NAME = "import socket, sys; socket.sethostname(sys.argv[1])"
_RAY = "from ray.scripts.scripts import main; main()"
_START = ("start", "--block", "--disable-usage-stats", "--num-gpus=0")
_HIDING = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
_OBJECT_STORE = f"--object-store-memory={80 << 20}"


def why_not() -> str | None:
    """Why this machine cannot be two; null where it can."""
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    done = subprocess.run([*_OWN, "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else "no network namespaces for this user"


class Host:
    """A namespace, as long as a process in it waits for the end of its input."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [*command, "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"\n"
        self.pid = self._process.pid
        self.network = Path(f"/proc/{self.pid}/ns/net").readlink()
        namespaces = ("--user", "--net", "--uts", "--preserve-credentials")
        self.inside = ("nsenter", f"--target={self.pid}", *namespaces)
        self.ip("link set lo up")
        subprocess.run([*self.inside, sys.executable, "-c", _NAME, name], check=True)

    def ip(self, words: str) -> None:
        subprocess.run([*self.inside, "ip", *words.split()], check=True)

    def processes(self) -> list[int]:
        """All that run in it."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if (entry / "ns/net").readlink() == self.network:
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Nothing runs in it any more."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(HANG_S)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


class TwoHosts:
    """The head of a cluster, and another node."""

    def __init__(self) -> None:
        self.server = Host("server", _OWN)
        another = (*self.server.inside, "unshare", "--net", "--uts")
        self.head, self.node = (Host(name, another) for name in ("head", "node"))
        self.all = (self.head, self.node, self.server)
        self.server.ip(f"addr add {SERVER}/32 dev lo")
        for at, host in enumerate((self.head, self.node), 1):
            _connect(self.server, host, f"host{at}", "outer", f"10.91.{at}")
            host.ip(f"route add {SERVER} via 10.91.{at}.1")
        _connect(self.head, self.node, "cable", "cable", "10.91.3")

    def cut(self) -> None:
        """What the hosts send each other is lost from now on."""
        self.head.ip(f"neigh replace {_NODE_ADDRESS} lladdr {_NOBODY} dev cable nud permanent")
        self.node.ip(f"neigh replace {_HEAD_ADDRESS} lladdr {_NOBODY} dev cable nud permanent")

    def mend(self) -> None:
        """It arrives again."""
        self.head.ip(f"neigh del {_NODE_ADDRESS} dev cable")
        self.node.ip(f"neigh del {_HEAD_ADDRESS} dev cable")

    @contextmanager
    def cluster(
        self, environment: Mapping[str, str], cpus: tuple[int, int], own: Path | None = None
    ) -> Iterator[str]:
        """A Ray cluster of both, with so many CPUs on each; its address.

        `own`: a folder that the second host has for itself, and which is empty there.
        """
        address = f"{_HEAD_ADDRESS}:6379"
        nodes = (
            ("--head", "--port=6379", f"--node-ip-address={_HEAD_ADDRESS}"),
            (f"--address={address}", f"--node-ip-address={_NODE_ADDRESS}"),
        )
        folder = Path(tempfile.mkdtemp(prefix="batchrun-", dir="/tmp"))
        variables = {**environment, "RAY_TMPDIR": str(folder)}
        processes = []
        try:
            for at, host in enumerate((self.head, self.node)):
                words = [*_START, *nodes[at], f"--num-cpus={cpus[at]}", _OBJECT_STORE]
                if not at:
                    words.append("--include-dashboard=false")
                log = folder / f"{at}.log"
                before = () if own is None or not at else (*_HIDING, str(own))
                with log.open("wb") as said:
                    process = subprocess.Popen(
                        [*host.inside, *before, sys.executable, "-c", _RAY, *words],
                        env=variables,
                        stdin=subprocess.DEVNULL,
                        stdout=said,
                        stderr=subprocess.STDOUT,
                        text=True,
                    )
                processes.append(process)
                wait_until(lambda log=log: "Ray runtime started" in log.read_text(), process)  # type: ignore[misc]
            yield address
        finally:
            for host in (self.head, self.node):
                for pid in set(host.processes()) - {host.pid}:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            for process in processes:
                process.wait(HANG_S)
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        for host in self.all:
            host.close()


def _connect(one: Host, other: Host, name: str, other_name: str, network: str) -> None:
    """A cable between two hosts, which have the first and the second address of a network."""
    one.ip(f"link add {name} type veth peer name {other_name} netns {other.pid}")
    for at, (host, link) in enumerate(((one, name), (other, other_name)), 1):
        host.ip(f"addr add {network}.{at}/24 dev {link}")
        host.ip(f"link set {link} up")


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    hosts = TwoHosts()
    try:
        yield hosts
    finally:
        hosts.close()
