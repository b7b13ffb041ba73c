"""DuckDB, pandas and Polars read the tables alike, whatever the rows came to; the figures agree."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

Run = Callable[..., CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]

_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")
_TOOL = {
    "type": "function",
    "name": "count_things",
    "parameters": {
        "type": "object",
        "properties": {"number": {"type": "integer"}},
        "required": ["number"],
    },
}
_CARRIED = {"question": "VARCHAR", "answer": "VARCHAR", "level": "BIGINT"}
# DESIGN 2.5, in DuckDB's words.
_ATTEMPT = (
    "STRUCT(started_at TIMESTAMP WITH TIME ZONE, latency_s DOUBLE, kind VARCHAR, "
    "http_status SMALLINT, error_kind VARCHAR, error_message VARCHAR, request_id VARCHAR, "
    "client_request_id VARCHAR, response_id VARCHAR, input_tokens BIGINT, cached_tokens BIGINT, "
    "output_tokens BIGINT, cost_usd DOUBLE, endpoint VARCHAR)[]"
)
_CITATION = (
    'STRUCT("type" VARCHAR, url VARCHAR, title VARCHAR, file_id VARCHAR, start_index BIGINT, '
    "end_index BIGINT)[]"
)
_TEXT, _INT, _AT = "VARCHAR", "BIGINT", "TIMESTAMP WITH TIME ZONE"
_KEY = {"row": _INT, "custom_id": _TEXT, "sample": "INTEGER", "variant": _TEXT}
_RESPONSES = {
    **_KEY,
    "source": _TEXT,
    **_CARRIED,
    "ok": "BOOLEAN",
    "status": _TEXT,
    "truncated": "BOOLEAN",
    "http_status": "SMALLINT",
    **dict.fromkeys(("error_kind", "error_code", "error_message", "incomplete_reason"), _TEXT),
    **dict.fromkeys(("response_id", "request_id", "model", "model_requested"), _TEXT),
    **dict.fromkeys(("service_tier", "endpoint", "via"), _TEXT),
    **dict.fromkeys(("output_text", "refusal", "reasoning_summary", "reasoning_text"), _TEXT),
    **dict.fromkeys(("api", "endpoint_name"), _TEXT),
    "embedding": "FLOAT[]",
    "turn_count": "INTEGER",
    "output": _TEXT,
    "output_parsed_ok": "BOOLEAN",
    "citations": _CITATION,
    "tool_call_count": "INTEGER",
    **dict.fromkeys(("input_tokens", "cached_tokens", "cache_write_tokens"), _INT),
    **dict.fromkeys(("output_tokens", "reasoning_tokens", "total_tokens"), _INT),
    "usage": _TEXT,
    "cost_usd": "DOUBLE",
    "priced_as": _TEXT,
    "reported_cost_usd": "DOUBLE",
    "attempts": _ATTEMPT,
    "started_at": _AT,
    "finished_at": _AT,
    "latency_s": "DOUBLE",
    "first_token_s": "DOUBLE",
    "request": _TEXT,
    "request_hash": _TEXT,
}
_TOOL_CALLS = {
    **_KEY,
    "response_id": _TEXT,
    "position": "INTEGER",
    **dict.fromkeys(("type", "call_id", "name", "arguments"), _TEXT),
    "arguments_valid": "BOOLEAN",
    "status": _TEXT,
    "item": _TEXT,
    "turn": "INTEGER",
    **dict.fromkeys(("result", "result_error"), _TEXT),
    "result_latency_s": "DOUBLE",
}


def _schemas(run: Path, table: str) -> tuple[Any, ...]:
    """The schema as DuckDB, pandas, Polars and each part tell it."""
    parts = str(run / table / "*.parquet")
    with duckdb.connect() as connection:
        described = connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [parts]).fetchall()
    by_duckdb = {row[0]: row[1] for row in described}
    frame = pd.read_parquet(run / table, dtype_backend="pyarrow")
    by_pandas = {name: str(kind) for name, kind in frame.dtypes.items()}
    by_polars = dict(pl.read_parquet(parts).schema)
    by_part = {pq.read_schema(part).remove_metadata() for part in (run / table).iterdir()}
    assert len(by_part) == 1
    assert list(by_duckdb) == list(by_pandas) == list(by_polars)
    return by_duckdb, by_pandas, by_polars, by_part


def test_three_tools_read_the_same_schema_whatever_the_rows_came_to(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    batchrun: Run,
    simulator: Any,
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    base_url = simulator("--bad-arguments", "0.2", "--refusals", "0.1")
    source = write_rows(questions(60))
    command = ("run", source, *_ASK, "--base-url", base_url)
    tools = ("--set", f"tools={json.dumps([_TOOL])}")

    def schemas() -> list[tuple[Any, ...]]:
        return [_schemas(tmp_path / "run", table) for table in ("responses", "tool_calls")]

    done = batchrun(*command, *tools)
    assert done.returncode in (0, 4), done.stderr
    normal = schemas()
    assert list(normal[0][0].items()) == list(_RESPONSES.items())
    assert list(normal[1][0].items()) == list(_TOOL_CALLS.items())
    write_rows(questions(90))
    assert batchrun(*command, *tools).returncode in (0, 4)
    assert totals()[:2] == (90, 90)
    assert schemas() == normal
    assert len(list((tmp_path / "run" / "responses").iterdir())) > 1
    (tmp_path / "run").rename(tmp_path / "first")
    write_rows(questions(12))
    failed = batchrun(*command, "--set", "temperature=9")
    assert failed.returncode == 4
    assert totals() == (12, 12, 0)
    assert schemas() == normal


def test_columns_keep_one_type_for_the_whole_source(
    tmp_path: Path, write_rows: Any, batchrun: Run, query: Query
) -> None:
    kinds: list[Any] = [1, 2.5, None, {"a": []}, [1], "text", True]
    rows = [{"prompt": f"Row {n}", "mixed": kind, "Row": n} for n, kind in enumerate(kinds)]
    rows[3] |= {"empty": {}, "ok": "mine"}
    source = write_rows(rows)
    assert batchrun("run", source, "--model", "m", "--simulate", "-o", "run").returncode == 0
    assert pl.read_parquet(f"{tmp_path}/run/responses/*.parquet").height == len(rows)
    found = query("SELECT mixed, Row_input, empty, ok_input FROM read_parquet(?) ORDER BY row")
    assert [row[1] for row in found] == list(range(7))
    assert [None if row[0] is None else json.loads(row[0]) for row in found] == kinds
    assert found[3][2:] == ("{}", "mine")


def test_the_summary_says_what_duckdb_computes(
    write_rows: Any, questions: Any, batchrun: Run, simulator: Any, query: Query
) -> None:
    base_url = simulator(
        *("--faults", "0.05", "--fault", "truncated_json=0.3", "--retry-after", "0.05"),
        *("--refusals", "0.1", "--bad-arguments", "0.2", "--seed", "3"),
    )
    rows = questions(150)
    for number, row in enumerate(rows):
        row["heat"] = 7 if number % 40 == 5 else 1
        row["most"] = 16 if number % 10 == 3 else 4_000
        row["model"] = "o4-mini" if number % 9 == 4 else "gpt-4.1"
    for row in rows:
        if row["model"] == "o4-mini":
            row["heat"] = None
    lines = [
        {
            "input": row["question"],
            "model": row["model"],
            "temperature": row["heat"],
            "max_output_tokens": row["most"],
            "tools": [_TOOL] if number % 2 else None,
        }
        for number, row in enumerate(rows)
    ]
    command = ("run", write_rows(lines), "-o", "run", "--base-url", base_url, "--json")
    assert batchrun(*command, "--limit", "60").returncode == 4
    done = batchrun(*command)
    assert done.returncode == 4, done.stderr
    summary = json.loads(done.stdout)
    tokens = ("input", "cached", "output", "reasoning", "total")
    sums = ", ".join(f"coalesce(sum({name}_tokens), 0)::BIGINT" for name in tokens)
    counted = query(
        f"""
        SELECT count(*), count(*) FILTER (ok), count(*) FILTER (NOT ok),
            count(*) FILTER (truncated), count(refusal), sum(len(attempts))::BIGINT,
            sum(len(list_filter(attempts, lambda a: a.kind <> 'first')))::BIGINT,
            sum(tool_call_count)::BIGINT, {sums}
        FROM read_parquet(?)
        """  # noqa: S608 - names from above
    )[0]
    names = ("rows", "ok", "not_ok", "truncated", "refused", "attempts", "retries", "tool_calls")
    assert tuple(summary[name] for name in names) == counted[:8]
    assert tuple(summary[f"{name}_tokens"] for name in tokens) == counted[8:]
    assert min(counted[:8]) > 0
    assert min(counted[8:]) >= 0
    for column, name in (("status", "statuses"), ("error_kind", "error_kinds")):
        pairs = query(
            f"SELECT {column}, count(*) FROM read_parquet(?) WHERE {column} IS NOT NULL GROUP BY 1"  # noqa: S608 - names from above
        )
        assert summary[name] == dict(pairs)
        assert len(pairs) > 1
    assert query("SELECT count(*) FROM read_parquet(?)", table="tool_calls") == [(counted[7],)]
    invalid = "SELECT count(*) > 0 FROM read_parquet(?) WHERE NOT arguments_valid"
    assert query(invalid, table="tool_calls") == [(True,)]
    again = json.loads(batchrun(*command).stdout)
    stand = json.loads(batchrun("status", "run", "--json").stdout)
    for name in (*names, "statuses", "error_kinds", *(f"{name}_tokens" for name in tokens)):
        assert again[name] == stand[name] == summary[name]


@pytest.mark.parametrize("store", ["true", "false"])
def test_requests_are_stored_where_the_job_says_so(
    store: str, write_job: Any, write_rows: Any, questions: Any, batchrun: Run, query: Query
) -> None:
    write_rows(questions(20))
    write_job(
        f"""
        [input]
        path = "prompts.jsonl"
        carry = ["answer"]
        [request]
        model = "gpt-4.1"
        input = "{{{{ question }}}}"
        [output]
        path = "run"
        store_request = {store}
        """
    )
    assert batchrun("run", "job.toml", "--simulate").returncode == 0
    counted = query(
        "SELECT count(request), count(request_hash), count(answer) FROM read_parquet(?)"
    )
    assert counted == [(20 if store == "true" else 0, 20, 20)]
    names = {row[0] for row in query("DESCRIBE SELECT * FROM read_parquet(?)")}
    assert "level" not in names
    assert batchrun("run", "job.toml", "--simulate").returncode == 0
