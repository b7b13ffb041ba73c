"""What the attempts of a run used, asked of its tables in SQL: sums by what a price depends on.

What only rows say (cache-write tokens, searches) belongs to the attempt that brought the answer. It
is known by its response id, or by its tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
from msgspec import Struct

from batchrun.dialects.output_items import PAGE_ACTIONS, SEARCHING
from batchrun.errors import JobError
from batchrun.pricing.price_list import DAY, daily_changes, steps
from batchrun.records import RunRecord
from batchrun.reports.sql import ask, quoted
from batchrun.store.columns import response_schema

MOST_VALUES = 10_000  # of the column that sums are grouped by
_MOST_TOKENS = 2**40  # of one answer; what a server says beyond it is a slip
_WEB_COUNT = "'$.tool_usage.web_search.num_requests'"


class UsageCounts(Struct, frozen=True):
    """What rows or attempts add up to; tokens and searches as far as they are known."""

    rows: int
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
    value: str | None  # of the column asked for, as text
    kind: str | None  # first, retry, reask, hedge
    above: int  # the last of the `steps` that each input is longer than
    at: int  # the last of the `daily_changes` at or before the start, µs since 1970
    counted: int  # attempts whose tokens are known
    recorded_usd: float | None  # the sum of `cost_usd` of the rows; null where none has any
    reported_usd: float | None  # the same of `reported_cost_usd`


# As `count_searches` of the dialect has it: what the server itself counted of the web, else the
# calls that searched; a call that failed is none.
_SEARCHED = """
    CREATE TEMP TABLE searched AS
    SELECT custom_id, sample, variant,
           count(*) FILTER (has_searched AND type = 'file_search_call') AS file_calls,
           count(*) FILTER (has_searched AND type = 'web_search_call') AS web_calls
    FROM (SELECT *, status IS DISTINCT FROM 'failed' AND NOT coalesce(
              TRY(item ->> '$.action.type') IN {pages}, false) AS has_searched
          FROM tool_calls WHERE type IN {searching})
    GROUP BY ALL;
"""
_USED = """
    CREATE TEMP MACRO count_of(tokens, is_known) AS
        CASE WHEN is_known THEN least(greatest(coalesce(tokens, 0), 0), {most}) ELSE 0 END;
    CREATE TEMP VIEW used AS
    WITH answered AS (
        SELECT model_requested, model, service_tier, via, status, {value} AS value, attempts,
               cache_write_tokens, reasoning_tokens, file_calls,
               CASE WHEN file_calls IS NOT NULL AND TRY(json_type(usage, {web_count})) = 'UBIGINT'
                    THEN least(TRY(usage ->> {web_count})::UBIGINT, {most}) ELSE web_calls
               END AS web_calls,
               (list_max(list_transform(attempts, lambda one, position: CASE
                   WHEN one.response_id = response_id THEN len(attempts) + position
                   WHEN one.input_tokens = input_tokens AND one.output_tokens = output_tokens
                   THEN position END)) - 1) % len(attempts) + 1 AS answer_at
        FROM responses LEFT JOIN searched ON searched.custom_id = responses.custom_id
            AND searched.sample = responses.sample
            AND searched.variant IS NOT DISTINCT FROM responses.variant
    ), attempted AS (
        SELECT *, unnest(attempts) AS one, unnest(range(1, len(attempts) + 1)) AS position
        FROM answered
    )
    SELECT *, one.input_tokens IS NOT NULL AND one.output_tokens IS NOT NULL AS is_known,
           is_known AND answer_at IS NOT DISTINCT FROM position AS is_answer,
           count_of(one.input_tokens, is_known) AS reported,
           count_of(one.cached_tokens, is_known) AS cached,
           count_of(cache_write_tokens, is_answer) AS cache_written,
           coalesce(epoch_us(one.started_at), 0) AS started, started % {day} AS of_day
    FROM attempted
