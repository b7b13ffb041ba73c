"""Questions to a run's tables in SQL: parts and journal, as they stood at one instant."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import duckdb

from batchrun.errors import StoreError
from batchrun.store.files import Files, TableFiles, read_files
from batchrun.store.keys import KEY
from batchrun.store.part_files import opened
from batchrun.store.schema import new_names, version_of

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
            _add_view(database, "responses", files.responses)
            _add_view(database, "tool_calls", files.tool_calls)
            return answer(database, files)
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]  # below it stands the SQL
            raise StoreError(
                f"{path}: its tables cannot be read ({reason}); "
                f"batchrun verify {path} says what is damaged"
            ) from error


def _add_view(database: duckdb.DuckDBPyConnection, name: str, files: TableFiles) -> None:
    database.register(f"no_{name}", files.schema.empty_table())
    pieces = [f"SELECT * FROM no_{name}"]  # noqa: S608 - all columns, also where parts lack some
    for names, parts in _by_names(files):
        renamed = ", ".join(f"{_quoted(old)} AS {_quoted(new)}" for old, new in names)
        every = f"* RENAME ({renamed})" if renamed else "*"
        pieces.append(f"SELECT {every} FROM {_scan(parts)} part {_anti(files)}")  # noqa: S608 - our own words
    if files.journal:
        pieces.append(f"SELECT * FROM {_scan(files.journal)}")  # noqa: S608 - the same
    sql = " UNION ALL BY NAME ".join(pieces)
    database.execute(f"CREATE TEMP VIEW {name} AS {sql}")


def _by_names(files: TableFiles) -> list[tuple[tuple[tuple[str, str], ...], tuple[Path, ...]]]:
    """The parts, those apart whose carried columns are called otherwise than in the schema."""
    found: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    may_differ = files.layout is not None and bool(new_names(files.layout, 1))
    for path in files.parts:
        names: Mapping[str, str] = {}
        if may_differ and files.layout is not None:
            with opened(path) as part:
                names = new_names(files.layout, version_of(part.schema_arrow) or 1)
        found.setdefault(tuple(names.items()), []).append(path)
    return [(names, tuple(paths)) for names, paths in found.items()]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _anti(files: TableFiles) -> str:
    """Leaves out the rows of parts that the journal holds anew; keys may hold nulls."""
    same = (f"part.{name} IS NOT DISTINCT FROM replaced.{name}" for name in KEY)
    return f"ANTI JOIN replaced ON {' AND '.join(same)}" if files.replaced else ""


def _scan(paths: tuple[Path, ...]) -> str:
    names = (str(path).translate(_GLOB).replace("'", "''") for path in paths)
    return "read_parquet([" + ", ".join(f"'{name}'" for name in names) + "], union_by_name = true)"
