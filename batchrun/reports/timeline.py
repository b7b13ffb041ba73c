"""A run over the time it ran: throughput, requests in flight, errors, dollars, pauses, limits.

Times are microseconds since 1970. A command runs from its first send to its last answer, or to its
last event where it was killed; what is between two commands is left out.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import duckdb
from msgspec import Struct

from batchrun.progress.bottleneck import PAUSES
from batchrun.records import JsonObject
from batchrun.store.reading import read_events

_MOST_GAPS = 1_000  # of more, the shortest count as work
_MOST_MOMENTS = 120
_OF_WORKER = "worker_"
_ENDS = ("finished", "limited", "stopped", "interrupted", "failed")  # events
_LEAST_TICKS = 3  # looks at what limits a run, that say anything
_WIDTHS_S = (  # of a moment, up to minutes, hours and a week
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800),
    *(3_600, 7_200, 21_600, 43_200, 86_400, 604_800),
)

_ROWS = """
    SELECT in_moment(running(end_us)), outcome, count(*), coalesce(sum(cost_usd), 0.0)
    FROM answers WHERE end_us IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2
"""
_STARTS = """
    SELECT in_moment(t), count(*), sum((in_moment(t) + 1) * ? - t)::DOUBLE
    FROM (SELECT running({0}) AS t FROM all_attempts) GROUP BY 1
"""
_ERRORS = """
    SELECT in_moment(running(end_us)), error_kind, count(*)
    FROM all_attempts WHERE error_kind IS NOT NULL GROUP BY 1, 2
"""
# Of each command that started at such a time: the last answer before, and the first send after.
_AROUND = """
    SELECT begin_us, end_us, start_us FROM (SELECT unnest(?) AS begin_us)
    ASOF LEFT JOIN (SELECT end_us FROM all_attempts) ON begin_us > end_us
    ASOF LEFT JOIN (SELECT start_us FROM all_attempts) ON begin_us <= start_us
