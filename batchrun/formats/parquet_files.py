"""Arrow tables as one Parquet file, or as a folder with a file for each value of a column."""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.errors import JobError
from batchrun.formats.arrow import json_values

_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 << 20
_OPEN_BYTES = 128 << 20  # in memory, of all files of a folder
_MOST_FILES = 1_000
_NULL = "__HIVE_DEFAULT_PARTITION__"  # what Hive and all readers of such folders call it
PART = "part-0.parquet"


def write_parquet(
    place: Path, tables: Iterable[pa.Table], schema: pa.Schema, by: str | None
) -> tuple[int, int]:
    """How many rows and bytes were written; `by`: the column that makes a folder of it.

    Raises `JobError` where that column makes no names of folders.
    """
    files: dict[str, _ParquetFile] = {}
    rows = 0
    shutil.rmtree(place, ignore_errors=True)  # of a first attempt
    if by is None:
        files[""] = _ParquetFile(place, schema)
    else:
        place.mkdir()
        schema = schema.remove(schema.get_field_index(by))
    try:
        for table in tables:
            rows += table.num_rows
            for name, some in [("", table)] if by is None else _split(table, by):
                if name not in files:
                    if len(files) == _MOST_FILES:
                        raise JobError(
                            f"{by} has more than {_MOST_FILES:,} values; give --partition-by a "
                            "column with few values"
                        )
                    (place / name).mkdir()
                    files[name] = _ParquetFile(place / name / PART, schema)
                files[name].add(some)
            while sum(file.bytes for file in files.values()) > _OPEN_BYTES:
                max(files.values(), key=lambda file: file.bytes).write_group()
    finally:
        for file in files.values():
            file.close()
    for file in files.values():
        with file.path.open("rb+") as written:
            os.fsync(written.fileno())
    return rows, sum(file.path.stat().st_size for file in files.values())


def _split(table: pa.Table, by: str) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each value, and the name of its folder."""
    kind = table.schema.field(by).type
    is_simple = pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if not (is_simple or pa.types.is_large_string(kind) or pa.types.is_date(kind)):
        raise JobError(
            f"{by} is of type {kind}; give --partition-by a column of text, whole numbers, "
            "booleans or dates"
        )
    if "=" in by or "/" in by:
        raise JobError(f"{by}: its name cannot stand in the name of a folder; give another column")
    found: dict[object, list[int]] = {}
    for at, value in enumerate(json_values(table[by])):
        found.setdefault(value, []).append(at)
    others = table.drop_columns([by])
    for value, places in found.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        name = f"{by}={_NULL if value is None else quote(text, safe=' ')}"
        if len(name.encode()) > 255:
            raise JobError(
                f"a value of {by} is too long for the name of a folder ({text[:40]}…); give "
                "--partition-by a column with short values"
            )
        yield name, others.take(places)


class _ParquetFile:
    """A file being written, in row groups that scan well."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.bytes = 0  # in memory
        self._rows = 0
        self._tables: list[pa.Table] = []
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._rows += table.num_rows
        self.bytes += table.nbytes
        if self._rows >= _GROUP_ROWS or self.bytes >= _GROUP_BYTES:
            self.write_group()

    def write_group(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._tables).cast(self._schema))
        self._tables, self._rows, self.bytes = [], 0, 0

    def close(self) -> None:
        self.write_group()
        self._writer.close()
