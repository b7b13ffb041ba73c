"""The second part of the speed benchmark: the same for any number of rows, and how fast it starts.

Memory and time by rows, the plan, a template, the resume, `--help`, and the event loop's stalls.
"""

import json
import os
import random
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct
from msgspec.structs import replace

from benchmarks.batch_lines import read_bodies, write_lines, write_lines_with_tools
from benchmarks.contenders import (
    Asked,
    Sent,
    batchrun_command,
    run_batchrun,
    sent_between,
    stretches_s,
)
from benchmarks.measures import Measure
from benchmarks.plan_speed import PlanSpeed
from benchmarks.rounds import LINE_BYTES
from benchmarks.stall_watch import TOLD, Stall, Watched
from benchmarks.timed import ROOT, Breaks, pin, run_timed

_LINE_BYTES = 512  # of the rows by the million
_PLAN_LINE_BYTES = 4096
_IN_FLIGHT = 64
_ADDED = 1000  # rows that a finished run gets each time before it is resumed
_RESUMES = 3
_STALL_RUNS = 3
_STARTS = 31
_SHOWN = 3  # stalls that are named

HEAD = (
    "| rows | rows/s | CPU of 1,000 rows, ms | peak memory, MB |",
    "| --- | --- | --- | --- |",
)


class Size(Struct, frozen=True):
    """So many rows, and how often they are run before the largest run, and once more after it."""

    rows: int
    times: int


class Bench(Struct, frozen=True):
    """Where runs are made, and against what."""

    place: Path
    url: str
    core: int | None

    def asked(self, source: Path, rows: int) -> Asked:
        return Asked(source, rows, self.url, _IN_FLIGHT, self.core, self.place)

    def aside(self) -> "Bench":
        """The same with a folder of its own, so that a run directory that is kept is left alone."""
        place = self.place / "aside"
        place.mkdir(exist_ok=True)
        return replace(self, place=place)


class Sizes(Struct, frozen=True):
    """What is run by rows: the smaller ones on both sides of the largest, the fewest within it."""

    smaller: tuple[Size, ...]
    largest: int
    break_every_s: float


SIZES = Sizes((Size(10_000, 1), Size(100_000, 2)), 1_000_000, break_every_s=3.0)
QUICK_SIZES = Sizes((Size(500, 1), Size(1_000, 1)), 10_000, break_every_s=0.5)


def measure_sizes(bench: Bench, sizes: Sizes) -> tuple[list[str], list[Measure], Path]:
    """The table by rows, what it is judged by, and the source of the largest run.

    The largest run's directory is left. The machine's speed changes from second to second, so the
    largest run is held up again and again for one of the fewest rows, and the time a row of both is
    that of their turns.
    """
    smaller, largest = sizes.smaller, sizes.largest
    counts = [size.rows for size in smaller]
    fewest, fewer = counts[0], counts[-1]
    sources = {rows: bench.place / f"short-{rows}.jsonl" for rows in (*counts, largest)}
    for rows, source in sources.items():
        write_lines(source, rows, _LINE_BYTES)
    runs: dict[int, list[Sent]] = {rows: [] for rows in sources}
    aside = bench.aside()

    def run_aside(rows: int) -> None:
        runs[rows].append(run_batchrun(aside.asked(sources[rows], rows)))

    def run_smaller() -> None:
        for size in smaller:
            for _ in range(size.times):
                run_aside(size.rows)
            _tell_rate(size.rows, runs[size.rows])

    run_smaller()
    before = len(runs[fewest])
    breaks = Breaks(sizes.break_every_s, lambda: run_aside(fewest))
    held = run_batchrun(bench.asked(sources[largest], largest), keep=True, breaks=breaks)
    runs[largest].append(held)
    _tell_rate(largest, runs[largest])
    turns = _turns(stretches_s(bench.place / "run", held), runs[fewest][before:])
    run_smaller()
    for size in smaller:
        sources[size.rows].unlink()
    peaks = {rows: median(run.peak_bytes for run in sent) for rows, sent in runs.items()}
    lines = [
        *HEAD,
        *[
            f"| {rows:,} | {median(run.rows_per_s for run in sent):,.0f} | "
            f"{median(run.cpu_us for run in sent):,.1f} | "
            f"{peaks[rows] / 1e6:,.0f} |"
            for rows, sent in runs.items()
        ],
    ]
    measures = [
        Measure(
            f"memory, bytes a row more, {largest:,} rows less {fewer:,}",
            bytes_a_row(peaks[largest] - peaks[fewer], largest - fewer),
            at_most=24,
        ),
        Measure(f"peak memory at {largest:,} rows, MB", peaks[largest] / 1e6, at_most=300),
        Measure(
            f"time a row, {largest:,} rows / {fewest:,}, means of {len(turns)} turns",
            mean(turn.long_s for turn in turns) / mean(turn.short_s for turn in turns),
            at_most=1.05,
        ),
    ]
    return lines, measures, sources[largest]


