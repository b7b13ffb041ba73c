"""What the attempts of a run used, asked of its tables in SQL: sums by what a price depends on.

What only rows say (cache-write tokens, searches) belongs to the attempt that brought the answer. It
is known by its response id, or by its tokens. Attempts from before a row was sent again may be of
another model, so they keep the cost that was calculated for them.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
from msgspec import Struct

from batchrun.dialects.output_items import PAGE_ACTIONS, SEARCHING
from batchrun.errors import JobError
from batchrun.formats.printable import nearest
from batchrun.pricing.price_list import DAY, daily_changes, steps
from batchrun.reports.sql import Files, ask, own_names, quoted

MOST_VALUES = 10_000  # groups
# Parts of a time, and how each is written.
UNITS = {
    "year": "%Y",
    "month": "%Y-%m",
    "week": "%G-W%V",
    "day": "%Y-%m-%d",
    "hour": "%Y-%m-%d %H:00",
}
_MOST_TOKENS = 2**40  # of one answer; what a server says beyond it is a slip
_VALUE = "batchrun_value_"  # columns of what is grouped by
_ROWS = "all_responses AS responses"  # where that is calculated
_WEB_COUNT = "'$.tool_usage.web_search.num_requests'"


class UsageCounts(Struct, frozen=True):
    """What rows or attempts add up to; tokens and searches as far as they are known."""

    rows: int
    ok: int  # rows
    attempts: int
    unknown: int  # attempts that may be billed and reported no usage
    input_tokens: int  # at least cached and cache-write tokens together, in each attempt
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    web_searches: int
    file_searches: int


class UsageSum(UsageCounts, frozen=True):
    """Either `rows` (then `kind` is null) or `attempts`, alike in all that follows."""

    model_requested: str | None
    model: str | None
    service_tier: str | None
    via: str
    status: str
    variant: str | None
    values: tuple[str | None, ...]  # of the columns asked for, as text
    kind: str | None  # first, retry, reask, hedge
    above: int  # the last of the `steps` that each input is longer than
    at: int  # the last of the `daily_changes` at or before the start, µs since 1970
    counted: int  # attempts whose tokens are known
    attempts_usd: float | None  # what these cost as calculated then
    is_older: bool  # the rows have been sent again since, perhaps to another model
    recorded_usd: float | None  # the sum of `cost_usd` of the rows; null where none has any
    reported_usd: float | None  # the same of `reported_cost_usd`


class Grouping(Struct, frozen=True):
    """What sums are grouped by: a column, a time cut to one of the `UNITS`, or SQL over a row."""

    column: str  # or the expression
    unit: str | None = None
    is_expression: bool = False


# As `count_searches` of the dialect has it: what the server itself counted of the web, else the
# calls that searched; a call that failed is none.
_SEARCHED = """
    CREATE TEMP TABLE searched AS
    WITH called AS (
        SELECT custom_id, sample, variant,
               count(*) FILTER (has_searched AND type = 'file_search_call') AS file_calls,
               count(*) FILTER (has_searched AND type = 'web_search_call') AS web_calls
        FROM (SELECT *, status IS DISTINCT FROM 'failed' AND NOT coalesce(
                  TRY(item ->> '$.action.type') IN {pages}, false) AS has_searched
              FROM tool_calls WHERE type IN {searching})
        GROUP BY ALL
    ), reported AS (
        SELECT custom_id, sample, variant,
               least(TRY(usage ->> {web_count})::UBIGINT, {most}) AS web_calls
        FROM responses WHERE contains(usage, '"tool_usage"')
            AND TRY(json_type(usage, {web_count})) = 'UBIGINT'
    )
    SELECT coalesce(called.custom_id, reported.custom_id) AS custom_id,
           coalesce(called.sample, reported.sample) AS sample,
           coalesce(called.variant, reported.variant) AS variant,
           coalesce(file_calls, 0) AS file_calls,
           coalesce(reported.web_calls, called.web_calls, 0) AS web_calls
    FROM called FULL JOIN reported ON called.custom_id = reported.custom_id
        AND called.sample = reported.sample
        AND called.variant IS NOT DISTINCT FROM reported.variant
    WHERE reported.web_calls > 0 OR called.custom_id IS NOT NULL
"""
_WITH_SEARCHES = """
    valued responses LEFT JOIN searched ON searched.custom_id = responses.custom_id
        AND searched.sample = responses.sample
        AND searched.variant IS NOT DISTINCT FROM responses.variant
