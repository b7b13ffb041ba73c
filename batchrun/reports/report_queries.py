"""A run's report, asked of its tables in SQL: a million rows in seconds."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import duckdb
from msgspec import Struct

from batchrun.formats.printable import printable
from batchrun.formats.text_tables import Section
from batchrun.pricing.prices import STANDARD, STANDARD_NAMES
from batchrun.records import Estimated
from batchrun.remote.run_link import run_name
from batchrun.reports.show import Turn, turns_of
from batchrun.reports.sql import Files, ask
from batchrun.reports.timeline import Timeline, read_running_time, read_timeline, read_workers
from batchrun.store import reading

T = TypeVar("T")
_MEMORY = "500MB"  # what goes beyond is written to disk
TOP_ROWS = 10  # of the slowest and the most expensive
_FEWEST_BINS, _MOST_BINS = 8, 32  # of a histogram; about two for the square root of its rows
_LEAST_S = 1e-3  # the first bin holds what took less, too
_SAMPLES_OF_EACH, _MOST_KINDS = 3, 12  # kinds of outcome
_SHOWN = 1_000  # characters of one turn
_WORKERS = 200
_TURNS = 6  # the last of a conversation
_SPREADS = ("latency_s", "first_token_s", "elapsed_s", "input_tokens", "output_tokens", "cost_usd")


_WORST_ROWS = """
    SELECT row_name(custom_id, "sample", variant) AS id, elapsed_s AS time,
           input_tokens AS input, output_tokens AS output, reasoning_tokens AS reasoning,
           cost_usd AS cost, unknown,
           concat(outcome, CASE WHEN sent > 1 THEN ' after ' || sent || ' attempts' END,
                  CASE WHEN error_kind NOT IN (outcome, 'refusal') THEN ': ' || error_kind END,
                  ': ' || coalesce(error_message, incomplete_reason)) AS outcome
    FROM answers WHERE {0} > 0 ORDER BY {0} DESC, "row", variant, "sample" LIMIT {{top}}
"""
# As `tier_name` has it.
_TIER = f"""
    CASE WHEN via = 'batch' THEN 'batch'
         WHEN coalesce(service_tier, '') IN {(*STANDARD_NAMES, "")} THEN '{STANDARD}'
         ELSE service_tier END
