"""Runs batchrun's command line with a watch on its event loop: how long it stood still, and where.

`python -m benchmarks.stall_watch run ...` takes batchrun's own arguments. A timer on the loop ticks
every millisecond; a thread looks at what the loop is doing when a tick is overdue. When it ends it
writes a `Watched` as JSON to the file that `BATCHRUN_STALLS` names. The product is not changed for
it: the loop that the runner makes is taken and watched.
"""

import asyncio
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.cli.main import main
from batchrun.runner import start

TOLD = "BATCHRUN_STALLS"
_TICK_S = 0.001
_NOTED_S = 0.010
_LOOK_S = 0.005
_MOST = 1000
_FRAMES = 6


class Stall(Struct, frozen=True):
    """One time that the loop stood still."""

    at: float  # its end, Unix time
    wall_s: float
    cpu_s: float  # of the loop's thread
    queued_s: float  # the thread could go on and others had the core; the rest: lock, disk, GIL
    where: str  # what it was doing, as a thread saw it; empty where none got to look


class Watched(Struct, frozen=True):
    """A process, ended."""

    ticks: int
    stalls: list[Stall]  # those of 10 ms and more, the first thousand


class _Watch:
    """Ticks on the loop, and looks from outside."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ticks = 0
        self._stalls: list[Stall] = []
        self._where = ""
        self._cpu_s = self._queued_s = self._ticked_s = 0.0
        self._thread_id = threading.get_ident()
        thread = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        self._schedule = os.open(thread, os.O_RDONLY)
        loop.call_soon(self._begin)

    def watched(self) -> Watched:
        return Watched(self._ticks, self._stalls)

    def _begin(self) -> None:
        self._ticked_s, self._cpu_s = time.perf_counter(), time.thread_time()
        self._queued_s = self._read_queued_s()
        self._loop.call_later(_TICK_S, self._tick)
        threading.Thread(target=self._look, daemon=True).start()

    def _tick(self) -> None:
        now_s, cpu_s = time.perf_counter(), time.thread_time()
        queued_s = self._read_queued_s()
        wall_s = now_s - self._ticked_s - _TICK_S
        if wall_s >= _NOTED_S and len(self._stalls) < _MOST:
            cpu_then_s, queued_then_s = cpu_s - self._cpu_s, queued_s - self._queued_s
            self._stalls.append(Stall(time.time(), wall_s, cpu_then_s, queued_then_s, self._where))
        self._where = ""
        self._ticks += 1
        self._ticked_s, self._cpu_s, self._queued_s = now_s, cpu_s, queued_s
        self._loop.call_later(_TICK_S, self._tick)

    def _read_queued_s(self) -> float:
        return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            if self._where or time.perf_counter() - self._ticked_s < _NOTED_S:
                continue
            # The only way to see another thread's stack, documented for debuggers.
            frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001
            frames = traceback.extract_stack(frame)[-_FRAMES:]
            self._where = " < ".join(
                f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in reversed(frames)
            )


def _run() -> None:
    watches: list[_Watch] = []
    make = start.new_event_loop

    def watched_loop() -> asyncio.AbstractEventLoop:
        loop = make()
        watches.append(_Watch(loop))
        return loop

    start.new_event_loop = watched_loop
    try:
        main()
    finally:
        told = watches[-1].watched() if watches else Watched(0, [])
        Path(os.environ[TOLD]).write_bytes(msgspec.json.encode(told))


if __name__ == "__main__":
    sys.argv[0] = "batchrun"
    _run()
