"""Measures runs with workers on Ray: `python -m benchmarks.cluster` writes their table.

A hidden limit with 1, 3 and 8 workers, a worker that stands still, and what a row costs with
workers and without. Exit code 1 when a goal is missed; a run at full length renews the lines in
`benchmarks/README.md`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import figures
from benchmarks.lean_limits import Settings
from benchmarks.machine import machine
from benchmarks.measures import Measure
from benchmarks.pages import write_lines
from benchmarks.processes import Ended, Load, run_batchrun
from benchmarks.timed import children_of

_HEAD = ["| figure | goal | batchrun |", "| --- | --- | --- |"]
_PER_S = 100.0
_WORKERS = (1, 3, 8)
_TICKS_S = os.sysconf("SC_CLK_TCK")
_COST_ROWS = (10_000, 60_000)  # what the second takes more than the first is what rows cost
_STILL_S = 15.0  # that a worker stands still; less than `silence_s`
_STILL_RUN_S = 40.0  # of the whole run: the workers must have begun before, and go on after
_PARTS = ("limits", "still", "costs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run with a limit")
    parser.add_argument("--rounds", type=int, default=3, help="of what a row costs")
    parser.add_argument("--only", choices=_PARTS, help="one of the parts")
    options = parser.parse_args()
    os.environ["RAY_ADDRESS"] = "local"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="batchrun-cluster-") as place:
        parts = [options.only] if options.only else _PARTS
        measures = asyncio.run(_measure(Path(place), options.seconds, options.rounds, parts))
    lines = [*_HEAD, *(one.short_line() for one in measures)]
    print("\n".join(lines))
    if options.seconds >= 40.0 and not options.only:
        write_lines("cluster", ["", f"Measured on {machine()}.", "", *lines, ""])
    return int(not all(one.met for one in measures))


async def _measure(place: Path, seconds: float, rounds: int, parts: Sequence[str]) -> list[Measure]:
    measures = []
    if "limits" in parts:
        measures += await _limits(place, seconds)
    if "still" in parts:
        measures.append(await _one_still(place / "still", max(seconds, _STILL_RUN_S)))
    if "costs" in parts:
        measures += await _costs(place, rounds)
    return measures


async def _limits(place: Path, seconds: float) -> list[Measure]:
    """A hidden limit, with several numbers of workers."""
    measures = []
    for hints in (True, False):
        for workers in _WORKERS:
            name = f"{'headers' if hints else 'bare'}-{workers}"
            settings = Settings(requests_per_s=_PER_S, hints=hints)
            run = await _run(place / name, settings, workers, seconds)
            what = (
                f"{workers} workers, 100 requests/s hidden, {'headers' if hints else 'bare 429s'}"
            )
            share = figures.share(run, "requests", seconds, at_start=False)
            refused = figures.refused(run, seconds)
            measures += [
                Measure(f"{what}: share allowed", share, at_least=0.97),
                Measure(f"{what}: share refused", refused, at_most=0.0 if hints else 0.015),
            ]
            print(measures[-2].short_line(), measures[-1].short_line(), flush=True)
    return measures


async def _run(
    place: Path,
    settings: Settings,
    workers: int,
    seconds: float | None,
    *options: str,
    rows: int = 0,
) -> Ended:
    await asyncio.to_thread(place.mkdir)
    load = Load(rows or int(_PER_S * (seconds or 60.0) * 1.3) + 1000)
    cluster = ("--executor", "ray", "--workers", str(workers)) if workers else ()
    return await run_batchrun(place, load, settings, (*cluster, *options), seconds)


async def _one_still(place: Path, seconds: float) -> Measure:
    """One of three workers stands still for a while: the others use what it leaves."""
    settings = Settings()
    running = asyncio.create_task(
        _run(place, settings, 3, seconds, "--rpm", str(int(_PER_S * 60)), "--concurrency", "300")
    )
    pid = 0
    while not pid and not running.done():
        await asyncio.sleep(0.2)
        pid = next((one["pid"] for one in _workers(place) if one["completed"] > 200), 0)
    await asyncio.sleep(5.0)
    os.kill(pid, signal.SIGSTOP)
    stopped_s = time.monotonic()
    await asyncio.sleep(_STILL_S)
    os.kill(pid, signal.SIGCONT)
    run = await running
    assert run.stats.first_s is not None
    from_s = stopped_s - run.stats.first_s
    assert from_s + _STILL_S < seconds, "the run ended while the worker stood still"
    per_s = figures.accepted(run, from_s + 2.0, from_s + _STILL_S) / (_STILL_S - 2.0)
    what = "3 workers, --rpm 6000, one stands still: share of the limit meanwhile"
    return Measure(what, per_s / _PER_S, at_least=0.93)


async def _costs(place: Path, rounds: int) -> list[Measure]:
    """CPU and speed with one worker, and with two, by those of one process."""
    cpu: dict[int, list[float]] = {0: [], 1: [], 2: []}
    speed: dict[int, list[float]] = {0: [], 1: [], 2: []}
    few, many = _COST_ROWS
    for number in range(rounds):
        for workers in (0, 1, 2):
            folder = place / f"cost-{workers}-{number}"
            at_start_s, _ = await _cost(folder.with_suffix(".few"), workers, few)
            in_all_s, per_s = await _cost(folder, workers, many)
            cpu[workers].append((in_all_s - at_start_s) / (many - few) * 1e6)
            speed[workers].append(per_s)
    print(f"CPU of a row in µs, rows a second, by workers: {cpu} {speed}")
    local_us, local = statistics.median(cpu[0]), statistics.median(speed[0])
    return [
        Measure(
            "CPU of a row with one worker, driver included, to that of one process",
            statistics.median(cpu[1]) / local_us,
            at_most=1.2,
        ),
        Measure(
            f"rows a second with 2 workers, to one process, the server on the same "
            f"{os.cpu_count()} cores",
            statistics.median(speed[2]) / local,
        ),
    ]


async def _cost(folder: Path, workers: int, rows: int) -> tuple[float, float]:
    """Seconds of CPU of a run, and its rows a second from the first request to the last."""
    settings = Settings(latency_s=0.05, output_tokens=10)
    run = _run(folder, settings, workers, None, "--concurrency", "256", rows=rows)
    task = asyncio.create_task(run)
    cpu_s = await _cpu_until_done(task, folder)
    arrived = task.result().stats.arrived
    return cpu_s, len(arrived) / (arrived[-1] - arrived[0])


async def _cpu_until_done(task: "asyncio.Task[Ended]", folder: Path) -> float:
    """Seconds of CPU of the command, its workers, and the processes of each."""
    seen: dict[int, float] = {}
    mine = os.getpid()
    while not task.done():
        await asyncio.sleep(0.1)
        heads = [*_commands(mine, folder), *(int(one["pid"]) for one in _workers(folder))]
        for pid in heads:
            for one in (pid, *_below(pid)):
                with contextlib.suppress(OSError, IndexError):
                    seen[one] = _cpu_of(one)
    return sum(seen.values())


def _cpu_of(pid: int) -> float:
    """Seconds so far. Raises `OSError`, `IndexError` where it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


def _commands(parent: int, folder: Path) -> list[int]:
    return [one for one in children_of(parent) if str(folder) in _words(one)]


def _below(pid: int) -> list[int]:
    """What it has started; not the cluster, which is there for any number of rows."""
    found: list[int] = []
    for child in children_of(pid):
        if "local_cluster" not in _words(child):
            found += [child, *_below(child)]
    return found


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _workers(place: Path) -> Sequence[dict[str, int]]:
    try:
        found: Sequence[dict[str, int]] = json.loads((place / "run/live.json").read_bytes())[
            "workers"
        ]
    except (OSError, KeyError):
        return ()
    return found


if __name__ == "__main__":
    sys.exit(main())
