"""A process and its children, timed from outside: CPU at any moment, peak memory. Linux only.

So every client is measured in the same way, whatever it is written in.
"""

import os
import signal
import subprocess
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parent.parent
_LOOK_EVERY_S = 0.02
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LONGEST_S = 3600.0
_SHOWN_BYTES = 2000  # of what a process said before it failed


class Sample(Struct, frozen=True):
    """What a process had used at a moment."""

    at: float  # Unix time
    cpu_s: float


class Breaks(Struct, frozen=True):
    """A process is held up each time it has run for so long, and something else is done."""

    every_s: float
    fill: Callable[[], None]


class Break(Struct, frozen=True):
    """When a process was held up, and when it went on. Unix time."""

    from_at: float
    to_at: float


class Timed(Struct, frozen=True):
    """A process that has ended."""

    exit_code: int
    said: bytes  # on standard output
    began_at: float  # Unix time
    ended_at: float
    peak_bytes: int  # of each process its own, added up
    samples: list[Sample]
    breaks: list[Break]

    def cpu_s(self, from_at: float, to_at: float) -> float:
        """CPU used between two moments."""
        return cpu_at(self.samples, to_at) - cpu_at(self.samples, from_at)


def cpu_at(samples: Sequence[Sample], at: float) -> float:
    """CPU used up to a moment; between two samples it grows evenly."""
    after = bisect_left(samples, at, key=lambda sample: sample.at)
    if after == 0:
        return samples[0].cpu_s
    if after == len(samples):
        return samples[-1].cpu_s
    left, right = samples[after - 1], samples[after]
    share = (at - left.at) / (right.at - left.at)
    return left.cpu_s + share * (right.cpu_s - left.cpu_s)


def cores() -> tuple[int | None, int | None]:
    """One core for the server and another for the client; null where there are not two."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else (None, None)


def pin(pid: int, core: int | None) -> None:
    """The process stays on this core."""
    if core is not None:
        os.sched_setaffinity(pid, {core})


def run_timed(
    command: Sequence[str],
    place: Path,
    core: int | None,
    environment: Mapping[str, str] | None = None,
    breaks: Breaks | None = None,
) -> Timed:
    """Runs it to its end, from the project's root. `place` takes what it says."""
    out, errors = place / "stdout.txt", place / "stderr.txt"
    began_at = time.time()
    with out.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    pin(process.pid, core)
    samples, peak_bytes = [Sample(began_at, 0.0)], 0
    taken: list[Break] = []
    runs_since_at = began_at
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            ended_at = time.time()
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            if ended_at - began_at > _LONGEST_S:
                raise SystemExit(f"{' '.join(command)}\ntook more than {_LONGEST_S:.0f} s")
            with suppress(OSError):  # it may have ended just now
                family = (process.pid, *children_of(process.pid))
                samples.append(Sample(ended_at, sum(map(_cpu_s, family))))
                peak_bytes = max(peak_bytes, sum(map(_peak_bytes, family)))
            if breaks is not None and ended_at - runs_since_at >= breaks.every_s:
                taken.append(_hold_up(process.pid, breaks.fill))
                runs_since_at = taken[-1].to_at
            time.sleep(_LOOK_EVERY_S)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    samples.append(Sample(ended_at, usage.ru_utime + usage.ru_stime))
    if process.returncode != 0:
        ended = f"{' '.join(command)}\nended with {process.returncode}:"
        print(ended, errors.read_bytes()[-_SHOWN_BYTES:].decode(errors="replace"), flush=True)
    said = out.read_bytes()
    return Timed(process.returncode, said, began_at, ended_at, peak_bytes, samples, taken)


def _hold_up(pid: int, fill: Callable[[], None]) -> Break:
    """Stops the process and its children while something else is done."""
    from_at = time.time()
    os.kill(pid, signal.SIGSTOP)
    children = children_of(pid)  # none comes or goes unseen any more
    for child in children:
        os.kill(child, signal.SIGSTOP)
    try:
        fill()
    finally:
        to_at = time.time()
        for each in (*children, pid):
            os.kill(each, signal.SIGCONT)
    return Break(from_at, to_at)


def children_of(pid: int) -> list[int]:
    """Processes that any of its threads has started, and that have not ended."""
    found: list[int] = []
    for one in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += map(int, one.read_text().split())
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    # Of all threads in user and system mode, and of the children that have ended.
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_S


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # it has ended and was not waited for
