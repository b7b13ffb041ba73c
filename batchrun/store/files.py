"""What a run holds at one instant as Parquet files: its parts, and the journal's rows besides."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from msgspec import Struct

from batchrun.records import Layout, RunRecord
from batchrun.store.disk import storing
from batchrun.store.keys import Keys
from batchrun.store.names import RESPONSES, TOOL_CALLS, WRITER, FileId
from batchrun.store.parts import write_parts
from batchrun.store.schema import response_schema, tool_call_schema
from batchrun.store.snapshot import Snapshot, read_snapshot
from batchrun.store.tables import read_record

T = TypeVar("T")


class TableFiles(Struct, frozen=True):
    """One table: a row counts once, in a part or in what was the journal."""

    parts: tuple[Path, ...]
    journal: tuple[Path, ...]  # of this moment: none or one
    replaced: Keys  # rows of the parts that stand in `journal` anew
    schema: pa.Schema  # that all rows are read with
    layout: Layout | None  # what they carry; null: nothing


class Files(Struct, frozen=True):
    """Both tables, and a folder for whatever a reader must put aside."""

    record: RunRecord
    responses: TableFiles
    tool_calls: TableFiles
    aside: Path  # deleted afterwards


def read_files(path: Path, read: Callable[[Files], T]) -> T:
    """What `read` makes of the run's files; it is called again where a seal replaced one meanwhile.

    The journal's rows are written to a file outside the run directory, which is not changed.
    Raises `JobError`, `StoreError` and what `read` raises.
    """
    record = read_record(path)
    return read_snapshot(path, lambda now: _read(now, record, read))


def _read(now: Snapshot, record: RunRecord, read: Callable[[Files], T]) -> T:
    with tempfile.TemporaryDirectory(prefix="batchrun-") as name:
        aside = Path(name)
        with storing(aside, "write the journal's rows"):
            written = write_parts(
                aside,
                FileId(WRITER, 0),
                now.outcomes(),
                record.layout,
                store_request=record.store_request,
                version=record.schema_version,
            )
        journal = [aside / source for source, _ in written]
        version = record.schema_version
        responses, tool_calls = (
            TableFiles(
                parts,
                tuple(file for file in journal if file.parent.name == table),
                now.replaced,
                schema,
                layout,
            )
            for table, parts, schema, layout in (
                (RESPONSES, now.responses, response_schema(record.layout, version), record.layout),
                (TOOL_CALLS, now.tool_calls, tool_call_schema(version), None),
            )
        )
        return read(Files(record, responses, tool_calls, aside))
