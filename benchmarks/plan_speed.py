"""Times the plan in one process: `python -m benchmarks.plan_speed LINES PLAIN TEMPLATED PARQUET`.

LINES are Batch lines; they are planned, and decoded with msgspec to untyped objects, in turn. PLAIN
and TEMPLATED are rows that come to the same requests, the latter by a template. PARQUET is a file
with the template's columns and others to carry. Prints `PlanSpeed` as JSON; each time is the median
of five.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from batchrun.job.job_file import load_job
from batchrun.runner.plan import dry_run

TEMPLATE = "{{ question }} ({{ topic }})"
_TIMES = 5


class PlanSpeed(Struct, frozen=True):
    """Seconds for all rows of a file."""

    plan_s: float
    decode_s: float
    plain_s: float
    templated_s: float
    parquet_s: float  # of CPU, in all threads


def measure(lines: Path, plain: Path, templated: Path, parquet: Path) -> PlanSpeed:
    """Each in turn, after a turn for warming up."""
    by_template: dict[str, object] = {"request.model": "m", "request.input": TEMPLATE}
    ways: list[Callable[[], None]] = [
        lambda: _plan(lines, {}),
        lambda: _decode(lines),
        lambda: _plan(plain, {"request.model": "m"}),
        lambda: _plan(templated, by_template),
        lambda: _plan(parquet, by_template),
    ]
    clocks = [*[time.perf_counter] * (len(ways) - 1), time.process_time]
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(_TIMES + 1):
        for way, clock, taken in zip(ways, clocks, times, strict=True):
            began_s = clock()
            way()
            if turn:
                taken.append(clock() - began_s)
    return PlanSpeed(*[median(taken) for taken in times])


def _plan(source: Path, settings: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as place:
        dry_run(load_job(str(source), {**settings, "output.path": f"{place}/run"}))


def _decode(lines: Path) -> None:
    decode = msgspec.json.Decoder().decode
    with lines.open("rb") as file:
        for line in file:
            decode(line)


if __name__ == "__main__":
    lines, plain, templated, parquet = map(Path, sys.argv[1:])
    print(msgspec.json.encode(measure(lines, plain, templated, parquet)).decode())