"""
_SUMS = """
    SELECT model_requested, model, service_tier, via, status, value, one.kind AS kind,
           CASE {steps} END AS above, started - of_day + CASE {changes} END AS at,
           0 AS rows, count(*) AS attempts, count(*) FILTER (is_known) AS counted,
           count(*) FILTER (NOT is_known AND one.cost_usd IS DISTINCT FROM 0) AS unknown,
           sum(greatest(reported, cached + cache_written))::BIGINT AS input_tokens,
           sum(cached)::BIGINT AS cached_tokens,
           sum(cache_written)::BIGINT AS cache_write_tokens,
           sum(count_of(one.output_tokens, is_known))::BIGINT AS output_tokens,
           sum(count_of(reasoning_tokens, is_answer))::BIGINT AS reasoning_tokens,
           sum(count_of(web_calls, is_answer))::BIGINT AS web_searches,
           sum(count_of(file_calls, is_answer))::BIGINT AS file_searches,
           NULL AS recorded_usd, NULL AS reported_usd
    FROM used GROUP BY ALL
    UNION ALL
    SELECT model_requested, model, service_tier, via, status, {value} AS value, NULL, -1, -1,
           count(*), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, fsum(cost_usd), fsum(reported_cost_usd)
    FROM responses GROUP BY ALL
"""


def read_usage(path: Path, by: str | None = None) -> list[UsageSum]:
    """The sums over all complete rows, by the values of the column `by` too.

    Raises `JobError` where there is no such column or it has too many values; `StoreError`.
    """
    return ask(path, lambda database, files: _read(database, files.record, path, by))


def _read(
    database: duckdb.DuckDBPyConnection, record: RunRecord, path: Path, by: str | None
) -> list[UsageSum]:
    schema = response_schema(record.layout, record.schema_version)
    value = "NULL"
    if by is not None:
        _check_column(path, record, schema, by)
        value = f"responses.{quoted(by)}"
        few = f"SELECT count(*) FROM (SELECT DISTINCT {value} FROM responses LIMIT ?)"  # noqa: S608
        (values,) = database.execute(few, [MOST_VALUES + 1]).fetchall()[0]
        if values > MOST_VALUES:
            raise JobError(
                f"the column {by} has more than {MOST_VALUES:,} different values; name one with "
                "fewer"
            )
    database.execute(_SEARCHED.format(searching=SEARCHING, pages=PAGE_ACTIONS))
    database.execute(_USED.format(value=value, most=_MOST_TOKENS, day=DAY, web_count=_WEB_COUNT))
    passed = _last_passed("reported >", steps())
    changed = _last_passed("of_day >=", daily_changes())
    query = _SUMS.format(value=value, steps=passed, changes=changed)
    sums = database.sql(query).to_arrow_table()
    if by is not None:
        sums = _with_text(sums, by, schema.field(by).type)
    return [UsageSum(**row) for row in sums.to_pylist()]


def _check_column(path: Path, record: RunRecord, schema: pa.Schema, by: str) -> None:
    if by not in schema.names:
        carried = ", ".join(column.name for column in record.layout.columns) or "none"
        raise JobError(f"{path}: there is no column {by}; carried columns are: {carried}")
    if pa.types.is_nested(schema.field(by).type):
        raise JobError(f"{path}: {by} holds {schema.field(by).type}; name a column of plain values")


def _last_passed(test: str, edges: Sequence[int]) -> str:
    """The cases of SQL for the last of the edges, which ascend, that a value passes."""
    return " ".join(f"WHEN {test} {edge} THEN {edge}" for edge in reversed(edges))


def _with_text(sums: pa.Table, by: str, kind: pa.DataType) -> pa.Table:
    """`value` as text. Raises `JobError` where its type has none."""
    values = sums["value"]
    try:
        if pa.types.is_temporal(kind):
            values = values.cast(kind)  # the database has its own precision and time zone
        values = values.cast(pa.string())
    except pa.ArrowException as error:
        raise JobError(f"{by} holds {kind}, which is no text; name another column") from error
    return sums.set_column(sums.column_names.index("value"), "value", values)
