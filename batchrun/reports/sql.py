"""Questions to a run's tables in SQL: parts and journal, at one instant."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.records import Layout, RowKey, RunRecord
from batchrun.remote.part_stubs import dataset_of, read_stub
from batchrun.remote.run_link import run_name
from batchrun.store.columns import (
    KEY,
    NO_COLUMNS,
    layout_of,
    new_names,
    own_columns,
    response_schema,
    tool_call_schema,
)
from batchrun.store.files import RESPONSES, TOOL_CALLS, WRITER, FileId, storing
from batchrun.store.parts import new_files, opened, write_parts
from batchrun.store.reading import read_record
from batchrun.store.snapshot import Snapshot, read_snapshots

T = TypeVar("T")
_GLOB = str.maketrans({"[": "[[]", "*": "[*]", "?": "[?]"})  # a folder may be called anything
_SETTINGS = {
    "memory_limit": "1GB",  # what goes beyond is written to disk
    "autoinstall_known_extensions": "false",  # nothing is ever fetched
    "autoload_known_extensions": "false",
}


class TableFiles(Struct, frozen=True):
    """One table: each row is in one part, or in one file made of the journal."""

    parts: tuple[Path, ...]
    journal: tuple[Path, ...]  # at least one, if an empty one, with all columns
    replaced: frozenset[RowKey]  # rows of the parts that `journal` has a newer outcome of
    schema: pa.Schema  # that all rows are read with
    layout: Layout  # what they carry


class Files(Struct, frozen=True):
    """Both tables, and a folder for temporary files."""

    record: RunRecord
    responses: TableFiles
    tool_calls: TableFiles
    temporary: Path  # deleted afterwards


def read_files(path: Path, read: Callable[[Files], T]) -> T:
    """What `read` returns for the run's files; it is called again where a seal replaced one.

    The journal's rows are written to files outside the run directory, which is not changed.
    Raises `JobError`, `StoreError` and what `read` raises.
    """
    return read_all_files([path], lambda files: read(files[0]))


def read_all_files(paths: Sequence[Path], read: Callable[[Sequence[Files]], T]) -> T:
    """The same for several runs at once."""
    records = [read_record(path) for path in paths]

    def read_taken(taken: Sequence[Snapshot]) -> T:
        with tempfile.TemporaryDirectory(prefix="batchrun-") as name:
            folders = [Path(name) / str(at) for at in range(len(taken))]
            return read(list(map(_files, taken, records, folders)))

    return read_snapshots(paths, read_taken)


def _files(now: Snapshot, record: RunRecord, folder: Path) -> Files:
    """`folder` is made, for the journal's rows."""
    layout, version = record.layout, record.schema_version
    folder.mkdir()

    def table(name: str, parts: tuple[Path, ...], schema: pa.Schema) -> TableFiles:
        empty = folder / name / "empty.parquet"
        pq.write_table(schema.empty_table(), empty)
        journal = (*(path for path in written if path.parent.name == name), empty)
        carried = layout if name == RESPONSES else NO_COLUMNS
        return TableFiles(parts, journal, now.replaced, schema, carried)

    with storing(folder, "write the journal's rows"), new_files() as new:
        renames = write_parts(new, folder, FileId(WRITER, 0), now.outcomes(), record)
        written = [folder / source for source, _ in renames]
        responses = table(RESPONSES, now.responses, response_schema(layout, version))
        tool_calls = table(TOOL_CALLS, now.tool_calls, tool_call_schema(version))
    return Files(record, responses, tool_calls, folder)


def ask(path: Path, answer: Callable[[duckdb.DuckDBPyConnection, Files], T]) -> T:
    """What `answer` returns for the views of `add_views`.

    It may be called again, see `read_files`. Raises `JobError`, `StoreError`.
    """

    def asked(files: Files) -> T:
        with connected(files.temporary) as database:
            try:
                add_views(database, files)
                return answer(database, files)
            except duckdb.Error as error:
                raise unreadable(path, error) from error

    return read_files(path, asked)


