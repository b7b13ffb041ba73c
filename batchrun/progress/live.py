"""Shows and writes how a run stands while it goes: `live.json`, `events.jsonl`, the display."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from batchrun.progress.bottleneck import Pulse, binding, paused_by
from batchrun.progress.summary import Summary

_SHOW_EVERY_S = 0.25
_LIVE_EVERY_S = 1.0
_EVENT_EVERY_S = 10.0


class Writer(Protocol):
    """Where it is written: the run directory."""

    def write_live(self, summary: Summary) -> None: ...
    def log_event(self, name: str, **facts: object) -> None: ...


class Live:
    """Looks at a running run a few times a second."""

    def __init__(
        self,
        writer: Writer,
        pulse: Callable[[], Pulse],
        summary: Callable[[str, Pulse, str], Summary],
        show: Callable[[Summary], None],
    ) -> None:
        self._writer, self._pulse, self._summary, self._show = writer, pulse, summary, show
        self._said: str | None = None  # what stopped all sending, as last logged
        self._cpu_s, self._write_s, self._looked_s = time.process_time(), 0.0, time.monotonic()

    async def watch(self) -> None:
        """Goes on until it is cancelled. Raises `StoreError`."""
        live_s = event_s = -_EVENT_EVERY_S
        while True:
            now_s = time.monotonic()
            pulse = self._pulse()
            binds = self._binds(pulse, now_s)
            summary = self._summary("stopping" if pulse.is_stopping else "running", pulse, binds)
            self._show(summary)
            self._log_change(pulse, binds)
            if now_s - live_s >= _LIVE_EVERY_S:
                live_s = now_s
                # To replace a file may take a disk 0.1 s, on which the event loop must not wait.
                await _to_its_end(self._writer.write_live, summary)
            if now_s - event_s >= _EVENT_EVERY_S:
                event_s = now_s
                self._writer.log_event(
                    "tick", settled=summary.settled, left=summary.left, binds=binds
                )
            await asyncio.sleep(_SHOW_EVERY_S)

    def _binds(self, pulse: Pulse, now_s: float) -> str:
        cpu_s = time.process_time()
        passed_s = max(now_s - self._looked_s, 1e-3)
        cpu, disk = cpu_s - self._cpu_s, pulse.write_s - self._write_s
        self._cpu_s, self._write_s, self._looked_s = cpu_s, pulse.write_s, now_s
        return binding(pulse, cpu / passed_s, disk / passed_s)

    def _log_change(self, pulse: Pulse, binds: str) -> None:
        paused = paused_by(pulse)
        if paused == self._said:
            return
        if self._said is not None:
            self._writer.log_event("over", of=self._said)
        if paused is not None:
            self._writer.log_event(paused, binds=binds)
        self._said = paused


async def _to_its_end(write: Callable[[Summary], None], summary: Summary) -> None:
    """In a thread; where this is cancelled, not before it has ended."""
    written = asyncio.get_running_loop().run_in_executor(None, write, summary)
    try:
        await asyncio.shield(written)
    except asyncio.CancelledError:
        await asyncio.wait((written,))
        written.exception()  # looked at: who cancels writes the file once more, and sees for itself
        raise
