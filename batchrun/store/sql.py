"""Questions to a run's tables in SQL: parts and journal, as they stood at one instant."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from batchrun.errors import StoreError
from batchrun.store.files import Files, TableFiles, read_files
from batchrun.store.schema import TOOL_CALLS, response_schema

_GLOB = str.maketrans({"[": "[[]", "*": "[*]", "?": "[?]"})  # a folder may be called anything
_SETTINGS = {
    "memory_limit": "1GB",  # what goes beyond is put aside on disk
    "autoinstall_known_extensions": "false",  # nothing is ever fetched
    "autoload_known_extensions": "false",
}

T = TypeVar("T")


def ask(path: Path, answer: Callable[[duckdb.DuckDBPyConnection, Files], T]) -> T:
    """What `answer` makes of the views `responses` and `tool_calls`, which hold each row once.

    It may be called again, see `read_files`. Raises `JobError`, `StoreError`.
    """
    return read_files(path, lambda files: _asked(path, files, answer))


def _asked(path: Path, files: Files, answer: Callable[[duckdb.DuckDBPyConnection, Files], T]) -> T:
    settings = {**_SETTINGS, "temp_directory": str(files.aside)}
    with duckdb.connect(config=settings) as database:  # type: ignore[arg-type] # all are text
        try:
            database.register("replaced", files.responses.replaced.table())
            schema = response_schema(files.record.layout)
            _add_view(database, "responses", files.responses, schema)
            _add_view(database, "tool_calls", files.tool_calls, TOOL_CALLS)
            return answer(database, files)
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]  # below it stands the SQL
            raise StoreError(
                f"{path}: its tables cannot be read ({reason}); "
                f"batchrun verify {path} says what is damaged"
            ) from error


def _add_view(
    database: duckdb.DuckDBPyConnection, name: str, files: TableFiles, schema: pa.Schema
) -> None:
    database.register(f"no_{name}", schema.empty_table())
    pieces = []
    if files.parts:
        anti = "ANTI JOIN replaced USING (custom_id, sample)" if files.replaced else ""
        pieces.append(f"SELECT * FROM {_scan(files.parts)} {anti}")  # noqa: S608 - our own words
    if files.journal:
        pieces.append(f"SELECT * FROM {_scan(files.journal)}")  # noqa: S608 - the same
    sql = " UNION ALL BY NAME ".join(pieces) or f"SELECT * FROM no_{name}"  # noqa: S608 - the same
    database.execute(f"CREATE TEMP VIEW {name} AS {sql}")


def _scan(paths: tuple[Path, ...]) -> str:
    names = (str(path).translate(_GLOB).replace("'", "''") for path in paths)
    return "read_parquet([" + ", ".join(f"'{name}'" for name in names) + "])"