def add_views(database: duckdb.DuckDBPyConnection, files: Files, of: str = "") -> None:
    """The views `responses` and `tool_calls`, which hold each row once, with `of` after the names.

    Carried columns have any name, also one that a query gives to something else. So `responses` has
    our own columns alone, and `all_responses` the carried ones too.
    """
    views = {
        f"all_{RESPONSES}": select_of(files.responses, database, of),
        RESPONSES: f"SELECT {own_names(files.record)} FROM all_{RESPONSES}{of}",  # noqa: S608
        TOOL_CALLS: select_of(files.tool_calls, database, of),
    }
    for name, select in views.items():
        database.execute(f"CREATE TEMP VIEW {name}{of} AS {select}")


def own_names(record: RunRecord) -> str:
    """The columns of `responses` that are not carried, as a query selects them."""
    return ", ".join(map(quoted, own_columns(record.schema_version)))


def connected(temporary: Path) -> duckdb.DuckDBPyConnection:
    """A database in memory; what does not fit is written below `temporary`."""
    settings = {**_SETTINGS, "temp_directory": str(temporary)}
    return duckdb.connect(config=settings)  # type: ignore[arg-type] # all are text


def unreadable(path: Path, error: duckdb.Error) -> StoreError:
    reason = str(error).partition("\n")[0]  # the SQL follows
    return StoreError(
        f"{run_name(path)}: its tables cannot be read ({reason}); batchrun verify {run_name(path)} "
        "says what is damaged"
    )


def _table_of(keys: frozenset[RowKey]) -> pa.Table:
    schema = pa.schema([response_schema(NO_COLUMNS).field(name) for name in KEY])
    return pa.Table.from_pylist([dict(zip(KEY, key, strict=True)) for key in keys], schema)


def select_of(files: TableFiles, database: duckdb.DuckDBPyConnection, of: str = "") -> str:
    """The query for all rows of a table. `of`: what names the run, where there are several."""
    # Rows of parts that the journal has newer outcomes of are left out; keys may hold nulls.
    replaced = f"replaced{of}"
    same = " AND ".join(f"part.{name} IS NOT DISTINCT FROM {replaced}.{name}" for name in KEY)
    left_out = f"ANTI JOIN {replaced} ON {same}" if files.replaced else ""
    if files.replaced:
        database.register(replaced, _table_of(files.replaced))
    pieces = [f"SELECT * FROM {_scan(files.journal)}"]  # noqa: S608 - our own words, as below
    for names, parts in _by_names(files).items():
        renamed = ", ".join(f"{quoted(old)} AS {quoted(new)}" for old, new in names)
        every = f"* RENAME ({renamed})" if renamed else "*"
        local = [part for part in parts if read_stub(part) is None]
        scans = [_scan(local)] if local else []
        if len(local) < len(parts):  # DuckDB reads files of this machine
            remote = f"remote_{id(files)}_{len(pieces)}"
            stubs = [part for part in parts if part not in local]
            database.register(remote, dataset_of(stubs, files.schema))
            scans.append(remote)
        pieces += [f"SELECT {every} FROM {scan} part {left_out}" for scan in scans]  # noqa: S608
    return " UNION ALL BY NAME ".join(pieces)


def _by_names(files: TableFiles) -> dict[tuple[tuple[str, str], ...], list[Path]]:
    """The parts by those of their carried columns that the schema calls otherwise."""
    found: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for path in files.parts:
        names: Mapping[str, str] = {}
        if layout_of(files.layout, 1) != files.layout:
            with opened(path) as part:
                names = new_names(part.schema_arrow, files.layout)
        found.setdefault(tuple(names.items()), []).append(path)
    return found


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def pattern_of(path: Path) -> str:
    """What DuckDB takes, and calls, the path."""
    return str(path).translate(_GLOB)


def scan_of(database: duckdb.DuckDBPyConnection, file: Path, schema: pa.Schema) -> str:
    """What stands for a Parquet file of a run in a query; also where it is in a store."""
    if read_stub(file) is None:
        return _scan([file])
    name = f"file_{hashlib.sha256(bytes(file)).hexdigest()[:16]}"
    database.register(name, dataset_of([file], schema))
    return name


def _scan(paths: Sequence[Path]) -> str:
    names = (pattern_of(path).replace("'", "''") for path in paths)
    # A folder may be called `model=gpt-6`, which says nothing of the rows.
    options = "union_by_name = true, hive_partitioning = false"
    return "read_parquet([" + ", ".join(f"'{name}'" for name in names) + f"], {options})"