"""


class Gap(Struct, frozen=True):
    """Nothing ran from `first`, the last answer, to `last`, when the next command sent."""

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


class Moment(Struct, frozen=True):
    """What happened within a stretch of `Timeline.width_s`."""

    at_s: float  # its beginning, in running time
    outcomes: dict[str, int]  # how rows ended, to their number
    in_flight: float  # attempts under way, on average
    cost_usd: float  # of the rows that ended up to here
    errors: dict[str, int]  # `error_kind` to attempts that ended so

    @property
    def rows(self) -> int:
        return sum(self.outcomes.values())


class LimitedBy(Struct, frozen=True):
    """What limited the run for some of the time."""

    name: str
    words: str  # the latest about it
    share: float  # of the time that is known of
    spans: tuple[tuple[float, float], ...]  # from and to, in running time


class Pause(Struct, frozen=True):
    """A time when all sending stopped."""

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
    limits: tuple[LimitedBy, ...] = ()  # most of the time first; none where nobody looked


def read_running_time(database: duckdb.DuckDBPyConnection, path: Path) -> RunningTime | None:
    """None where nothing was sent. Asks the table `all_attempts`; makes the macro `running(t)`."""
    first = database.execute("SELECT min(start_us) FROM all_attempts").fetchall()[0][0]
    if first is None:
        database.execute("CREATE OR REPLACE TEMP MACRO running(t) AS t")
        return None
    time = RunningTime(first, _gaps(database, path, first))
    database.execute(f"CREATE OR REPLACE TEMP MACRO running(t) AS greatest(0, {running_sql(time)})")
    return time


def _gaps(database: duckdb.DuckDBPyConnection, path: Path, first: int) -> tuple[Gap, ...]:
    """One for each command that started after `first`, up to the longest ones."""
    starts: list[tuple[int, int]] = []  # when the command before had ended, and the start of each
    last: int | None = None
    for at, event in read_events(path):
        if event.get("event") == "started" and last is not None and at > first:
            starts.append((last, at))
        # After an end nothing is sent; of a command that was killed, the last event is known.
        last = (last or first) if event.get("event") in _ENDS else at
    if not starts:
        return ()
    around = database.execute(_AROUND, [[at for _, at in starts]]).fetchall()
    times = {at: (end, send) for at, end, send in around}
    gaps: list[Gap] = []
    for last_event, at in starts:
        # Answers may come after the last event; a clock may have been set back.
        before = gaps[-1].last if gaps else first
        end, send = times[at]
        resumed = max(at if send is None else send, before)
        gaps.append(Gap(min(max(last_event, end or first, before), resumed), resumed))
    longest = sorted(gaps, key=lambda gap: gap.first - gap.last)[:_MOST_GAPS]
    return tuple(sorted(longest, key=lambda gap: gap.last))


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


def read_timeline(
    database: duckdb.DuckDBPyConnection, path: Path, time: RunningTime | None
) -> Timeline | None:
    """None where nothing was sent. Asks the tables `all_attempts` and `answers`."""
    if time is None:
        return None
    span = time.of(database.execute("SELECT max(end_us) FROM all_attempts").fetchall()[0][0])
    width_s = next((w for w in _WIDTHS_S if span / 1e6 / w < _MOST_MOMENTS), _WIDTHS_S[-1])
    width = round(width_s * 1e6)
    count = span // width + 1
    database.execute(
        f"CREATE OR REPLACE TEMP MACRO in_moment(t) AS least(t // {width}, {count - 1})"
    )
    # A command that sent nothing may have begun after all attempts.
    resumed = tuple(at / 1e6 for at in map(time.of, (gap.last for gap in time.gaps)) if at <= span)
    return Timeline(
        width_s,
        span / 1e6,
        _moments(database, width, count),
        tuple(_pauses(path, time)),
        resumed,
        _limits(path, time),
    )


def _events_of_run(path: Path) -> Iterator[tuple[int, JsonObject]]:
    """Those that tell how the whole run goes."""
    return (one for one in read_events(path) if not _is_of_worker(one[1]))


def _is_of_worker(event: JsonObject) -> bool:
    return str(event.get("event")).startswith(_OF_WORKER)


def read_workers(path: Path) -> list[dict[str, str | float]]:
    """The processes that sent requests, in the order in which they began; empty without any.

    Of each, as a row of a report: its id, host, how it ended, and what it completed.
    """
    found: dict[str, dict[str, str | float]] = {}
    began: dict[str, int] = {}
    for at, event in read_events(path):
        worker = str(event.get("worker"))
        if not _is_of_worker(event):
            continue
        name = str(event["event"]).removeprefix(_OF_WORKER)
        if name == "started":
            began[worker] = at
            row = {"worker": worker, "host": str(event.get("host", "")), "end": "unknown"}
            found[worker] = {**row, "rows": 0, "time": 0.0}
        elif worker in found:
            found[worker] |= {"end": name, "time": (at - began[worker]) / 1e6}
            if isinstance(rows := event.get("rows"), int):
                found[worker]["rows"] = rows
    return list(found.values())


def _limits(path: Path, time: RunningTime) -> tuple[LimitedBy, ...]:
    """None where it was not looked at often enough. Raises `StoreError`."""
    looks = 0
    words: dict[str, str] = {}
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    now: tuple[str, int] | None = None  # what limits, and since when
    before: str | None = None  # what did before a pause
    last = 0
    for at, event in _events_of_run(path):
        name, said = event.get("event"), event.get("binds")
        if now is not None:
            # After a kill, nothing is known beyond the last event.
            end = last if name == "started" else at
            spans[now[0]].append((now[1], end))
        if isinstance(said, str):
            if name in PAUSES:
                before = now[0] if now is not None else None
            limit = name if name in PAUSES else said.split(" (")[0].split(":")[0].split(",")[0]
            looks += name == "tick"
            words[limit] = said
            now = limit, at
        else:
            now = (before, at) if name == "over" and before is not None else None
        last = at
    total = sum(end - begin for each in spans.values() for begin, end in each)
    if looks < _LEAST_TICKS or not total:
        return ()
    found = [
        LimitedBy(
            name,
            words[name],
            sum(end - begin for begin, end in each) / total,
            tuple((time.of(begin) / 1e6, time.of(end) / 1e6) for begin, end in each),
        )
        for name, each in spans.items()
    ]
    return tuple(sorted((one for one in found if one.share), key=lambda one: -one.share))


def _moments(database: duckdb.DuckDBPyConnection, width: int, count: int) -> tuple[Moment, ...]:
    outcomes: dict[int, dict[str, int]] = defaultdict(dict)
    costs: dict[int, float] = defaultdict(float)
    for at, outcome, rows, cost in database.execute(_ROWS).fetchall():
        outcomes[at][outcome] = rows
        costs[at] += cost
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
        spent += costs[at]
        in_flight = level + (begun_us - ended_us) / width
        level += begun - ended
        moments.append(
            Moment(at * width / 1e6, outcomes[at], max(0.0, in_flight), spent, errors[at])
        )
    return tuple(moments)


def _pauses(path: Path, time: RunningTime) -> Iterator[Pause]:
    """Each ends at the next event but a tick; in a killed command at its last one."""
    begun: tuple[str, int] | None = None
    last = 0
    for at, event in chain(_events_of_run(path), [(None, {})]):
        name = event.get("event")
        if begun is not None and name != "tick":
            end = last if at is None or name == "started" else at
            pause = Pause(begun[0], time.of(begun[1]) / 1e6, time.of(end) / 1e6)
            begun = None
            if pause.to_s > pause.from_s:
                yield pause
        if at is not None:
            begun, last = (name, at) if name in PAUSES else begun, at
