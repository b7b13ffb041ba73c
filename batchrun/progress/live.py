"""Shows and writes how a run is doing while it runs: `live.json`, `events.jsonl`, the display."""

import asyncio
import time
from collections.abc import Callable

from batchrun.progress.bottleneck import Activity, bottleneck
from batchrun.progress.summary import Summary
from batchrun.store.run_dir import RunDir

_SHOW_EVERY_S = 0.25
_LIVE_EVERY_S = 1.0
_EVENT_EVERY_S = 10.0


async def watch_run(
    run_dir: RunDir,
    activity: Callable[[], Activity],
    summary: Callable[[str, Activity, str], Summary],
    show: Callable[[Summary], None],
) -> None:
    """Looks at the run a few times a second until it is cancelled. Raises `StoreError`."""
    live_s = event_s = -_EVENT_EVERY_S
    looked_s, cpu_s, write_s = time.monotonic(), time.process_time(), 0.0
    paused: str | None = None  # as last logged
    while True:
        now_s, now_cpu_s, now = time.monotonic(), time.process_time(), activity()
        passed_s = max(now_s - looked_s, 1e-3)
        binds = bottleneck(now, (now_cpu_s - cpu_s) / passed_s, (now.write_s - write_s) / passed_s)
        looked_s, cpu_s, write_s = now_s, now_cpu_s, now.write_s
        current = summary("stopping" if now.is_stopping else "running", now, binds)
        show(current)
        if current.paused_by != paused:
            if paused is not None:
                run_dir.log_event("over", of=paused)
            paused = current.paused_by
            if paused is not None:
                run_dir.log_event(paused, binds=binds)
        if now_s - live_s >= _LIVE_EVERY_S:
            live_s = now_s
            # To replace a file may take a disk 0.1 s, on which the event loop must not wait.
            await _to_its_end(run_dir.write_live, current)
        if now_s - event_s >= _EVENT_EVERY_S:
            event_s = now_s
            run_dir.log_event("tick", settled=current.settled, left=current.left, binds=binds)
        await asyncio.sleep(_SHOW_EVERY_S)


async def _to_its_end(write: Callable[[Summary], None], summary: Summary) -> None:
    """In a thread; a cancellation waits until it has ended."""
    written = asyncio.get_running_loop().run_in_executor(None, write, summary)
    try:
        await asyncio.shield(written)
    except asyncio.CancelledError:
        await asyncio.wait((written,))
        written.exception()  # retrieved: the end writes the file again and meets the error itself
        raise
