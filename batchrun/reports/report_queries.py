"""A run's report, asked of its tables in SQL: a million rows in seconds."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import duckdb
from msgspec import Struct

from batchrun.formats.printable import printable
from batchrun.records import Estimated
from batchrun.reports.conversation import Turn, turns_of
from batchrun.reports.sql import Files, ask
from batchrun.reports.timeline import Timeline, read_running_time, read_timeline
from batchrun.store import reading
from batchrun.store.files import is_locked

T = TypeVar("T")
_TOP = 10  # rows of the slowest and of the most expensive
_MOST = 50  # lines of a table whose names come from answers
_BINS = 32
_LEAST_S = 1e-3  # the first bin holds what took less, too
_SAMPLES_OF_EACH, _MOST_KINDS = 3, 12  # kinds of outcome
_SHOWN = 1_000  # characters of one turn
_TURNS = 6  # the last of a conversation
_SPREADS = ("latency_s", "first_token_s", "elapsed_s", "input_tokens", "output_tokens", "cost_usd")


class OutcomeRows(Struct, frozen=True):
    """Rows with the same outcome."""

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
    """Sums over the answers that counted; parts of input and output are included in them."""

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


class AttemptKind(Struct, frozen=True):
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
    invalid: int  # arguments that are no JSON or do not fit the schema; others cannot be judged


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


class Sample(Struct, frozen=True):
    """One row, its texts cut to what a page can hold."""

    outcome: str
    error_kind: str | None
    row: int
    custom_id: str
    message: str | None  # why it is not ok
    turns: tuple[Turn, ...]


class Report(Struct, frozen=True):
    """All that the terminal's report and the HTML page show."""

    run: str
    state: str  # as `status` says it
    simulated: bool
    source: str
    rows: int  # in the tables
    not_in_input: int  # of them, rows that are no longer in the input
    left: int  # rows of the source without an outcome
    started_at: int | None  # the first send
    finished_at: int | None  # the last end
    cost_usd: float | None
    reported_cost_usd: float | None
    unknown_attempts: int  # those whose cost is not known: it is in no sum
    unknown_usd: float  # at most so much more, for attempts that reported no usage
    estimated: Estimated | None  # by a pilot, before the rest was sent
    outcomes: tuple[OutcomeRows, ...]
    models: tuple[ModelRows, ...]
    tokens: Tokens
    spreads: tuple[Spread, ...]
    attempts: tuple[AttemptKind, ...]
    errors: tuple[ErrorRows, ...]
    tools: tuple[ToolRows, ...]
    slowest: tuple[TopRow, ...]
    most_expensive: tuple[TopRow, ...]
    latency_bins: tuple[Bin, ...]
    first_token_bins: tuple[Bin, ...]
    timeline: Timeline | None  # null where nothing was sent
    samples: tuple[Sample, ...]


_PREPARE = """
    CREATE TEMP MACRO in_us(seconds) AS CAST(round(seconds * 1e6) AS BIGINT);
    CREATE TEMP TABLE all_attempts AS
        SELECT epoch_us(one.started_at) AS start_us,
               epoch_us(one.started_at) + in_us(one.latency_s) AS end_us,
               one.kind AS kind, one.error_kind AS error_kind, one.cost_usd AS cost_usd,
               one.error_message[:300] AS error_message
        FROM (SELECT unnest(attempts) AS one FROM responses);
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
# Of a row that a later command sent again: from its last attempt before to its next first one.
_WAITED = """
    coalesce(list_sum(list_transform(range(2, len(attempts) + 1), lambda n:
        CASE WHEN attempts[n].kind = 'first' THEN greatest(0,
            running(epoch_us(attempts[n].started_at))
            - running(epoch_us(attempts[n - 1].started_at) + in_us(attempts[n - 1].latency_s)))
        END)), 0)