"""
# The names of a query's columns are the heads of its table, but for `unknown`: of how many attempts
# `cost` does not know the cost; and `in_all`: how many rows there would be without a limit.
TABLES = {
    # ok, truncated, refused, empty_output, invalid_output, else the row's `status`
    Section("outcomes", "Outcomes"): """
        SELECT outcome, count(*) AS rows, count(*) / sum(count(*)) OVER () AS share,
               coalesce(sum(output_tokens), 0)::BIGINT AS "output tokens", sum(cost_usd) AS cost,
               sum(unknown)::BIGINT AS unknown
        FROM answers GROUP BY outcome ORDER BY outcome <> 'ok', rows DESC, outcome
    """,
    Section("variants", "Variants", note="input and output in tokens"): """
        SELECT variant, count(DISTINCT custom_id) AS rows, max(sample) + 1 AS samples,
               count(*) FILTER (outcome = 'ok') AS ok,
               count(*) FILTER (outcome <> 'ok') AS "not ok",
               coalesce(sum(input_tokens), 0)::BIGINT AS input,
               coalesce(sum(output_tokens), 0)::BIGINT AS output, sum(cost_usd) AS cost,
               sum(unknown)::BIGINT AS unknown, count(*) OVER () AS in_all
        FROM answers WHERE variant IS NOT NULL GROUP BY variant ORDER BY variant LIMIT 50
    """,
    # As the server says; where none answered, as asked for.
    Section("models", "Models", words=2, note="input, cached and output in tokens"): """
        SELECT coalesce(model, model_requested) AS model, tier, count(*) AS rows,
               coalesce(sum(input_tokens), 0)::BIGINT AS input,
               coalesce(sum(cached_tokens), 0)::BIGINT AS cached,
               coalesce(sum(output_tokens), 0)::BIGINT AS output, sum(cost_usd) AS cost,
               sum(unknown)::BIGINT AS unknown, count(*) OVER () AS in_all
        FROM answers GROUP BY 1, 2 ORDER BY rows DESC, 1, 2 LIMIT 50
    """,
    Section("attempts", "Attempts"): """
        SELECT kind, count(*) AS attempts, count(error_kind) AS failed, sum(cost_usd) AS cost,
               count(*) - count(cost_usd) AS unknown
        FROM all_attempts GROUP BY kind ORDER BY attempts DESC, kind
    """,
    Section(
        "errors",
        "Errors",
        note="attempts that met each kind, and rows without an answer",
        message=True,
    ): """
        WITH met AS (SELECT error_kind AS kind, count(*) AS attempts,
                            arg_min(error_message, start_us) AS example
                     FROM all_attempts WHERE error_kind IS NOT NULL GROUP BY error_kind),
             ended AS (SELECT error_kind AS kind, count(*) AS rows,
                              arg_min(error_message, "row") AS example
                       FROM answers
                       WHERE error_kind IS NOT NULL AND NOT is_answer
                       GROUP BY error_kind)
        SELECT kind, coalesce(attempts, 0) AS attempts, coalesce(rows, 0) AS rows,
               coalesce(ended.example, met.example, '') AS example
        FROM met FULL JOIN ended USING (kind) ORDER BY 2 DESC, 3 DESC, kind
    """,
    Section("tools", "Tool calls", note="valid: the tool was offered, and the arguments fit"): """
        SELECT coalesce(name, type) AS tool, count(*) AS calls,
               count(*) FILTER (arguments_valid) AS valid,
               count(*) FILTER (NOT arguments_valid) AS invalid,
               valid / nullif(valid + invalid, 0) AS "share valid", count(*) OVER () AS in_all
        FROM tool_calls GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 50
    """,
    Section(
        "slowest",
        "Slowest rows",
        note="time of work from first send to end; tokens of the answer",
        message=True,
    ): _WORST_ROWS.format("elapsed_s"),
    Section(
        "most_expensive",
        "Most expensive rows",
        note="cost of all attempts, tokens of the answer",
        message=True,
    ): _WORST_ROWS.format("cost_usd"),
}


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
    models: int  # that were asked for
    model: str | None  # one of them
    is_expanded: bool  # rows have samples or variants
    begun_at: int  # when the run was first planned
    not_in_input: int  # of them, rows that are no longer in the input
    left: int  # rows of the source without an outcome
    not_asked: int  # of them, those that the last command left to others
    started_at: int | None  # the first send
    finished_at: int | None  # the last end
    cost_usd: float | None
    reported_cost_usd: float | None
    unknown_attempts: int  # those whose cost is not known: it is in no sum
    unpriced_models: list[str]  # those of answers that said what they used and have no price
    unknown_usd: float  # at most so much more, for attempts of unknown cost
    estimated: Estimated | None  # by a pilot, before the rest was sent
    tables: dict[str, list[dict[str, Any]]]  # of `TABLES`, by name: rows by their heads
    tokens: Tokens
    spreads: tuple[Spread, ...]
    latency_bins: tuple[Bin, ...]
    first_token_bins: tuple[Bin, ...]
    timeline: Timeline | None  # null where nothing was sent
    samples: tuple[Sample, ...]
    calls_in_text: int  # rows whose text holds what looks like a tool call
    chat_calls: int  # rows with `tool_calls` as chat completions have them


_PREPARE = r"""
    CREATE TEMP MACRO row_name(custom_id, sample, variant) AS
        CASE WHEN variant IS NULL AND sample = 0 THEN custom_id
             ELSE concat_ws('|', custom_id, coalesce(variant, ''), sample) END;
    CREATE TEMP MACRO in_us(seconds) AS CAST(round(seconds * 1e6) AS BIGINT);
    CREATE TEMP MACRO has_calls(said) AS
        regexp_matches(said, '"tool_calls"\s*:\s*\[\s*\{');
    CREATE TEMP TABLE all_attempts AS
        SELECT epoch_us(one.started_at) AS start_us,
               epoch_us(one.started_at) + in_us(one.latency_s) AS end_us,
               one.kind AS kind, one.error_kind AS error_kind, one.cost_usd AS cost_usd,
               one.error_message[:300] AS error_message
        FROM (SELECT unnest(attempts) AS one FROM responses);
