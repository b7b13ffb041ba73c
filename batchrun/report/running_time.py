"""A run's own time: what passed while commands ran, without the waits between them.

Times are microseconds since 1970. A killed command ends at the last thing that is known of it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import duckdb
from msgspec import Struct

from batchrun.store.events import read_events

_MOST_GAPS = 1_000  # of more, the shortest count as work


class Gap(Struct, frozen=True):
    """Nothing ran from `first` to `last`, when the next command started."""

    first: int
    last: int


class RunningTime(Struct, frozen=True):
    """Counted from the first send."""

    first: int
    gaps: tuple[Gap, ...]  # one for each later command, in order

    def of(self, at: int) -> int:
        """Microseconds of running time at that moment."""
        idle = sum(min(at, gap.last) - gap.first for gap in self.gaps if at > gap.first)
        return max(0, at - self.first - idle)


def read_running_time(database: duckdb.DuckDBPyConnection, path: Path) -> RunningTime | None:
    """Null where nothing was sent. Asks the table `tries`; makes the macro `running(t)`."""
    first = database.execute("SELECT min(start_us) FROM tries").fetchall()[0][0]
    if first is None:
        database.execute("CREATE OR REPLACE TEMP MACRO running(t) AS t")
        return None
    time = RunningTime(first, _gaps(database, path, first))
    database.execute(f"CREATE OR REPLACE TEMP MACRO running(t) AS greatest(0, {running_sql(time)})")
    return time


def _gaps(database: duckdb.DuckDBPyConnection, path: Path, first: int) -> tuple[Gap, ...]:
    starts = [(last, at) for last, at in _starts(path) if at > first]
    if not starts:
        return ()
    times = sorted({at for _, at in starts})
    ends = _last_ends(database, times, first)
    gaps: list[Gap] = []
    for last_event, at in starts:
        # Answers may come after the last event; a clock may have been put back.
        end = ends[bisect_right(times, at) - 1]
        begin = max(last_event, end, gaps[-1].last if gaps else first)
        gaps.append(Gap(min(begin, at), at) if not gaps or at > gaps[-1].last else gaps[-1])
    longest = sorted(gaps, key=lambda gap: gap.first - gap.last)[:_MOST_GAPS]
    return tuple(sorted(longest, key=lambda gap: gap.last))


def _last_ends(database: duckdb.DuckDBPyConnection, times: Sequence[int], first: int) -> list[int]:
    """When the last try had ended before each of these times, which ascend; else `first`."""
    pieces = [(time, str(place)) for place, time in enumerate(times)]
    last = dict(
        database.execute(
            f"SELECT {_halved([*pieces, (0, 'NULL')])} AS place, max(t) "  # noqa: S608 - numbers
            "FROM (SELECT end_us AS t FROM tries) GROUP BY place"
        ).fetchall()
    )
    return list(accumulate((last.get(place, first) for place in range(len(times))), max))


def _starts(path: Path) -> list[tuple[int, int]]:
    """Of each command but the first: the last event before it, and its start."""
    starts = []
    last: int | None = None
    for at, event in read_events(path):
        if event.get("event") == "started" and last is not None:
            starts.append((last, at))
        last = at
    return starts


def running_sql(time: RunningTime) -> str:
    """`RunningTime.of` over `t`, which is found in its piece by halving."""
    pieces = []
    idle = 0
    for gap in time.gaps:
        pieces.append((gap.last, f"least(t, {gap.first}) - {time.first + idle}"))
        idle += gap.last - gap.first
    return _halved([*pieces, (0, f"t - {time.first + idle}")])


def _halved(pieces: Sequence[tuple[int, str]]) -> str:
    if len(pieces) == 1:
        return pieces[0][1]
    middle = len(pieces) // 2
    before, after = _halved(pieces[:middle]), _halved(pieces[middle:])
    return f"CASE WHEN t < {pieces[middle - 1][0]} THEN {before} ELSE {after} END"