"""
_SUMS = """
    SELECT count(*) AS rows, sum(cost_usd) AS cost_usd, sum(reported_cost_usd) AS reported_cost_usd,
           (SELECT count(*) FROM all_attempts WHERE cost_usd IS NULL) AS unknown_attempts,
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
_ATTEMPTS = """
    SELECT kind, count(*), count(error_kind), sum(cost_usd)
    FROM all_attempts GROUP BY kind ORDER BY count(*) DESC, kind
"""
_ERRORS = """
    WITH met AS (SELECT error_kind AS kind, count(*) AS attempts,
                        arg_min(error_message, start_us) AS example
                 FROM all_attempts WHERE error_kind IS NOT NULL GROUP BY error_kind),
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
# Percentiles are values that a row really has.
_SPREAD = """
    SELECT '{0}', count({0}), quantile_disc({0}, 0.5), quantile_disc({0}, 0.9),
           quantile_disc({0}, 0.99), max({0})
    FROM answers HAVING count({0}) > 0
"""
# Ties in the order of the input.
_TOP_ROWS = """
    SELECT custom_id, outcome, len(attempts), elapsed_s, output_tokens, cost_usd
    FROM answers WHERE {0} > 0 ORDER BY {0} DESC, "row" LIMIT ?
"""
_SAMPLES = """
    WITH picked AS (
        SELECT outcome, error_kind, count(*) AS rows,
               unnest(arg_min({{'row': "row", 'id': custom_id, 'sample': sample,
                                'variant': variant}}, hash(custom_id), {of_each})) AS one
        FROM answers GROUP BY outcome, error_kind
        ORDER BY outcome <> 'ok', rows DESC, outcome, error_kind LIMIT {most})
    SELECT outcome, picked.error_kind, "row", custom_id, error_message, request, output
    FROM picked JOIN responses ON "row" = one.row AND custom_id = one.id AND sample = one.sample
        AND variant IS NOT DISTINCT FROM one.variant
    ORDER BY outcome <> 'ok', rows DESC, outcome, picked.error_kind, hash(custom_id)
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

    def found(kind: Callable[..., T], sql: str, *parameters: object) -> tuple[T, ...]:
        rows = database.execute(sql, parameters).fetchall()
        return tuple(kind(*row) for row in rows)

    def top(column: str) -> tuple[TopRow, ...]:
        return found(TopRow, _TOP_ROWS.format(column), _TOP)

    samples = _SAMPLES.format(of_each=_SAMPLES_OF_EACH, most=_MOST_KINDS * _SAMPLES_OF_EACH)
    asked = database.execute(_SUMS)
    names = [column[0] for column in asked.description or ()]
    sums = dict(zip(names, asked.fetchall()[0], strict=True))
    rows: int = sums.pop("rows")
    return Report(
        run=str(path),
        state=state,
        simulated=record.simulated,
        source=record.source_path or record.source,
        rows=rows,
        not_in_input=record.gone.rows,
        left=max(0, record.rows - (rows - record.gone.rows)),
        **sums,
        unknown_usd=reading.read_unknown_usd(path, record),
        estimated=record.estimated,
        outcomes=found(OutcomeRows, _OUTCOMES),
        models=found(ModelRows, _MODELS, _MOST),
        tokens=found(Tokens, _TOKENS)[0],
        spreads=sum((found(Spread, _SPREAD.format(name)) for name in _SPREADS), ()),
        attempts=found(AttemptKind, _ATTEMPTS),
        errors=found(ErrorRows, _ERRORS),
        tools=found(ToolRows, _TOOLS, _MOST),
        slowest=top("elapsed_s"),
        most_expensive=top("cost_usd"),
        latency_bins=_bins(database, "latency_s"),
        first_token_bins=_bins(database, "first_token_s"),
        timeline=read_timeline(database, path, time),
        samples=found(_sample, samples),
    )


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


def _sample(outcome: str, error_kind: str | None, row: int, *texts: Any) -> Sample:
    custom_id, message, request, output = texts
    last = turns_of(request, output)[-_TURNS:]
    turns = tuple(Turn(_beginning(turn.who), _beginning(turn.text)) for turn in last)
    why = message and _beginning(message)
    return Sample(outcome, error_kind, row, _beginning(custom_id), why, turns)


def _beginning(text: str) -> str:
    """Printable, and how much more there is."""
    shown = printable(text[:_SHOWN])[:_SHOWN]  # codes are longer than what they stand for
    return shown if len(text) <= _SHOWN else f"{shown} … ({len(text) - _SHOWN:,} more characters)"