class _Turn(Struct, frozen=True):
    """Seconds a row of the largest run up to a break, and of the run that filled the break."""

    long_s: float
    short_s: float


def _turns(stretches: Sequence[float | None], fills: Sequence[Sent]) -> list[_Turn]:
    turns = [
        _Turn(long_s, 1 / fill.rows_per_s)
        for long_s, fill in zip(stretches, fills, strict=True)
        if long_s is not None
    ]
    if not turns:
        raise SystemExit("the largest run was too short to be held up while it was sending")
    each = ", ".join(f"{turn.long_s / turn.short_s:.2f}" for turn in turns)
    print(f"time a row, each turn: {each}", flush=True)
    return turns


def _tell_rate(rows: int, sent: Sequence[Sent]) -> None:
    print(f"{rows:,} rows: {median(one.rows_per_s for one in sent):,.0f} rows/s", flush=True)


def bytes_a_row(more_bytes: float, more_rows: int) -> float:
    """What memory grew by for each row; where it shrank it grew by nothing."""
    return max(0.0, more_bytes / more_rows)


def measure_resume(bench: Bench, source: Path, rows: int) -> list[Measure]:
    """The finished run of so many rows, resumed for some more each time; then its directory goes.

    The plan of the same source, as if it were new, follows each time.
    """
    taken: list[tuple[float, float]] = []
    for first in range(rows, rows + _RESUMES * _ADDED, _ADDED):
        write_lines(source, _ADDED, _LINE_BYTES, first=first)
        asked = bench.asked(source, first + _ADDED)
        resumed = run_timed(batchrun_command(asked), bench.place, bench.core)
        if resumed.exit_code != 0:
            raise SystemExit("the run could not be resumed")
        until_first_s = sent_between(bench.place / "run", first)[0] - resumed.began_at
        command = batchrun_command(bench.aside().asked(source, asked.rows))
        dry = run_timed([*command, "--dry-run"], bench.place, bench.core)
        if dry.exit_code != 0:
            raise SystemExit("the source could not be planned")
        taken.append((until_first_s, dry.ended_at - dry.began_at))
        print(f"resumed in {taken[-1][0]:.1f} s, planned in {taken[-1][1]:.1f} s", flush=True)
    shutil.rmtree(bench.place / "run")
    until_first_s, plan_s = (median(times) for times in zip(*taken, strict=True))
    less_s = median(resumed_s - planned_s for resumed_s, planned_s in taken)
    return [
        Measure(f"plan of {rows:,} rows, new, s", plan_s),
        Measure(f"resume with {rows:,} settled rows, until the first request, s", until_first_s),
        Measure("the resume less the plan, s", less_s, at_most=3),
    ]


def measure_plan(bench: Bench, rows: int) -> list[Measure]:
    """The plan's speed against plain decoding, and what a template adds."""
    lines = bench.place / "plan-lines.jsonl"
    plain, templated = bench.place / "plan-plain.jsonl", bench.place / "plan-templated.jsonl"
    write_lines_with_tools(lines, rows, _PLAN_LINE_BYTES)
    parquet = bench.place / "plan.parquet"
    _write_same_requests(lines, plain, templated, rows)
    _write_parquet(parquet, rows)
    files = [str(path) for path in (lines, plain, templated, parquet)]
    command = [sys.executable, "-m", "benchmarks.plan_speed", *files]
    run = run_timed(command, bench.place, bench.core)
    if run.exit_code != 0:
        raise SystemExit("the plan could not be timed")
    speed = msgspec.json.decode(run.said, type=PlanSpeed)
    for path in (lines, plain, templated, parquet):
        path.unlink()
    template_us = (speed.templated_s - speed.plain_s) / rows * 1e6
    return [
        Measure("plan of Batch lines, us a row", speed.plan_s / rows * 1e6),
        Measure("decoding them to untyped objects, us a row", speed.decode_s / rows * 1e6),
        Measure("the plan's speed / the decoding's", speed.decode_s / speed.plan_s, at_least=0.4),
        Measure("a template, us a row more", template_us, at_most=8),
        Measure(
            "plan of Parquet rows of 1 kB with a template, us of CPU a row",
            speed.parquet_s / rows * 1e6,
            at_most=14,
        ),
    ]