"""
_USED = """
    CREATE TEMP MACRO count_of(tokens, is_known) AS
        CASE WHEN is_known THEN least(greatest(coalesce(tokens, 0), 0), {most}) ELSE 0 END;
    CREATE TEMP VIEW used AS
    WITH answered AS (
        SELECT model_requested, model, service_tier, via, status, responses.variant AS variant,
               {values} attempts,
               cache_write_tokens, reasoning_tokens, {searches},
               CASE WHEN len(attempts) = 1 THEN 1 ELSE
                   (list_max(list_transform(attempts, lambda one, position: CASE
                       WHEN one.response_id = response_id THEN len(attempts) + position
                       WHEN one.input_tokens = input_tokens AND one.output_tokens = output_tokens
                       THEN position END)) - 1) % len(attempts) + 1
               END AS answer_at,
               CASE WHEN len(attempts) = 1 THEN 1 ELSE
                   list_max(list_transform(attempts, lambda one, position:
                       CASE WHEN one.kind = 'first' THEN position END))
               END AS last_first
        FROM {table}
    ), attempted AS (
        SELECT *, unnest(attempts) AS one, unnest(range(1, len(attempts) + 1)) AS position
        FROM answered
    )
    SELECT *, one.input_tokens IS NOT NULL AND one.output_tokens IS NOT NULL AS is_known,
           is_known AND answer_at IS NOT DISTINCT FROM position AS is_answer,
           is_known AND position < last_first AND one.cost_usd IS NOT NULL AS is_older,
           count_of(one.input_tokens, is_known) AS reported,
           count_of(one.cached_tokens, is_known) AS cached,
           count_of(cache_write_tokens, is_answer) AS cache_written,
           coalesce(epoch_us(one.started_at), 0) AS started, started % {day} AS of_day
    FROM attempted
"""
_SUMS = """
    SELECT model_requested, model, service_tier, via, status, variant, {values} one.kind AS kind,
           CASE {steps} END AS above, started - of_day + CASE {changes} END AS at,
           0 AS rows, 0 AS ok, count(*) AS attempts, count(*) FILTER (is_known) AS counted,
           count(*) FILTER (NOT is_known AND one.cost_usd IS DISTINCT FROM 0) AS unknown,
           sum(greatest(reported, cached + cache_written))::BIGINT AS input_tokens,
           sum(cached)::BIGINT AS cached_tokens,
           sum(cache_written)::BIGINT AS cache_write_tokens,
           sum(count_of(one.output_tokens, is_known))::BIGINT AS output_tokens,
           sum(count_of(reasoning_tokens, is_answer))::BIGINT AS reasoning_tokens,
           sum(count_of(web_calls, is_answer))::BIGINT AS web_searches,
           sum(count_of(file_calls, is_answer))::BIGINT AS file_searches,
           fsum(one.cost_usd) AS attempts_usd, coalesce(is_older, false) AS is_older,
           NULL AS recorded_usd, NULL AS reported_usd
    FROM used GROUP BY ALL
    UNION ALL
    SELECT model_requested, model, service_tier, via, status, variant, {values} NULL, -1, -1,
           count(*), count(*) FILTER (ok), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, false,
           fsum(cost_usd), fsum(reported_cost_usd)
    FROM valued GROUP BY ALL
