"""A run's report, asked of its tables in SQL: a million rows in seconds."""

import math
from pathlib import Path

import duckdb
from msgspec import Struct

from batchrun.formats.printable import printable
from batchrun.records import Estimated, JsonObject
from batchrun.reports.conversation import Turn, turns_of
from batchrun.reports.sql import Files, ask
from batchrun.reports.timeline import Timeline, read_running_time, read_timeline
from batchrun.store import reading
from batchrun.store.files import is_locked

_OF_EACH = 3
_MOST_KINDS = 12
_SHOWN = 1_000  # characters of one turn
_TURNS = 6  # the last of a conversation

_PICKED = """
    SELECT outcome, error_kind, unnest(arg_min(
        {'row': "row", 'custom_id': custom_id, 'sample': sample, 'variant': variant},
        hash(custom_id), ?))
    FROM answers GROUP BY outcome, error_kind ORDER BY outcome <> 'ok', count(*) DESC, 1, 2 LIMIT ?
"""
_WHOLE = """
    SELECT custom_id, sample, variant, error_message, request, output
    FROM responses WHERE "row" IN (SELECT unnest(?)) AND custom_id IN (SELECT unnest(?))
"""


class Sample(Struct, frozen=True):
    """One row, its texts cut to what a page can hold."""

    outcome: str
    error_kind: str | None
    row: int
    custom_id: str
    message: str | None  # why it is not ok
    turns: tuple[Turn, ...]


def read_samples(database: duckdb.DuckDBPyConnection) -> tuple[Sample, ...]:
    """By outcome and kind of error, the most frequent first, `ok` before all."""
    picked = database.execute(_PICKED, [_OF_EACH, _MOST_KINDS * _OF_EACH]).fetchall()
    rows, ids = ([one[name] for _, _, one in picked] for name in ("row", "custom_id"))
    found = {
        (custom_id, sample, variant): rest
        for custom_id, sample, variant, *rest in database.execute(_WHOLE, [rows, ids]).fetchall()
    }
    samples = []
    for outcome, kind, one in picked:
        message, request, output = found[one["custom_id"], one["sample"], one["variant"]]
        turns = tuple(
            Turn(_cut(turn.who), _cut(turn.text)) for turn in turns_of(request, output)[-_TURNS:]
        )
        name, why = _cut(one["custom_id"]), message and _cut(message)
        samples.append(Sample(outcome, kind, one["row"], name, why, turns))
    return tuple(samples)


def _cut(text: str) -> str:
    """The beginning, harmless, and how much more there is."""
    shown = printable(text[:_SHOWN])[:_SHOWN]  # codes are longer than what they stand for
    return shown if len(text) <= _SHOWN else f"{shown} … ({len(text) - _SHOWN:,} more characters)"


class OutcomeRows(Struct, frozen=True):
    """Rows that came to the same."""

    outcome: str  # ok, truncated, refused, else the row's `status`
    rows: int
    output_tokens: int
    cost_usd: float | None


class ModelRows(Struct, frozen=True):
    """Rows that one model answered, at one tier."""

    model: str | None  # as the server says; where none answered, as asked for
    service_tier: str | None
    rows: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float | None


class Tokens(Struct, frozen=True):
    """Sums over the answers that counted; parts of input and output are in them."""

    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int


class Spread(Struct, frozen=True):
    """Percentiles of one column over the rows that have it."""

    name: str
    rows: int
    p50: float
    p90: float
    p99: float
    max: float


class TryKind(Struct, frozen=True):
    """Attempts of one kind."""

    kind: str  # first, retry, reask, hedge
    attempts: int
    failed: int
    cost_usd: float | None


class ErrorRows(Struct, frozen=True):
    """One kind of error: how many attempts met it, and how many rows ended with it."""

    kind: str
    attempts: int
    rows: int
    example: str


class ToolRows(Struct, frozen=True):
    """Calls of one tool."""

    name: str  # its type where it has no name
    calls: int
    valid: int
    invalid: int  # arguments that are no JSON or do not fit the schema; the rest nobody can judge


class TopRow(Struct, frozen=True):
    """A row that took long, or cost much."""

    custom_id: str
    outcome: str
    attempts: int
    elapsed_s: float | None  # from its first send to its end, without waits between commands
    output_tokens: int | None
    cost_usd: float | None


class Bin(Struct, frozen=True):
    """One bar of a histogram."""

    low: float
    high: float
    rows: int