def _write_parquet(path: Path, rows: int) -> None:
    """Rows of 1 kB: the template's columns, and text, numbers and lists to carry besides."""
    chance = random.Random(rows)

    def texts(letters: int) -> list[str]:
        return [
            "".join(chance.choices(string.ascii_lowercase + " ", k=letters)) for _ in range(rows)
        ]

    columns = {
        "id": [f"r{number}" for number in range(rows)],
        "question": texts(700),
        "topic": texts(20),
        "answer": texts(200),
        "level": list(range(rows)),
        "score": [chance.random() for _ in range(rows)],
        "tags": [["a", "b"]] * rows,
    }
    pq.write_table(pa.table(columns), path)


def _write_same_requests(lines: Path, plain: Path, templated: Path, rows: int) -> None:
    """Rows that are sent as they are, and rows from whose columns a template makes the same."""
    with plain.open("w") as as_they_are, templated.open("w") as columns:
        for number, body in enumerate(read_bodies(lines, rows)):
            said = " ".join(one["content"] for one in body["input"])
            question, topic = said[:400], f"topic {number % 7}"
            row = {"id": f"r{number}", "input": f"{question} ({topic})", "topic": topic}
            as_they_are.write(json.dumps(row) + "\n")
            row = {"id": f"r{number}", "question": question, "topic": topic}
            columns.write(json.dumps(row) + "\n")


def measure_help(core: int | None) -> list[Measure]:
    """`batchrun --help` and Python doing nothing, in turn."""
    commands = ([sys.executable, "-m", "batchrun", "--help"], [sys.executable, "-c", "pass"])
    times: tuple[list[float], list[float]] = ([], [])
    own_cores = os.sched_getaffinity(0)
    pin(0, core)  # what it starts is pinned with it
    for _ in range(_STARTS):
        for command, taken in zip(commands, times, strict=True):
            began_s = time.perf_counter()
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            taken.append(time.perf_counter() - began_s)
    os.sched_setaffinity(0, own_cores)
    ours, least = median(times[0]), median(times[1])
    return [
        Measure("batchrun --help, s", ours),
        Measure("batchrun --help / python -c pass", ours / least, at_most=6),
    ]


def measure_stalls(bench: Bench, rows: int) -> list[Measure]:
    """The longest time that the loop stood still while a run was sending: the median of some runs.

    One run may be held up by what else the machine does; each is printed.
    """
    source = bench.place / "stalls.jsonl"
    write_lines(source, rows, LINE_BYTES)
    runs = sorted(
        (_watch_a_run(bench.asked(source, rows)) for _ in range(_STALL_RUNS)),
        key=lambda run: run.longest.wall_s,
    )
    source.unlink()
    print(f"longest, each run: {', '.join(f'{run.longest.wall_s * 1e3:.1f}' for run in runs)} ms")
    run = runs[len(runs) // 2]
    what = "longest stall of the loop while sending, ms (10 stands for less)"
    return [
        Measure(what, run.longest.wall_s * 1e3, at_most=20),
        Measure("in it: CPU of the loop's thread, ms", run.longest.cpu_s * 1e3),
        Measure("in it: other threads and processes had the core, ms", run.longest.queued_s * 1e3),
        Measure("the same of the worst of the runs, ms", runs[-1].longest.wall_s * 1e3),
        Measure("stalls above 10 ms", run.stalls),
        Measure("longest stall with start and end, ms", run.whole_s * 1e3),
    ]


class _Stood(Struct, frozen=True):
    """How one run's loop stood still."""

    longest: Stall  # while it was sending
    stalls: int  # of 10 ms or more, meanwhile
    whole_s: float  # the longest, start and end included


def _watch_a_run(asked: Asked) -> _Stood:
    told = asked.place / "stalls.json"
    sent = run_batchrun(asked, ("-m", "benchmarks.stall_watch"), environment={TOLD: str(told)})
    watched = msgspec.json.decode(told.read_bytes(), type=Watched)
    stalls = between(watched.stalls, sent.first_at, sent.last_at)
    for stall in stalls[:_SHOWN]:
        print(
            f"stood still {stall.wall_s * 1e3:.1f} ms ({stall.cpu_s * 1e3:.1f} of CPU, "
            f"{stall.queued_s * 1e3:.1f} while others had the core): {stall.where or 'unseen'}"
        )
    return _Stood(
        longest=stalls[0] if stalls else Stall(0.0, 0.010, 0.0, 0.0, ""),
        stalls=len(stalls),
        whole_s=max((stall.wall_s for stall in watched.stalls), default=0.010),
    )


def between(stalls: Sequence[Stall], from_at: float, to_at: float) -> list[Stall]:
    """Those that ended within, the longest first."""
    within = [stall for stall in stalls if from_at <= stall.at <= to_at]
    return sorted(within, key=lambda stall: -stall.wall_s)
