"""A run's report, asked of its tables in SQL: a million rows in seconds."""

import math
from pathlib import Path

import duckdb

from batchrun.records import JsonObject
from batchrun.report.figures import (
    Bin,
    ErrorRows,
    ModelRows,
    OutcomeRows,
    Report,
    Spread,
    Tokens,
    ToolRows,
    TopRow,
    TryKind,
)
from batchrun.report.running_time import read_running_time
from batchrun.report.samples import read_samples
from batchrun.report.timeline import read_timeline
from batchrun.store import tables
from batchrun.store.files import Files
from batchrun.store.sql import ask

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
    state = tables.read_record(path).state
    if state == "running" and not tables.is_running(path):
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
        unknown_usd=tables.read_unknown_usd(path, record),
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