"""
# One row for each of `responses`, with what nearly all questions are about: it is read once.
# `again`: the attempts of a row that a later command sent again.
_ROWS = """
    CREATE TEMP TABLE row_facts AS SELECT
        "row", custom_id, "sample", variant, error_kind, error_message[:300] AS error_message,
        incomplete_reason, CASE WHEN ok THEN 'ok' WHEN refusal IS NOT NULL THEN 'refused'
             WHEN truncated THEN 'truncated'
             WHEN status = 'completed' AND error_kind IS NOT NULL THEN error_kind
             ELSE status END AS outcome,
        status IN ('completed', 'incomplete') AS is_answer, model, model_requested,
        {tier} AS tier,
        input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
        total_tokens, cost_usd, cost_usd IS NULL AND priced_as IS NULL
            AND coalesce(input_tokens, output_tokens) IS NOT NULL AS is_unpriced,
        reported_cost_usd, latency_s, first_token_s,
        epoch_us(started_at) AS start_us, epoch_us(finished_at) AS end_us, len(attempts) AS sent,
        len(list_filter(attempts, lambda one: one.cost_usd IS NULL)) AS unknown,
        CASE WHEN len(list_filter(attempts, lambda one: one.kind = 'first')) > 1
             THEN list_transform(attempts, lambda one: {
                 'is_first': one.kind = 'first', 'start_us': epoch_us(one.started_at),
                 'end_us': epoch_us(one.started_at) + in_us(one.latency_s)}) END AS again
    FROM responses;
"""
_ANSWERS = """
    CREATE TEMP VIEW answers AS SELECT * EXCLUDE (again),
        CASE WHEN start_us IS NOT NULL AND end_us IS NOT NULL
             THEN (running(end_us) - running(start_us) - {0}) / 1e6 END AS elapsed_s
    FROM row_facts;
"""
# Of a row that a later command sent again: from its last attempt before to its next first one.
_WAITED = """
    coalesce(list_sum(list_transform(range(2, len(again) + 1), lambda n:
        CASE WHEN again[n].is_first
             THEN greatest(0, running(again[n].start_us) - running(again[n - 1].end_us)) END)), 0)
"""
_SUMS = """
    SELECT count(*) AS rows, sum(cost_usd) AS cost_usd, sum(reported_cost_usd) AS reported_cost_usd,
           (SELECT count(*) FROM all_attempts WHERE cost_usd IS NULL) AS unknown_attempts,
           coalesce(list(DISTINCT model_requested) FILTER (is_unpriced AND sent > 0
               AND model_requested IS NOT NULL), []) AS unpriced_models,
           min(start_us) AS started_at, max(end_us) AS finished_at,
           count(DISTINCT coalesce(model_requested, model)) AS models,
           min(coalesce(model_requested, model)) AS model,
           coalesce(bool_or(variant IS NOT NULL OR "sample" > 0), false) AS is_expanded
    FROM answers
"""
_TOKENS = """
    SELECT coalesce(sum(input_tokens), 0)::BIGINT, coalesce(sum(cached_tokens), 0)::BIGINT,
           coalesce(sum(cache_write_tokens), 0)::BIGINT, coalesce(sum(output_tokens), 0)::BIGINT,
           coalesce(sum(reasoning_tokens), 0)::BIGINT, coalesce(sum(total_tokens), 0)::BIGINT
    FROM answers
"""
# Calls that a server left in the text, as models write them: `<tool_call>`, `<|tool_calls_begin|>`,
# `[TOOL_CALLS]`, `<function=f>`, ...; and calls in the shape of another API. What each of them must
# contain is looked for first, since texts are long and expressions slow.
_STRAY_CALLS = r"""
    SELECT count(*) FILTER (regexp_matches(output_text,
               '<[^<>\s]{0,12}(tool|function)[_▁](call|use)|<function=|<invoke name=|<\|python_tag'
               '|\[TOOL_CALLS\]|\bto=functions\.|\bfunctools\[')),
           count(*) FILTER (has_calls(output_text) OR has_calls(output))
    FROM responses
    WHERE contains(output_text, '<') OR contains(output_text, '[TOOL_CALLS]')
        OR contains(output_text, 'functions.') OR contains(output_text, 'functools[')
        OR contains(output_text, '_calls"') OR contains(output, '_calls"')
"""
# Percentiles are values that a row really has.
_SPREAD = """
    SELECT '{0}', count({0}), quantile_disc({0}, 0.5), quantile_disc({0}, 0.9),
           quantile_disc({0}, 0.99), max({0})
    FROM answers HAVING count({0}) > 0
"""
_SAMPLES = """
    WITH picked AS (
        SELECT outcome, error_kind, count(*) AS rows,
               unnest(arg_min({{'row': "row", 'id': custom_id, 'sample': sample,
                                'variant': variant}},
                              hash(custom_id, "sample", variant), {of_each})) AS one
        FROM answers GROUP BY outcome, error_kind
        ORDER BY outcome <> 'ok', rows DESC, outcome, error_kind LIMIT {most})
    SELECT outcome, picked.error_kind, "row", row_name(custom_id, "sample", variant),
           coalesce(error_message, incomplete_reason), request, output
    FROM picked JOIN responses ON "row" = one.row AND custom_id = one.id AND sample = one.sample
        AND variant IS NOT DISTINCT FROM one.variant
    ORDER BY outcome <> 'ok', rows DESC, outcome, picked.error_kind,
        hash(custom_id, "sample", variant)
