"""Outcomes, records and run directories for the tests of the store."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from batchrun.errors import ErrorKind
from batchrun.records import (
    Attempt,
    Column,
    Failure,
    Layout,
    Outcome,
    Request,
    RunRecord,
    ToolCall,
    Usage,
)
from batchrun.store.run_dir import RunDir
from tests.runs import EMPTY, response, run_record
from tests.runs import column as make_column


def _request(row: int, carried: tuple[Any, ...] = (), custom_id: str | None = None) -> Request:
    return Request(
        row=row,
        custom_id=f"id-{row}" if custom_id is None else custom_id,
        source="prompts.jsonl",
        body=b'{"model":"m","input":"' + str(row).encode() + b'"}',
        hash=f"{row * 2654435761 % 2**64:016x}",
        model="m",
        max_output_tokens=None,
        carried=carried,
    )


def _answered(
    row: int,
    carried: tuple[Any, ...] = (),
    *,
    custom_id: str | None = None,
    calls: int = 0,
    text: str = "an answer",
    **changes: Any,
) -> Outcome:
    tool_calls = tuple(
        ToolCall(
            position=at,
            type="function_call",
            call_id=f"call_{at}",
            name="look_up",
            arguments='{"a":1}',
            arguments_valid=True,
            status="completed",
            item='{"type":"function_call"}',
        )
        for at in range(calls)
    )
    answer = response(
        id=f"resp_{row}",
        model="m-2026",
        service_tier="default",
        output_text=text,
        tool_calls=tool_calls,
        usage=Usage(input_tokens=10 + row, output_tokens=5, total_tokens=15 + row),
        usage_json='{"input_tokens":10}',
    )
    attempt = Attempt(1_700_000_000_000_000 + row, 0.25, "first", 200, request_id=f"req_{row}")
    return Outcome(
        request=_request(row, carried, custom_id),
        result=msgspec.structs.replace(answer, **changes),
        attempts=(attempt,),
        endpoint="https://example.test/v1",
        via="plain",
    )


def _failed(
    row: int, carried: tuple[Any, ...] = (), *, status: str = "failed", message: str = "no"
) -> Outcome:
    attempt = Attempt(1_700_000_000_000_000, 0.5, "first", 400, ErrorKind.BAD_REQUEST, message)
    return Outcome(
        request=_request(row, carried),
        result=Failure(ErrorKind.BAD_REQUEST, message, "bad", 400, status),
        attempts=(attempt,) if status != "invalid" else (),
        endpoint="https://example.test/v1",
        via="plain",
    )


@pytest.fixture(scope="session")
def answered() -> Callable[..., Outcome]:
    return _answered


@pytest.fixture(scope="session")
def failed() -> Callable[..., Outcome]:
    return _failed


@pytest.fixture(scope="session")
def column() -> Callable[..., Column]:
    return make_column


@pytest.fixture(scope="session")
def record() -> Callable[..., RunRecord]:
    return run_record


@pytest.fixture(scope="session")
def query() -> Callable[..., list[tuple[Any, ...]]]:
    """What DuckDB answers; `?` in the SQL is the glob of a table's parts."""

    def ask(sql: str, path: Path, table: str = "responses") -> list[tuple[Any, ...]]:
        return duckdb.execute(sql, [f"{path}/{table}/*.parquet"]).fetchall()

    return ask


@pytest.fixture(scope="session")
def begin() -> Callable[..., RunDir]:
    """A run directory, saved and started."""

    def open_and_start(
        path: Path, layout: Layout = EMPTY, *, part_rows: int = 1_000, **changes: Any
    ) -> RunDir:
        run_dir = RunDir.open(path)
        run_dir.save(run_record(layout, **changes))
        run_dir.start(part_rows=part_rows, part_bytes=64 << 20)
        return run_dir

    return open_and_start


@pytest.fixture(scope="session")
def seal_processes() -> Callable[[Path], list[int]]:
    """The processes that seal for a directory, whosever children they are."""

    def find(path: Path) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if str(path).encode() in words and any(
                    b"batchrun.store.writing" in word for word in words
                ):
                    found.append(int(process.name))
        return found

    return find
