"""A run over the time it ran: throughput, requests in flight, errors, dollars, pauses.

Time between two commands, when nothing ran, is left out.
"""

from collections import defaultdict
from pathlib import Path

import duckdb
from msgspec import Struct

from batchrun.report.binding import PAUSES
from batchrun.report.running_time import RunningTime
from batchrun.store.events import read_events

_MOST_MOMENTS = 120
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_WIDTHS_S = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE),
    *(15 * _MINUTE, 30 * _MINUTE, _HOUR, 2 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 7 * _DAY),
)

_ROWS = """
    SELECT in_moment(running(epoch_us(finished_at))), count(*) FILTER (ok), count(*),
           coalesce(sum(cost_usd), 0.0)
    FROM responses WHERE finished_at IS NOT NULL GROUP BY 1
"""
_STARTS = """
    SELECT in_moment(t), count(*), sum((in_moment(t) + 1) * ? - t)::DOUBLE
    FROM (SELECT running({0}) AS t FROM tries) GROUP BY 1
"""
_ERRORS = """
    SELECT in_moment(running(end_us)), error_kind, count(*)
    FROM tries WHERE error_kind IS NOT NULL GROUP BY 1, 2
"""


class Moment(Struct, frozen=True):
    """What happened within a stretch of `Timeline.width_s`."""

    at_s: float  # its beginning, in running time
    ok: int  # rows that ended so
    not_ok: int
    in_flight: float  # attempts under way, on average
    cost_usd: float  # of the rows that ended up to here
    errors: dict[str, int]  # `error_kind` to attempts that ended so


class Pause(Struct, frozen=True):
    """A time when all sending stood still."""

    name: str  # cooldown, endpoint down
    from_s: float
    to_s: float


class Timeline(Struct, frozen=True):
    """Times are seconds of running time, from the first send."""

    width_s: float
    span_s: float
    moments: tuple[Moment, ...]
    pauses: tuple[Pause, ...]
    resumed: tuple[float, ...]  # where a later command went on


def read_timeline(
    database: duckdb.DuckDBPyConnection, path: Path, time: RunningTime | None
) -> Timeline | None:
    """Null where nothing was sent. Asks the table `tries` and the view `responses`."""
    if time is None:
        return None
    span = time.of(database.execute("SELECT max(end_us) FROM tries").fetchall()[0][0])
    width_s = next((w for w in _WIDTHS_S if span / 1e6 / w < _MOST_MOMENTS), _WIDTHS_S[-1])
    width = round(width_s * 1e6)
    count = span // width + 1
    database.execute(
        f"CREATE OR REPLACE TEMP MACRO in_moment(t) AS least(t // {width}, {count - 1})"
    )
    pauses = (
        Pause(name, time.of(begin) / 1e6, time.of(end) / 1e6) for name, begin, end in _spans(path)
    )
    resumed = tuple(time.of(gap.last) / 1e6 for gap in time.gaps)
    return Timeline(
        width_s,
        span / 1e6,
        _moments(database, width, count),
        tuple(pause for pause in pauses if pause.to_s > pause.from_s),
        resumed,
    )


def _moments(database: duckdb.DuckDBPyConnection, width: int, count: int) -> tuple[Moment, ...]:
    rows = {at: rest for at, *rest in database.execute(_ROWS).fetchall()}
    starts, ends = (
        {at: rest for at, *rest in database.execute(_STARTS.format(name), [width]).fetchall()}
        for name in ("start_us", "end_us")
    )
    errors: dict[int, dict[str, int]] = defaultdict(dict)
    for at, kind, met in database.execute(_ERRORS).fetchall():
        errors[at][kind] = met
    moments = []
    level, spent = 0, 0.0
    for at in range(count):
        begun, begun_us = starts.get(at, (0, 0.0))
        ended, ended_us = ends.get(at, (0, 0.0))
        ok, all_rows, cost = rows.get(at, (0, 0, 0.0))
        spent += cost
        in_flight = level + (begun_us - ended_us) / width
        level += begun - ended
        moments.append(
            Moment(at * width / 1e6, ok, all_rows - ok, max(0.0, in_flight), spent, errors[at])
        )
    return tuple(moments)


def _spans(path: Path) -> list[tuple[str, int, int]]:
    """Pauses: name, from, to."""
    spans: list[tuple[str, int, int]] = []
    open_pause: tuple[str, int] | None = None
    last: int | None = None
    for at, event in read_events(path):
        name = event.get("event")
        if open_pause is not None and name != "tick":
            spans.append((*open_pause, last if name == "started" and last is not None else at))
            open_pause = None
        if isinstance(name, str) and name in PAUSES:
            open_pause = (name, at)
        last = at
    if open_pause is not None and last is not None:
        spans.append((*open_pause, last))
    return spans
