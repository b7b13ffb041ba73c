"""batchrun as a process of its own, as tests start it."""

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tests.waiting import HANG_S, wait_until

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
    folder: Path,
    environment: Mapping[str, str],
    *words: object,
    command: Sequence[object] = COMMAND,
) -> subprocess.CompletedProcess[str]:
    """`batchrun ...` in a folder, to its end; nothing it may do ends with a traceback.

    `command`: how it is begun.
    """
    done = subprocess.run(
        [*map(str, (*command, *words))],
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


def read_screen(screen: int) -> str:
    """All that is written to the other side of this pseudo-terminal, until nobody holds it."""
    pieces = []
    try:
        while piece := os.read(screen, 65536):
            pieces.append(piece)
    except OSError:  # as it ends
        pass
    finally:
        os.close(screen)
    return b"".join(pieces).decode()


@contextmanager
def frozen(process: "subprocess.Popen[str] | Forked") -> Iterator[None]:
    """The process does nothing meanwhile, so that nothing depends on who is faster."""
    process.send_signal(signal.SIGSTOP)
    if isinstance(process, Forked):
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split(") ")[1][0] == "T")
    else:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert process.poll() is None, "the process ended before"
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def can_run(*words: str) -> bool:
    """Whether this machine and user can: for what a test needs, such as namespaces of its own."""
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def has_ended(pid: int) -> bool:
    """Of a process that is another's child."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"
    except OSError:
        return True


def free_port() -> int:
    """Of the ports that a system gives to nobody unasked, so that it stays free."""
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Forked:
    """A command in a fork, as `subprocess.Popen` has it."""

    def __init__(
        self,
        control: socket.socket,
        stdout: IO[str] | None = None,
        stderr: IO[str] | None = None,
    ) -> None:
        self.stdin: IO[str] | None = None
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self._control = control
        self.pid = int(control.recv(32))

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("batchrun", timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it prints, from here to its end."""
        with ThreadPoolExecutor(2) as pool:
            texts = [
                pool.submit(stream.read if stream else str) for stream in (self.stdout, self.stderr)
            ]
            try:
                out, said = (text.result(timeout) for text in texts)
            except TimeoutError:
                self.kill()
                raise
        self.wait(timeout)
        return out, said

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """It is killed where it has not ended."""
        self._control.close()

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select((self._control,), (), (), timeout)[0]:
            self.returncode = int(self._control.recv(32))
        return self.returncode


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

    def start(
        self, folder: Path, environment: Mapping[str, str], *words: object, is_heard: bool = True
    ) -> Forked:
        """The same without waiting for its end; `is_heard`: with pipes for what it prints."""
        request = json.dumps([list(map(str, words)), str(folder), dict(environment)]).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipes = [os.pipe() for _ in ("stdout", "stderr")] if is_heard else []
        nothing = os.open(os.devnull, os.O_RDWR)
        written = [end for _, end in pipes] or [nothing, nothing]
        with theirs:
            streams = [nothing, *written, theirs.fileno()]
            socket.send_fds(self._channel, [request], streams)
        for end in {nothing, *written}:
            os.close(end)
        ours.settimeout(HANG_S)
        return Forked(ours, *(os.fdopen(end, encoding="utf-8") for end, _ in pipes))
