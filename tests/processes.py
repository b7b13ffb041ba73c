"""batchrun as a process of its own, as tests start it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.waiting import HANG_S

COMMAND = (sys.executable, "-m", "batchrun")
_OURS = ("OPENAI_", "FORCE_COLOR", "NO_COLOR", "TTY_", "COLUMNS", "LINES")


def clean_environment() -> dict[str, str]:
    """Ours, without what would change what batchrun does."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OURS) and not name.lower().endswith("_proxy")
    }


def run_batchrun(
    folder: Path, environment: Mapping[str, str], *words: object
) -> subprocess.CompletedProcess[str]:
    """`batchrun ...` in a folder, to its end; nothing it may do ends with a traceback."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What it says on standard error until these words come."""
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


def read_rest(process: subprocess.Popen[str]) -> str:
    """What it says on standard error from here to its end."""
    assert process.stderr is not None
    said = process.stderr.read()
    process.wait(HANG_S)
    return said


@contextmanager
def frozen(process: subprocess.Popen[str]) -> Iterator[None]:
    """The process does nothing meanwhile, so that nothing depends on who is faster."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert process.poll() is None, "the process ended before"
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def free_port() -> int:
    """Of the ports that a system gives to nobody unasked, so that it stays free."""
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class ForkServer:
    """Does what `run_batchrun` does, by `tests/fork_server.py`; for one thread."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        self._channel.settimeout(HANG_S)

    def close(self) -> None:
        self._channel.close()
        self._process.wait(HANG_S)

    def run(
        self, folder: Path, environment: Mapping[str, str], *words: object, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """`text` is what stands on standard input."""
        request = json.dumps([list(map(str, words)), str(folder), dict(environment)]).encode()
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as given,
            tempfile.TemporaryFile("r", encoding="utf-8") as out,
            tempfile.TemporaryFile("r", encoding="utf-8") as said,
        ):
            given.write(text)
            given.seek(0)
            streams = [file.fileno() for file in (given, out, said)]
            socket.send_fds(self._channel, [request], streams)
            pid = int(self._channel.recv(32))
            try:
                code = int(self._channel.recv(32))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                self._channel.recv(32)
                raise
            out.seek(0)
            said.seek(0)
            done = subprocess.CompletedProcess(list(map(str, words)), code, out.read(), said.read())
        assert "Traceback" not in done.stderr, done.stderr
        return done
