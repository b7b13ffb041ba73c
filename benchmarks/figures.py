"""Figures from what a server saw and what a run stored. Pure but for reading Parquet.

The window of a figure is in seconds since the first request arrived.
"""

import math
from bisect import bisect_left
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
from msgspec import Struct

from benchmarks.lean_limits import allowed
from benchmarks.processes import Ended

_NEAR = 0.1  # a rate this close to a level, as a share of it, is at the level
_STEP_S = 0.1


class Attempt(Struct, frozen=True):
    """One attempt that a run has stored."""

    start_s: float  # Unix time
    end_s: float
    inputs: int  # tokens
    used: int  # tokens, with those of the output


class Rows(Struct, frozen=True):
    """A whole run, from its Parquet files."""

    rows: int
    ok: int
    most_attempts: int  # of a row
    attempts: list[Attempt]  # in the order of their starts


def share(run: Ended, of: str, seconds: float, *, at_start: bool = True) -> float:
    """Requests accepted, or tokens used by them, of those that were allowed."""
    got = tokens(run, seconds) if of == "tokens" else accepted(run, 0, seconds)
    return got / allowed(run.settings, of, seconds, at_start=at_start)


def accepted(run: Ended, from_s: float, to_s: float) -> int:
    """Requests let in, by when they came."""
    stats = run.stats
    return sum(
        status == 200 and from_s <= at_s < to_s
        for at_s, status in zip(stats.arrived, stats.statuses, strict=True)
    )


def tokens(run: Ended, seconds: float) -> int:
    """Used by the requests that came in the first so many seconds."""
    stats = run.stats
    return sum(used for at_s, used in zip(stats.arrived, stats.used, strict=True) if at_s < seconds)


def refused(run: Ended, seconds: float) -> float:
    """Share of the requests."""
    stats = run.stats
    came = [
        status for at_s, status in zip(stats.arrived, stats.statuses, strict=True) if at_s < seconds
    ]
    return sum(status != 200 for status in came) / max(1, len(came))


def answered_per_s(run: Ended, from_s: float, to_s: float) -> float:
    """Answers a second, by when they were given."""
    stats = run.stats
    count = sum(
        status == 200 and from_s <= at_s < to_s
        for at_s, status in zip(stats.ended, stats.statuses, strict=True)
    )
    return count / (to_s - from_s)


def first_accepted_s(run: Ended, after_s: float) -> float:
    """When the first request came that was answered well; infinite where none was."""
    stats = run.stats
    return min(
        (
            at_s
            for at_s, end_s, status in zip(stats.arrived, stats.ended, stats.statuses, strict=True)
            if at_s >= after_s and status == 200 and end_s >= 0
        ),
        default=math.inf,
    )


def seconds_to_level(run: Ended, level: float, from_s: float, to_s: float) -> float:
    """From `from_s` until as many requests come a second as `level` says, and stay there.

    For a second from then on and for all the rest of the window the rate is near the level.
    Infinite where that is never so.
    """
    arrived = run.stats.arrived
    for step in range(int((to_s - from_s - 1) / _STEP_S)):
        at_s = from_s + step * _STEP_S
        second = _rate(arrived, at_s, at_s + 1)
        rest = _rate(arrived, at_s, to_s)
        if max(abs(second - level), abs(rest - level)) <= _NEAR * level:
            return at_s - from_s
    return math.inf


def seconds_to_rate(run: Ended, least: float, from_s: float) -> float:
    """From `from_s` until so many requests come within a second; infinite where that never is."""
    arrived = run.stats.arrived
    for step in range(int((arrived[-1] - from_s) / _STEP_S)):
        at_s = from_s + step * _STEP_S
        if _rate(arrived, at_s, at_s + 1) >= least:
            return at_s - from_s
    return math.inf


def peak(weights: list[tuple[float, int]], window_s: float = 60.0) -> int:
    """The most that fell into any sliding window; weights in order of time."""
    most = total = first = 0
    for at_s, weight in weights:
        total += weight
        while weights[first][0] <= at_s - window_s:
            total -= weights[first][1]
            first += 1
        most = max(most, total)
    return most


def peak_at_starts(attempts: list[Attempt], window_s: float = 60.0) -> int:
    """The most tokens that counted when an attempt started, itself among them.

    What had ended by then counts as used, what was in flight by its input alone: how much output
    was reserved for it cannot be seen from outside.
    """
    most = first = 0
    for last, start in enumerate(attempts):
        while attempts[first].start_s <= start.start_s - window_s:
            first += 1
        counted = sum(
            one.used if one.end_s <= start.start_s else one.inputs
            for one in attempts[first : last + 1]
        )
        most = max(most, counted)
    return most


def stored(directory: Path) -> Rows:
    """What a run's Parquet files hold."""
    table = ds.dataset(directory / "responses").to_table(columns=["ok", "attempts"])
    attempts = pc.list_flatten(table["attempts"]).combine_chunks()
    columns = [
        pc.struct_field(attempts, name).to_pylist()
        for name in ("latency_s", "input_tokens", "output_tokens")
    ]
    starts = pc.struct_field(attempts, "started_at").cast("int64").to_pylist()
    found = [
        Attempt(at / 1e6, at / 1e6 + latency_s, asked or 0, (asked or 0) + (made or 0))
        for at, latency_s, asked, made in zip(starts, *columns, strict=True)
    ]
    return Rows(
        rows=table.num_rows,
        ok=pc.sum(table["ok"]).as_py() or 0,
        most_attempts=pc.max(pc.list_value_length(table["attempts"])).as_py() or 0,
        attempts=sorted(found, key=lambda attempt: attempt.start_s),
    )


def _rate(arrived: list[float], from_s: float, to_s: float) -> float:
    return (bisect_left(arrived, to_s) - bisect_left(arrived, from_s)) / (to_s - from_s)