"""


_NO_NAME = re.compile(r"[^\w.:\- ]")  # what stands in no name of a column, but in SQL
_TIMES = (pa.types.is_timestamp, pa.types.is_date, pa.types.is_string, pa.types.is_large_string)


def grouping_of(text: str, known: Iterable[str]) -> Grouping:
    """`COLUMN`, `COLUMN:UNIT`, or SQL. Raises `JobError` where there is no such unit."""
    column, colon, unit = text.rpartition(":")
    if text in known:
        return Grouping(text)
    if _NO_NAME.search(text):
        return Grouping(text, is_expression=True)
    if not colon:
        return Grouping(text)
    if unit not in UNITS:
        raise JobError(f"--by {text}: there is no unit {unit}; {nearest(unit, UNITS)}")
    return Grouping(column, unit)


def read_usage(path: Path, by: Sequence[Grouping] = ()) -> list[UsageSum]:
    """The sums over all complete rows, for each combination of the values of `by`.

    A column that this run does not have is null. Raises `JobError` where a column cannot be grouped
    by or there are too many groups; `StoreError`.
    """
    return ask(path, lambda database, files: _read(database, files, path, by))


def _read(
    database: duckdb.DuckDBPyConnection, files: Files, path: Path, by: Sequence[Grouping]
) -> list[UsageSum]:
    schema = files.responses.schema
    database.execute("SET TimeZone = 'UTC'")
    titles = [f"{_VALUE}{at}" for at in range(len(by))]
    values = "".join(f"{title}, " for title in titles)
    asked = (
        f", {_expression(one, schema, path, database)} AS {title}"
        for one, title in zip(by, titles, strict=True)
    )
    # What is grouped by may be carried; no other query may meet the names of carried columns.
    columns = own_names(files.record) + "".join(asked)
    database.execute(f"CREATE TEMP VIEW valued AS SELECT {columns} FROM {_ROWS}")  # noqa: S608
    if by:
        few = f"SELECT count(*) FROM (SELECT DISTINCT {values} FROM valued LIMIT ?)"  # noqa: S608
        (groups,) = database.execute(few, [MOST_VALUES + 1]).fetchall()[0]
        if groups > MOST_VALUES:
            which = ", ".join(one.column for one in by)
            raise JobError(
                f"{path}: {which} would make more than {MOST_VALUES:,} groups; name columns with "
                "fewer different values"
            )
    searching = {"searching": SEARCHING, "pages": PAGE_ACTIONS}
    database.execute(_SEARCHED.format(**searching, web_count=_WEB_COUNT, most=_MOST_TOKENS))
    has_searches = database.execute("SELECT count(*) FROM searched").fetchall()[0][0] > 0
    searches, table = "0 AS file_calls, 0 AS web_calls", "valued responses"
    if has_searches:
        searches = "searched.file_calls AS file_calls, searched.web_calls AS web_calls"
        table = _WITH_SEARCHES
    database.execute(
        _USED.format(values=values, searches=searches, table=table, most=_MOST_TOKENS, day=DAY)
    )
    passed = _last_passed("reported >", steps())
    changed = _last_passed("of_day >=", daily_changes())
    query = _SUMS.format(values=values, steps=passed, changes=changed)
    sums = database.sql(query).to_arrow_table()
    texts = [_texts(sums[title], one, schema) for one, title in zip(by, titles, strict=True)]
    sums = sums.drop_columns(titles)
    all_values = list(zip(*texts, strict=True)) if by else [()] * sums.num_rows
    return [
        UsageSum(**row, values=values)
        for row, values in zip(sums.to_pylist(), all_values, strict=True)
    ]


def _expression(
    one: Grouping, schema: pa.Schema, path: Path, database: duckdb.DuckDBPyConnection
) -> str:
    """SQL for a value of `responses`. Raises `JobError` where there is none to group by."""
    if one.is_expression:
        # What fails for a row, as JSON that is none, is null there.
        value = f"CAST(TRY((\n{one.column}\n)) AS VARCHAR)"
        try:
            query = f"SELECT {value} FROM {_ROWS} LIMIT 0"  # noqa: S608 - the user's
            if len(duckdb.extract_statements(query)) != 1:
                raise JobError(f"--by {one.column}: more than one statement; give an expression")
            database.execute(query)
        except duckdb.Error as error:
            said = str(error).partition("\n")[0]
            raise JobError(f"{path}: --by {one.column} cannot be calculated: {said}") from error
        return value
    if one.column not in schema.names:
        return "NULL::VARCHAR"
    kind = schema.field(one.column).type
    if pa.types.is_nested(kind):
        raise JobError(f"{path}: {one.column} holds {kind}; name a column of plain values")
    name = quoted(one.column)
    if one.unit is None:
        return name
    if not any(is_kind(kind) for is_kind in _TIMES):
        raise JobError(
            f"{path}: {one.column} holds {kind}, which is not a time; leave :{one.unit} out"
        )
    # In UTC, whatever it is written in; a text that is no time is null.
    time = f"make_timestamp(epoch_us(TRY_CAST({name} AS TIMESTAMPTZ)))"
    return f"strftime({time}, '{UNITS[one.unit]}')"


def _last_passed(test: str, edges: Sequence[int]) -> str:
    """The cases of SQL for the last of the edges, which ascend, that a value passes."""
    return " ".join(f"WHEN {test} {edge} THEN {edge}" for edge in reversed(edges))


def _texts(values: pa.ChunkedArray, one: Grouping, schema: pa.Schema) -> list[str | None]:
    """Values as text. Raises `JobError` where their type has none."""
    if one.unit is not None or one.is_expression or one.column not in schema.names:
        found: list[str | None] = values.to_pylist()
        return found
    kind = schema.field(one.column).type
    try:
        if pa.types.is_temporal(kind):
            values = values.cast(kind)  # the database has its own precision and time zone
        found = values.cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise JobError(
            f"{one.column} holds {kind}, which is not text; name another column"
        ) from error
    return found