class Report(Struct, frozen=True):
    """All that the terminal's page and the HTML page show."""

    run: str
    state: str  # as `status` says it
    simulated: bool
    source: str
    rows: int  # in the tables
    gone: int  # of them, rows that left the input
    left: int  # rows of the source without an outcome
    started_at: int | None  # the first send
    finished_at: int | None  # the last end
    cost_usd: float | None
    reported_cost_usd: float | None
    unknown_attempts: int  # those whose cost is not known: it is in no sum
    unknown_usd: float  # at most so much more, for tries that never told what they cost
    estimated: Estimated | None  # by a pilot, before the rest was sent
    outcomes: tuple[OutcomeRows, ...]
    models: tuple[ModelRows, ...]
    tokens: Tokens
    spreads: tuple[Spread, ...]
    tries: tuple[TryKind, ...]
    errors: tuple[ErrorRows, ...]
    tools: tuple[ToolRows, ...]
    slowest: tuple[TopRow, ...]
    dearest: tuple[TopRow, ...]
    latency_bins: tuple[Bin, ...]
    first_token_bins: tuple[Bin, ...]
    timeline: Timeline | None  # null where nothing was sent
    samples: tuple[Sample, ...]


_TOP = 10
_MOST = 50  # lines of a table whose names come from answers
_BINS = 32
_LEAST_S = 1e-3  # what took less stands in the first bin

_PREPARE = """
    CREATE TEMP MACRO in_us(seconds) AS CAST(round(seconds * 1e6) AS BIGINT);
    CREATE TEMP TABLE tries AS
        SELECT epoch_us(try.started_at) AS start_us,
               epoch_us(try.started_at) + in_us(try.latency_s) AS end_us,
               try.kind AS kind, try.error_kind AS error_kind, try.cost_usd AS cost_usd,
               try.error_message[:300] AS error_message
        FROM (SELECT unnest(attempts) AS try FROM responses);
"""
_ANSWERS = """
    CREATE TEMP VIEW answers AS SELECT *,
        CASE WHEN ok THEN 'ok' WHEN refusal IS NOT NULL THEN 'refused'
             WHEN truncated THEN 'truncated' ELSE status END AS outcome,
        CASE WHEN started_at IS NOT NULL AND finished_at IS NOT NULL
             THEN (running(epoch_us(finished_at)) - running(epoch_us(started_at)) - {0}) / 1e6
        END AS elapsed_s
    FROM responses;
"""
# Of a row that a later command sent again: from its last try before to its next first one.
_WAITED = """
    coalesce(list_sum(list_transform(range(2, len(attempts) + 1), lambda n:
        CASE WHEN attempts[n].kind = 'first' THEN greatest(0,
            running(epoch_us(attempts[n].started_at))
            - running(epoch_us(attempts[n - 1].started_at) + in_us(attempts[n - 1].latency_s)))
        END)), 0)
"""
_SUMS = """
    SELECT count(*) AS rows, sum(cost_usd) AS cost_usd, sum(reported_cost_usd) AS reported_cost_usd,
           (SELECT count(*) FROM tries WHERE cost_usd IS NULL) AS unknown_attempts,
           min(epoch_us(started_at)) AS started_at, max(epoch_us(finished_at)) AS finished_at
    FROM responses
"""
_OUTCOMES = """
    SELECT outcome, count(*), coalesce(sum(output_tokens), 0)::BIGINT, sum(cost_usd)
    FROM answers GROUP BY outcome ORDER BY outcome <> 'ok', count(*) DESC, outcome
"""
_MODELS = """
    SELECT coalesce(model, model_requested) AS name, service_tier, count(*),
           coalesce(sum(input_tokens), 0)::BIGINT, coalesce(sum(cached_tokens), 0)::BIGINT,
           coalesce(sum(output_tokens), 0)::BIGINT, sum(cost_usd)
    FROM responses GROUP BY name, service_tier ORDER BY count(*) DESC, name, service_tier LIMIT ?
"""
_TOKENS = """
    SELECT coalesce(sum(input_tokens), 0)::BIGINT, coalesce(sum(cached_tokens), 0)::BIGINT,
           coalesce(sum(cache_write_tokens), 0)::BIGINT, coalesce(sum(output_tokens), 0)::BIGINT,
           coalesce(sum(reasoning_tokens), 0)::BIGINT, coalesce(sum(total_tokens), 0)::BIGINT
    FROM responses
"""
_SPREADS = ("latency_s", "first_token_s", "elapsed_s", "input_tokens", "output_tokens", "cost_usd")
_TRIES = """
    SELECT kind, count(*), count(error_kind), sum(cost_usd)
    FROM tries GROUP BY kind ORDER BY count(*) DESC, kind
"""
_ERRORS = """
    WITH met AS (SELECT error_kind AS kind, count(*) AS attempts,
                        arg_min(error_message, start_us) AS example
                 FROM tries WHERE error_kind IS NOT NULL GROUP BY error_kind),
         ended AS (SELECT error_kind AS kind, count(*) AS rows,
                          arg_min(error_message[:300], "row") AS example
                   FROM responses WHERE error_kind IS NOT NULL GROUP BY error_kind)
    SELECT kind, coalesce(attempts, 0), coalesce(rows, 0), coalesce(ended.example, met.example, '')
    FROM met FULL JOIN ended USING (kind) ORDER BY 2 DESC, 3 DESC, kind
"""
_TOOLS = """
    SELECT coalesce(name, type), count(*), count(*) FILTER (arguments_valid),
           count(*) FILTER (NOT arguments_valid)
    FROM tool_calls GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?
"""