"""


def read_report(path: Path, *, top: int = TOP_ROWS) -> Report:
    """The figures of a run that has ended, goes on, or was killed; journal included.

    `top`: of the slowest and the most expensive rows. Raises `JobError`, `StoreError`.
    """
    state = reading.state_now(path, reading.read_record(path))
    return ask(path, lambda database, files: _report(database, files, path, state, top))


def _report(
    database: duckdb.DuckDBPyConnection, files: Files, path: Path, state: str, top: int
) -> Report:
    record = files.record
    database.execute(f"SET memory_limit = '{_MEMORY}'")
    database.execute(_PREPARE)
    database.execute(_ROWS.replace("{tier}", _TIER))
    time = read_running_time(database, path)
    database.execute(_ANSWERS.format(_WAITED if time is not None and time.gaps else 0))

    def rows_of(query: str) -> list[dict[str, Any]]:
        found = database.execute(query)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def made(kind: Callable[..., T], query: str) -> tuple[T, ...]:
        return tuple(kind(*row) for row in database.execute(query).fetchall())

    (sums,) = rows_of(_SUMS)
    left, not_asked = record.left(sums["rows"])
    ((calls_in_text, chat_calls),) = database.execute(_STRAY_CALLS).fetchall()
    most = _MOST_KINDS * _SAMPLES_OF_EACH
    return Report(
        run=run_name(path),
        state=state,
        simulated=record.simulated,
        source=record.source_path or record.source,
        begun_at=record.started_at,
        not_in_input=record.gone.rows,
        left=left,
        not_asked=not_asked,
        **sums,
        unknown_usd=reading.read_unknown_usd(path, record),
        estimated=record.estimated,
        tables={
            section.name: rows_of(query.replace("{top}", str(top)))
            for section, query in TABLES.items()
        }
        | {"workers": read_workers(path)[:_WORKERS]},
        tokens=made(Tokens, _TOKENS)[0],
        spreads=sum((made(Spread, _SPREAD.format(name)) for name in _SPREADS), ()),
        latency_bins=_bins(database, "latency_s"),
        first_token_bins=_bins(database, "first_token_s"),
        timeline=read_timeline(database, path, time),
        samples=made(_sample, _SAMPLES.format(of_each=_SAMPLES_OF_EACH, most=most)),
        calls_in_text=calls_in_text,
        chat_calls=chat_calls,
    )


def _bins(database: duckdb.DuckDBPyConnection, name: str) -> tuple[Bin, ...]:
    """A histogram whose bars grow by the same factor; none where no row has the column."""
    low, high, rows = database.execute(
        f"SELECT min({name}), max({name}), count({name}) FROM answers"  # noqa: S608 - a column's name
    ).fetchall()[0]
    if low is None:
        return ()
    low, high = max(low, _LEAST_S), max(high, _LEAST_S) * (1 + 1e-9)
    if high < 2 * low:  # one bar would fill the chart
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(2), middle * math.sqrt(2)
    bins = min(_MOST_BINS, max(_FEWEST_BINS, round(2 * math.sqrt(rows))))
    factor = (high / low) ** (1 / bins)
    counts = dict(
        database.execute(
            f"""SELECT least(floor(ln(greatest({name}, ?) / ?) / ln(?)), ?)::INTEGER, count(*)
                FROM answers WHERE {name} IS NOT NULL GROUP BY 1""",  # noqa: S608 - the same
            [low, low, factor, bins - 1],
        ).fetchall()
    )
    return tuple(
        Bin(low * factor**at, low * factor ** (at + 1), counts.get(at, 0)) for at in range(bins)
    )


def _sample(outcome: str, error_kind: str | None, row: int, *texts: Any) -> Sample:
    custom_id, message, request, output = texts
    last = turns_of(request, output)[-_TURNS:]
    turns = tuple(Turn(_beginning(turn.who), _beginning(turn.text)) for turn in last)
    why = message and _beginning(message)
    return Sample(outcome, error_kind, row, _beginning(custom_id), why, turns)


def _beginning(text: str) -> str:
    """Printable, and how much more there is."""
    shown = printable(text[:_SHOWN])[:_SHOWN]  # codes are longer than the characters
    return shown if len(text) <= _SHOWN else f"{shown} … ({len(text) - _SHOWN:,} more characters)"