def read_report(path: Path) -> Report:
    """The figures of a run that has ended, goes on, or was killed; journal included.

    Raises `JobError`, `StoreError`.
    """
    state = reading.read_record(path).state
    if state == "running" and not is_locked(path):
        state = "killed"
    return ask(path, lambda database, files: _report(database, files, path, state))


def _report(database: duckdb.DuckDBPyConnection, files: Files, path: Path, state: str) -> Report:
    record = files.record
    database.execute(_PREPARE)
    time = read_running_time(database, path)
    database.execute(_ANSWERS.format(_WAITED if time is not None and time.gaps else 0))
    sums = _sums(database)
    rows: int = sums.pop("rows")
    return Report(
        run=str(path),
        state=state,
        simulated=record.simulated,
        source=record.source_path or record.source,
        rows=rows,
        gone=record.gone.rows,
        left=max(0, record.rows - (rows - record.gone.rows)),
        **sums,
        unknown_usd=reading.read_unknown_usd(path, record),
        estimated=record.estimated,
        outcomes=tuple(OutcomeRows(*row) for row in database.execute(_OUTCOMES).fetchall()),
        models=tuple(ModelRows(*row) for row in database.execute(_MODELS, [_MOST]).fetchall()),
        tokens=Tokens(*database.execute(_TOKENS).fetchall()[0]),
        spreads=tuple(spread for name in _SPREADS if (spread := _spread(database, name))),
        tries=tuple(TryKind(*row) for row in database.execute(_TRIES).fetchall()),
        errors=tuple(ErrorRows(*row) for row in database.execute(_ERRORS).fetchall()),
        tools=tuple(ToolRows(*row) for row in database.execute(_TOOLS, [_MOST]).fetchall()),
        slowest=_top(database, "elapsed_s"),
        dearest=_top(database, "cost_usd"),
        latency_bins=_bins(database, "latency_s"),
        first_token_bins=_bins(database, "first_token_s"),
        timeline=read_timeline(database, path, time),
        samples=read_samples(database),
    )


def _sums(database: duckdb.DuckDBPyConnection) -> JsonObject:
    found = database.execute(_SUMS)
    names = [column[0] for column in found.description or ()]
    return dict(zip(names, found.fetchall()[0], strict=True))


def _spread(database: duckdb.DuckDBPyConnection, name: str) -> Spread | None:
    """Null where no row has the column. Percentiles are values that a row really has."""
    count, marks, most = database.execute(
        f"SELECT count({name}), quantile_disc({name}, [0.5, 0.9, 0.99]), max({name}) "  # noqa: S608
        "FROM answers"
    ).fetchall()[0]
    return Spread(name, count, marks[0], marks[1], marks[2], most) if count else None


def _top(database: duckdb.DuckDBPyConnection, name: str) -> tuple[TopRow, ...]:
    """The rows with the most of it; ties in the order of the input."""
    rows = database.execute(
        f"""SELECT custom_id, outcome, len(attempts), elapsed_s, output_tokens, cost_usd
            FROM answers WHERE {name} > 0 ORDER BY {name} DESC, "row" LIMIT ?""",  # noqa: S608
        [_TOP],
    ).fetchall()
    return tuple(TopRow(*row) for row in rows)


def _bins(database: duckdb.DuckDBPyConnection, name: str) -> tuple[Bin, ...]:
    """A histogram whose bars grow by the same factor; none where no row has the column."""
    low, high = database.execute(
        f"SELECT min({name}), max({name}) FROM responses"  # noqa: S608 - a column's name
    ).fetchall()[0]
    if low is None:
        return ()
    low, high = max(low, _LEAST_S), max(high, _LEAST_S) * (1 + 1e-9)
    if high < 2 * low:  # one bar would fill the chart
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(2), middle * math.sqrt(2)
    factor = (high / low) ** (1 / _BINS)
    counts = dict(
        database.execute(
            f"""SELECT least(floor(ln(greatest({name}, ?) / ?) / ln(?)), ?)::INTEGER, count(*)
                FROM responses WHERE {name} IS NOT NULL GROUP BY 1""",  # noqa: S608 - the same
            [low, low, factor, _BINS - 1],
        ).fetchall()
    )
    return tuple(
        Bin(low * factor**at, low * factor ** (at + 1), counts.get(at, 0)) for at in range(_BINS)
    )
